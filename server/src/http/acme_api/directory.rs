//! The directory of URLs, and initial nonces.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{Method, StatusCode},
};
use serde_json::{Value, json};

use crate::{
    acme::urls::{self, Urls},
    services::Services,
};

pub(super) async fn directory(State(services): State<Arc<Services>>) -> Json<Value> {
    let urls = Urls(&services.policy.public_url);
    Json(json!({
        "newNonce": urls.of(urls::NEW_NONCE),
        "newAccount": urls.of(urls::NEW_ACCOUNT),
        "newOrder": urls.of(urls::NEW_ORDER),
        "revokeCert": urls.of(urls::REVOKE_CERTIFICATE),
        "keyChange": urls.of(urls::KEY_CHANGE),
        "meta": {"externalAccountRequired": false},
    }))
}

/// The nonce is in the header, as in every response (RFC 8555, section 7.2).
pub(super) async fn new_nonce(method: Method) -> StatusCode {
    if method == Method::HEAD {
        StatusCode::OK
    } else {
        StatusCode::NO_CONTENT
    }
}
