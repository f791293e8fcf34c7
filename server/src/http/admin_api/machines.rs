//! `/v1/admin/machines`: search, read, label, delete. Changes of status are in `status_changes`.

use std::sync::Arc;

use assay_protocol::{
    Problem,
    admin_api::{
        certificates::Certificate,
        events::Event,
        machines::{Machine, PatchMachine},
        page::Page,
    },
    machine::{Assurance, Liveness, MachineStatus},
};
use axum::{Json, extract::State, http::StatusCode};
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use crate::{
    administration::machines::{self, MachineError},
    http::{
        authentication::{Admin, Authorized, Operator, Viewer},
        extract::{self, Id},
        operation::routes,
        page::{List, PageParameters, Unfiltered},
        problem::{ApiProblem, ApiResult},
    },
    services::Services,
    store::machines::search::MachineFilter,
};

/// The longest search text, in bytes. No searched value is longer.
const MAX_PART: usize = 256;

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(find, patch, delete))
        .routes(routes!(certificates))
        .routes(routes!(events))
}

impl From<MachineError> for ApiProblem {
    fn from(error: MachineError) -> Self {
        match error {
            MachineError::Labels(_) | MachineError::Note => Self::malformed(error.to_string()),
            MachineError::Unknown => Self::not_found("machine"),
            MachineError::Store(error) => error.into(),
        }
    }
}

/// Which machines to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct MachineParameters {
    /// Their status.
    #[param(inline)]
    status: Option<MachineStatus>,
    /// How well their serial number is confirmed.
    #[param(inline)]
    assurance: Option<Assurance>,
    /// How recently they checked in.
    #[param(inline)]
    liveness: Option<Liveness>,
    /// Whether the inventory has their serial number.
    in_inventory: Option<bool>,
    /// One of their labels, as `key:value`.
    label: Option<String>,
    /// A part of the serial number, host name, id, a label (`key:value`) or the key's thumbprint. Case is ignored, and
    /// there are no wildcards. Without three consecutive letters or digits, a page may end before it is full: continue
    /// with `next_cursor`.
    #[param(max_length = 256)]
    q: Option<String>,
}

impl MachineParameters {
    fn filter(self) -> ApiResult<MachineFilter> {
        let part = self.q.filter(|part| !part.is_empty());
        if part.as_ref().is_some_and(|part| part.len() > MAX_PART) {
            return Err(ApiProblem::malformed(format!("q is longer than {MAX_PART} bytes")));
        }
        // No value contains one, and one separates the searched values.
        if part.as_ref().is_some_and(|part| part.contains(char::is_control)) {
            return Err(ApiProblem::malformed("q contains a control character"));
        }
        if self.label.as_ref().is_some_and(|label| !label.contains(':')) {
            return Err(ApiProblem::malformed("label must have the form key:value"));
        }
        Ok(MachineFilter {
            status: self.status,
            assurance: self.assurance,
            liveness: self.liveness,
            label: self.label,
            part,
            in_inventory: self.in_inventory,
        })
    }
}

/// List machines.
#[utoipa::path(
    get, path = "/v1/admin/machines", tag = "Machines", security(("api_key" = [])), params(MachineParameters, PageParameters),
    responses((status = 200, body = Page<Machine>), (status = "4XX", body = Problem)),
)]
async fn list(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    List {
        filter: parameters,
        page,
    }: List<MachineParameters>,
) -> ApiResult<Json<Page<Machine>>> {
    let filter = parameters.filter()?;
    let found = machines::list(&services, &filter, page.after, page.rows()).await?;
    Ok(Json(page.page_until(
        found.machines,
        |machine| machine.id,
        found.stopped_at,
    )))
}

/// Read a machine.
#[utoipa::path(
    get, path = "/v1/admin/machines/{id}", tag = "Machines", security(("api_key" = [])),
    params(("id" = Uuid, Path)),
    responses((status = 200, body = Machine), (status = "4XX", body = Problem)),
)]
async fn find(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
) -> ApiResult<Json<Machine>> {
    Ok(Json(machines::find(&services, id).await?))
}

/// Change labels and note with a merge patch (RFC 7396).
#[utoipa::path(
    patch, path = "/v1/admin/machines/{id}", tag = "Machines", security(("api_key" = [])),
    params(("id" = Uuid, Path)), request_body = PatchMachine,
    responses((status = 200, body = Machine), (status = "4XX", body = Problem)),
)]
async fn patch(
    caller: Authorized<Operator>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
    extract::Json(patch): extract::Json<PatchMachine>,
) -> ApiResult<Json<Machine>> {
    Ok(Json(machines::patch(&services, &caller.origin, id, &patch).await?))
}

/// Revoke a machine and delete its record.
///
/// Its events, certificates and audit entries stay.
#[utoipa::path(
    delete, path = "/v1/admin/machines/{id}", tag = "Machines", security(("api_key" = [])),
    params(("id" = Uuid, Path)),
    responses((status = 204), (status = "4XX", body = Problem)),
)]
async fn delete(caller: Authorized<Admin>, State(services): State<Arc<Services>>, Id(id): Id) -> ApiResult<StatusCode> {
    machines::delete(&services, &caller.origin, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List a machine's certificates, newest first.
///
/// This includes deleted machines.
#[utoipa::path(
    get, path = "/v1/admin/machines/{id}/certificates", tag = "Machines", security(("api_key" = [])),
    params(("id" = Uuid, Path), PageParameters),
    responses((status = 200, body = Page<Certificate>), (status = "4XX", body = Problem)),
)]
async fn certificates(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
    List { page, .. }: List<Unfiltered>,
) -> ApiResult<Json<Page<Certificate>>> {
    // A serial number has 16 bytes, like an id.
    let after = page.after.map(|serial_number: Uuid| serial_number.simple().to_string());
    let found = machines::certificates(&services.store, id, after.as_deref(), page.rows()).await?;
    Ok(Json(page.page(found, |certificate| {
        Uuid::try_parse(&certificate.serial_number).unwrap_or_default()
    })))
}

/// List a machine's events, newest first.
///
/// This includes deleted machines.
#[utoipa::path(
    get, path = "/v1/admin/machines/{id}/events", tag = "Machines", security(("api_key" = [])),
    params(("id" = Uuid, Path), PageParameters),
    responses((status = 200, body = Page<Event>), (status = "4XX", body = Problem)),
)]
async fn events(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
    List { page, .. }: List<Unfiltered>,
) -> ApiResult<Json<Page<Event>>> {
    let found = machines::events(&services.store, id, page.after, page.rows()).await?;
    Ok(Json(page.page(found, |event| event.id)))
}
