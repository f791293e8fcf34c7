//! `/v1/admin/audit`

use std::{sync::Arc, time::Duration};

use assay_protocol::{
    Problem,
    admin_api::{
        audit::{AuditEntry, AuditVerification},
        page::Page,
    },
    word,
};
use axum::{Json, extract::State};
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;

use crate::{
    audit::{
        entries,
        verification::{self, VerificationError},
    },
    changes::{ResourceKind, chain::EntryHash},
    http::{
        authentication::{Authorized, Viewer},
        deadline::Deadline,
        extract::{Parameters, parse_time},
        operation::routes,
        page::{List, PageParameters},
        problem::{ApiProblem, ApiResult},
    },
    services::Services,
    store::audit_entries::AuditFilter,
};

/// The log only grows. A server verifies tens of thousands of entries per second.
const VERIFICATION_TIME: Duration = Duration::from_secs(600);

/// How many characters of an unknown kind an error quotes.
const MAX_QUOTED: usize = 100;

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(verify))
}

impl From<VerificationError> for ApiProblem {
    fn from(error: VerificationError) -> Self {
        match error {
            VerificationError::Entry(_) => Self::internal(&error),
            VerificationError::Store(error) => error.into(),
        }
    }
}

/// Which entries to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct AuditParameters {
    /// The kind of the resource, or `kind:id`.
    resource: Option<String>,
    /// The id or the name of the actor.
    actor: Option<String>,
    /// Entries later than this time (RFC 3339).
    after: Option<String>,
    /// Entries earlier than this time (RFC 3339).
    before: Option<String>,
}

impl AuditParameters {
    fn filter(self) -> ApiResult<AuditFilter> {
        let (resource_kind, resource_id) = match self.resource {
            None => (None, None),
            Some(resource) => match resource.split_once(':') {
                Some((kind, id)) => (Some(kind.to_owned()), Some(id.to_owned())),
                None => (Some(resource), None),
            },
        };
        if let Some(unknown) = resource_kind
            .as_deref()
            .filter(|kind| kind.parse::<ResourceKind>().is_err())
        {
            let unknown: String = unknown.chars().take(MAX_QUOTED).collect();
            return Err(ApiProblem::malformed(format!(
                "resource: the kind {unknown:?} is unknown; known kinds are {}",
                word::list(&ResourceKind::ALL)
            )));
        }
        Ok(AuditFilter {
            resource_kind,
            resource_id,
            actor: self.actor,
            after: parse_time("after", self.after)?,
            before: parse_time("before", self.before)?,
        })
    }
}

/// List the audit log, newest entries first.
#[utoipa::path(
    get, path = "/v1/admin/audit", tag = "Audit", security(("api_key" = [])), params(AuditParameters, PageParameters),
    responses((status = 200, body = Page<AuditEntry>), (status = "4XX", body = Problem)),
)]
async fn list(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    List {
        filter: parameters,
        page,
    }: List<AuditParameters>,
) -> ApiResult<Json<Page<AuditEntry>>> {
    let found = entries::list(&services, &parameters.filter()?, page.after, page.rows()).await?;
    Ok(Json(page.page(found, |entry| entry.id)))
}

/// What to verify in addition to the chain.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct VerificationParameters {
    /// A hash recorded earlier. The chain is also broken if it does not contain this hash, for example because its end
    /// was removed.
    last_hash: Option<String>,
}

impl VerificationParameters {
    fn noted(&self) -> ApiResult<Option<EntryHash>> {
        let parse = |text: &String| {
            let hash = EntryHash::from_hex(text);
            hash.ok_or_else(|| ApiProblem::malformed("last_hash must have 64 hexadecimal digits"))
        };
        self.last_hash.as_ref().map(parse).transpose()
    }
}

/// Verify the hash chain over all sealed entries.
#[utoipa::path(
    get, path = "/v1/admin/audit/verify", tag = "Audit", security(("api_key" = [])), params(VerificationParameters),
    responses((status = 200, body = AuditVerification), (status = "4XX", body = Problem)),
)]
async fn verify(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    deadline: Option<Deadline>,
    Parameters(parameters): Parameters<VerificationParameters>,
) -> ApiResult<Json<AuditVerification>> {
    let noted = parameters.noted()?;
    if let Some(deadline) = deadline {
        deadline.allow(VERIFICATION_TIME);
    }
    Ok(Json(verification::verify(&services.store, noted).await?))
}
