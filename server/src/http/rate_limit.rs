//! Charges requests to rate limits: to the address first, which is refunded if the request proves a machine or an API
//! key. Guesses are thus charged to the guessing caller's address.

use std::{net::IpAddr, sync::Arc};

use assay_protocol::{ProblemKind, problem::Credential};
use axum::{
    extract::Request,
    response::{IntoResponse, Response},
};
use uuid::Uuid;

use super::problem::{self, ApiProblem};
use crate::{
    changes::RequestSource,
    rate_limits::{AddressCharge, Exceeded, Network, OverLimit, UnprovenConnection},
    services::Services,
};

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
    match charge(services, network(&request)) {
        Ok(()) => next(request).await,
        Err(exceeded) => ApiProblem::from(exceeded).into_response(),
    }
}

/// Charges every call to its address, at the listener for revocation status.
pub(super) async fn charge_revocation(
    services: &Services,
    request: Request,
    next: impl AsyncFnOnce(Request) -> Response,
) -> Response {
    let charge = |network| services.rate_limits.charge_revocation(network);
    match network(&request).map_or(Ok(()), charge) {
        Ok(()) => next(request).await,
        Err(exceeded) => ApiProblem::from(exceeded).into_response(),
    }
}

/// Charges a call to its address before any work is done for it. The charge is taken back if the caller proves an
/// identity, and stays if the caller cancels the call.
pub(super) async fn charge_until_proven(
    services: &Services,
    request: Request,
    next: impl AsyncFnOnce(Request) -> Response,
) -> Response {
    let network = network(&request);
    match charge(services, network) {
        Ok(()) => charged(services, network, request, next).await,
        Err(exceeded) => ApiProblem::from(exceeded).into_response(),
    }
}

/// The same for evidence by machines' keys. It is served from an address over its limit too: an office is one address,
/// and one of its computers must not stop the others.
pub(super) async fn charge_until_verified(
    services: &Services,
    mut request: Request,
    next: impl AsyncFnOnce(Request) -> Response,
) -> Response {
    let network = network(&request);
    let (Some(over), Err(exceeded)) = (network, charge(services, network)) else {
        return charged(services, network, request, next).await;
    };
    request.extensions_mut().insert(OverLimit {
        network: over,
        exceeded,
    });
    let connection = request.extensions().get().cloned();
    let response = next(request).await;
    match problem::kind_of(&response).is_some_and(proves_nothing) {
        true => ApiProblem::from(exceeded).into_response(),
        false => {
            note_proof(connection, &response);
            response
        }
    }
}

async fn charged(
    services: &Services,
    network: Option<Network>,
    mut request: Request,
    next: impl AsyncFnOnce(Request) -> Response,
) -> Response {
    let charge = AddressCharge::default();
    request.extensions_mut().insert(charge.clone());
    let connection = request.extensions().get().cloned();
    let source: Option<RequestSource> = request.extensions().get().cloned();
    let response = next(request).await;
    let is_identified = source.is_some_and(|source| source.identity().is_some());
    if is_proven(problem::kind_of(&response), is_identified) && !charge.is_kept() {
        note_proof(connection, &response);
        if let Some(network) = network {
            services.rate_limits.refund_address(network);
        }
    }
    response
}

/// A caller that was served has proved an identity, and its connection no longer counts against its address.
fn note_proof(connection: Option<Arc<UnprovenConnection>>, response: &Response) {
    if let Some(connection) = connection.filter(|_| response.status().is_success()) {
        connection.prove();
    }
}

fn network(request: &Request) -> Option<Network> {
    let CallerAddress(address) = request.extensions().get()?;
    Some(Network::of(*address))
}

fn charge(services: &Services, network: Option<Network>) -> Result<(), Exceeded> {
    network.map_or(Ok(()), |network| services.rate_limits.charge_address(network))
}

/// Whether a call with this problem proved a key, a token or an API key. A call may be answered with 429, 503 or 500
/// before the server looks at its proof, so these answers tell nothing about it.
fn is_proven(problem: Option<ProblemKind>, is_identified: bool) -> bool {
    match problem {
        Some(ProblemKind::RateLimited | ProblemKind::Unavailable | ProblemKind::Internal) => is_identified,
        other => !other.is_some_and(proves_nothing),
    }
}

/// Whether this problem means that the caller proved no valid key, token or API key.
fn proves_nothing(kind: ProblemKind) -> bool {
    kind.credential() == Credential::Unknown
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::served(None, [true, true])]
    #[case::rate_limited(Some(ProblemKind::RateLimited), [false, true])]
    #[case::unavailable(Some(ProblemKind::Unavailable), [false, true])]
    #[case::internal(Some(ProblemKind::Internal), [false, true])]
    #[case::bad_evidence(Some(ProblemKind::BadEvidence), [false, false])]
    #[case::revoked(Some(ProblemKind::MachineRevoked), [true, true])]
    fn an_answer_that_does_not_look_at_the_proof_is_proven_only_with_an_identity(
        #[case] problem: Option<ProblemKind>,
        #[case] expected: [bool; 2],
    ) {
        assert_eq!(
            [false, true].map(|is_identified| is_proven(problem, is_identified)),
            expected
        );
    }
}
