//! Extractors for handlers. Every rejection is a problem that names what is wrong.

use std::{sync::Arc, time::Duration};

use assay_protocol::ProblemKind;
use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{FromRequest, FromRequestParts, OptionalFromRequest, Path, Query, Request},
    http::{HeaderMap, Uri, header, request::Parts},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};
use tokio::time::timeout;
use uuid::Uuid;

use super::{deadline::Deadline, problem::ApiProblem};
use crate::{services::Services, text::json};

/// The largest body of an agent's request, in bytes.
pub(crate) const AGENT_BODY_LIMIT: BodyLimit = BodyLimit {
    bytes: 64 * 1024,
    time: BODY_TIME,
    texts: Texts::Any,
};
/// The largest body of an administrator's request, in bytes.
pub(crate) const ADMIN_BODY_LIMIT: BodyLimit = BodyLimit {
    bytes: 1024 * 1024,
    time: BODY_TIME,
    texts: Texts::Displayable,
};
/// The largest OCSP request at the listener for revocation status: 20 questions and a nonce are below 4 KiB. A body must
/// arrive soon, because its sender has proved nothing.
pub(crate) const OCSP_BODY_LIMIT: BodyLimit = BodyLimit {
    bytes: 8 * 1024,
    time: Duration::from_secs(5),
    texts: Texts::Any,
};
/// The largest message of an MDM. It may list everything that is installed on a device.
pub(crate) const MDM_BODY_LIMIT: BodyLimit = BodyLimit {
    bytes: 4 * 1024 * 1024,
    time: BODY_TIME,
    texts: Texts::Any,
};
/// The largest inventory. It may arrive at 110 kB/s.
pub(crate) const INVENTORY_BODY_LIMIT: BodyLimit = BodyLimit {
    bytes: 32 * 1024 * 1024,
    time: Duration::from_mins(5),
    texts: Texts::Displayable,
};
/// The largest policy.
pub(crate) const POLICY_BODY_LIMIT: BodyLimit = BodyLimit {
    bytes: 32 * 1024 * 1024,
    time: Duration::from_mins(5),
    texts: Texts::Displayable,
};

/// How long a body may take to arrive: 1 MB at 35 kB/s.
const BODY_TIME: Duration = Duration::from_secs(30);

/// The largest body that a route accepts, and how long it may take to arrive; an extension of the request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyLimit {
    bytes: usize,
    time: Duration,
    texts: Texts,
}

/// Which texts a JSON body may contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Texts {
    /// Any. Texts of machines are checked one by one, because an unfit host name is no reason to refuse a machine.
    Any,
    /// Only what may be shown to administrators.
    Displayable,
}

impl BodyLimit {
    fn of(request: &Request) -> Self {
        request.extensions().get().copied().unwrap_or(AGENT_BODY_LIMIT)
    }
}

/// A JSON body.
pub(crate) struct Json<T>(pub(crate) T);

/// The parameters of a form, in the order of the body.
pub(crate) struct Form(pub(crate) Vec<(String, String)>);

/// An id from the path. Anything that is not a UUID is "not found".
pub(crate) struct Id(pub(crate) Uuid);

/// A certificate's serial number from the path, as the server writes it. Upper and lower case and colons are accepted.
pub(crate) struct SerialNumber(pub(crate) String);

/// The query string.
pub(crate) struct Parameters<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Arc<Services>> for Json<T> {
    type Rejection = ApiProblem;

    async fn from_request(request: Request, _services: &Arc<Services>) -> Result<Self, ApiProblem> {
        require_json(request.headers())?;
        let texts = BodyLimit::of(&request).texts;
        let body = read_body(request).await?;
        parse(&body, texts).map(Self)
    }
}

/// An optional body, such as that of an approval.
impl<T: DeserializeOwned> OptionalFromRequest<Arc<Services>> for Json<T> {
    type Rejection = ApiProblem;

    async fn from_request(request: Request, _services: &Arc<Services>) -> Result<Option<Self>, ApiProblem> {
        let headers = request.headers().clone();
        let texts = BodyLimit::of(&request).texts;
        let body = read_body(request).await?;
        if body.is_empty() || body.trim_ascii() == b"null" {
            return Ok(None);
        }
        require_json(&headers)?;
        parse(&body, texts).map(|value| Some(Self(value)))
    }
}

