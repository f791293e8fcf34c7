//! A key that nobody has seen asks: it becomes a new machine, takes over the record of its serial number, or waits.

use assay_protocol::{
    admin_api::{
        enrollment_tokens::{Approval, EnrollmentToken},
        enrollments::{EnrollmentKind, EnrollmentStatus},
    },
    machine::{Assurance, MachineStatus},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Applicant, Decided, EnrollError, certificate, token};
use crate::{
    audit::Change,
    clock,
    config::Reenrollment,
    services::Services,
    store::{
        self, Transaction, audit_entries, certificates,
        enrollments::{self, NewEnrollment},
        events,
        machine_keys::{self, KeyStatus},
        machine_presence,
        machine_records::{self, Identity, NewMachine},
    },
};

/// Decides by the token and by what is on record under the claimed serial number.
pub(super) async fn decide(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
) -> Result<Decided, EnrollError> {
    let token = token::spend(tx, applicant).await?;
    // Only now: before the token was looked at, anybody could use up what this serial number is allowed.
    if let Some(serial_number) = &applicant.claims.machine.serial_number {
        services.rate_limits.charge_serial_number(serial_number)?;
    }
    let known = match &applicant.claims.machine.serial_number {
        Some(serial_number) => machine_records::find_by_serial_number(tx, serial_number).await?,
        None => None,
    };
    // What is decided from here on holds until the commit: a revocation, a quarantine or a deletion that came first is
    // seen, and one that comes now waits.
    let Some(known) = hold(tx, known).await? else {
        return new_machine(tx, services, applicant, &token).await;
    };
    // A token that names this serial number speaks for its owner, but not against an administrator who holds the
    // machine back.
    let allowed = token.allow_reenrollment && token::names(&token, known.serial_number.as_deref());
    if allowed && known.status == MachineStatus::Active && token.approval == Approval::Automatic {
        return take_over(tx, services, applicant, &token, &known).await;
    }
    if !allowed && services.policy.reenrollment == Reenrollment::Refuse {
        return Err(EnrollError::Exists {
            serial_number: known.serial_number.unwrap_or_default(),
        });
    }
    wait_to_take_over(tx, services, applicant, &token, &known).await
}

/// Holds the machine that a serial number was found to belong to, and reads it again.
async fn hold(tx: &mut Transaction, found: Option<Identity>) -> Result<Option<Identity>, EnrollError> {
    let Some(found) = found else { return Ok(None) };
    if machine_presence::lock(tx, found.id).await?.is_none() {
        return Ok(None);
    }
    Ok(machine_records::find_identity(tx, found.id).await?)
}

async fn new_machine(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
    token: &EnrollmentToken,
) -> Result<Decided, EnrollError> {
    let machine_id = clock::new_id(services.clock.as_ref());
    let waits = token.approval == Approval::Manual;
    let assurance = assurance(token, applicant);
    let new = NewMachine {
        id: machine_id,
        status: if waits {
            MachineStatus::Pending
        } else {
            MachineStatus::Active
        },
        assurance,
        labels: &token.labels,
        key: applicant.key(),
        claims: &applicant.claims,
        now: applicant.now,
    };
    machine_records::insert(tx, &new).await?;
    let digest = applicant.claims.digest()?;
    machine_presence::insert(tx, machine_id, !waits, applicant.key(), digest, applicant.nonce).await?;
    let enrollment_id = record(tx, services, applicant, token, machine_id, None, waits).await?;
    let what = ("machine.enroll", "machine.enrolled");
    let labels = ("labels", json!(token.labels));
    announce(tx, services, applicant, machine_id, what, Value::Null, labels).await?;
    if waits {
        return Ok(Decided::Pending {
            enrollment_id,
            machine_id: Some(machine_id),
        });
    }
    issue(tx, services, applicant, machine_id, assurance).await
}

