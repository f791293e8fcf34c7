//! Pages of lists. A cursor is the position of the last item in the list's order, so pages stay stable while rows are
//! added.

use std::{borrow::Cow, sync::Arc};

use assay_protocol::{admin_api::page::Page, text::hardware_id};
use aws_lc_rs::digest::{self, SHA256};
use axum::{
    extract::FromRequestParts,
    http::{Uri, request::Parts},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, de::DeserializeOwned};
use url::form_urlencoded;
use utoipa::IntoParams;
use uuid::Uuid;

use super::{extract, problem::ApiProblem};
use crate::services::Services;

const DEFAULT_LIMIT: i64 = 50;
const MAX_LIMIT: i64 = 500;

/// Which page of a list; for the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "documents what `List` reads besides the filters")]
pub(crate) struct PageParameters {
    /// How many items, 1 to 500. The default is 50.
    #[param(minimum = 1, maximum = 500, default = 50)]
    limit: Option<i64>,
    /// `next_cursor` of the previous page. The list and its filters must be the same.
    cursor: Option<String>,
}

/// The request for a list: its filters and the page.
#[derive(Debug)]
pub(crate) struct List<F, P = Uuid> {
    pub(crate) filter: F,
    pub(crate) page: PageRequest<P>,
}

/// The filters of a list without filters.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Unfiltered {}

/// A validated request for a page. `P` is a position in the list's order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageRequest<P = Uuid> {
    /// The last item of the previous page.
    pub(crate) after: Option<P>,
    limit: i64,
    list: ListTag,
}

/// The list that a cursor belongs to: a digest of its path and filters. With another list, the position would silently
/// skip items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ListTag([u8; 8]);

/// A position in a list's order, as cursors contain it.
pub(crate) trait Place: Sized {
    fn to_bytes(&self) -> Vec<u8>;
    /// Parses what [`Self::to_bytes`] wrote.
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

/// A machine's serial number.
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

impl<F: DeserializeOwned, P: Place> FromRequestParts<Arc<Services>> for List<F, P> {
    type Rejection = ApiProblem;

    async fn from_request_parts(parts: &mut Parts, _services: &Arc<Services>) -> Result<Self, ApiProblem> {
        Self::parse(&parts.uri)
    }
}

impl<F: DeserializeOwned, P: Place> List<F, P> {
    pub(crate) fn parse(uri: &Uri) -> Result<Self, ApiProblem> {
        let query = extract::query(uri)?;
        let (mut limit, mut cursor) = (None, None);
        let mut filters = Vec::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let place = match name.as_ref() {
                "limit" => &mut limit,
                "cursor" => &mut cursor,
                _ => {
                    filters.push((name, value));
                    continue;
                }
            };
            if place.replace(value).is_some() {
                return Err(ApiProblem::malformed(format!("{name} appears twice")));
            }
        }
        let list = ListTag::of(uri.path(), &filters);
        let filters = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(filters)
            .finish();
        Ok(Self {
            filter: extract::parameters(&filters)?,
            page: PageRequest {
                after: cursor.map(|cursor| parse_cursor(&cursor, list)).transpose()?,
                limit: limit.map_or(Ok(DEFAULT_LIMIT), |limit| parse_limit(&limit))?,
                list,
            },
        })
    }
}

impl ListTag {
    fn of(path: &str, filters: &[(Cow<'_, str>, Cow<'_, str>)]) -> Self {
        let mut filters: Vec<_> = filters.iter().collect();
        filters.sort_unstable();
        let mut digest = digest::Context::new(&SHA256);
        for part in [path].into_iter().chain(
            filters
                .into_iter()
                .flat_map(|(name, value)| [name.as_ref(), value.as_ref()]),
        ) {
            digest.update(part.as_bytes());
            // Neither the path nor the query can contain a NUL here.
            digest.update(b"\0");
        }
        let mut tag = [0; 8];
        for (byte, digest) in tag.iter_mut().zip(digest.finish().as_ref()) {
            *byte = *digest;
        }
        Self(tag)
    }
}

fn parse_limit(text: &str) -> Result<i64, ApiProblem> {
    let limit = text.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
    limit.ok_or_else(|| ApiProblem::malformed(format!("limit must be a whole number from 1 to {MAX_LIMIT}")))
}

impl<P: Place> PageRequest<P> {
    /// How many rows to read: one more than the page has, which shows whether there is a next page.
    pub(crate) fn rows(&self) -> i64 {
        self.limit + 1
    }

    pub(crate) fn cursor(&self, place: &P) -> String {
        URL_SAFE_NO_PAD.encode([self.list.0.as_slice(), &place.to_bytes()].concat())
    }

    /// Builds the page from the rows found.
    pub(crate) fn page<T>(&self, items: Vec<T>, place: impl Fn(&T) -> P) -> Page<T> {
        self.page_until(items, place, None)
    }

    /// Builds the page from rows and their positions.
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

    /// Builds the page from the rows of a search that may have stopped before the page was full.
    pub(crate) fn page_until<T>(&self, mut items: Vec<T>, place: impl Fn(&T) -> P, stopped_at: Option<P>) -> Page<T> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        let last = items.last().filter(|_| more).map(place).or(stopped_at);
        Page {
            next_cursor: last.map(|place| self.cursor(&place)),
            items,
        }
    }
}

fn parse_cursor<P: Place>(cursor: &str, list: ListTag) -> Result<P, ApiProblem> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok();
    let parts = bytes.as_deref().and_then(<[u8]>::split_first_chunk);
    let Some((tag, place)) = parts else {
        return Err(ApiProblem::malformed(
            "cursor is invalid: use next_cursor of the previous page",
        ));
    };
    if ListTag(*tag) != list {
        return Err(ApiProblem::malformed(
            "cursor belongs to another list or to other filters: use the same filters as for the first page",
        ));
    }
    P::from_bytes(place).ok_or_else(|| ApiProblem::malformed("cursor is invalid: use next_cursor of the previous page"))
}
