//! Lists, a page at a time, by the place of the last item in the list's order: stable while rows are added.

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

/// A page that was asked for, checked. `P` is a place in the list's order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageRequest<P = Uuid> {
    /// The last item of the page before.
    pub(crate) after: Option<P>,
    limit: i64,
}

/// A place in a list's order, as cursors carry it.
pub(crate) trait Place: Sized {
    /// As the cursor keeps it.
    fn to_bytes(&self) -> Vec<u8>;
    /// Reads what [`Self::to_bytes`] wrote.
    fn from_bytes(bytes: &[u8]) -> Option<Self>;
}

impl Place for Uuid {
    fn to_bytes(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Self::from_slice(bytes).ok()
    }
}

/// A serial number of a machine.
impl Place for String {
    fn to_bytes(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let serial_number = std::str::from_utf8(bytes).ok()?;
        let is_one = hardware_id(serial_number) == Ok(Some(serial_number));
        is_one.then(|| serial_number.to_owned())
    }
}

impl PageParameters {
    pub(crate) fn check<P: Place>(self) -> Result<PageRequest<P>, ApiProblem> {
        page_request(self.limit, self.cursor.as_deref())
    }
}

/// For lists whose own parameters stand beside `limit` and `cursor`.
pub(crate) fn page_request<P: Place>(limit: Option<i64>, cursor: Option<&str>) -> Result<PageRequest<P>, ApiProblem> {
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=GREATEST_LIMIT).contains(&limit) {
        return Err(ApiProblem::malformed(format!(
            "limit has to be from 1 to {GREATEST_LIMIT}"
        )));
    }
    let after = cursor.map(parse_cursor).transpose()?;
    Ok(PageRequest { after, limit })
}

impl<P: Place> PageRequest<P> {
    /// How many rows to ask the store for: one more than are shown tells whether there is a next page.
    pub(crate) fn rows(&self) -> i64 {
        self.limit + 1
    }

    /// Makes the page of the rows that were found.
    pub(crate) fn page<T>(&self, items: Vec<T>, place: impl Fn(&T) -> P) -> Page<T> {
        self.page_until(items, place, None)
    }

    /// Makes the page of rows that were found with their places.
    pub(crate) fn page_of<T>(&self, items: Vec<(P, T)>) -> Page<T>
    where
        P: Clone,
    {
        let page = self.page(items, |(place, _)| place.clone());
        Page {
            items: page.items.into_iter().map(|(_, item)| item).collect(),
            next_cursor: page.next_cursor,
        }
    }

    /// Makes the page of the rows that were found by a search that may have stopped before the page was full.
    pub(crate) fn page_until<T>(&self, mut items: Vec<T>, place: impl Fn(&T) -> P, stopped_at: Option<P>) -> Page<T> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        let last = items.last().filter(|_| more).map(place).or(stopped_at);
        Page {
            next_cursor: last.map(|place| URL_SAFE_NO_PAD.encode(place.to_bytes())),
            items,
        }
    }
}

fn parse_cursor<P: Place>(cursor: &str) -> Result<P, ApiProblem> {
    URL_SAFE_NO_PAD
        .decode(cursor)
        .ok()
        .and_then(|bytes| P::from_bytes(&bytes))
        .ok_or_else(|| ApiProblem::malformed("cursor is not one that this server gave out"))
}
