//! Reading the audit log.

use assay_protocol::admin_api::audit::AuditEntry;
use uuid::Uuid;

use crate::{
    services::Services,
    store::{self, StoreError, audit_entries::AuditFilter},
};

/// A page of the entries that match a filter, newest first.
pub(crate) async fn list(
    services: &Services,
    filter: &AuditFilter,
    before: Option<Uuid>,
    rows: i64,
) -> Result<Vec<AuditEntry>, StoreError> {
    let mut snapshot = services.store.snapshot().await?;
    let entries = store::audit_entries::list(&mut snapshot, filter, before, rows).await?;
    store::end(snapshot).await?;
    Ok(entries)
}
