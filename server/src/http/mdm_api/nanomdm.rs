//! `/v1/mdm/nanomdm`: the webhook of NanoMDM and MicroMDM, which use the same envelope.

use std::sync::Arc;

use assay_protocol::{
    Chain, Problem,
    mdm_api::{MdmEvent, MdmReceipt},
};
use axum::{Json, extract::State};
use utoipa_axum::router::OpenApiRouter;

use crate::{
    http::{
        authentication::{Authorized, Mdm},
        extract,
        operation::routes,
        problem::{ApiProblem, ApiResult},
    },
    mdm::{self, MdmError},
    services::Services,
};

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new().routes(routes!(receive))
}

impl From<MdmError> for ApiProblem {
    fn from(error: MdmError) -> Self {
        match error {
            MdmError::Missing(_) | MdmError::Nameless | MdmError::Name(_) | MdmError::Base64 | MdmError::Report(_) => {
                Self::malformed(Chain(&error).to_string())
            }
            MdmError::Store(error) => error.into(),
        }
    }
}

/// Handle an event of an MDM.
///
/// An attestation in a device's response is bound to the machine whose serial number Apple attests. Everything else is
/// ignored. Repeating the event changes nothing.
#[utoipa::path(
    post, path = "/v1/mdm/nanomdm", tag = "MDM", security(("api_key" = []), ("api_key_as_password" = [])),
    request_body = MdmEvent,
    responses((status = 200, body = MdmReceipt), (status = "4XX", body = Problem)),
)]
async fn receive(
    caller: Authorized<Mdm>,
    State(services): State<Arc<Services>>,
    extract::Json(event): extract::Json<MdmEvent>,
) -> ApiResult<Json<MdmReceipt>> {
    Ok(Json(mdm::receive(&services, &caller.origin, &event).await?))
}
