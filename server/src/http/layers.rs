//! What runs around every handler, in order. Each group of steps is one axum layer: a layer boxes its future and copies
//! the service below it at every request. A dozen layers cost more than reading the request.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};

use super::{
    agent_api::add_nonce,
    caller_address::{self, TrustedProxies},
    guard, host, problem,
    rate_limit::{charge_every, charge_revocation, charge_until_proven, charge_until_verified},
    request_id, request_source, unread_body,
};
use crate::services::Services;

/// What the outer layer needs.
#[derive(Clone)]
pub(super) struct OuterLayer {
    pub(super) services: Arc<Services>,
    pub(super) trusted_proxies: TrustedProxies,
}

/// Around all responses, even those for unknown paths.
pub(super) async fn everything(
    State(OuterLayer {
        services,
        trusted_proxies,
    }): State<OuterLayer>,
    mut request: Request,
    next: Next,
) -> Response {
    caller_address::determine(&trusted_proxies, &mut request);
    request_id::assign(services.clock.as_ref(), request, async |request, request_id| {
        unread_body::drain(request, async |request| {
            problem::write_bodies(request_id, request, async |mut request| {
                let source = request_source::note(request_id, &mut request);
                guard::observe(&services.metrics, &source, request, async |request| {
                    host::require(request, async |request| next.run(request).await).await
                })
                .await
            })
            .await
        })
        .await
    })
    .await
}

/// Around the handlers that supervisors and load balancers call. They cost nothing and have no limit.
pub(super) async fn health(request: Request, next: Next) -> Response {
    guarded(request, next).await
}

/// Around the handlers that take an API key.
pub(super) async fn api_keys(State(services): State<Arc<Services>>, request: Request, next: Next) -> Response {
    charge_until_proven(&services, request, async |request| guarded(request, next).await).await
}

/// Around enrollment. An agent gets a nonce even if its call timed out.
pub(super) async fn applicants(State(services): State<Arc<Services>>, request: Request, next: Next) -> Response {
    add_nonce(&services, request, async |request| {
        charge_until_proven(&services, request, async |request| guarded(request, next).await).await
    })
    .await
}

/// Around the handlers that take evidence by machines' keys.
pub(super) async fn machines(State(services): State<Arc<Services>>, request: Request, next: Next) -> Response {
    add_nonce(&services, request, async |request| {
        charge_until_verified(&services, request, async |request| guarded(request, next).await).await
    })
    .await
}

/// Around the operation that issues nonces.
pub(super) async fn nonces(State(services): State<Arc<Services>>, request: Request, next: Next) -> Response {
    add_nonce(&services, request, async |request| {
        charge_every(&services, request, async |request| guarded(request, next).await).await
    })
    .await
}

/// Around public operations.
pub(super) async fn public(State(services): State<Arc<Services>>, request: Request, next: Next) -> Response {
    charge_every(&services, request, async |request| guarded(request, next).await).await
}

/// Around the operations of the listener for revocation status.
pub(super) async fn revocation(State(services): State<Arc<Services>>, request: Request, next: Next) -> Response {
    charge_revocation(&services, request, async |request| guarded(request, next).await).await
}

async fn guarded(request: Request, next: Next) -> Response {
    guard::time_limit(request, async |request| next.run(request).await).await
}
