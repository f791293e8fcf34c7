//! `/v1/admin/machines/{id}/apple-attestation`

use std::sync::Arc;

use assay_protocol::{
    Problem, ProblemKind,
    admin_api::apple_attestations::{AppleAttestationState, PostAppleAttestation},
};
use axum::{Json, extract::State};
use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use utoipa_axum::router::OpenApiRouter;

use crate::{
    administration::apple_attestations::{self, AppleAttestationError},
    http::{
        authentication::{Authorized, Operator, Viewer},
        extract::{self, Id},
        operation::routes,
        problem::{ApiProblem, ApiResult, Chain},
    },
    services::Services,
};

/// As property lists and JWS have it, with the padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new().routes(routes!(find, bind))
}

impl From<AppleAttestationError> for ApiProblem {
    fn from(error: AppleAttestationError) -> Self {
        match error {
            AppleAttestationError::Unknown => Self::not_found("machine"),
            AppleAttestationError::Standing(_) => Self::new(ProblemKind::Conflict, error.to_string()),
            AppleAttestationError::Refused(refused) => {
                Self::new(ProblemKind::AttestationRefused, Chain(&refused).to_string()).reason(refused.refusal())
            }
            AppleAttestationError::Store(error) => error.into(),
        }
    }
}

/// Read what to ask a machine's MDM for, and the Apple attestation on record, with its chain.
#[utoipa::path(
    get, path = "/v1/admin/machines/{id}/apple-attestation", tag = "Machines", security(("api_key" = [])),
    params(("id" = Uuid, Path)),
    responses((status = 200, body = AppleAttestationState), (status = "4XX", body = Problem)),
)]
async fn find(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
) -> ApiResult<Json<AppleAttestationState>> {
    Ok(Json(apple_attestations::find(&services, id).await?))
}

/// Bind an Apple attestation to a machine's key and serial number. Posting the same again changes nothing.
#[utoipa::path(
    post, path = "/v1/admin/machines/{id}/apple-attestation", tag = "Machines", security(("api_key" = [])),
    params(("id" = Uuid, Path)), request_body = PostAppleAttestation,
    responses((status = 200, body = AppleAttestationState), (status = "4XX", body = Problem)),
)]
async fn bind(
    caller: Authorized<Operator>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
    extract::Json(request): extract::Json<PostAppleAttestation>,
) -> ApiResult<Json<AppleAttestationState>> {
    let chain = chain(&request)?;
    Ok(Json(
        apple_attestations::bind(&services, &caller.origin, id, chain).await?,
    ))
}

fn chain(request: &PostAppleAttestation) -> ApiResult<Vec<Vec<u8>>> {
    let decode = |(index, text): (usize, &String)| {
        // Property lists break the lines of their data.
        let text: String = text.split_ascii_whitespace().collect();
        BASE64
            .decode(text)
            .map_err(|_| ApiProblem::malformed(format!("x5c[{index}] is not base64")))
    };
    request.x5c.iter().enumerate().map(decode).collect()
}
