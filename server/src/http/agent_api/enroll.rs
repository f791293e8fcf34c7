//! `POST /v1/enroll`

use std::sync::Arc;

use assay_protocol::{
    Chain, Problem, ProblemKind,
    agent_api::{EnrollRequest, Enrolled, EnrollmentPending},
    csr::CsrError,
};
use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    changes::RequestSource,
    enrollment::{self, Caller, EnrollError, NO_ROOM_RETRY_SECONDS, Outcome},
    http::{
        extract,
        problem::{ApiProblem, ApiResult, NonceAfter},
    },
    machines::client_certificate::ClientCertificate,
    rate_limits::AddressCharge,
    services::Services,
};

pub(in crate::http) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new().routes(routes!(enroll))
}

impl From<CsrError> for ApiProblem {
    fn from(error: CsrError) -> Self {
        Self::new(ProblemKind::BadCsr, Chain(&error).to_string())
    }
}

impl From<EnrollError> for ApiProblem {
    fn from(error: EnrollError) -> Self {
        match error {
            EnrollError::Csr(error) => error.into(),
            EnrollError::Evidence(_) | EnrollError::Certificate(_) => {
                Self::new(ProblemKind::BadEvidence, Chain(&error).to_string())
            }
            EnrollError::Nonce(error) => error.into(),
            EnrollError::Token(refusal) => Self::new(ProblemKind::EnrollmentTokenInvalid, refusal.to_string()),
            EnrollError::Refused(refusal) => refusal.into(),
            EnrollError::Expired { .. } => Self::new(ProblemKind::EnrollmentTokenInvalid, error.to_string()),
            EnrollError::NoRoom { .. } => {
                Self::new(ProblemKind::RateLimited, error.to_string()).retry_after(NO_ROOM_RETRY_SECONDS)
            }
            EnrollError::Exists { .. } => Self::new(ProblemKind::MachineExists, error.to_string()),
            EnrollError::RateLimited(exceeded) => exceeded.into(),
            EnrollError::Claims(_) | EnrollError::Issue(_) => Self::internal(&error),
            EnrollError::Batch(error) => error.into(),
            EnrollError::Store(error) => error.into(),
        }
    }
}

/// Enroll a key.
///
/// Repeating it with the same key gives the same machine and its current certificate.
#[utoipa::path(
    post, path = "/v1/enroll", tag = "Agents", request_body = EnrollRequest,
    responses(
        (status = 201, body = Enrolled, description = "This call issued the certificate."),
        (status = 200, body = Enrolled, description = "An earlier call issued the certificate."),
        (status = 202, body = EnrollmentPending, description = "The enrollment waits for an administrator's approval. Repeat the call."),
        (status = "4XX", body = Problem), (status = "5XX", body = Problem),
    ),
)]
async fn enroll(
    State(services): State<Arc<Services>>,
    source: RequestSource,
    Extension(address_charge): Extension<AddressCharge>,
    certificate: Option<Extension<Arc<ClientCertificate>>>,
    extract::Json(request): extract::Json<EnrollRequest>,
) -> ApiResult<(Extension<NonceAfter>, Response)> {
    let caller = Caller {
        source,
        address_charge,
        certificate: certificate.map(|Extension(certificate)| certificate),
    };
    let answer = enrollment::enroll(&services, caller, &request).await?;
    Ok((
        Extension(NonceAfter(answer.nonce_used)),
        respond(&services, answer.outcome),
    ))
}

fn respond(services: &Services, outcome: Outcome) -> Response {
    match outcome {
        Outcome::Issued(enrolled) => {
            services.metrics.enrollment_ended("issued");
            services.metrics.certificate_issued("enroll");
            (StatusCode::CREATED, Json(enrolled)).into_response()
        }
        Outcome::IssuedBefore(enrolled) => {
            services.metrics.enrollment_ended("repeated");
            Json(enrolled).into_response()
        }
        Outcome::Pending(pending) => {
            services.metrics.enrollment_ended("pending");
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
