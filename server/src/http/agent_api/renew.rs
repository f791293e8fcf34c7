//! `POST /v1/renew`

use std::sync::Arc;

use assay_protocol::{
    Problem, ProblemKind,
    agent_api::{RenewRequest, Renewed, RotationPending},
};
use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::presented;
use crate::{
    changes::RequestSource,
    enrollment::renewal::{self, Outcome, RenewError},
    http::{
        extract,
        problem::{ApiProblem, ApiResult, NonceAfter},
    },
    machines::client_certificate::ClientCertificate,
    rate_limits::OverLimit,
    services::Services,
};

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new().routes(routes!(renew))
}

impl From<RenewError> for ApiProblem {
    fn from(error: RenewError) -> Self {
        match error {
            RenewError::Csr(error) => error.into(),
            RenewError::Evidence(error) => error.into(),
            RenewError::OtherCsr => Self::new(ProblemKind::BadEvidence, error.to_string()),
            RenewError::Rotation(_) => Self::new(ProblemKind::Conflict, error.to_string()),
            RenewError::Expired { .. } => Self::new(ProblemKind::RenewalExpired, error.to_string()),
            RenewError::Issue(error) => error.into(),
            RenewError::Store(error) => error.into(),
        }
    }
}

/// Renew the certificate.
///
/// The machine's key authenticates the request, even for a while after the certificate has expired. A CSR with another
/// key starts a rotation. Both keys are valid until the first check-in that the new key signs, which supersedes the old
/// key. The current key alone does not admit a next key if it is in a Secure Enclave: an enrollment token that is bound to
/// the serial number does, or an administrator.
#[utoipa::path(
    post, path = "/v1/renew", tag = "Agents", request_body = RenewRequest,
    responses(
        (status = 200, body = Renewed),
        (status = 202, body = RotationPending, description = "The next key waits for an administrator's approval. Repeat the call; the current key stays valid."),
        (status = "4XX", body = Problem), (status = "5XX", body = Problem),
    ),
)]
async fn renew(
    State(services): State<Arc<Services>>,
    source: RequestSource,
    over_limit: Option<Extension<OverLimit>>,
    certificate: Option<Extension<Arc<ClientCertificate>>>,
    extract::Json(request): extract::Json<RenewRequest>,
) -> ApiResult<(Extension<NonceAfter>, Response)> {
    let answer = renewal::renew(
        &services,
        &source,
        over_limit.as_deref(),
        presented(&certificate),
        &request,
    )
    .await?;
    Ok((
        Extension(NonceAfter(answer.nonce_used)),
        respond(&services, answer.outcome),
    ))
}

fn respond(services: &Services, outcome: Outcome) -> Response {
    match outcome {
        Outcome::Issued(renewed) => {
            services.metrics.certificate_issued("renew");
            Json(renewed).into_response()
        }
        Outcome::Pending(pending) => {
            let retry_after = HeaderValue::from(pending.retry_after_seconds);
            (
                StatusCode::ACCEPTED,
                [(header::RETRY_AFTER, retry_after)],
                Json(pending),
            )
                .into_response()
        }
    }
}
