//! Reading the audit.

use assay_protocol::admin_api::audit::AuditEntry;
use uuid::Uuid;

use crate::{
    services::Services,
    store::{self, StoreError, audit_entries::AuditFilter},
};

/// A page of the entries that a filter lets through, the newest first.
pub(crate) async fn list(
    services: &Services,
    filter: &AuditFilter,
    before: Option<Uuid>,
    rows: i64,
) -> Result<Vec<AuditEntry>, StoreError> {
    store::audit_entries::list(&mut *services.store.connection().await?, filter, before, rows).await
}
