//! `/v1/admin/audit`

use std::{sync::Arc, time::Duration};

use assay_protocol::{
    Problem, ProblemKind,
    admin_api::{
        api_keys::Role,
        audit::{AuditEntry, AuditVerification},
        page::Page,
    },
    word,
};
use axum::{Json, extract::State};
use serde::Deserialize;
use serde_json::Value;
use utoipa_axum::router::OpenApiRouter;

use crate::{
    audit::{entries, verification::VerificationError},
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
    webhooks,
};

/// The log only grows. A server verifies tens of thousands of entries per second.
const VERIFICATION_TIME: Duration = Duration::from_secs(600);

/// When a caller should try again that found another verification running.
const BUSY_RETRY_SECONDS: u64 = 10;

/// How many characters of an unknown kind an error quotes.
const MAX_QUOTED: usize = 100;

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(verify))
}

impl From<VerificationError> for ApiProblem {
    fn from(error: VerificationError) -> Self {
        match error {
            VerificationError::Entry(_) => Self::internal(&error),
            VerificationError::Busy => {
                Self::new(ProblemKind::RateLimited, error.to_string()).retry_after(BUSY_RETRY_SECONDS)
            }
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
    #[param(format = DateTime)]
    after: Option<String>,
    /// Entries earlier than this time (RFC 3339).
    #[param(format = DateTime)]
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
    caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    List {
        filter: parameters,
        page,
    }: List<AuditParameters>,
) -> ApiResult<Json<Page<AuditEntry>>> {
    let mut found = entries::list(&services, &parameters.filter()?, page.after, page.rows()).await?;
    if caller.role != Role::Admin {
        found.iter_mut().for_each(mask_webhook_url);
    }
    Ok(Json(page.page(found, |entry| entry.id)))
}

/// Entries of earlier versions contain whole URLs of webhooks. They stay as they were sealed, but only administrators see
/// them.
fn mask_webhook_url(entry: &mut AuditEntry) {
    if entry.resource.kind != ResourceKind::Webhook.as_str() {
        return;
    }
    for state in [&mut entry.before, &mut entry.after].into_iter().flatten() {
        if let Some(Value::String(url)) = state.get_mut("url") {
            *url = webhooks::url::masked(url);
        }
    }
}

/// What to verify in addition to the chain.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct VerificationParameters {
    /// A hash recorded earlier. The chain is also broken if it does not contain this hash, for example because its end
    /// was removed.
    #[param(pattern = "^[0-9A-Fa-f]{64}$")]
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
///
/// One at a time on each replica.
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
    Ok(Json(services.audit_verifier.verify(&services.store, noted).await?))
}
