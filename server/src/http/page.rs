//! Lists, a page at a time, by what names the last item: stable while rows are added.

use assay_protocol::{admin_api::page::Page, text::hardware_id};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use utoipa::IntoParams;
use uuid::Uuid;

use super::problem::ApiProblem;

const DEFAULT_LIMIT: i64 = 50;
const GREATEST_LIMIT: i64 = 500;

/// Which page of a list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageParameters {
    /// How many items, 1 to 500; 50 where absent.
    limit: Option<i64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// A page that was asked for, checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageRequest<N = Uuid> {
    /// The last item of the page before.
    pub(crate) after: Option<N>,
    limit: i64,
}

/// What names the items of a list, in their order: an id, or a serial number.
pub(crate) trait ItemName: Sized {
    fn as_bytes(&self) -> &[u8];

    fn from_bytes(bytes: Vec<u8>) -> Option<Self>;
}

impl ItemName for Uuid {
    fn as_bytes(&self) -> &[u8] {
        self.as_bytes()
    }

    fn from_bytes(bytes: Vec<u8>) -> Option<Self> {
        Self::from_slice(&bytes).ok()
    }
}

impl ItemName for String {
    fn as_bytes(&self) -> &[u8] {
        self.as_bytes()
    }

    fn from_bytes(bytes: Vec<u8>) -> Option<Self> {
        let name = Self::from_utf8(bytes).ok()?;
        let is_serial_number = hardware_id(&name) == Ok(Some(&name));
        is_serial_number.then_some(name)
    }
}

impl PageParameters {
    pub(crate) fn check(self) -> Result<PageRequest, ApiProblem> {
        page_request(self.limit, self.cursor.as_deref())
    }
}

/// For lists whose own parameters stand beside `limit` and `cursor`.
pub(crate) fn page_request<N: ItemName>(
    limit: Option<i64>,
    cursor: Option<&str>,
) -> Result<PageRequest<N>, ApiProblem> {
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=GREATEST_LIMIT).contains(&limit) {
        return Err(ApiProblem::malformed(format!(
            "limit has to be from 1 to {GREATEST_LIMIT}"
        )));
    }
    let after = cursor.map(parse_cursor).transpose()?;
    Ok(PageRequest { after, limit })
}

impl<N: ItemName> PageRequest<N> {
    /// How many rows to ask the store for: one more than are shown tells whether there is a next page.
    pub(crate) fn rows(&self) -> i64 {
        self.limit + 1
    }

    /// Makes the page of the rows that were found.
    pub(crate) fn page<T>(&self, mut items: Vec<T>, name: impl Fn(&T) -> N) -> Page<T> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        let last = items.last().filter(|_| more);
        Page {
            next_cursor: last.map(|item| URL_SAFE_NO_PAD.encode(name(item).as_bytes())),
            items,
        }
    }
}

fn parse_cursor<N: ItemName>(cursor: &str) -> Result<N, ApiProblem> {
    URL_SAFE_NO_PAD
        .decode(cursor)
        .ok()
        .and_then(N::from_bytes)
        .ok_or_else(|| ApiProblem::malformed("cursor is not one that this server gave out"))
}
