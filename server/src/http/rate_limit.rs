//! Charges requests to rate limits: to the machine's key or the API key if the request proves one, or else to the
//! address. Guesses are thus charged to the guessing caller's address.

use std::{net::IpAddr, sync::Arc};

use assay_protocol::{ProblemKind, problem::Credential};
use axum::{
    extract::Request,
    response::{IntoResponse, Response},
};
use uuid::Uuid;

use super::problem::{self, ApiProblem};
use crate::{rate_limits::Exceeded, services::Services};

/// The caller's address; an extension of the request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallerAddress(pub(crate) IpAddr);

impl From<Exceeded> for ApiProblem {
    fn from(exceeded: Exceeded) -> Self {
        Self::new(ProblemKind::RateLimited, exceeded.to_string()).retry_after(exceeded.retry_after_seconds)
    }
}

pub(crate) fn charge_api_key(services: &Arc<Services>, api_key: Uuid) -> Result<(), ApiProblem> {
    Ok(services.rate_limits.charge_api_key(api_key)?)
}

/// Charges every call to its address, for public operations.
pub(super) async fn charge_every(
    services: &Services,
    request: Request,
    next: impl AsyncFnOnce(Request) -> Response,
) -> Response {
    match charge(services, address(&request)) {
        Ok(()) => next(request).await,
        Err(exceeded) => ApiProblem::from(exceeded).into_response(),
    }
}

/// Charges a call to its address if the response says that the caller proved no identity.
pub(super) async fn charge_unproven(
    services: &Services,
    request: Request,
    next: impl AsyncFnOnce(Request) -> Response,
) -> Response {
    let address = address(&request);
    let response = next(request).await;
    if !problem::kind_of(&response).is_some_and(|kind| kind.credential() == Credential::Unknown) {
        return response;
    }
    match charge(services, address) {
        Ok(()) => response,
        Err(exceeded) => ApiProblem::from(exceeded).into_response(),
    }
}

fn address(request: &Request) -> Option<IpAddr> {
    request.extensions().get().map(|CallerAddress(address)| *address)
}

fn charge(services: &Services, address: Option<IpAddr>) -> Result<(), Exceeded> {
    address.map_or(Ok(()), |address| services.rate_limits.charge_address(address))
}
