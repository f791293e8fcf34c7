//! The effects of a decision on a pending key: on the key, on its machine, and on the key that it replaces.

use assay_protocol::{
    admin_api::{
        audit::Actor,
        enrollments::{Enrollment, EnrollmentKind, EnrollmentStatus},
        machines::Machine,
    },
    machine::MachineStatus,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::approval::{ApprovalError, Decision};
use crate::{
    changes::EventKind,
    machines::{assurance::Grounds, continuity::Continuity, labels::Labels},
    registry::{
        key_replacement::{self, Replacement},
        key_rotation::{self, NextKey},
        opening, record, status_change,
    },
    services::Policy,
    store::{
        self, StoreError, Transaction,
        enrollments::{ClaimedEnrollment, NewKeyRequest},
        machines::{keys::GroundOfNext, presence::LockedMachine},
    },
};

/// A locked machine with its record, and the labels of its serial number if the inventory has that.
pub(super) struct Subject {
    pub(super) locked: LockedMachine,
    pub(super) machine: Machine,
    listed: Option<Labels>,
}

/// Locks the serial number's row in the inventory, then the machine.
pub(super) async fn lock(
    tx: &mut Transaction,
    policy: &Policy,
    machine_id: Uuid,
) -> Result<Option<Subject>, StoreError> {
    // The serial number of a record never changes.
    let identity = store::machines::record::find_identity(tx, machine_id).await?;
    let listed = match identity.and_then(|identity| identity.serial_number) {
        Some(serial_number) => store::inventory::lock(tx, &serial_number).await?,
        None => None,
    };
    let found = record::lock(tx, policy, machine_id).await?;
    Ok(found.map(|(locked, machine)| Subject {
        locked,
        machine,
        listed,
    }))
}

/// An enrollment as the audit has it: without the address, and without the name of its decider, which is stored
/// beside the entry.
pub(super) fn audited(enrollment: &Enrollment) -> Result<Value, StoreError> {
    let decided_by = enrollment.decided_by.clone();
    store::json(&Enrollment {
        address: None,
        decided_by: decided_by.map(|actor| Actor { name: None, ..actor }),
        ..enrollment.clone()
    })
}

/// Carries out a decision on a pending enrollment.
pub(super) async fn carry_out(
    tx: &mut Transaction,
    subject: &Subject,
    waiting: &ClaimedEnrollment,
    decision: &Decision,
) -> Result<(), ApprovalError> {
    store::enrollments::decide(tx, waiting.enrollment.id, decision.status(), decision.reason()).await?;
    match (decision, waiting.enrollment.kind) {
        (Decision::Approve(_), EnrollmentKind::Enrollment) => admit(tx, subject, waiting, decision.reason()).await,
        (Decision::Approve(_), EnrollmentKind::ReEnrollment) => {
            replace_key(tx, subject, waiting, decision.reason()).await
        }
        (Decision::Approve(_), EnrollmentKind::Rotation) => {
            begin_rotation(tx, subject, waiting, decision.reason()).await
        }
        (Decision::Deny(reason), _) => deny(tx, subject, waiting, reason.as_str()).await,
    }
}

async fn admit(
    tx: &mut Transaction,
    Subject {
        locked,
        machine,
        listed,
    }: &Subject,
    waiting: &ClaimedEnrollment,
    reason: Option<&str>,
) -> Result<(), ApprovalError> {
    if machine.status != MachineStatus::Pending {
        return Err(ApprovalError::NotPending);
    }
    require_free_serial_number(tx, machine.id, machine.serial_number.as_deref()).await?;
    let now = tx.now();
    store::machines::record::admit(tx, locked, reason, now).await?;
    let before = store::machines::grounds::find(tx, machine.id)
        .await?
        .unwrap_or_default();
    let grounds = before.approved(waiting.enrollment.id, listed.is_some());
    store::machines::grounds::set(tx, locked, grounds).await?;
    // The inventory's row gives labels too, and may have been imported while the machine was pending.
    if let (None, Some(listed)) = (before.inventory, listed) {
        let mut labels = listed.clone();
        labels.extend(machine.labels.clone());
        store::machines::set_labels_and_note(tx, locked, &labels, machine.note.as_deref()).await?;
    }
    store::machines::presence::set_admitted(tx, locked, true).await?;
    store::machines::keys::make_current(tx, waiting.enrollment.key.thumbprint).await?;
    let detail = json!({ "enrollment_id": waiting.enrollment.id, "reason": reason });
    Ok(tx.announce(machine.id, EventKind::MachineApproved, detail).await?)
}

/// Replaces the machine's key. The record keeps its labels and its history. The old key and its certificates become
/// invalid.
async fn replace_key(
    tx: &mut Transaction,
    Subject {
        locked,
        machine,
        listed,
    }: &Subject,
    waiting: &ClaimedEnrollment,
    reason: Option<&str>,
) -> Result<(), ApprovalError> {
    let (id, key, claims, now) = (machine.id, waiting.enrollment.key.thumbprint, &waiting.claims, tx.now());
    let serial_number = machine.serial_number.as_deref();
    require_free_serial_number(tx, id, serial_number).await?;
    // The key on record is another one than this request was to replace, and than the administrator has seen.
    if let Some(other) = store::enrollments::taken_over_since(tx, &waiting.enrollment).await? {
        return Err(ApprovalError::TakenOver(other));
    }
    let token = match waiting.enrollment.token_id {
        Some(token_id) => store::enrollment_tokens::find(tx, token_id).await?,
        None => None,
    };
    let listed = listed.is_some();
    let grounds = Grounds::of(token.as_ref(), serial_number, listed).approved(waiting.enrollment.id, listed);
    let replacement = Replacement {
        key,
        created_at: store::machines::keys::created_at(tx, key).await?.unwrap_or(now),
        claims,
        claims_digest: claims.digest().map_err(ApprovalError::Claims)?,
        grounds,
        continuity: Continuity::OPEN,
    };
    key_replacement::replace(tx, locked, &replacement).await?;
    store::machines::keys::make_current(tx, key).await?;
    store::machines::record::set_status(tx, locked, MachineStatus::Active, reason).await?;
    opening::end_decided(tx, locked, "another key was approved").await?;
    let detail = json!({
        "enrollment_id": waiting.enrollment.id,
        "before": { "key": machine.key.thumbprint, "status": machine.status, "assurance": machine.assurance },
        "after": { "key": key },
        "reason": reason,
    });
    Ok(tx.announce(id, EventKind::MachineReEnrolled, detail).await?)
}

/// Makes the key the next one, with the approval as its own ground. The current key asked for it, so this also decides
/// which of two keys that claim an open record is the machine's.
async fn begin_rotation(
    tx: &mut Transaction,
    Subject { locked, machine, .. }: &Subject,
    waiting: &ClaimedEnrollment,
    reason: Option<&str>,
) -> Result<(), ApprovalError> {
    if machine.status != MachineStatus::Active {
        return Err(ApprovalError::NotActive);
    }
    let enrollment = &waiting.enrollment;
    if enrollment.previous_key.as_ref().map(|previous| previous.thumbprint) != Some(machine.key.thumbprint) {
        return Err(ApprovalError::KeyReplaced);
    }
    let ground = GroundOfNext {
        token: None,
        approval: Some(enrollment.id),
        of_key: true,
    };
    let (key, next) = (enrollment.key.thumbprint, NextKey::Waited(enrollment.key.thumbprint));
    key_rotation::begin(tx, (locked, machine.key.thumbprint), next, Some(ground)).await?;
    let why = "a rotation of the current key was approved";
    opening::end_decided_since(tx, locked, enrollment.requested_at, why).await?;
    store::machines::presence::bump_record_version(tx, locked).await?;
    let detail = json!({ "enrollment_id": enrollment.id, "key": key, "reason": reason });
    Ok(tx.announce(machine.id, EventKind::MachineApproved, detail).await?)
}

/// Adds an administrator's approval to the grounds of the current key of an active machine.
pub(super) async fn approve_current_key(
    tx: &mut Transaction,
    subject: &Subject,
    enrollment: Option<Uuid>,
    reason: Option<&str>,
) -> Result<(), ApprovalError> {
    let (machine, key) = (&subject.machine, subject.machine.key.thumbprint);
    let id = match enrollment {
        Some(id) => id,
        None => record_rotated_key(tx, machine).await?,
    };
    store::enrollments::approve_admitted(tx, id, reason).await?;
    let before = store::machines::grounds::find(tx, machine.id)
        .await?
        .unwrap_or_default();
    let grounds = before.approved(id, subject.listed.is_some());
    store::machines::grounds::set(tx, &subject.locked, grounds).await?;
    opening::end_decided(tx, &subject.locked, "the current key was approved").await?;
    store::machines::presence::bump_record_version(tx, &subject.locked).await?;
    let detail = json!({ "enrollment_id": id, "key": key, "reason": reason });
    Ok(tx.announce(machine.id, EventKind::MachineApproved, detail).await?)
}

/// A key in software that a rotation admitted has no enrollment until an administrator approves it.
async fn record_rotated_key(tx: &mut Transaction, machine: &Machine) -> Result<Uuid, ApprovalError> {
    let claims = store::machines::record::find_claims(tx, machine.id).await?;
    let claims = claims.ok_or(ApprovalError::UnknownMachine)?;
    let (id, now) = (tx.new_id(), tx.now());
    let new = NewKeyRequest {
        id,
        kind: EnrollmentKind::Rotation,
        status: EnrollmentStatus::Approved,
        machine_id: machine.id,
        key: machine.key.thumbprint,
        previous_key: None,
        token_id: None,
        claims: &claims,
        // No machine asked for this.
        address: None,
        now,
        expires_at: now,
    };
    store::enrollments::insert(tx, &new).await?;
    Ok(id)
}

async fn deny(
    tx: &mut Transaction,
    Subject { locked, machine, .. }: &Subject,
    waiting: &ClaimedEnrollment,
    reason: &str,
) -> Result<(), ApprovalError> {
    let (key, now) = (waiting.enrollment.key.thumbprint, tx.now());
    store::machines::keys::deny(tx, key, reason, now).await?;
    let detail = json!({ "enrollment_id": waiting.enrollment.id, "key": key, "reason": reason });
    tx.announce(machine.id, EventKind::EnrollmentDenied, detail).await?;
    if waiting.enrollment.kind == EnrollmentKind::Enrollment && machine.status == MachineStatus::Pending {
        status_change::revoke_everything(tx, locked, reason).await?;
    }
    Ok(())
}

async fn require_free_serial_number(
    tx: &mut Transaction,
    machine_id: Uuid,
    serial_number: Option<&str>,
) -> Result<(), ApprovalError> {
    let Some(serial_number) = serial_number else {
        return Ok(());
    };
    match store::machines::other_holder_of_serial_number(tx, serial_number, machine_id).await? {
        Some(holder) => Err(ApprovalError::SerialNumberTaken(holder)),
        None => Ok(()),
    }
}
