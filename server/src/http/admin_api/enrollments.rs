//! `/v1/admin/enrollments`, and the same decisions by the machine's id

use std::sync::Arc;

use assay_protocol::{
    Problem, ProblemKind,
    admin_api::{
        enrollments::{Approve, ApproveKey, Decide, Enrollment, EnrollmentStatus},
        machines::Machine,
        page::Page,
    },
};
use axum::{Json, extract::State};
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;

use crate::{
    enrollment::approval::{self, ApprovalError, Decision},
    http::{
        authentication::{Authorized, Operator, Viewer},
        extract::{self, Id},
        operation::routes,
        page::{List, PageParameters},
        problem::{ApiProblem, ApiResult},
    },
    services::Services,
};

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(find))
        .routes(routes!(approve))
        .routes(routes!(deny))
        .routes(routes!(approve_machine))
        .routes(routes!(deny_machine))
}

impl From<ApprovalError> for ApiProblem {
    fn from(error: ApprovalError) -> Self {
        match error {
            ApprovalError::Reason(_) => Self::malformed(error.to_string()),
            ApprovalError::Unknown => Self::not_found("enrollment"),
            ApprovalError::UnknownMachine => Self::not_found("machine"),
            ApprovalError::NothingPending
            | ApprovalError::Quarantined
            | ApprovalError::Revoked
            | ApprovalError::SeveralPending
            | ApprovalError::NoSuchKey
            | ApprovalError::NotActive
            | ApprovalError::KeyReplaced
            | ApprovalError::DecidedBefore(_)
            | ApprovalError::Expired(_)
            | ApprovalError::MachineDeleted
            | ApprovalError::NotPending
            | ApprovalError::SerialNumberTaken(_)
            | ApprovalError::SerialNumberJustTaken
            | ApprovalError::TakenOver(_) => Self::new(ProblemKind::Conflict, error.to_string()),
            ApprovalError::Claims(_) => Self::internal(&error),
            ApprovalError::Store(error) => error.into(),
        }
    }
}

/// Which enrollments to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct EnrollmentParameters {
    /// Their status.
    #[param(inline)]
    status: Option<EnrollmentStatus>,
}

/// List requests for enrollment.
#[utoipa::path(
    get, path = "/v1/admin/enrollments", tag = "Enrollments", security(("api_key" = [])), params(EnrollmentParameters, PageParameters),
    responses((status = 200, body = Page<Enrollment>), (status = "4XX", body = Problem)),
)]
async fn list(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    List {
        filter: parameters,
        page,
    }: List<EnrollmentParameters>,
) -> ApiResult<Json<Page<Enrollment>>> {
    let found = approval::list(&services.store, parameters.status, page.after, page.rows()).await?;
    Ok(Json(page.page(found, |enrollment| enrollment.id)))
}

/// Read an enrollment.
#[utoipa::path(
    get, path = "/v1/admin/enrollments/{id}", tag = "Enrollments", security(("api_key" = [])),
    params(("id" = Uuid, Path)),
    responses((status = 200, body = Enrollment), (status = "4XX", body = Problem)),
)]
async fn find(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
) -> ApiResult<Json<Enrollment>> {
    Ok(Json(approval::find(&services.store, id).await?))
}

/// Approve an enrollment.
///
/// Repeating the decision with the same reason changes nothing; a different decision or reason is a conflict.
#[utoipa::path(
    post, path = "/v1/admin/enrollments/{id}/approve", tag = "Enrollments", security(("api_key" = [])),
    params(("id" = Uuid, Path)), request_body = Option<Approve>,
    responses((status = 200, body = Enrollment), (status = "4XX", body = Problem)),
)]
async fn approve(
    caller: Authorized<Operator>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
    request: Option<extract::Json<Approve>>,
) -> ApiResult<Json<Enrollment>> {
    let decision = approval_of(request)?;
    Ok(Json(approval::decide(&services, &caller.origin, id, &decision).await?))
}

/// Deny an enrollment permanently.
///
/// Denying a first enrollment deletes the machine record. Repeating the decision with the same reason changes nothing;
/// a different decision or reason is a conflict.
#[utoipa::path(
    post, path = "/v1/admin/enrollments/{id}/deny", tag = "Enrollments", security(("api_key" = [])),
    params(("id" = Uuid, Path)), request_body = Decide,
    responses((status = 200, body = Enrollment), (status = "4XX", body = Problem)),
)]
async fn deny(
    caller: Authorized<Operator>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
    extract::Json(request): extract::Json<Decide>,
) -> ApiResult<Json<Enrollment>> {
    let decision = denial_of(&request)?;
    Ok(Json(approval::decide(&services, &caller.origin, id, &decision).await?))
}

/// Approve a key of this machine.
///
/// Without `key_thumbprint`, approves the key that waits; several waiting keys are a conflict. The thumbprint of the
/// current key of an active machine gives that key the approval, which makes the machine `verified`.
#[utoipa::path(
    post, path = "/v1/admin/machines/{id}/approve", tag = "Machines", security(("api_key" = [])),
    params(("id" = Uuid, Path)), request_body = Option<ApproveKey>,
    responses((status = 200, body = Machine), (status = "4XX", body = Problem)),
)]
async fn approve_machine(
    caller: Authorized<Operator>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
    request: Option<extract::Json<ApproveKey>>,
) -> ApiResult<Json<Machine>> {
    let ApproveKey { reason, key_thumbprint } = request.map(|extract::Json(request)| request).unwrap_or_default();
    let decision = Decision::approve(reason.as_deref()).map_err(ApprovalError::from)?;
    Ok(Json(
        approval::decide_of_machine(&services, &caller.origin, id, key_thumbprint, &decision).await?,
    ))
}

/// Deny the key that waits for this machine.
///
/// Denying a first enrollment deletes the machine record.
#[utoipa::path(
    post, path = "/v1/admin/machines/{id}/deny", tag = "Machines", security(("api_key" = [])),
    params(("id" = Uuid, Path)), request_body = Decide,
    responses((status = 200, body = Machine), (status = "4XX", body = Problem)),
)]
async fn deny_machine(
    caller: Authorized<Operator>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
    extract::Json(request): extract::Json<Decide>,
) -> ApiResult<Json<Machine>> {
    let decision = denial_of(&request)?;
    Ok(Json(
        approval::decide_of_machine(&services, &caller.origin, id, None, &decision).await?,
    ))
}

fn approval_of(request: Option<extract::Json<Approve>>) -> ApiResult<Decision> {
    let reason = request.and_then(|extract::Json(request)| request.reason);
    Ok(Decision::approve(reason.as_deref()).map_err(ApprovalError::from)?)
}

fn denial_of(request: &Decide) -> ApiResult<Decision> {
    Ok(Decision::deny(&request.reason).map_err(ApprovalError::from)?)
}
