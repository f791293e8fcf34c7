//! `/v1`: the operations for agents. Every response, including errors, contains a fresh nonce. A machine in steady
//! state therefore needs one round trip.

mod check_in;
mod enroll;
mod nonce;
mod renew;

use std::sync::Arc;

use assay_protocol::{Chain, ProblemKind, agent_api::REPLAY_NONCE};
use axum::{
    Extension,
    extract::Request,
    http::{HeaderName, HeaderValue, header},
    response::Response,
};
use utoipa_axum::router::OpenApiRouter;

use super::problem::{ApiProblem, NonceAfter};
use crate::{
    check_in::{CheckInError, nonce::NonceError},
    machines::client_certificate::ClientCertificate,
    registry::admission::Refusal,
    services::Services,
};

pub(super) use enroll::router as enrollment;
pub(super) use nonce::router as nonces;

/// The operations that take evidence by machines' keys.
pub(super) fn machines() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new().merge(check_in::router()).merge(renew::router())
}

/// Adds the headers of every response to an agent.
pub(super) async fn add_nonce(
    services: &Services,
    request: Request,
    next: impl AsyncFnOnce(Request) -> Response,
) -> Response {
    let mut response = next(request).await;
    let last_used = response.extensions().get::<NonceAfter>().map(|NonceAfter(last)| *last);
    let nonce = services.nonces.issue(services.clock.now(), last_used);
    if let Ok(nonce) = HeaderValue::from_str(&nonce) {
        response
            .headers_mut()
            .insert(HeaderName::from_static(REPLAY_NONCE), nonce);
    }
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The client certificate of the request's connection, if one was presented.
fn presented(certificate: &Option<Extension<Arc<ClientCertificate>>>) -> Option<&ClientCertificate> {
    certificate.as_ref().map(|Extension(certificate)| certificate.as_ref())
}

impl From<NonceError> for ApiProblem {
    fn from(error: NonceError) -> Self {
        let problem = Self::new(ProblemKind::BadNonce, error.to_string());
        match error {
            NonceError::Ahead { order } => problem.nonce_after(order),
            NonceError::Foreign | NonceError::Expired => problem,
        }
    }
}

impl From<Refusal> for ApiProblem {
    fn from(refusal: Refusal) -> Self {
        let kind = match refusal {
            Refusal::Unknown => ProblemKind::MachineUnknown,
            Refusal::NonceUsed { last } => {
                return Self::new(ProblemKind::BadNonce, refusal.to_string()).nonce_after(last);
            }
            Refusal::Pending => ProblemKind::MachinePending,
            Refusal::Quarantined => ProblemKind::MachineQuarantined,
            Refusal::Revoked => ProblemKind::MachineRevoked,
            Refusal::KeySuperseded => ProblemKind::KeySuperseded,
            Refusal::Denied { .. } => ProblemKind::EnrollmentDenied,
            Refusal::IdentityMismatch(_) => ProblemKind::IdentityMismatch,
        };
        Self::new(kind, refusal.to_string())
    }
}

impl From<CheckInError> for ApiProblem {
    fn from(error: CheckInError) -> Self {
        match error {
            CheckInError::Evidence(_)
            | CheckInError::ForeignKey
            | CheckInError::NoSubject
            | CheckInError::Certificate(_) => Self::new(ProblemKind::BadEvidence, Chain(&error).to_string()),
            CheckInError::Nonce(error) => error.into(),
            CheckInError::Refused(refusal) => refusal.into(),
            CheckInError::RateLimited(exceeded) => exceeded.into(),
            CheckInError::RenewalExpired { .. } => Self::new(ProblemKind::RenewalExpired, error.to_string()),
            CheckInError::Overtaken => Self::new(ProblemKind::Unavailable, error.to_string()).retry_after(1),
            CheckInError::Batch(error) => error.into(),
            CheckInError::Claims(_) | CheckInError::Token(_) => Self::internal(&error),
            CheckInError::Store(error) => error.into(),
        }
    }
}
