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
    caller_address::{self, Peers},
    guard, problem,
    rate_limit::{charge_every, charge_unproven},
    request_id, unread_body,
};
use crate::services::Services;

/// What the outer layer needs.
#[derive(Clone)]
pub(super) struct OuterLayer {
    pub(super) services: Arc<Services>,
    pub(super) peers: Peers,
}

/// Around all responses, even those for unknown paths.
pub(super) async fn everything(
    State(OuterLayer { services, peers }): State<OuterLayer>,
    mut request: Request,
    next: Next,
) -> Response {
    caller_address::determine(peers, &mut request);
    request_id::assign(services.clock.as_ref(), request, async |request, request_id| {
        unread_body::drain(request, async |request| {
            problem::write_bodies(request_id, request, async |request| {
                guard::observe(&services.metrics, request, async |request| next.run(request).await).await
            })
            .await
        })
        .await
    })
    .await
}

/// Around the handlers that need no other layer.
pub(super) async fn guarded(State(services): State<Arc<Services>>, request: Request, next: Next) -> Response {
    charge_unproven(&services, request, async |request| {
        guard::time_limit(request, async |request| next.run(request).await).await
    })
    .await
}

/// Around the handlers that take evidence. An agent gets a nonce even if its call timed out.
pub(super) async fn agents(State(services): State<Arc<Services>>, request: Request, next: Next) -> Response {
    add_nonce(&services, request, async |request| {
        charge_unproven(&services, request, async |request| {
            guard::time_limit(request, async |request| next.run(request).await).await
        })
        .await
    })
    .await
}

/// Around the operation that issues nonces.
pub(super) async fn nonces(State(services): State<Arc<Services>>, request: Request, next: Next) -> Response {
    add_nonce(&services, request, async |request| {
        charge_every(&services, request, async |request| next.run(request).await).await
    })
    .await
}

/// Around public operations.
pub(super) async fn public(State(services): State<Arc<Services>>, request: Request, next: Next) -> Response {
    charge_every(&services, request, async |request| next.run(request).await).await
}
