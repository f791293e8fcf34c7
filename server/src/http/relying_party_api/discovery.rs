//! `/.well-known`: the documents from which a stock JWT library verifies grant tokens.

use std::sync::Arc;

use assay_authority::{JsonWebKeySet, SpiffeBundle};
use axum::{Json, extract::State, http::header, response::IntoResponse};
use serde::Serialize;
use time::Duration;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::cached_for;
use crate::services::Services;

/// Nothing in it rotates.
const CACHE_CONTROL: &str = "public, max-age=300";
/// Five minutes at most: a new grant key is published for longer before it signs.
const LONGEST_CACHED: Duration = Duration::minutes(5);

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new()
        .routes(routes!(configuration))
        .routes(routes!(key_set))
        .routes(routes!(spiffe_bundle))
}

/// OpenID Provider metadata, as far as it applies to an issuer of tokens that nobody logs in at.
#[derive(Serialize, ToSchema)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
    /// RFC 8414: a live answer for a token, by an API key.
    introspection_endpoint: String,
    introspection_endpoint_auth_methods_supported: [&'static str; 1],
    /// No URL: nobody is authorized in a browser. Some libraries refuse a document without this member.
    authorization_endpoint: &'static str,
    response_types_supported: [&'static str; 1],
    subject_types_supported: [&'static str; 1],
    id_token_signing_alg_values_supported: [&'static str; 1],
    claims_supported: [&'static str; 12],
}

/// The discovery document.
#[utoipa::path(
    get, path = "/.well-known/openid-configuration", tag = "Relying parties",
    responses((status = 200, body = Discovery)),
)]
async fn configuration(State(services): State<Arc<Services>>) -> impl IntoResponse {
    let issuer = services.policy.public_url.clone();
    let discovery = Discovery {
        jwks_uri: format!("{issuer}/.well-known/jwks.json"),
        introspection_endpoint: format!("{issuer}/v1/introspect"),
        introspection_endpoint_auth_methods_supported: ["Bearer"],
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

/// The keys that grant tokens are signed with.
#[utoipa::path(
    get, path = "/.well-known/jwks.json", tag = "Relying parties",
    responses((status = 200, content_type = "application/jwk-set+json", body = JsonWebKeySet)),
)]
async fn key_set(State(services): State<Arc<Services>>) -> impl IntoResponse {
    let overlap = services.rotation.policy.grant_key_overlap;
    let headers = [
        (header::CONTENT_TYPE, "application/jwk-set+json".to_owned()),
        (header::CACHE_CONTROL, cached_for(LONGEST_CACHED, overlap)),
    ];
    (headers, Json(services.authority.load().key_set().clone()))
}

/// The trust bundle of the trust domain as SPIFFE has it: the roots for X.509-SVIDs, and the keys of grant tokens, which are
/// JWT-SVIDs.
#[utoipa::path(
    get, path = "/.well-known/spiffe-bundle", tag = "Relying parties",
    responses((status = 200, body = SpiffeBundle)),
)]
async fn spiffe_bundle(State(services): State<Arc<Services>>) -> impl IntoResponse {
    let (authority, policy) = (services.authority.load(), &services.rotation.policy);
    let overlap = policy.grant_key_overlap.min(policy.ca_overlap);
    let refresh_hint = LONGEST_CACHED.min(overlap / 2).whole_seconds().unsigned_abs();
    let bundle = SpiffeBundle {
        keys: authority.spiffe_keys().to_vec(),
        spiffe_sequence: authority.version(),
        // Of 0 a client would make no pause.
        spiffe_refresh_hint: refresh_hint.max(1),
    };
    (
        [(header::CACHE_CONTROL, cached_for(LONGEST_CACHED, overlap))],
        Json(bundle),
    )
}
