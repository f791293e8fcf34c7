//! Quarantining, releasing and revoking machines.
//!
//! Each decision locks the machine first. A concurrent check-in ends before the decision, and every later one sees it.

use assay_protocol::{
    admin_api::{certificates::RevocationReason, enrollments::EnrollmentStatus, machines::Machine},
    machine::MachineStatus,
};
use serde_json::json;
use uuid::Uuid;

use super::{
    devices, opening,
    reason::{NoReason, Reason},
    record,
};
use crate::{
    changes::{Action, Change, EventKind, Origin},
    machines::continuity::Continuity,
    services::{Policy, Services},
    store::{self, StoreError, Transaction, certificates::Revoked, machines::presence::LockedMachine, tx},
};

/// What an administrator decides on a machine's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatusChange {
    /// Suspends the machine: no later check-in grants anything.
    Quarantine,
    /// Ends a quarantine: the machine may check in again.
    Release,
    /// Revokes the machine permanently, with its keys and certificates.
    Revoke,
}

/// Why nothing changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StatusChangeError {
    #[error(transparent)]
    Reason(#[from] NoReason),
    #[error("there is no such machine")]
    Unknown,
    #[error("the machine is {0}")]
    Status(&'static str),
    #[error("the machine is already {state}{}; a different reason does not replace this one", because(.reason.as_deref()))]
    DecidedBefore {
        state: &'static str,
        reason: Option<String>,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn because(reason: Option<&str>) -> String {
    reason.map_or_else(String::new, |reason| format!(", because: {reason}"))
}

crate::store::has_store_error!(StatusChangeError);

/// Carries out a decision. Repeating it with the same reason changes nothing. A different reason is refused.
pub(crate) async fn decide(
    services: &Services,
    origin: &Origin,
    id: Uuid,
    change: StatusChange,
    reason: &str,
) -> Result<Machine, StatusChangeError> {
    let reason = Reason::parse(reason)?;
    let policy = &services.policy;
    tx!(services.store, ChangeMachineStatus, origin => decide_once(policy, id, change, reason.as_str())).await
}

/// Revokes a machine, its keys and its certificates. Denies its first enrollment and its rotations, if they are pending.
pub(crate) async fn revoke_everything(
    tx: &mut Transaction,
    machine: &LockedMachine,
    reason: &str,
) -> Result<(), StoreError> {
    let now = tx.now();
    store::machines::presence::set_admitted(tx, machine, false).await?;
    devices::revoke_certificates(tx, machine, reason).await?;
    opening::end_unused(tx, machine, reason).await?;
    store::machines::record::set_status(tx, machine, MachineStatus::Revoked, Some(reason)).await?;
    let reason_to_publish = RevocationReason::PrivilegeWithdrawn;
    store::certificates::revoke(tx, machine, Revoked::All, reason_to_publish, now).await?;
    store::machines::keys::revoke_all(tx, machine, reason, now).await?;
    store::enrollments::deny_of_own_keys(tx, machine, reason).await?;
    let detail = json!({ "reason": reason });
    tx.announce(machine.id(), EventKind::MachineRevoked, detail).await
}

/// Denies all pending enrollments of a machine, with their keys.
pub(crate) async fn deny_what_waits(
    tx: &mut Transaction,
    machine: &LockedMachine,
    reason: &str,
) -> Result<(), StoreError> {
    let now = tx.now();
    for enrollment in store::enrollments::lock_pending_of_machine(tx, machine).await? {
        store::enrollments::decide(tx, enrollment.id, EnrollmentStatus::Denied, Some(reason)).await?;
        store::machines::keys::deny(tx, enrollment.key.thumbprint, reason, now).await?;
    }
    Ok(())
}

/// Quarantines a machine, if it is active.
pub(super) async fn quarantine_active(
    tx: &mut Transaction,
    policy: &Policy,
    locked: &LockedMachine,
    machine: &Machine,
    reason: &str,
) -> Result<(), StoreError> {
    if machine.status != MachineStatus::Active {
        return Ok(());
    }
    suspend(tx, locked, reason).await?;
    record::write(tx, policy, quarantine(locked, reason), machine).await?;
    Ok(())
}

async fn decide_once(
    tx: &mut Transaction,
    policy: &Policy,
    id: Uuid,
    change: StatusChange,
    reason: &str,
) -> Result<Machine, StatusChangeError> {
    let found = record::lock(tx, policy, id).await?;
    let (locked, before) = found.ok_or(StatusChangeError::Unknown)?;
    let change = match (change, before.status) {
        (StatusChange::Quarantine, MachineStatus::Quarantined) => return repeated(before, "quarantined", reason),
        (StatusChange::Release, MachineStatus::Active) => return repeated(before, "active", reason),
        (StatusChange::Revoke, MachineStatus::Revoked) => return repeated(before, "revoked", reason),
        (StatusChange::Quarantine | StatusChange::Release, MachineStatus::Pending) => {
            return Err(StatusChangeError::Status("pending: approve or deny it"));
        }
        (StatusChange::Quarantine | StatusChange::Release, MachineStatus::Revoked) => {
            return Err(StatusChangeError::Status("revoked, which is final"));
        }
        (StatusChange::Quarantine, MachineStatus::Active) => {
            suspend(tx, &locked, reason).await?;
            quarantine(&locked, reason)
        }
        (StatusChange::Release, MachineStatus::Quarantined) => {
            set_status(tx, &locked, MachineStatus::Active, reason).await?;
            // If two parties have the key, the next evidence of either is accepted.
            store::machines::presence::set_continuity(tx, &locked, Continuity::OPEN).await?;
            let detail = json!({ "reason": reason });
            Change::new(Action::MachineRelease, id).event(id, EventKind::MachineReleased, detail)
        }
        (StatusChange::Revoke, _) => {
            revoke_everything(tx, &locked, reason).await?;
            Change::new(Action::MachineRevoke, id)
        }
    };
    Ok(record::write(tx, policy, change.reason(Some(reason)), &before).await?)
}

/// The response may have been lost, so repeating a decision returns the record. A different reason is an error, because
/// it would not be stored.
fn repeated(machine: Machine, state: &'static str, reason: &str) -> Result<Machine, StatusChangeError> {
    if machine.status_reason.as_deref() == Some(reason) {
        return Ok(machine);
    }
    Err(StatusChangeError::DecidedBefore {
        state,
        reason: machine.status_reason,
    })
}

async fn suspend(tx: &mut Transaction, machine: &LockedMachine, reason: &str) -> Result<(), StoreError> {
    devices::revoke_certificates(tx, machine, reason).await?;
    opening::end_unused(tx, machine, reason).await?;
    set_status(tx, machine, MachineStatus::Quarantined, reason).await
}

fn quarantine(machine: &LockedMachine, reason: &str) -> Change {
    let detail = json!({ "reason": reason });
    Change::new(Action::MachineQuarantine, machine.id())
        .reason(Some(reason))
        .event(machine.id(), EventKind::MachineQuarantined, detail)
}

async fn set_status(
    tx: &mut Transaction,
    machine: &LockedMachine,
    status: MachineStatus,
    reason: &str,
) -> Result<(), StoreError> {
    store::machines::presence::set_admitted(tx, machine, status == MachineStatus::Active).await?;
    store::machines::record::set_status(tx, machine, status, Some(reason)).await
}
