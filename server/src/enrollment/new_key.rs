//! A key that nobody has seen asks: it becomes a new machine, takes over the record of its serial number, or waits.

use assay_protocol::{
    admin_api::{
        certificates::RevocationReason,
        enrollment_tokens::{Approval, EnrollmentToken},
        enrollments::{EnrollmentKind, EnrollmentStatus},
    },
    machine::{Assurance, MachineStatus},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Applicant, Decided, EnrollError, TokenRefusal,
    certificate::{self, Signed},
    token,
};
use crate::{
    changes::{Action, Change, EventKind},
    config::{Reenrollment, WithoutToken},
    machines::{assurance::Grounds, continuity::Continuity, labels::Labels},
    services::{Policy, Services},
    store::{
        self, StoreError, Transaction,
        certificates::{self, Revoked},
        duties::{self, Duty},
        enrollments::{self, NewKeyRequest},
        inventory,
        machines::{self, keys::KeyStatus, new::NewRows, presence::LockedMachine, record::Identity},
    },
};

/// What the audit and the event call a new machine.
pub(super) const ENROLLED: (Action, EventKind) = (Action::MachineEnroll, EventKind::MachineEnrolled);

/// What speaks for a key that asks.
struct Backing {
    /// None where none was brought, and none is demanded.
    token: Option<EnrollmentToken>,
    grounds: Grounds,
    /// What a new machine gets: the token's labels, and of the inventory's those that the token does not set. The token
    /// was handed out; that this is the machine of the inventory is its own word.
    labels: Labels,
}

impl Backing {
    /// Whether an administrator has to look at it.
    fn waits(&self) -> bool {
        self.token
            .as_ref()
            .is_none_or(|token| token.approval == Approval::Manual)
    }

    fn token_id(&self) -> Option<Uuid> {
        self.token.as_ref().map(|token| token.id)
    }

    /// Whether the token speaks for the owner of this serial number, and gives its record to a new key.
    fn allows_to_replace(&self) -> bool {
        self.grounds.token.is_some() && self.token.as_ref().is_some_and(|token| token.allow_reenrollment)
    }
}

/// Decides by the token, by the inventory, and by what is on record under the claimed serial number.
pub(super) async fn decide(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
) -> Result<Decided, EnrollError> {
    let backing = backing(tx, services, applicant).await?;
    let known = match &applicant.claims.machine.serial_number {
        Some(serial_number) => machines::record::find_by_serial_number(tx, serial_number).await?,
        None => None,
    };
    // From here on the machine does not change until the commit: a revocation, a quarantine or a deletion that came first is
    // seen, and one that comes now waits.
    let Some((locked, known)) = lock(tx, known).await? else {
        return new_machine(tx, services, applicant, &backing).await;
    };
    // A token that names this serial number speaks for its owner, but not against an administrator who has suspended the
    // machine.
    let allowed = backing.allows_to_replace();
    if allowed && known.status == MachineStatus::Active && !backing.waits() {
        return take_over(tx, services, applicant, &backing, &locked, &known).await;
    }
    if !allowed && services.policy.reenrollment == Reenrollment::Refuse {
        return Err(EnrollError::Exists {
            serial_number: known.serial_number.unwrap_or_default(),
        });
    }
    wait_to_take_over(tx, &services.policy, applicant, &backing, &known).await
}

/// Locks the token first, then the serial number's row in the inventory: a row that is removed in this moment either has
/// gone already, or goes after this enrollment and takes its ground away.
async fn backing(tx: &mut Transaction, services: &Services, applicant: &Applicant) -> Result<Backing, EnrollError> {
    let serial_number = applicant.claims.machine.serial_number.as_deref();
    let token = match (applicant.token, services.policy.without_token) {
        (Some(secret), _) => Some(token::spend(tx, secret, serial_number, applicant.now).await?),
        (None, WithoutToken::Refuse) => return Err(TokenRefusal::Missing.into()),
        (None, WithoutToken::Pending) => {
            demand_room(tx, services, applicant).await?;
            None
        }
    };
    // Only what a token let in: otherwise anybody could use up what this serial number is allowed.
    if let (Some(_), Some(serial_number)) = (&token, serial_number) {
        services
            .rate_limits
            .charge_serial_number(applicant.network(), serial_number)?;
    }
    let listed = match serial_number {
        Some(serial_number) => inventory::lock(tx, serial_number).await?,
        None => None,
    };
    let (grounds, labels) = grounds_and_labels(token.as_ref(), serial_number, listed);
    Ok(Backing { token, grounds, labels })
}

