//! `/v1/admin/machines/{id}/apple-attestation`, and `/v1/admin/apple-attestations/due`

use std::sync::Arc;

use assay_protocol::{
    Chain, Problem, ProblemKind,
    admin_api::{
        apple_attestations::{AppleAttestationState, DueAppleAttestation, PostAppleAttestation},
        page::Page,
    },
};
use axum::{Json, extract::State};
use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use time::OffsetDateTime;
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use crate::{
    http::{
        authentication::{Authorized, Operator, Viewer},
        extract::{self, Id},
        operation::routes,
        page::{List, PageParameters, Place, Unfiltered},
        problem::{ApiProblem, ApiResult},
    },
    registry::apple_attestations::{self, AppleAttestationError, due},
    services::Services,
    store::apple_attestations::DuePlace,
};

/// Base64 as property lists and JWS use it, with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new()
        .routes(routes!(find, bind))
        .routes(routes!(list_due))
}

/// The time in microseconds, and the machine's id.
impl Place for DuePlace {
    fn to_bytes(&self) -> Vec<u8> {
        let micros = i64::try_from(self.attested_at.unix_timestamp_nanos() / 1000).unwrap_or(0);
        [micros.to_be_bytes().as_slice(), self.machine_id.as_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (micros, machine_id) = bytes.split_first_chunk()?;
        let nanos = i128::from(i64::from_be_bytes(*micros)).checked_mul(1000)?;
        Some(Self {
            attested_at: OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()?,
            machine_id: Uuid::from_slice(machine_id).ok()?,
        })
    }
}

impl From<AppleAttestationError> for ApiProblem {
    fn from(error: AppleAttestationError) -> Self {
        match error {
            AppleAttestationError::Unknown => Self::not_found("machine"),
            AppleAttestationError::Standing(_) | AppleAttestationError::NotOfKey => {
                Self::new(ProblemKind::Conflict, error.to_string())
            }
            AppleAttestationError::Refused(refused) => {
                Self::new(ProblemKind::AttestationRefused, Chain(&refused).to_string()).reason(refused.refusal())
            }
            AppleAttestationError::Store(error) => error.into(),
        }
    }
}

/// Read what to request from a machine's MDM, and the recorded Apple attestation with its chain.
#[utoipa::path(
    get, path = "/v1/admin/machines/{id}/apple-attestation", operation_id = "find_apple_attestation", tag = "Machines", security(("api_key" = [])),
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

/// Bind an Apple attestation to a machine's key and serial number.
///
/// Posting the same attestation again changes nothing.
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

/// List the machines that need an attestation, with the command to send to each.
///
/// Machines without an attestation come first, then those whose attestation is due for renewal.
#[utoipa::path(
    get, path = "/v1/admin/apple-attestations/due", tag = "Machines", security(("api_key" = [])), params(PageParameters),
    responses((status = 200, body = Page<DueAppleAttestation>), (status = "4XX", body = Problem)),
)]
async fn list_due(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    List { page, .. }: List<Unfiltered, DuePlace>,
) -> ApiResult<Json<Page<DueAppleAttestation>>> {
    let found = due::list(&services, page.after, page.rows()).await?;
    Ok(Json(page.page_of(found)))
}

fn chain(request: &PostAppleAttestation) -> ApiResult<Vec<Vec<u8>>> {
    let decode = |(index, text): (usize, &String)| {
        // Property lists contain line breaks in data.
        let text: String = text.split_ascii_whitespace().collect();
        BASE64
            .decode(text)
            .map_err(|_| ApiProblem::malformed(format!("x5c[{index}] is not base64")))
    };
    request.x5c.iter().enumerate().map(decode).collect()
}
