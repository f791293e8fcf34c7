//! `/v1/ca/ocsp`: the status of a certificate (RFC 6960, appendix A.1, and RFC 5019).

use std::sync::Arc;

use assay_protocol::{Problem, ProblemKind, sha256};
use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Uri, header},
    response::{IntoResponse, Response},
    routing,
};
use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use percent_encoding::percent_decode_str;
use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    http::{
        extract::{media_type, read_body},
        problem::{ApiProblem, ApiResult},
    },
    revocation::ocsp::{self, Validity},
    services::Services,
};

const PATH: &str = "/v1/ca/ocsp/";
const REQUEST: &str = "application/ocsp-request";
const RESPONSE: &str = "application/ocsp-response";
/// For cacheable responses: relying parties must learn of a revocation within 5 s. Their signatures cover every byte.
const SHARED: &str = "public, max-age=2, no-transform, must-revalidate";
/// RFC 9110, section 5.6.7. The time is in UTC.
const HTTP_DATE: &[BorrowedFormatItem<'_>] =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");
/// The longest request in a path: 20 questions in base64, and half as long again for escaped characters.
const LONGEST_TEXT: usize = 8 * 1024;

/// Clients may omit the padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new()
        .routes(routes!(post))
        .routes(routes!(get))
        // Many clients do not escape the slashes of base64, or append a slash to the URL in the certificate.
        .route("/v1/ca/ocsp/{request}/", routing::get(get))
        .route("/v1/ca/ocsp/{request}/{*rest}", routing::get(get))
}

/// Read the status of certificates (RFC 6960).
///
/// The request may contain a nonce (RFC 9654).
#[utoipa::path(
    post, path = "/v1/ca/ocsp", tag = "Relying parties",
    request_body(content_type = REQUEST, content = Vec<u8>),
    responses((status = 200, content_type = RESPONSE, body = Vec<u8>), (status = "4XX", body = Problem)),
)]
async fn post(State(services): State<Arc<Services>>, request: Request) -> ApiResult<Response> {
    if media_type(request.headers()).as_deref() != Some(REQUEST) {
        let detail = format!("the body must be {REQUEST}");
        return Err(ApiProblem::new(ProblemKind::UnsupportedMediaType, detail));
    }
    let body = read_body(request).await?;
    answer(&services, &body, false).await
}

/// Read the status of certificates, with the request in base64.
#[utoipa::path(
    get, path = "/v1/ca/ocsp/{request}", tag = "Relying parties",
    params(("request" = String, Path, description = "The request in base64; slashes may be escaped as %2F")),
    responses((status = 200, content_type = RESPONSE, body = Vec<u8>), (status = "4XX", body = Problem)),
)]
async fn get(State(services): State<Arc<Services>>, uri: Uri) -> ApiResult<Response> {
    let request = uri.path().strip_prefix(PATH).and_then(decode).unwrap_or_default();
    answer(&services, &request, true).await
}

async fn answer(services: &Services, request: &[u8], is_get: bool) -> ApiResult<Response> {
    let response = ocsp::answer(services, request)
        .await
        .map_err(|error| ApiProblem::internal(&error))?;
    let headers = match response.validity.filter(|_| is_get) {
        Some(validity) => cached(&response.der, validity)?,
        None => HeaderMap::from_iter([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))]),
    };
    let media_type = [(header::CONTENT_TYPE, HeaderValue::from_static(RESPONSE))];
    Ok((media_type, headers, response.der).into_response())
}

/// The headers of a response that caches may keep (RFC 5019, section 6.2). `max-age` takes precedence over `Expires`
/// (RFC 9111, section 5.3), which older caches read.
fn cached(der: &[u8], validity: Validity) -> ApiResult<HeaderMap> {
    let date = |time: OffsetDateTime| {
        let text = time.format(HTTP_DATE).map_err(|error| ApiProblem::internal(&error))?;
        HeaderValue::try_from(text).map_err(|error| ApiProblem::internal(&error))
    };
    let tag = format!("\"{}\"", hex::encode(sha256(der)));
    Ok(HeaderMap::from_iter([
        (header::CACHE_CONTROL, HeaderValue::from_static(SHARED)),
        (header::LAST_MODIFIED, date(validity.from)?),
        (header::EXPIRES, date(validity.until)?),
        (
            header::ETAG,
            HeaderValue::try_from(tag).map_err(|error| ApiProblem::internal(&error))?,
        ),
    ]))
}

/// Decodes base64 from a path. The URL-safe alphabet is accepted too. A client that appends a slash to the URL in the
/// certificate sends two of them; no request begins with one, because DER begins with a sequence.
fn decode(text: &str) -> Option<Vec<u8>> {
    let text = percent_decode_str(text).decode_utf8().ok()?;
    let text = text.trim_start_matches('/');
    if text.len() > LONGEST_TEXT {
        return None;
    }
    BASE64.decode(text.replace('-', "+").replace('_', "/")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_decoded_in_all_forms_that_clients_use() {
        let bytes = [0x30, 0xff, 0xef, 0xbe, 0xfb];
        for written in [
            "MP/vvvs=",
            "MP/vvvs",
            "MP%2Fvvvs%3D",
            "MP%2fvvvs%3d",
            "MP_vvvs",
            "/MP/vvvs",
            "//MP/vvvs",
            "%2FMP/vvvs",
        ] {
            assert_eq!(decode(written).as_deref(), Some(bytes.as_slice()), "{written}");
        }
        assert_eq!(decode("%2B%2B%2B%2B"), decode("++++"));
        assert_eq!(decode(&"A".repeat(LONGEST_TEXT)).map(|bytes| bytes.len()), Some(6144));
        for bad in [&"A".repeat(LONGEST_TEXT + 4), "M", "MP vvvs", "MP%ffvvvs", "é"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
