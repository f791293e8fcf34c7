//! `/v1/ca`: the certificates that everything is verified against.

use std::sync::Arc;

use axum::{extract::State, http::header, response::IntoResponse};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::services::Services;

const PEM: &str = "application/pem-certificate-chain";
const DER: &str = "application/pkix-cert";
/// An hour: roots change with years of notice, issuing CAs with days.
const CACHE_CONTROL: &str = "public, max-age=3600";

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new()
        .routes(routes!(bundle))
        .routes(routes!(chain))
        .routes(routes!(issuer))
}

/// The roots.
#[utoipa::path(
    get, path = "/v1/ca/bundle.pem", tag = "Relying parties",
    responses((status = 200, content_type = PEM, body = String)),
)]
async fn bundle(State(services): State<Arc<Services>>) -> impl IntoResponse {
    let headers = [(header::CONTENT_TYPE, PEM), (header::CACHE_CONTROL, CACHE_CONTROL)];
    (headers, services.authority.load().roots_pem().to_owned())
}

/// The issuing CA and its root.
#[utoipa::path(
    get, path = "/v1/ca/chain.pem", tag = "Relying parties",
    responses((status = 200, content_type = PEM, body = String)),
)]
async fn chain(State(services): State<Arc<Services>>) -> impl IntoResponse {
    let headers = [(header::CONTENT_TYPE, PEM), (header::CACHE_CONTROL, CACHE_CONTROL)];
    (headers, services.authority.load().chain_pem().to_owned())
}

/// The issuing CA, where the certificates' caIssuers points.
#[utoipa::path(
    get, path = "/v1/ca/issuer.cer", tag = "Relying parties",
    responses((status = 200, content_type = DER, body = Vec<u8>)),
)]
async fn issuer(State(services): State<Arc<Services>>) -> impl IntoResponse {
    let headers = [(header::CONTENT_TYPE, DER), (header::CACHE_CONTROL, CACHE_CONTROL)];
    (headers, services.authority.load().issuing().certificate_der().to_vec())
}