impl FromRequest<Arc<Services>> for Form {
    type Rejection = ApiProblem;

    async fn from_request(request: Request, _services: &Arc<Services>) -> Result<Self, ApiProblem> {
        if media_type(request.headers()).as_deref() != Some("application/x-www-form-urlencoded") {
            return Err(ApiProblem::new(
                ProblemKind::UnsupportedMediaType,
                "the body must be application/x-www-form-urlencoded",
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
                "the path does not contain a valid id",
            )),
        }
    }
}

impl FromRequestParts<Arc<Services>> for SerialNumber {
    type Rejection = ApiProblem;

    async fn from_request_parts(parts: &mut Parts, services: &Arc<Services>) -> Result<Self, ApiProblem> {
        let text = Path::<String>::from_request_parts(parts, services).await;
        let serial_number = text.ok().and_then(|Path(text)| parse_serial_number(&text));
        serial_number.map(Self).ok_or_else(|| {
            let detail =
                "the path does not contain a valid serial number: hex, two digits per byte, with or without colons";
            ApiProblem::new(ProblemKind::NotFound, detail)
        })
    }
}

impl<T: DeserializeOwned> FromRequestParts<Arc<Services>> for Parameters<T> {
    type Rejection = ApiProblem;

    async fn from_request_parts(parts: &mut Parts, _services: &Arc<Services>) -> Result<Self, ApiProblem> {
        parameters(query(&parts.uri)?).map(Self)
    }
}

/// The query, within the limits.
pub(crate) fn query(uri: &Uri) -> Result<&str, ApiProblem> {
    let query = uri.query().unwrap_or_default();
    // Postgres cannot store a NUL in a text.
    if query.contains("%00") || query.len() > 8 * 1024 {
        return Err(ApiProblem::malformed(
            "the query contains a NUL, or is longer than 8 KiB",
        ));
    }
    Ok(query)
}

/// Reads parameters from a query.
pub(crate) fn parameters<T: DeserializeOwned>(query: &str) -> Result<T, ApiProblem> {
    let uri = Uri::builder().path_and_query(format!("/?{query}")).build();
    let uri = uri.map_err(|_| ApiProblem::malformed("the query cannot be read"))?;
    match Query::<T>::try_from_uri(&uri) {
        Ok(Query(parameters)) => Ok(parameters),
        Err(rejection) => Err(ApiProblem::malformed(
            rejection
                .body_text()
                .trim_start_matches("Failed to deserialize query string: "),
        )),
    }
}

/// Parses the time in the query parameter `name`.
pub(crate) fn parse_time(name: &str, text: Option<String>) -> Result<Option<OffsetDateTime>, ApiProblem> {
    let parse = |text: String| {
        // In UTC, a time in the year 9999 may be in the year 10000, which Postgres does not accept.
        let time = OffsetDateTime::parse(&text, &Rfc3339).ok();
        time.and_then(|time| time.checked_to_offset(UtcOffset::UTC))
            .ok_or_else(|| {
                ApiProblem::malformed(format!("{name} must be an RFC 3339 time, such as 2026-11-22T10:00:00Z"))
            })
    };
    text.map(parse).transpose()
}

/// Lower-case hex without colons. `None` if it is not 1 to 20 bytes (RFC 5280, section 4.1.2.2).
fn parse_serial_number(text: &str) -> Option<String> {
    let digits = text.replace(':', "").to_ascii_lowercase();
    let bytes = hex::decode(&digits).ok()?;
    (1..=20).contains(&bytes.len()).then_some(digits)
}

fn require_json(headers: &HeaderMap) -> Result<(), ApiProblem> {
    match media_type(headers).as_deref() {
        Some("application/json" | "application/merge-patch+json") => Ok(()),
        _ => Err(ApiProblem::new(
            ProblemKind::UnsupportedMediaType,
            "the body must be application/json",
        )),
    }
}

/// The media type of the body, in lower case and without parameters.
pub(crate) fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let media_type = value.split(';').next()?;
    Some(media_type.trim().to_ascii_lowercase())
}

