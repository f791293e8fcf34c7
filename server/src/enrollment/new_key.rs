//! Enrollment of an unknown key: it becomes a new machine, replaces the key of its serial number's record, or waits.

use assay_protocol::{
    admin_api::enrollments::{EnrollmentKind, EnrollmentStatus},
    machine::{Assurance, MachineStatus},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Applicant, Decided, EnrollError,
    basis::EnrollmentBasis,
    certificate::{self, Signed},
    opening,
};
use crate::{
    changes::{Action, Change, EventKind},
    config::Reenrollment,
    machines::continuity::Continuity,
    registry::{
        self,
        key_replacement::{self, Replacement},
    },
    services::{Policy, Services},
    store::{
        self, StoreError, Transaction,
        enrollments::{self, NewKeyRequest},
        machines::{self, keys::KeyStatus, new::NewRows, presence::LockedMachine, record::Identity},
    },
};

/// The audit action and the event kind for a new machine.
pub(super) const ENROLLED: (Action, EventKind) = (Action::MachineEnroll, EventKind::MachineEnrolled);

/// How a key takes a record over.
#[derive(Debug, Clone, Copy)]
pub(super) enum Entry {
    /// At its first call.
    New,
    /// After it waited, as this enrollment.
    Waited(Uuid),
}

/// Decides by the token, by the inventory, and by the record with the claimed serial number.
pub(super) async fn decide(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
) -> Result<Decided, EnrollError> {
    if let Some(decided) = opening::decide(tx, services, applicant).await? {
        return Ok(decided);
    }
    let basis = EnrollmentBasis::find(tx, services, applicant).await?;
    let known = match &applicant.claims.machine.serial_number {
        Some(serial_number) => machines::record::find_by_serial_number(tx, serial_number).await?,
        None => None,
    };
    // With the lock, the machine does not change until the commit. An earlier revocation, quarantine or deletion is
    // visible, and a later one waits.
    let Some((locked, known)) = lock(tx, known).await? else {
        if let Some(refusal) = basis.lapsed {
            return Err(refusal.into());
        }
        return new_machine(tx, services, applicant, &basis).await;
    };
    // A token for this serial number does not override an administrator who has suspended the machine.
    let allowed = basis.allows_to_replace();
    if allowed && known.status == MachineStatus::Active && !basis.waits() {
        // The token decides which key is the machine's.
        tx.act_as(applicant.origin(known.id));
        registry::opening::end_decided(tx, &locked, "an enrollment token admitted another key").await?;
        return take_over(tx, services, applicant, &basis, (&locked, &known), Entry::New).await;
    }
    if !allowed && services.policy.reenrollment == Reenrollment::Refuse {
        return Err(EnrollError::Exists {
            serial_number: known.serial_number.unwrap_or_default(),
        });
    }
    // Each holder of a token that lapsed could otherwise have any number of keys wait for one record.
    if basis.lapsed.is_some() {
        opening::require_place(tx, known.id).await?;
    }
    wait_to_take_over(tx, &services.policy, applicant, &basis, &known).await
}

/// Locks the machine with this serial number, and reads it again.
pub(super) async fn lock(
    tx: &mut Transaction,
    found: Option<Identity>,
) -> Result<Option<(LockedMachine, Identity)>, EnrollError> {
    let Some(found) = found else { return Ok(None) };
    let Some(presence) = machines::presence::lock(tx, found.id).await? else {
        return Ok(None);
    };
    let identity = machines::record::find_identity(tx, found.id).await?;
    Ok(identity.map(|identity| (presence.machine, identity)))
}

async fn new_machine(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
    basis: &EnrollmentBasis,
) -> Result<Decided, EnrollError> {
    let (machine_id, enrollment_id) = (tx.new_id(), tx.new_id());
    let key = applicant.csr.public_key();
    // A new machine is not attested, so its certificate does not contain its serial number.
    let signed = match basis.waits() {
        true => None,
        false => Some(certificate::sign(services, machine_id, key, None)?),
    };
    // A later call admits a pending key.
    let continuity = match basis.waits() {
        true => Continuity::OPEN,
        false => Continuity::starting_with(applicant.carried(services, machine_id)),
    };
    let rows = NewRows {
        machine_id,
        enrollment_id,
        token_id: basis.token_id(),
        grounds: basis.grounds,
        labels: &basis.labels,
        key,
        claims: &applicant.claims,
        claims_digest: applicant.claims.digest()?,
        nonce: applicant.nonce,
        continuity,
        address: applicant.caller.source.address,
        asked_at: applicant.now,
        waits_until: applicant.now.saturating_add(services.policy.pending_ttl),
        first_certificate: signed.as_ref().map(Signed::first_of_machine),
    };
    machines::new::insert(tx, &[rows]).await?;
    let labels = ("labels", json!(basis.labels));
    tx.act_as(applicant.origin(machine_id));
    tx.record(change(applicant, machine_id, ENROLLED, Value::Null, labels)?)
        .await?;
    let Some(signed) = signed else {
        return Ok(Decided::Pending {
            enrollment_id,
            machine_id: Some(machine_id),
            waiting_since: applicant.now,
        });
    };
    tx.record(signed.change(machine_id, applicant.key())).await?;
    Ok(Decided::Active {
        machine_id,
        assurance: basis.grounds.assurance(),
        certificate: signed.issued(),
        issued_now: true,
    })
}

