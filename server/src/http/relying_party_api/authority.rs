//! `/v1/ca`: the CA certificates.

use std::sync::Arc;

use assay_protocol::Problem;
use axum::{
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderName, header},
    response::IntoResponse,
};
use time::Duration;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::cached_for;
use crate::{
    http::problem::{ApiProblem, ApiResult},
    services::Services,
};

const PEM: &str = "application/pem-certificate-chain";
const DER: &str = "application/pkix-cert";
/// At most an hour: roots change with weeks of notice, issuing CAs with days.
const MAX_CACHED: Duration = Duration::hours(1);

pub(super) fn trust_anchors() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new().routes(routes!(bundle)).routes(routes!(chain))
}

pub(super) fn issuers() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new().routes(routes!(issuer)).routes(routes!(one_issuer))
}

/// Read the root certificates.
#[utoipa::path(
    get, path = "/v1/ca/bundle.pem", tag = "Relying parties",
    responses((status = 200, content_type = PEM, body = String)),
)]
async fn bundle(State(services): State<Arc<Services>>) -> impl IntoResponse {
    (
        headers(&services, PEM),
        services.authority.load().roots_pem().to_owned(),
    )
}

/// Read the CA that issues now and its root.
///
/// The other issuing CAs that may be in use now or soon follow, and then the certificates by which earlier roots vouch
/// for later ones.
#[utoipa::path(
    get, path = "/v1/ca/chain.pem", tag = "Relying parties",
    responses((status = 200, content_type = PEM, body = String)),
)]
async fn chain(State(services): State<Arc<Services>>) -> impl IntoResponse {
    (
        headers(&services, PEM),
        services.authority.load().chain_pem().to_owned(),
    )
}

/// Read the CA that issues now.
#[utoipa::path(
    get, path = "/v1/ca/issuer.cer", tag = "Relying parties",
    responses((status = 200, content_type = DER, body = Vec<u8>)),
)]
async fn issuer(State(services): State<Arc<Services>>) -> impl IntoResponse {
    let certificate = services.authority.load().issuing().certificate_der().to_vec();
    (headers(&services, DER), certificate)
}

/// Read one CA: an issuing CA, one above it, or a root.
///
/// The caIssuers URL of a certificate points here. A root that comes from here is no trust anchor.
#[utoipa::path(
    get, path = "/v1/ca/issuer/{key_identifier}", tag = "Relying parties",
    params(("key_identifier" = String, Path, description = "The CA's subject key identifier, in hex")),
    responses((status = 200, content_type = DER, body = Vec<u8>), (status = "4XX", body = Problem)),
)]
async fn one_issuer(
    State(services): State<Arc<Services>>,
    key_identifier: Result<Path<String>, PathRejection>,
) -> ApiResult<impl IntoResponse> {
    let key_identifier = key_identifier.ok().and_then(|Path(text)| hex::decode(text).ok());
    let key_identifier = key_identifier.unwrap_or_default();
    let authority = services.authority.load();
    let certificate = authority.ca_certificate(&key_identifier);
    let certificate = certificate.ok_or_else(|| ApiProblem::not_found("CA"))?;
    Ok((headers(&services, DER), certificate.to_vec()))
}

fn headers(services: &Services, media_type: &'static str) -> [(HeaderName, String); 2] {
    let overlap = services.rotation.policy.ca_overlap;
    [
        (header::CONTENT_TYPE, media_type.to_owned()),
        (header::CACHE_CONTROL, cached_for(MAX_CACHED, overlap)),
    ]
}