/// The new key replaces the old one under the same record, in one transaction.
async fn take_over(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
    token: &EnrollmentToken,
    known: &Identity,
) -> Result<Decided, EnrollError> {
    let digest = applicant.claims.digest()?;
    machine_keys::supersede_all(tx, known.id, applicant.now).await?;
    certificates::revoke_all(tx, known.id, "superseded", applicant.now).await?;
    let assurance = Assurance::Verified;
    machine_records::replace_key(
        tx,
        known.id,
        applicant.key(),
        &applicant.claims,
        assurance,
        applicant.now,
    )
    .await?;
    machine_presence::replace_key(tx, known.id, applicant.key(), digest).await?;
    machine_presence::use_nonce(tx, known.id, applicant.nonce).await?;
    record(tx, services, applicant, token, known.id, Some(known), false).await?;
    announce(
        tx,
        services,
        applicant,
        known.id,
        ("machine.re-enroll", "machine.re-enrolled"),
        json!({"key": known.current_key, "assurance": known.assurance}),
        ("assurance", json!(assurance)),
    )
    .await?;
    issue(tx, services, applicant, known.id, assurance).await
}

async fn wait_to_take_over(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
    token: &EnrollmentToken,
    known: &Identity,
) -> Result<Decided, EnrollError> {
    let enrollment_id = record(tx, services, applicant, token, known.id, Some(known), true).await?;
    let detail = json!({"enrollment_id": enrollment_id, "key": applicant.key(), "previous_key": known.current_key});
    events::insert(
        tx,
        services.clock.as_ref(),
        known.id,
        "machine.re-enrollment-requested",
        detail.clone(),
    )
    .await?;
    let change = Change::new("enrollment.request", "enrollment", enrollment_id).after(detail);
    audit_entries::insert(tx, services.clock.as_ref(), &applicant.origin(known.id), change).await?;
    Ok(Decided::Pending {
        enrollment_id,
        machine_id: None,
    })
}

/// Keeps the key and what was decided on it.
async fn record(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
    token: &EnrollmentToken,
    machine_id: Uuid,
    replaces: Option<&Identity>,
    waits: bool,
) -> Result<Uuid, EnrollError> {
    let key_status = if waits { KeyStatus::Pending } else { KeyStatus::Current };
    machine_keys::insert(tx, applicant.csr.public_key(), machine_id, key_status, applicant.now).await?;
    let id = clock::new_id(services.clock.as_ref());
    let new = NewEnrollment {
        id,
        kind: if replaces.is_some() {
            EnrollmentKind::ReEnrollment
        } else {
            EnrollmentKind::Enrollment
        },
        status: if waits {
            EnrollmentStatus::Pending
        } else {
            EnrollmentStatus::Approved
        },
        machine_id,
        key: applicant.key(),
        previous_key: replaces.map(|known| known.current_key),
        token_id: token.id,
        claims: &applicant.claims,
        now: applicant.now,
    };
    enrollments::insert(tx, &new).await?;
    Ok(id)
}

async fn announce(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
    machine_id: Uuid,
    (action, event): (&'static str, &str),
    before: Value,
    (member, value): (&str, Value),
) -> Result<(), EnrollError> {
    let machine = store::json(&applicant.claims.machine)?;
    let after = json!({"key": applicant.key(), "machine": machine, member: value});
    let detail = json!({"before": before, "after": after});
    events::insert(tx, services.clock.as_ref(), machine_id, event, detail).await?;
    let mut change = Change::new(action, "machine", machine_id).after(after);
    if !before.is_null() {
        change = change.before(before);
    }
    audit_entries::insert(tx, services.clock.as_ref(), &applicant.origin(machine_id), change).await?;
    Ok(())
}

async fn issue(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
    machine_id: Uuid,
    assurance: Assurance,
) -> Result<Decided, EnrollError> {
    let origin = applicant.origin(machine_id);
    let certificate = certificate::issue(tx, services, &origin, machine_id, applicant.csr.public_key()).await?;
    Ok(Decided::Active {
        machine_id,
        assurance,
        certificate,
        issued_now: true,
    })
}

/// Only a token that names the serial number says more of it than the machine itself does.
fn assurance(token: &EnrollmentToken, applicant: &Applicant) -> Assurance {
    let serial_number = applicant.claims.machine.serial_number.as_deref();
    if token::names(token, serial_number) {
        Assurance::Verified
    } else {
        Assurance::Asserted
    }
}
