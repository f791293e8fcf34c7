//! Where machines stand: quarantined, released, revoked.
//!
//! Each decision holds the machine's presence first, the row that a check-in writes: one that is under way is finished
//! before, and every later one sees the decision.

use assay_protocol::{
    admin_api::{certificates::RevocationReason, enrollments::EnrollmentStatus, machines::Machine},
    machine::MachineStatus,
};
use serde_json::json;
use uuid::Uuid;

use super::{machines::MachineError, reason::Reason};
use crate::{
    audit::{Change, Origin},
    machines::{devices, record},
    services::Services,
    store::{self, StoreError, Transaction, certificates::Revoked},
};

/// What the audit calls it.
const QUARANTINE: &str = "machine.quarantine";

/// What an administrator decides on where a machine stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Held back: from now on no check-in yields a grant.
    Quarantine,
    /// Quarantined no more: it may check in again.
    Release,
    /// Out for good: its keys never serve again, and its certificates are revoked.
    Revoke,
}

/// Carries a decision out. Where it stands so already for this reason, nothing changes; for another one it is refused.
pub(crate) async fn decide(
    services: &Services,
    origin: &Origin,
    id: Uuid,
    standing: Standing,
    reason: &str,
) -> Result<Machine, MachineError> {
    let reason = Reason::parse(reason)?;
    let context = (services, origin, id, standing, reason.as_str());
    services
        .store
        .tx(
            "decide where a machine stands",
            &context,
            |tx, &(services, origin, id, standing, reason)| {
                Box::pin(decide_once(tx, services, origin, id, standing, reason))
            },
        )
        .await
}

/// Revokes a machine that is held, its keys and its certificates; a first enrollment that waits is denied by it.
pub(crate) async fn revoke_everything(
    tx: &mut Transaction,
    services: &Services,
    origin: &Origin,
    id: Uuid,
    reason: &str,
) -> Result<(), StoreError> {
    let now = services.clock.now();
    store::machine_presence::set_admitted(tx, id, false).await?;
    devices::revoke_certificates(tx, services.clock.as_ref(), id, reason).await?;
    store::machine_records::set_status(tx, id, MachineStatus::Revoked, Some(reason)).await?;
    let reason_to_publish = RevocationReason::PrivilegeWithdrawn;
    store::certificates::revoke(tx, id, Revoked::All, reason_to_publish, now).await?;
    store::machine_keys::revoke_all(tx, id, reason, now).await?;
    store::enrollments::deny_first_of_machine(tx, id, &origin.actor, reason, now).await?;
    let detail = json!({ "reason": reason });
    store::events::insert(tx, services.clock.as_ref(), id, "machine.revoked", detail).await
}

/// Denies every enrollment that waits for a machine that is held, and its key.
pub(crate) async fn deny_what_waits(
    tx: &mut Transaction,
    services: &Services,
    origin: &Origin,
    id: Uuid,
    reason: &str,
) -> Result<(), StoreError> {
    let now = services.clock.now();
    for enrollment in store::enrollments::lock_pending_of_machine(tx, id).await? {
        let (denied, by) = (EnrollmentStatus::Denied, &origin.actor);
        store::enrollments::decide(tx, enrollment.id, denied, by, Some(reason), now).await?;
        store::machine_keys::deny(tx, enrollment.key.thumbprint, reason, now).await?;
    }
    Ok(())
}

/// Quarantines a machine that is held, if it is active.
pub(super) async fn quarantine_active(
    tx: &mut Transaction,
    services: &Services,
    origin: &Origin,
    machine: &Machine,
    reason: &str,
) -> Result<(), StoreError> {
    if machine.status != MachineStatus::Active {
        return Ok(());
    }
    quarantine(tx, services, machine.id, reason).await?;
    let change = Change::new(QUARANTINE, "machine", machine.id).reason(Some(reason));
    record::audit(tx, services, origin, change, machine).await?;
    Ok(())
}

async fn decide_once(
    tx: &mut Transaction,
    services: &Services,
    origin: &Origin,
    id: Uuid,
    standing: Standing,
    reason: &str,
) -> Result<Machine, MachineError> {
    let before = record::hold(tx, services, id).await?.ok_or(MachineError::Unknown)?;
    let action = match (standing, before.status) {
        (Standing::Quarantine, MachineStatus::Quarantined) => return repeated(before, "quarantined", reason),
        (Standing::Release, MachineStatus::Active) => return repeated(before, "active", reason),
        (Standing::Revoke, MachineStatus::Revoked) => return repeated(before, "revoked", reason),
        (Standing::Quarantine | Standing::Release, MachineStatus::Pending) => {
            return Err(MachineError::Standing("pending: approve or deny it"));
        }
        (Standing::Quarantine | Standing::Release, MachineStatus::Revoked) => {
            return Err(MachineError::Standing("revoked, which is final"));
        }
        (Standing::Quarantine, MachineStatus::Active) => {
            quarantine(tx, services, id, reason).await?;
            QUARANTINE
        }
        (Standing::Release, MachineStatus::Quarantined) => {
            move_to(tx, services, id, MachineStatus::Active, "machine.released", reason).await?;
            "machine.release"
        }
        (Standing::Revoke, _) => {
            revoke_everything(tx, services, origin, id, reason).await?;
            "machine.revoke"
        }
    };
    let change = Change::new(action, "machine", id).reason(Some(reason));
    Ok(record::audit(tx, services, origin, change, &before).await?)
}

/// The answer may have been lost, and the same decision gets it again. One with another reason is another decision, which
/// would be dropped without a word.
fn repeated(machine: Machine, state: &'static str, reason: &str) -> Result<Machine, MachineError> {
    if machine.status_reason.as_deref() == Some(reason) {
        return Ok(machine);
    }
    Err(MachineError::DecidedBefore {
        state,
        reason: machine.status_reason,
    })
}

async fn quarantine(tx: &mut Transaction, services: &Services, id: Uuid, reason: &str) -> Result<(), StoreError> {
    let status = MachineStatus::Quarantined;
    devices::revoke_certificates(tx, services.clock.as_ref(), id, reason).await?;
    move_to(tx, services, id, status, "machine.quarantined", reason).await
}

async fn move_to(
    tx: &mut Transaction,
    services: &Services,
    id: Uuid,
    status: MachineStatus,
    event: &str,
    reason: &str,
) -> Result<(), StoreError> {
    store::machine_presence::set_admitted(tx, id, status == MachineStatus::Active).await?;
    store::machine_records::set_status(tx, id, status, Some(reason)).await?;
    store::events::insert(tx, services.clock.as_ref(), id, event, json!({ "reason": reason })).await
}
