//! Changes of a machine's status: quarantined, released, revoked.
//!
//! Each decision holds the machine's presence first, the row that a check-in writes: one that is under way is finished
//! before, and every later one sees the decision.

use assay_protocol::{
    admin_api::{certificates::RevocationReason, enrollments::EnrollmentStatus, machines::Machine},
    machine::MachineStatus,
};
use serde_json::json;
use uuid::Uuid;

use super::{
    devices,
    reason::{NoReason, Reason},
    record,
};
use crate::{
    changes::{Change, Origin},
    services::Services,
    store::{self, AsStoreError, StoreError, Transaction, certificates::Revoked},
};

/// What the audit calls it.
const QUARANTINE: &str = "machine.quarantine";

/// What an administrator decides on a machine's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatusChange {
    /// Held back: from now on no check-in yields a grant.
    Quarantine,
    /// Quarantined no more: it may check in again.
    Release,
    /// Out for good: its keys never serve again, and its certificates are revoked.
    Revoke,
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StatusChangeError {
    #[error(transparent)]
    Reason(#[from] NoReason),
    #[error("there is no such machine")]
    Unknown,
    #[error("the machine is {0}")]
    Status(&'static str),
    #[error("the machine is {state} already{}, and another reason does not replace that", because(.reason.as_deref()))]
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

impl AsStoreError for StatusChangeError {
    fn as_store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) => Some(error),
            _ => None,
        }
    }
}

/// Carries a decision out. Where it stands so already for this reason, nothing changes; for another one it is refused.
pub(crate) async fn decide(
    services: &Services,
    origin: &Origin,
    id: Uuid,
    change: StatusChange,
    reason: &str,
) -> Result<Machine, StatusChangeError> {
    let reason = Reason::parse(reason)?;
    let context = (services, origin, id, change, reason.as_str());
    services
        .store
        .tx(
            "change a machine's status",
            &context,
            |tx, &(services, origin, id, change, reason)| {
                Box::pin(decide_once(tx, services, origin, id, change, reason))
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
    store::machines::presence::set_admitted(tx, id, false).await?;
    devices::revoke_certificates(tx, services.clock.as_ref(), id, reason).await?;
    store::machines::record::set_status(tx, id, MachineStatus::Revoked, Some(reason)).await?;
    let reason_to_publish = RevocationReason::PrivilegeWithdrawn;
    store::certificates::revoke(tx, id, Revoked::All, reason_to_publish, now).await?;
    store::machines::keys::revoke_all(tx, id, reason, now).await?;
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
        store::machines::keys::deny(tx, enrollment.key.thumbprint, reason, now).await?;
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
    change: StatusChange,
    reason: &str,
) -> Result<Machine, StatusChangeError> {
    let before = record::hold(tx, services, id)
        .await?
        .ok_or(StatusChangeError::Unknown)?;
    let action = match (change, before.status) {
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
            quarantine(tx, services, id, reason).await?;
            QUARANTINE
        }
        (StatusChange::Release, MachineStatus::Quarantined) => {
            move_to(tx, services, id, MachineStatus::Active, "machine.released", reason).await?;
            "machine.release"
        }
        (StatusChange::Revoke, _) => {
            revoke_everything(tx, services, origin, id, reason).await?;
            "machine.revoke"
        }
    };
    let change = Change::new(action, "machine", id).reason(Some(reason));
    Ok(record::audit(tx, services, origin, change, &before).await?)
}

/// The answer may have been lost, and the same decision gets it again. One with another reason is another decision, which
/// would be dropped without a word.
fn repeated(machine: Machine, state: &'static str, reason: &str) -> Result<Machine, StatusChangeError> {
    if machine.status_reason.as_deref() == Some(reason) {
        return Ok(machine);
    }
    Err(StatusChangeError::DecidedBefore {
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
    store::machines::presence::set_admitted(tx, id, status == MachineStatus::Active).await?;
    store::machines::record::set_status(tx, id, status, Some(reason)).await?;
    store::events::insert(tx, services.clock.as_ref(), id, event, json!({ "reason": reason })).await
}
