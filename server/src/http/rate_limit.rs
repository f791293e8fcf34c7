//! Rate limits, as requests are charged for them: to the key or the API key that they prove, else to their address, so
//! that guessing costs the one who guesses.

use std::{net::IpAddr, sync::Arc};

use assay_protocol::ProblemKind;
use axum::{
    extract::Request,
    response::{IntoResponse, Response},
};
use uuid::Uuid;

use super::problem::{self, ApiProblem};
use crate::{rate_limits::Exceeded, services::Services};

/// Where a request comes from; an extension of the request.
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

/// Charges the address for every call: for what is answered to anybody.
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

/// Charges the address for a call whose refusal says that it proved nothing of who sends it.
pub(super) async fn charge_unproven(
    services: &Services,
    request: Request,
    next: impl AsyncFnOnce(Request) -> Response,
) -> Response {
    let address = address(&request);
    let response = next(request).await;
    if !problem::kind_of(&response).is_some_and(proves_nothing) {
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

/// Whether a refused call showed neither a key, nor a token, nor an API key that this server knows.
fn proves_nothing(kind: ProblemKind) -> bool {
    matches!(
        kind,
        ProblemKind::Malformed
            | ProblemKind::PayloadTooLarge
            | ProblemKind::UnsupportedMediaType
            | ProblemKind::Unauthenticated
            | ProblemKind::BadCsr
            | ProblemKind::BadNonce
            | ProblemKind::BadEvidence
            | ProblemKind::EnrollmentTokenInvalid
            | ProblemKind::MachineUnknown
    )
}