/// What stands behind a key, and the labels that its machine gets if it is new: those of its row in the inventory, if that is
/// there, but where the token has others.
pub(super) fn grounds_and_labels(
    token: Option<&EnrollmentToken>,
    serial_number: Option<&str>,
    listed: Option<Labels>,
) -> (Grounds, Labels) {
    let grounds = Grounds::of(token, serial_number, listed.is_some());
    let mut labels = listed.unwrap_or_default();
    labels.extend(token.into_iter().flat_map(|token| token.labels.clone()));
    (grounds, labels)
}

/// Strangers can make rows that somebody has to look at: so many at once, and no more.
async fn demand_room(tx: &mut Transaction, services: &Services, applicant: &Applicant) -> Result<(), EnrollError> {
    applicant.keep_address_charge();
    let limit = services.policy.without_token_limit;
    let is_full = async |tx: &mut Transaction| {
        let waiting = enrollments::count_waiting_without_token(tx, applicant.now).await?;
        Ok::<_, EnrollError>(waiting >= i64::from(limit))
    };
    // Looked at without waiting first, so that a flood does not queue up for the refusal.
    if is_full(tx).await? {
        return Err(EnrollError::NoRoom { limit });
    }
    duties::wait_for(tx, Duty::WaitWithoutToken).await?;
    if is_full(tx).await? {
        return Err(EnrollError::NoRoom { limit });
    }
    Ok(())
}

/// Locks the machine that a serial number was found to belong to, and reads it again.
async fn lock(tx: &mut Transaction, found: Option<Identity>) -> Result<Option<(LockedMachine, Identity)>, EnrollError> {
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
    backing: &Backing,
) -> Result<Decided, EnrollError> {
    let (machine_id, enrollment_id) = (tx.new_id(), tx.new_id());
    let key = applicant.csr.public_key();
    // A new machine is not attested, so its certificate has no serial number of a device.
    let signed = match backing.waits() {
        true => None,
        false => Some(certificate::sign(services, machine_id, key, None)?),
    };
    // A key that waits is admitted by a later call.
    let continuity = match backing.waits() {
        true => Continuity::OPEN,
        false => Continuity::starting_with(applicant.carried(services, machine_id)),
    };
    let rows = NewRows {
        machine_id,
        enrollment_id,
        token_id: backing.token_id(),
        grounds: backing.grounds,
        labels: &backing.labels,
        key,
        claims: &applicant.claims,
        claims_digest: applicant.claims.digest()?,
        nonce: applicant.nonce,
        continuity,
        asked_at: applicant.now,
        waits_until: applicant.now.saturating_add(services.policy.pending_ttl),
        first_certificate: signed.as_ref().map(Signed::first_of_machine),
    };
    machines::new::insert(tx, &[rows]).await?;
    let labels = ("labels", json!(backing.labels));
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
        assurance: backing.grounds.assurance(),
        certificate: signed.issued(),
        issued_now: true,
    })
}

/// The new key replaces the old one under the same record, in one transaction.
async fn take_over(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
    backing: &Backing,
    locked: &LockedMachine,
    known: &Identity,
) -> Result<Decided, EnrollError> {
    let digest = applicant.claims.digest()?;
    machines::keys::supersede_all(tx, locked, applicant.now).await?;
    certificates::revoke(tx, locked, Revoked::All, RevocationReason::Superseded, applicant.now).await?;
    let (grounds, assurance) = (backing.grounds, backing.grounds.assurance());
    let (key, claims, now) = (applicant.key(), &applicant.claims, applicant.now);
    machines::record::replace_key(tx, locked, key, claims, grounds, now).await?;
    let continuity = Continuity::starting_with(applicant.carried(services, known.id));
    machines::presence::replace_key(tx, locked, applicant.key(), digest, continuity).await?;
    machines::presence::use_nonce(tx, locked, applicant.nonce).await?;
    record(tx, &services.policy, applicant, backing, known, false).await?;
    let what = (Action::MachineReEnroll, EventKind::MachineReEnrolled);
    let before = json!({"key": known.current_key, "assurance": known.assurance});
    let after = ("assurance", json!(assurance));
    tx.act_as(applicant.origin(known.id));
    tx.record(change(applicant, known.id, what, before, after)?).await?;
    issue(tx, services, applicant, known.id, assurance).await
}

async fn wait_to_take_over(
    tx: &mut Transaction,
    policy: &Policy,
    applicant: &Applicant,
    backing: &Backing,
    known: &Identity,
) -> Result<Decided, EnrollError> {
    let enrollment_id = record(tx, policy, applicant, backing, known, true).await?;
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

/// Records a key that asks for a machine's record, and whether it waits.
async fn record(
    tx: &mut Transaction,
    policy: &Policy,
    applicant: &Applicant,
    backing: &Backing,
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
        token_id: backing.token_id(),
        claims: &applicant.claims,
        now: applicant.now,
        expires_at: applicant.now.saturating_add(policy.pending_ttl),
    };
    enrollments::insert(tx, &new).await?;
    Ok(id)
}

/// What the audit and an event say of a key that got in.
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
