//! `/v1/admin`: the operations for administrators, one file for each noun.

mod api_keys;
mod apple_attestations;
mod audiences;
mod audit;
mod background_work;
mod certificates;
mod enrollment_tokens;
mod enrollments;
mod events;
mod grants;
mod inventory;
mod machines;
mod openings;
mod permissions;
mod policy;
mod stats;
mod status_changes;
mod webhooks;

use std::sync::Arc;

use utoipa_axum::router::OpenApiRouter;

use crate::services::Services;

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new()
        .merge(api_keys::router())
        .merge(apple_attestations::router())
        .merge(audiences::router())
        .merge(audit::router())
        .merge(background_work::router())
        .merge(certificates::router())
        .merge(enrollment_tokens::router())
        .merge(enrollments::router())
        .merge(events::router())
        .merge(grants::router())
        .merge(inventory::router())
        .merge(machines::router())
        .merge(permissions::router())
        .merge(policy::router())
        .merge(openings::router())
        .merge(status_changes::router())
        .merge(webhooks::router())
        .merge(stats::router())
}
