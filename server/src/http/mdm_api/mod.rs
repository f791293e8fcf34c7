//! The operations for MDMs: their webhooks.

mod nanomdm;

use std::sync::Arc;

use utoipa_axum::router::OpenApiRouter;

use crate::services::Services;

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new().merge(nanomdm::router())
}
