//! `/.well-known`: the documents with which a standard JWT library verifies grant tokens.

use std::sync::Arc;

use assay_authority::{JsonWebKeySet, SpiffeBundle};
use axum::{Json, extract::State, http::header, response::IntoResponse};
use serde::Serialize;
use time::Duration;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::cached_for;
use crate::services::Services;

/// For a document that does not change with key rotation.
const CACHE_CONTROL: &str = "public, max-age=300";
/// At most five minutes: a new grant key is published for longer before it signs.
const MAX_CACHED: Duration = Duration::minutes(5);

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new()
        .routes(routes!(configuration))
        .routes(routes!(key_set))
        .routes(routes!(spiffe_bundle))
}

/// The OpenID Provider metadata that apply to an issuer without logins.
#[derive(Serialize, ToSchema)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
    /// RFC 8414. The current state of a token, for callers with an API key.
    introspection_endpoint: String,
    introspection_endpoint_auth_methods_supported: [&'static str; 2],
    /// Not a URL, because there are no logins in a browser. Some libraries reject a document without this member.
    authorization_endpoint: &'static str,
    response_types_supported: [&'static str; 1],
    subject_types_supported: [&'static str; 1],
    id_token_signing_alg_values_supported: [&'static str; 1],
    claims_supported: [&'static str; 12],
}

/// Read the discovery document.
#[utoipa::path(
    get, path = "/.well-known/openid-configuration", tag = "Relying parties",
    responses((status = 200, body = Discovery)),
)]
async fn configuration(State(services): State<Arc<Services>>) -> impl IntoResponse {
    let issuer = services.policy.public_url.clone();
    let discovery = Discovery {
        jwks_uri: format!("{issuer}/.well-known/jwks.json"),
        introspection_endpoint: format!("{issuer}/v1/introspect"),
        introspection_endpoint_auth_methods_supported: ["client_secret_basic", "Bearer"],
        issuer,
        authorization_endpoint: "urn:assay:no-authorization-endpoint",
        response_types_supported: ["id_token"],
        subject_types_supported: ["public"],
        id_token_signing_alg_values_supported: ["ES256"],
        claims_supported: [
            "iss",
            "sub",
            "aud",
            "iat",
            "nbf",
            "exp",
            "jti",
            "cnf",
            "scope",
            "permissions",
            "machine_id",
            "assurance",
        ],
    };
    ([(header::CACHE_CONTROL, CACHE_CONTROL)], Json(discovery))
}

/// Read the public keys that verify grant tokens.
#[utoipa::path(
    get, path = "/.well-known/jwks.json", tag = "Relying parties",
    responses((status = 200, content_type = "application/jwk-set+json", body = JsonWebKeySet)),
)]
async fn key_set(State(services): State<Arc<Services>>) -> impl IntoResponse {
    let overlap = services.rotation.policy.grant_key_overlap;
    let headers = [
        (header::CONTENT_TYPE, "application/jwk-set+json".to_owned()),
        (header::CACHE_CONTROL, cached_for(MAX_CACHED, overlap)),
    ];
    (headers, Json(services.authority.load().key_set().clone()))
}

/// Read the trust domain's SPIFFE bundle: the roots for X.509-SVIDs and the keys for grant tokens, which are JWT-SVIDs.
#[utoipa::path(
    get, path = "/.well-known/spiffe-bundle", tag = "Relying parties",
    responses((status = 200, body = SpiffeBundle)),
)]
async fn spiffe_bundle(State(services): State<Arc<Services>>) -> impl IntoResponse {
    let (authority, policy) = (services.authority.load(), &services.rotation.policy);
    let overlap = policy.grant_key_overlap.min(policy.ca_overlap);
    let refresh_hint = MAX_CACHED.min(overlap / 2).whole_seconds().unsigned_abs();
    let bundle = SpiffeBundle {
        keys: authority.spiffe_keys().to_vec(),
        spiffe_sequence: authority.version(),
        // With 0, a client would poll without a pause.
        spiffe_refresh_hint: refresh_hint.max(1),
    };
    ([(header::CACHE_CONTROL, cached_for(MAX_CACHED, overlap))], Json(bundle))
}
