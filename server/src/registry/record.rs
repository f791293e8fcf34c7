//! The record of a machine, as every change to it begins and ends: held, and then written into the audit.

use assay_protocol::admin_api::machines::Machine;
use uuid::Uuid;

use crate::{
    changes::{Change, Origin},
    machines::boundaries::Boundaries,
    services::Services,
    store::{self, StoreError, Transaction},
};

/// As of when records are read: now.
pub(crate) fn boundaries(services: &Services) -> Boundaries {
    let policy = &services.policy;
    Boundaries::at(
        services.clock.now(),
        policy.check_in_interval,
        policy.attestation_max_age,
    )
}

/// Holds a machine until the end of the transaction: first its presence, the row that a check-in writes, so that one
/// that is under way is finished before and every later one sees the change. `None` when there is no such machine.
pub(crate) async fn hold(tx: &mut Transaction, services: &Services, id: Uuid) -> Result<Option<Machine>, StoreError> {
    if !store::machines::presence::hold(tx, id).await? {
        return Ok(None);
    }
    store::machines::lock(tx, id, &boundaries(services)).await
}

/// Writes the audit entry of a change to a machine that is held, and returns the machine as it is now.
pub(crate) async fn audit(
    tx: &mut Transaction,
    services: &Services,
    origin: &Origin,
    change: Change,
    before: &Machine,
) -> Result<Machine, StoreError> {
    let after = store::machines::find(tx, before.id, &boundaries(services))
        .await?
        .ok_or_else(|| StoreError::Corrupt(format!("the machine {} vanished while it was held", before.id)))?;
    let change = change.before(store::json(before)?).after(store::json(&after)?);
    store::audit_entries::insert(tx, services.clock.as_ref(), origin, change).await?;
    Ok(after)
}
