//! What surrounds every handler, in its order. Two layers of axum and not one for each step: a layer boxes its future at every
//! request and copies all that is below it, which for a dozen of them came to more than reading the request.

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

/// What the outer layer knows.
#[derive(Clone)]
pub(super) struct Surroundings {
    pub(super) services: Arc<Services>,
    pub(super) peers: Peers,
}

/// Around everything that is answered, also where there is nothing.
pub(super) async fn everything(
    State(Surroundings { services, peers }): State<Surroundings>,
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

/// Around every handler.
pub(super) async fn guarded(State(services): State<Arc<Services>>, request: Request, next: Next) -> Response {
    charge_unproven(&services, request, async |request| {
        guard::time_limit(request, async |request| next.run(request).await).await
    })
    .await
}

/// Around the handlers of what machines call with evidence. An agent gets its nonce also when its call took too long.
pub(super) async fn agents(State(services): State<Arc<Services>>, request: Request, next: Next) -> Response {
    add_nonce(&services, request, async |request| {
        charge_unproven(&services, request, async |request| {
            guard::time_limit(request, async |request| next.run(request).await).await
        })
        .await
    })
    .await
}

/// Around what hands out nonces to anybody.
pub(super) async fn nonces(State(services): State<Arc<Services>>, request: Request, next: Next) -> Response {
    add_nonce(&services, request, async |request| {
        charge_every(&services, request, async |request| next.run(request).await).await
    })
    .await
}

/// Around what is answered to anybody.
pub(super) async fn anybody(State(services): State<Arc<Services>>, request: Request, next: Next) -> Response {
    charge_every(&services, request, async |request| next.run(request).await).await
}
