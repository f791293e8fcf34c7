//! What handlers take from a request, with every refusal a problem that names what was wrong.

use std::{sync::Arc, time::Duration};

use assay_protocol::ProblemKind;
use axum::{
    RequestExt,
    body::{Body, Bytes},
    extract::{FromRequest, FromRequestParts, OptionalFromRequest, Path, Query, Request},
    http::{HeaderMap, header, request::Parts},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use uuid::Uuid;

use super::{deadline::Deadline, problem::ApiProblem};
use crate::services::Services;

/// The largest body of an agent's request, in bytes.
pub(crate) const AGENT_BODY_LIMIT: BodyLimit = BodyLimit(64 * 1024);
/// The largest body of an administrator's request, in bytes.
pub(crate) const ADMIN_BODY_LIMIT: BodyLimit = BodyLimit(1024 * 1024);

/// How long a body may take to arrive: a megabyte at 35 kB a second.
const BODY_TIME: Duration = Duration::from_secs(30);

/// How many bytes of body the routes below may be sent; an extension of the request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyLimit(usize);

/// A JSON body.
pub(crate) struct Json<T>(pub(crate) T);

/// The parameters of a form, in the order in which they were sent.
pub(crate) struct Form(pub(crate) Vec<(String, String)>);

/// An id from the path; what is no UUID names nothing, so it is not found.
pub(crate) struct Id(pub(crate) Uuid);

/// The query string.
pub(crate) struct Parameters<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Arc<Services>> for Json<T> {
    type Rejection = ApiProblem;

    async fn from_request(request: Request, _services: &Arc<Services>) -> Result<Self, ApiProblem> {
        demand_json(request.headers())?;
        let body = read_body(request).await?;
        parse(&body).map(Self)
    }
}

/// A body that may be left out, as that of an approval.
impl<T: DeserializeOwned> OptionalFromRequest<Arc<Services>> for Json<T> {
    type Rejection = ApiProblem;

    async fn from_request(request: Request, _services: &Arc<Services>) -> Result<Option<Self>, ApiProblem> {
        let headers = request.headers().clone();
        let body = read_body(request).await?;
        if body.is_empty() || body.trim_ascii() == b"null" {
            return Ok(None);
        }
        demand_json(&headers)?;
        parse(&body).map(|value| Some(Self(value)))
    }
}

impl FromRequest<Arc<Services>> for Form {
    type Rejection = ApiProblem;

    async fn from_request(request: Request, _services: &Arc<Services>) -> Result<Self, ApiProblem> {
        if media_type(request.headers()).as_deref() != Some("application/x-www-form-urlencoded") {
            return Err(ApiProblem::new(
                ProblemKind::UnsupportedMediaType,
                "the body has to be application/x-www-form-urlencoded",
            ));
        }
        let body = read_body(request).await?;
        Ok(Self(url::form_urlencoded::parse(&body).into_owned().collect()))
    }
}

impl FromRequestParts<Arc<Services>> for Id {
    type Rejection = ApiProblem;

    async fn from_request_parts(parts: &mut Parts, services: &Arc<Services>) -> Result<Self, ApiProblem> {
        match Path::<Uuid>::from_request_parts(parts, services).await {
            Ok(Path(id)) => Ok(Self(id)),
            Err(_) => Err(ApiProblem::new(
                ProblemKind::NotFound,
                "what the path names is not an id",
            )),
        }
    }
}

impl<T: DeserializeOwned> FromRequestParts<Arc<Services>> for Parameters<T> {
    type Rejection = ApiProblem;

    async fn from_request_parts(parts: &mut Parts, services: &Arc<Services>) -> Result<Self, ApiProblem> {
        // Postgres has no text with a NUL in it.
        if parts
            .uri
            .query()
            .is_some_and(|query| query.contains("%00") || query.len() > 8 * 1024)
        {
            return Err(ApiProblem::malformed("the query holds a NUL, or is longer than 8 KiB"));
        }
        match Query::<T>::from_request_parts(parts, services).await {
            Ok(Query(parameters)) => Ok(Self(parameters)),
            Err(rejection) => Err(ApiProblem::malformed(
                rejection
                    .body_text()
                    .trim_start_matches("Failed to deserialize query string: "),
            )),
        }
    }
}

fn demand_json(headers: &HeaderMap) -> Result<(), ApiProblem> {
    match media_type(headers).as_deref() {
        Some("application/json" | "application/merge-patch+json") => Ok(()),
        _ => Err(ApiProblem::new(
            ProblemKind::UnsupportedMediaType,
            "the body has to be application/json",
        )),
    }
}

/// Without its parameters.
fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next()?.trim().to_ascii_lowercase())
}

async fn read_body(request: Request) -> Result<Bytes, ApiProblem> {
    let BodyLimit(limit) = request.extensions().get().copied().unwrap_or(AGENT_BODY_LIMIT);
    let deadline = request.extensions().get::<Deadline>().cloned();
    if let Some(deadline) = &deadline {
        deadline.allow(BODY_TIME + BODY_TIME);
    }
    let body: Body = request.with_limited_body().into_body();
    let Ok(body) = timeout(BODY_TIME, Limited::new(body, limit).collect()).await else {
        let seconds = BODY_TIME.as_secs();
        return Err(ApiProblem::malformed(format!(
            "the body did not arrive within {seconds} s"
        )));
    };
    if let Some(deadline) = &deadline {
        deadline.begin_work();
    }
    match body {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => Err(ApiProblem::new(
            ProblemKind::PayloadTooLarge,
            format!("the body is larger than {limit} bytes"),
        )),
        Err(_) => Err(ApiProblem::malformed("the body ended before it was complete")),
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiProblem> {
    // serde reads an array as well, member by member: `[]` would be a request with every default.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(ApiProblem::malformed("the body has to be a JSON object"));
    }
    let value = serde_json::from_slice(body).map_err(|error| ApiProblem::malformed(error.to_string()))?;
    // Postgres has no text with a NUL in it, and JSON can write one in this way alone.
    if holds_nul(body) {
        return Err(ApiProblem::malformed("a text holds a NUL"));
    }
    Ok(value)
}

/// Whether a JSON text holds the escape of a NUL: an odd number of backslashes before `u0000`, since two of them are one
/// backslash.
fn holds_nul(json: &[u8]) -> bool {
    let mut backslashes = 0_usize;
    for (place, byte) in json.iter().enumerate() {
        if *byte == b'\\' {
            backslashes += 1;
            continue;
        }
        if backslashes % 2 == 1 && json.get(place..).is_some_and(|rest| rest.starts_with(b"u0000")) {
            return true;
        }
        backslashes = 0;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_escaped_backslash_before_u0000_is_no_nul() {
        assert!(holds_nul(br#"{"a":"\u0000"}"#));
        assert!(holds_nul(br#"{"a":"x\\\u0000"}"#));
        assert!(!holds_nul(br#"{"a":"C:\\u0000x"}"#));
        assert!(!holds_nul(br#"{"a":"\u00001"}"#.split_at(8).0));
        assert!(!holds_nul(br#"{"u0000":"\n"}"#));
    }
}
