//! The record of a machine, as every change to it begins and ends: locked, and then written into the audit.

use assay_protocol::admin_api::machines::Machine;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    changes::Change,
    machines::boundaries::Boundaries,
    services::Policy,
    store::{self, StoreError, Transaction, machines::presence::LockedMachine},
};

/// As of when records are read.
pub(crate) fn boundaries(policy: &Policy, now: OffsetDateTime) -> Boundaries {
    Boundaries::at(now, policy.check_in_interval, policy.attestation_max_age)
}

/// Locks a machine until the end of the transaction: first its presence, the row that a check-in writes, then its record.
/// `None` when there is no such machine.
pub(crate) async fn lock(
    tx: &mut Transaction,
    policy: &Policy,
    id: Uuid,
) -> Result<Option<(LockedMachine, Machine)>, StoreError> {
    let Some(presence) = store::machines::presence::lock(tx, id).await? else {
        return Ok(None);
    };
    let boundaries = boundaries(policy, tx.now());
    let machine = store::machines::lock(tx, &presence.machine, &boundaries).await?;
    Ok(machine.map(|machine| (presence.machine, machine)))
}

/// Writes a change to a machine that was made since `before`, and returns the machine as it is now.
pub(crate) async fn write(
    tx: &mut Transaction,
    policy: &Policy,
    change: Change,
    before: &Machine,
) -> Result<Machine, StoreError> {
    let boundaries = boundaries(policy, tx.now());
    let after = store::machines::find(tx, before.id, &boundaries)
        .await?
        .ok_or_else(|| StoreError::Corrupt(format!("the machine {} vanished while it was locked", before.id)))?;
    tx.record(change.before(store::json(before)?).after(store::json(&after)?))
        .await?;
    Ok(after)
}
