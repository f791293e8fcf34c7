//! `/v1/ca/ocsp`: the status of a certificate (RFC 6960, appendix A.1, and RFC 5019).

use std::sync::Arc;

use assay_protocol::{Problem, ProblemKind};
use axum::{
    extract::{Request, State},
    http::{HeaderValue, Uri, header},
    response::{IntoResponse, Response},
    routing,
};
use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use percent_encoding::percent_decode_str;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    http::{
        extract::read_body,
        problem::{ApiProblem, ApiResult},
    },
    revocation::ocsp,
    services::Services,
};

const PATH: &str = "/v1/ca/ocsp/";
const REQUEST: &str = "application/ocsp-request";
const RESPONSE: &str = "application/ocsp-response";
/// For cacheable responses: relying parties must learn of a revocation within 5 s.
const SHARED: &str = "public, max-age=2, must-revalidate";

/// Clients may omit the padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new()
        .routes(routes!(post))
        .routes(routes!(get))
        // Many clients do not escape the slashes of base64.
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
    let media_type = request.headers().get(header::CONTENT_TYPE);
    if media_type.is_none_or(|media_type| media_type != REQUEST) {
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

async fn answer(services: &Services, request: &[u8], is_cacheable: bool) -> ApiResult<Response> {
    let response = ocsp::answer(services, request)
        .await
        .map_err(|error| ApiProblem::internal(&error))?;
    let cache_control = if is_cacheable && response.is_for_all {
        SHARED
    } else {
        "no-store"
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(RESPONSE)),
        (header::CACHE_CONTROL, HeaderValue::from_static(cache_control)),
    ];
    Ok((headers, response.der).into_response())
}

/// Decodes base64 from a path. The URL-safe alphabet is accepted too.
fn decode(text: &str) -> Option<Vec<u8>> {
    let text = percent_decode_str(text).decode_utf8().ok()?;
    BASE64.decode(text.replace('-', "+").replace('_', "/")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_decoded_in_all_forms_that_clients_use() {
        let bytes = [0x30, 0xff, 0xef, 0xbe, 0xfb];
        for written in ["MP/vvvs=", "MP/vvvs", "MP%2Fvvvs%3D", "MP%2fvvvs%3d", "MP_vvvs"] {
            assert_eq!(decode(written).as_deref(), Some(bytes.as_slice()), "{written}");
        }
        assert_eq!(decode("%2B%2B%2B%2B"), decode("++++"));
        for bad in ["M", "MP vvvs", "MP%ffvvvs", "é"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