/// Reads the whole body, within the limits of its route.
pub(crate) async fn read_body(request: Request) -> Result<Bytes, ApiProblem> {
    let limit = BodyLimit::of(&request);
    let deadline = request.extensions().get::<Deadline>().cloned();
    if let Some(deadline) = &deadline {
        deadline.allow(limit.time + BODY_TIME);
    }
    let Ok(body) = timeout(limit.time, collect(request.into_body(), limit.bytes)).await else {
        let seconds = limit.time.as_secs();
        return Err(ApiProblem::malformed(format!(
            "the body did not arrive within {seconds} s"
        )));
    };
    if let Some(deadline) = &deadline {
        deadline.begin_work();
    }
    match body {
        Ok(body) => Ok(body),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => Err(ApiProblem::new(
            ProblemKind::PayloadTooLarge,
            format!("the body is larger than {} bytes", limit.bytes),
        )),
        Err(_) => Err(ApiProblem::malformed("the body ended before it was complete")),
    }
}

/// Collects into one buffer whose size is taken from the expected length. Collecting pieces and joining them would need
/// twice the memory.
async fn collect(body: Body, limit: usize) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
    let expected = usize::try_from(body.size_hint().lower()).unwrap_or(limit).min(limit);
    let (mut body, mut bytes) = (Limited::new(body, limit), Vec::with_capacity(expected));
    while let Some(frame) = body.frame().await {
        if let Ok(piece) = frame?.into_data() {
            bytes.extend_from_slice(&piece);
        }
    }
    Ok(bytes.into())
}

fn parse<T: DeserializeOwned>(body: &[u8], texts: Texts) -> Result<T, ApiProblem> {
    // serde also reads an array as a struct, member by member. `[]` would be a request with all defaults.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(ApiProblem::malformed("the body must be a JSON object"));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| misread(&error))?;
    deserializer
        .end()
        .map_err(|error| ApiProblem::malformed(error.to_string()))?;
    // Postgres cannot store a NUL in a text. In JSON, this escape is the only way to write one.
    if contains_nul(body) {
        return Err(ApiProblem::malformed("a string contains a NUL"));
    }
    if texts == Texts::Displayable {
        json::check(body).map_err(ApiProblem::malformed)?;
    }
    Ok(value)
}

/// What is wrong with a JSON body: the field if there is one, or else the position.
fn misread(error: &serde_path_to_error::Error<serde_json::Error>) -> ApiProblem {
    let (path, inner) = (error.path().to_string(), error.inner());
    let words = inner.to_string();
    if !inner.is_data() {
        return ApiProblem::malformed(words);
    }
    let place = format!(" at line {} column {}", inner.line(), inner.column());
    let words = words.strip_suffix(&place).unwrap_or(&words);
    ApiProblem::malformed(match path.as_str() {
        "." => words.to_owned(),
        path => format!("{path}: {words}"),
    })
}

/// Whether JSON contains an escaped NUL: an odd number of backslashes before `u0000`. Two backslashes are one literal
/// backslash.
fn contains_nul(json: &[u8]) -> bool {
    // Fast path: almost no body has a backslash, and `contains` compares many bytes at once.
    if !json.contains(&b'\\') {
        return false;
    }
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
    fn a_serial_number_is_read_in_any_case_with_or_without_colons() {
        for text in ["61a1ada0", "61A1ADA0", "61:A1:AD:a0"] {
            assert_eq!(parse_serial_number(text).as_deref(), Some("61a1ada0"), "{text}");
        }
        for text in ["", ":", "6", "61a1ad0", "0x61", "61 a1", "61-a1", "é", &"61".repeat(21)] {
            assert_eq!(parse_serial_number(text), None, "{text}");
        }
    }

    #[test]
    fn an_escaped_backslash_before_u0000_is_not_a_nul() {
        assert!(contains_nul(br#"{"a":"\u0000"}"#));
        assert!(contains_nul(br#"{"a":"x\\\u0000"}"#));
        assert!(!contains_nul(br#"{"a":"C:\\u0000x"}"#));
        assert!(!contains_nul(br#"{"a":"\u00001"}"#.split_at(8).0));
        assert!(!contains_nul(br#"{"u0000":"\n"}"#));
    }
}
