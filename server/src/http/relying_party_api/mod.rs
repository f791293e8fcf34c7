//! The operations for relying parties. Without credentials: what they need to verify certificates and grant tokens
//! offline. With an API key: the current state of a grant token.

mod authority;
mod discovery;
mod health;
mod introspection;
mod ocsp;
mod openapi;
mod revocation_lists;

use std::sync::Arc;

use time::Duration;
use utoipa_axum::router::OpenApiRouter;

use crate::services::Services;

pub(super) use health::router as health;
pub(super) use introspection::router as introspection;
pub(super) use openapi::Published;

/// How long a document may be cached. A new key must reach all caches before it signs.
fn cached_for(longest: Duration, overlap: Duration) -> String {
    format!("public, max-age={}", longest.min(overlap / 2).whole_seconds())
}

/// What verifiers of certificates read: revocation lists, OCSP responses and CA certificates in DER.
pub(super) fn revocation_status() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new()
        .merge(authority::issuers())
        .merge(ocsp::router())
        .merge(revocation_lists::router())
}

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new()
        .merge(authority::trust_anchors())
        .merge(discovery::router())
        .merge(revocation_status())
        .merge(openapi::router())
}