/// Replaces the key of a record.
pub(super) async fn take_over(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
    basis: &EnrollmentBasis,
    (locked, known): (&LockedMachine, &Identity),
    entry: Entry,
) -> Result<Decided, EnrollError> {
    let replacement = Replacement {
        key: applicant.key(),
        created_at: applicant.now,
        claims: &applicant.claims,
        claims_digest: applicant.claims.digest()?,
        grounds: basis.grounds,
        continuity: Continuity::starting_with(applicant.carried(services, known.id)),
    };
    key_replacement::replace(tx, locked, &replacement).await?;
    let assurance = basis.grounds.assurance();
    machines::presence::use_nonce(tx, locked, applicant.nonce).await?;
    match entry {
        Entry::New => {
            record(tx, &services.policy, applicant, basis, known, false).await?;
        }
        Entry::Waited(enrollment_id) => {
            machines::keys::make_current(tx, applicant.key()).await?;
            enrollments::admit(tx, enrollment_id, None).await?;
        }
    }
    let what = (Action::MachineReEnroll, EventKind::MachineReEnrolled);
    let before = json!({"key": known.current_key, "assurance": known.assurance});
    let after = ("assurance", json!(assurance));
    tx.act_as(applicant.origin(known.id));
    tx.record(change(applicant, known.id, what, before, after)?).await?;
    issue(tx, services, applicant, known.id, assurance).await
}

pub(super) async fn wait_to_take_over(
    tx: &mut Transaction,
    policy: &Policy,
    applicant: &Applicant,
    basis: &EnrollmentBasis,
    known: &Identity,
) -> Result<Decided, EnrollError> {
    let enrollment_id = record(tx, policy, applicant, basis, known, true).await?;
    let detail = json!({"enrollment_id": enrollment_id, "key": applicant.key(), "previous_key": known.current_key});
    let change = Change::new(Action::EnrollmentRequest, enrollment_id)
        .after(detail.clone())
        .event(known.id, EventKind::MachineReEnrollmentRequested, detail);
    tx.act_as(applicant.origin(known.id));
    tx.record(change).await?;
    Ok(Decided::Pending {
        enrollment_id,
        machine_id: None,
        waiting_since: applicant.now,
    })
}

/// Records a key for a machine on record, and whether it waits.
async fn record(
    tx: &mut Transaction,
    policy: &Policy,
    applicant: &Applicant,
    basis: &EnrollmentBasis,
    known: &Identity,
    waits: bool,
) -> Result<Uuid, EnrollError> {
    let (key_status, status) = match waits {
        true => (KeyStatus::Pending, EnrollmentStatus::Pending),
        false => (KeyStatus::Current, EnrollmentStatus::Approved),
    };
    let key = (key_status, Some(applicant.claims.key.store));
    machines::keys::insert(tx, applicant.csr.public_key(), known.id, key, applicant.now).await?;
    let id = tx.new_id();
    let new = NewKeyRequest {
        id,
        kind: EnrollmentKind::ReEnrollment,
        status,
        machine_id: known.id,
        key: applicant.key(),
        previous_key: Some(known.current_key),
        token_id: basis.token_id(),
        claims: &applicant.claims,
        address: applicant.caller.source.address,
        now: applicant.now,
        expires_at: applicant.now.saturating_add(policy.pending_ttl),
    };
    enrollments::insert(tx, &new).await?;
    Ok(id)
}

/// The audit entry and the event of an admitted key.
pub(super) fn change(
    applicant: &Applicant,
    machine_id: Uuid,
    (action, kind): (Action, EventKind),
    before: Value,
    (member, value): (&str, Value),
) -> Result<Change, StoreError> {
    let machine = store::json(&applicant.claims.machine)?;
    let after = json!({"key": applicant.key(), "machine": machine, member: value});
    let detail = json!({"before": before, "after": after});
    let change = Change::new(action, machine_id)
        .after(after)
        .event(machine_id, kind, detail);
    Ok(match before {
        Value::Null => change,
        before => change.before(before),
    })
}

async fn issue(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
    machine_id: Uuid,
    assurance: Assurance,
) -> Result<Decided, EnrollError> {
    let certificate = certificate::issue(tx, services, machine_id, applicant.csr.public_key()).await?;
    Ok(Decided::Active {
        machine_id,
        assurance,
        certificate,
        issued_now: true,
    })
}
