//! `/acme`: RFC 8555 with `device-attest-01`. Every response contains a fresh nonce and a link to the directory.

mod accounts;
mod directory;
mod documents;
mod orders;
mod problem;
mod revocation;
mod signed;

use std::sync::Arc;

use axum::{
    Extension, Router,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, header},
    middleware::Next,
    response::Response,
    routing::{get, post},
};

pub(super) use self::problem::RefusedByAcme;
use super::extract;
use crate::{acme::urls, services::Services};

const REPLAY_NONCE: HeaderName = HeaderName::from_static("replay-nonce");

pub(super) fn router() -> Router<Arc<Services>> {
    Router::new()
        .route(urls::DIRECTORY, get(directory::directory))
        .route(urls::NEW_NONCE, get(directory::new_nonce))
        .route(urls::NEW_ACCOUNT, post(accounts::open))
        .route("/acme/account/{id}", post(accounts::update))
        .route("/acme/account/{id}/orders", post(orders::list))
        .route(urls::KEY_CHANGE, post(accounts::change_key))
        .route(urls::NEW_ORDER, post(orders::create))
        .route("/acme/order/{id}", post(orders::find))
        .route("/acme/order/{id}/finalize", post(orders::finalize))
        .route("/acme/authorization/{id}", post(orders::authorization))
        .route("/acme/challenge/{id}", post(orders::challenge))
        .route("/acme/certificate/{id}", post(orders::certificate))
        .route(urls::REVOKE_CERTIFICATE, post(revocation::revoke))
        .layer(Extension(extract::AGENT_BODY_LIMIT))
}

/// Adds the headers of every ACME response. Errors of the layers below, such as rate limits and deadlines, become ACME
/// errors.
pub(super) async fn finish(State(services): State<Arc<Services>>, request: Request, next: Next) -> Response {
    let mut response = problem::into_acme_problem(next.run(request).await);
    let directory = urls::Urls(&services.policy.public_url).of(urls::DIRECTORY);
    let index = format!("<{directory}>;rel=\"index\"");
    let nonce = services.acme.nonces.issue(services.clock.now(), None);
    let headers = response.headers_mut();
    if let (Ok(nonce), Ok(index)) = (HeaderValue::from_str(&nonce), HeaderValue::from_str(&index)) {
        headers.insert(REPLAY_NONCE, nonce);
        headers.append(header::LINK, index);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
