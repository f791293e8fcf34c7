//! The source of a request, for the records of its changes and for the log.

use std::convert::Infallible;

use axum::{
    extract::{FromRequestParts, Request},
    http::request::Parts,
};

use super::{rate_limit::CallerAddress, request_id::RequestId};
use crate::changes::RequestSource;

/// Adds the source to a request, and returns it.
pub(super) fn note(request_id: RequestId, request: &mut Request) -> RequestSource {
    let address = request.extensions().get().map(|CallerAddress(address)| *address);
    let source = RequestSource::new(&request_id.to_string(), address);
    request.extensions_mut().insert(source.clone());
    source
}

impl<S: Sync> FromRequestParts<S> for RequestSource {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        let source = parts.extensions.get().cloned();
        Ok(source.unwrap_or_else(|| RequestSource::new("", None)))
    }
}
