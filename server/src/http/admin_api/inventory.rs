//! `/v1/admin/inventory`

use std::{sync::Arc, time::Duration};

use assay_protocol::{
    Problem, ProblemKind,
    admin_api::{
        inventory::{ImportInventory, ImportMode, ImportedInventory, InventoryItem},
        page::Page,
    },
    problem::LineError,
    text::hardware_id,
};
use axum::{
    Extension, Json,
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Request, State},
    http::{StatusCode, request::Parts},
};
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;

use crate::{
    administration::inventory::{self, Format, InventoryError, RowError},
    http::{
        authentication::{Authorized, Operator, Viewer},
        deadline::Deadline,
        extract::{self, INVENTORY_BODY_LIMIT, Parameters},
        operation::routes,
        page::{List, PageParameters},
        problem::{ApiProblem, ApiResult},
    },
    services::Services,
    store::inventory::InventoryFilter,
};

/// How long an import may run after its body has arrived.
const IMPORT_TIME: Duration = Duration::from_mins(2);
/// When to retry if another import is running.
const BUSY_RETRY_SECONDS: u64 = 5;

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new()
        .routes(routes!(list, import))
        .routes(routes!(find, remove))
        .layer(Extension(INVENTORY_BODY_LIMIT))
}

impl From<InventoryError> for ApiProblem {
    fn from(error: InventoryError) -> Self {
        let detail = error.to_string();
        match error {
            InventoryError::Unreadable(_) | InventoryError::Empty => Self::malformed(detail),
            InventoryError::Rows { first, .. } => {
                let line = |RowError { line, detail }| LineError { line, detail };
                Self::malformed(detail).errors(first.into_iter().map(line).collect())
            }
            InventoryError::Busy | InventoryError::Interrupted => {
                Self::new(ProblemKind::Unavailable, detail).retry_after(BUSY_RETRY_SECONDS)
            }
            InventoryError::Unknown => Self::not_found("serial number in the inventory"),
            InventoryError::Store(error) => error.into(),
        }
    }
}

/// A serial number from the path. An invalid one is "not found".
struct SerialNumber(String);

impl FromRequestParts<Arc<Services>> for SerialNumber {
    type Rejection = ApiProblem;

    async fn from_request_parts(parts: &mut Parts, services: &Arc<Services>) -> Result<Self, ApiProblem> {
        let path = Path::<String>::from_request_parts(parts, services).await.ok();
        let serial_number = path.and_then(|Path(text)| Some(hardware_id(&text).ok()??.to_owned()));
        serial_number.map(Self).ok_or_else(|| InventoryError::Unknown.into())
    }
}

/// A file and its format.
struct Upload {
    format: Format,
    body: Bytes,
}

impl FromRequest<Arc<Services>> for Upload {
    type Rejection = ApiProblem;

    async fn from_request(request: Request, _services: &Arc<Services>) -> Result<Self, ApiProblem> {
        let format = match extract::media_type(request.headers()).as_deref() {
            Some("application/json") => Format::Json,
            Some("text/csv") => Format::Csv,
            _ => {
                let detail = "the body must be application/json or text/csv";
                return Err(ApiProblem::new(ProblemKind::UnsupportedMediaType, detail));
            }
        };
        let body = extract::read_body(request).await?;
        Ok(Self { format, body })
    }
}

/// What happens to rows that an import does not name.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ImportParameters {
    /// `replace` deletes them and is the default; `merge` keeps them.
    #[param(inline)]
    mode: Option<ImportMode>,
    /// Confirms that an import without rows is intended. With `replace` it deletes all rows.
    #[serde(default)]
    allow_empty: bool,
}

/// Which rows to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct InventoryParameters {
    /// Whether a machine with that serial number is enrolled: active or quarantined.
    enrolled: Option<bool>,
}

/// List the inventory in the order of serial numbers.
#[utoipa::path(
    get, path = "/v1/admin/inventory", tag = "Inventory", security(("api_key" = [])), params(InventoryParameters, PageParameters),
    responses((status = 200, body = Page<InventoryItem>), (status = "4XX", body = Problem)),
)]
async fn list(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    List {
        filter: parameters,
        page,
    }: List<InventoryParameters, String>,
) -> ApiResult<Json<Page<InventoryItem>>> {
    let filter = InventoryFilter {
        enrolled: parameters.enrolled,
    };
    let found = inventory::list(&services.store, &filter, page.after.as_deref(), page.rows()).await?;
    Ok(Json(page.page(found, |item| item.serial_number.clone())))
}

/// Import the inventory, completely or not at all.
///
/// CSV needs a header and has the columns `serial_number`, `labels` (`key=value;key=value`) and `owner`, in any order.
/// Repeating it changes nothing.
#[utoipa::path(
    put, path = "/v1/admin/inventory", tag = "Inventory", security(("api_key" = [])), params(ImportParameters),
    request_body(content((ImportInventory = "application/json"), (String = "text/csv"))),
    responses((status = 200, body = ImportedInventory), (status = "4XX", body = Problem)),
)]
async fn import(
    caller: Authorized<Operator>,
    State(services): State<Arc<Services>>,
    Parameters(parameters): Parameters<ImportParameters>,
    deadline: Option<Deadline>,
    Upload { format, body }: Upload,
) -> ApiResult<Json<ImportedInventory>> {
    if let Some(deadline) = deadline {
        deadline.allow(IMPORT_TIME);
    }
    let mode = (parameters.mode.unwrap_or_default(), parameters.allow_empty);
    let imported = inventory::import(&services.store, &caller.origin, mode, format, body).await?;
    Ok(Json(imported))
}

/// Read the inventory's entry for a serial number.
#[utoipa::path(
    get, path = "/v1/admin/inventory/{serial_number}", tag = "Inventory", security(("api_key" = [])),
    params(("serial_number" = String, Path)),
    responses((status = 200, body = InventoryItem), (status = "4XX", body = Problem)),
)]
async fn find(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    SerialNumber(serial_number): SerialNumber,
) -> ApiResult<Json<InventoryItem>> {
    Ok(Json(inventory::find(&services.store, &serial_number).await?))
}

/// Delete a serial number from the inventory.
///
/// If a machine's assurance depends only on this entry, it falls to `asserted`.
#[utoipa::path(
    delete, path = "/v1/admin/inventory/{serial_number}", tag = "Inventory", security(("api_key" = [])),
    params(("serial_number" = String, Path)),
    responses((status = 204), (status = "4XX", body = Problem)),
)]
async fn remove(
    caller: Authorized<Operator>,
    State(services): State<Arc<Services>>,
    SerialNumber(serial_number): SerialNumber,
) -> ApiResult<StatusCode> {
    inventory::remove(&services.store, &caller.origin, &serial_number).await?;
    Ok(StatusCode::NO_CONTENT)
}
