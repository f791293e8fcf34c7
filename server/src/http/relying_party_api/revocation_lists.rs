//! `/v1/ca/crl`: the revocation lists.

use std::sync::Arc;

use assay_protocol::{Problem, ProblemKind};
use axum::{
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    http::problem::{ApiProblem, ApiResult},
    revocation::{PublishedList, lists},
    services::Services,
};

const DER: &str = "application/pkix-crl";
const PEM: &str = "application/x-pem-file";
/// Relying parties must learn of a revocation within 5 s. An unchanged list costs a response 304.
const CACHE_CONTROL: &str = "public, max-age=2, must-revalidate";

/// How long it takes to sign a list once the database works again.
const LIST_RETRY_SECONDS: u64 = 5;

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new()
        .routes(routes!(of_issuing_ca))
        .routes(routes!(of_one))
        .routes(routes!(all))
}

/// Read the revocation list of the CA that issues now.
#[utoipa::path(
    get, path = "/v1/ca/crl", tag = "Relying parties",
    responses((status = 200, content_type = DER, body = Vec<u8>), (status = 304), (status = 503, body = Problem)),
)]
async fn of_issuing_ca(State(services): State<Arc<Services>>, headers: HeaderMap) -> ApiResult<Response> {
    let list = lists::of_issuing_ca(&services).ok_or_else(no_current_list)?;
    Ok(der(&list, &headers))
}

/// Read the revocation list of one CA, issuing or root.
///
/// The certificates' distribution points lead here.
#[utoipa::path(
    get, path = "/v1/ca/crl/{key_identifier}", tag = "Relying parties",
    params(("key_identifier" = String, Path, description = "The CA's subject key identifier, in hex")),
    responses((status = 200, content_type = DER, body = Vec<u8>), (status = 304), (status = "4XX", body = Problem),
              (status = 503, body = Problem)),
)]
async fn of_one(
    State(services): State<Arc<Services>>,
    key_identifier: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let key_identifier = key_identifier.ok().and_then(|Path(text)| hex::decode(text).ok());
    let key_identifier = key_identifier.unwrap_or_default();
    if !lists::is_known(&services, &key_identifier) {
        return Err(ApiProblem::not_found("CA"));
    }
    let list = lists::find(&services, &key_identifier).ok_or_else(no_current_list)?;
    Ok(der(&list, &headers))
}

/// Read the revocation lists of all CAs in use, to check every certificate of a path.
///
/// The list of a root elsewhere is among them once an administrator has installed it.
#[utoipa::path(
    get, path = "/v1/ca/crls.pem", tag = "Relying parties",
    responses((status = 200, content_type = PEM, body = String), (status = 304), (status = 503, body = Problem)),
)]
async fn all(State(services): State<Arc<Services>>, headers: HeaderMap) -> ApiResult<Response> {
    let bundle = lists::bundle(&services).ok_or_else(no_current_list)?;
    Ok(respond(PEM, &bundle.tag, &headers, || bundle.pem.clone()))
}

fn der(list: &PublishedList, headers: &HeaderMap) -> Response {
    respond(DER, &list.tag(), headers, || list.der.clone())
}

fn respond(media_type: &'static str, tag: &str, request: &HeaderMap, body: impl FnOnce() -> Bytes) -> Response {
    let tag = format!("\"{tag}\"");
    let validators = [(header::ETAG, tag.as_str()), (header::CACHE_CONTROL, CACHE_CONTROL)];
    if matches_cached(request, &tag) {
        return (StatusCode::NOT_MODIFIED, validators).into_response();
    }
    // The default media type of the body would come first.
    let mut response = (validators, body()).into_response();
    let media_type = HeaderValue::from_static(media_type);
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    response
}

/// Whether the caller has cached this version. RFC 9110, section 13.1.2: the comparison is weak.
fn matches_cached(request: &HeaderMap, tag: &str) -> bool {
    let values = request.get_all(header::IF_NONE_MATCH).iter();
    values.filter_map(|value| value.to_str().ok()).any(|value| {
        let mut cached = value.split(',').map(str::trim);
        cached.any(|cached| cached == "*" || cached.trim_start_matches("W/") == tag)
    })
}

fn no_current_list() -> ApiProblem {
    let detail = "there is no current revocation list; retry later";
    ApiProblem::new(ProblemKind::Unavailable, detail).retry_after(LIST_RETRY_SECONDS)
}
