//! `/v1/admin/policy`

use std::{sync::Arc, time::Duration};

use assay_protocol::{
    Problem, ProblemKind,
    admin_api::policy::{AppliedPolicy, Policy},
};
use axum::{
    Extension, Json,
    extract::State,
    http::{
        HeaderMap, HeaderName,
        header::{ETAG, IF_MATCH},
    },
};
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;

use crate::{
    administration::policy::{self, Mode, PolicyError},
    http::{
        authentication::{Admin, Authorized, Viewer},
        deadline::Deadline,
        extract::{self, POLICY_BODY_LIMIT, Parameters},
        operation::routes,
        problem::{ApiProblem, ApiResult},
    },
    services::Services,
};

/// How long a policy may take to apply after its body has arrived.
const APPLY_TIME: Duration = Duration::from_mins(1);

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new()
        .routes(routes!(read, apply))
        .layer(Extension(POLICY_BODY_LIMIT))
}

impl From<PolicyError> for ApiProblem {
    fn from(error: PolicyError) -> Self {
        let kind = match error {
            PolicyError::Store(error) => return error.into(),
            PolicyError::Changed => ProblemKind::PreconditionFailed,
            PolicyError::Part { .. }
            | PolicyError::Twice { .. }
            | PolicyError::NoPermission { .. }
            | PolicyError::TooMany => ProblemKind::Malformed,
            PolicyError::Equal { .. } => ProblemKind::Conflict,
        };
        Self::new(kind, error.to_string())
    }
}

/// How to apply a policy.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ApplyParameters {
    /// Whether what the policy lacks is deleted. Without this, it is kept.
    #[serde(default)]
    prune: bool,
    /// Whether only to answer what would change.
    #[serde(default)]
    dry_run: bool,
}

/// Read all permissions, grants and audiences as one document. Its `ETag` is its version.
#[utoipa::path(
    get, path = "/v1/admin/policy", tag = "Policy", security(("api_key" = [])),
    responses((status = 200, body = Policy), (status = "4XX", body = Problem)),
)]
async fn read(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
) -> ApiResult<([(HeaderName, String); 1], Json<Policy>)> {
    let (version, policy) = policy::read(&services.store).await?;
    Ok(([(ETAG, tag(version))], Json(policy)))
}

/// Make permissions, grants and audiences equal to a document, in one transaction.
///
/// `If-Match` must be the `ETag` of the version that the document was made for, so that no change by another
/// administrator is overwritten unseen.
#[utoipa::path(
    put, path = "/v1/admin/policy", tag = "Policy", security(("api_key" = [])),
    params(ApplyParameters, ("If-Match" = String, Header, description = "The `ETag` of `GET /v1/admin/policy`.")),
    request_body = Policy,
    responses((status = 200, body = AppliedPolicy), (status = "4XX", body = Problem)),
)]
async fn apply(
    caller: Authorized<Admin>,
    State(services): State<Arc<Services>>,
    Parameters(ApplyParameters { prune, dry_run }): Parameters<ApplyParameters>,
    headers: HeaderMap,
    deadline: Option<Deadline>,
    extract::Json(document): extract::Json<Policy>,
) -> ApiResult<([(HeaderName, String); 1], Json<AppliedPolicy>)> {
    if let Some(deadline) = deadline {
        deadline.allow(APPLY_TIME);
    }
    let expected = expected_version(&headers)?;
    let mode = Mode { prune, dry_run };
    let (version, applied) = policy::apply(&services.store, &caller.origin, expected, mode, document).await?;
    Ok(([(ETAG, tag(version))], Json(applied)))
}

/// A strong entity tag (RFC 9110, section 8.8.3).
fn tag(version: i64) -> String {
    format!("\"{version}\"")
}

/// The version that `If-Match` names. `*` and lists would allow to overwrite what the caller has not seen.
fn expected_version(headers: &HeaderMap) -> ApiResult<i64> {
    let mut given = headers.get_all(IF_MATCH).iter();
    let (Some(value), None) = (given.next(), given.next()) else {
        let detail = "send the ETag of GET /v1/admin/policy as If-Match, once";
        return Err(ApiProblem::new(ProblemKind::PreconditionRequired, detail.to_owned()));
    };
    let version = value
        .to_str()
        .ok()
        .and_then(|text| text.trim().strip_prefix('"')?.strip_suffix('"')?.parse().ok());
    version.ok_or_else(|| {
        let detail = "If-Match must be one entity tag of GET /v1/admin/policy, such as \"12\"";
        ApiProblem::malformed(detail.to_owned())
    })
}
