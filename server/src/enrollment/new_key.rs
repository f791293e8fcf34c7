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

use super::{Applicant, Decided, EnrollError, TokenRefusal, certificate, token};
use crate::{
    changes::Change,
    clock,
    config::{Reenrollment, WithoutToken},
    machines::{assurance::Grounds, labels::Labels},
    services::Services,
    store::{
        self, StoreError, Transaction, audit_entries,
        certificates::{self, Revoked},
        duties::{self, Duty},
        enrollments::{self, NewEnrollment},
        events::{self, NewEvent},
        inventory,
        machines::{
            self,
            keys::KeyStatus,
            record::{Identity, NewMachine},
        },
    },
};

/// What a new machine is called in the audit, and as an event.
pub(super) const ENROLLED: (&str, &str) = ("machine.enroll", "machine.enrolled");

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
    // What is decided from here on holds until the commit: a revocation, a quarantine or a deletion that came first is
    // seen, and one that comes now waits.
    let Some(known) = hold(tx, known).await? else {
        return new_machine(tx, services, applicant, &backing).await;
    };
    // A token that names this serial number speaks for its owner, but not against an administrator who holds the
    // machine back.
    let allowed = backing.allows_to_replace();
    if allowed && known.status == MachineStatus::Active && !backing.waits() {
        return take_over(tx, services, applicant, &backing, &known).await;
    }
    if !allowed && services.policy.reenrollment == Reenrollment::Refuse {
        return Err(EnrollError::Exists {
            serial_number: known.serial_number.unwrap_or_default(),
        });
    }
    wait_to_take_over(tx, services, applicant, &backing, &known).await
}

/// The token is held first, then the serial number's place in the inventory: a row that goes in this moment either has
/// gone already, or goes after this enrollment and takes its ground away.
async fn backing(tx: &mut Transaction, services: &Services, applicant: &Applicant) -> Result<Backing, EnrollError> {
    let serial_number = applicant.claims.machine.serial_number.as_deref();
    let token = match (applicant.token, services.policy.without_token) {
        (Some(secret), _) => Some(token::spend(tx, applicant, secret).await?),
        (None, WithoutToken::Refuse) => return Err(TokenRefusal::Missing.into()),
        (None, WithoutToken::Pending) => {
            demand_room(tx, services, applicant).await?;
            None
        }
    };
    // Only what a token let in: otherwise anybody could use up what this serial number is allowed.
    if let (Some(_), Some(serial_number)) = (&token, serial_number) {
        services.rate_limits.charge_serial_number(serial_number)?;
    }
    let listed = match serial_number {
        Some(serial_number) => inventory::hold(tx, serial_number).await?,
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
    applicant.charge_address(services)?;
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

/// Holds the machine that a serial number was found to belong to, and reads it again.
async fn hold(tx: &mut Transaction, found: Option<Identity>) -> Result<Option<Identity>, EnrollError> {
    let Some(found) = found else { return Ok(None) };
    if machines::presence::lock(tx, found.id).await?.is_none() {
        return Ok(None);
    }
    Ok(machines::record::find_identity(tx, found.id).await?)
}

async fn new_machine(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
    backing: &Backing,
) -> Result<Decided, EnrollError> {
    let machine_id = clock::new_id(services.clock.as_ref());
    let waits = backing.waits();
    let new = NewMachine {
        id: machine_id,
        status: if waits {
            MachineStatus::Pending
        } else {
            MachineStatus::Active
        },
        grounds: backing.grounds,
        labels: &backing.labels,
        key: applicant.key(),
        claims: &applicant.claims,
        now: applicant.now,
    };
    machines::record::insert(tx, &new).await?;
    let digest = applicant.claims.digest()?;
    machines::presence::insert(tx, machine_id, !waits, applicant.key(), digest, applicant.nonce).await?;
    let enrollment_id = record(tx, services, applicant, backing, machine_id, None, waits).await?;
    let labels = ("labels", json!(backing.labels));
    announce(tx, services, applicant, machine_id, ENROLLED, Value::Null, labels).await?;
    if waits {
        return Ok(Decided::Pending {
            enrollment_id,
            machine_id: Some(machine_id),
            waiting_since: applicant.now,
        });
    }
    issue(tx, services, applicant, machine_id, backing.grounds.assurance()).await
}

/// The new key replaces the old one under the same record, in one transaction.
async fn take_over(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
    backing: &Backing,
    known: &Identity,
) -> Result<Decided, EnrollError> {
    let digest = applicant.claims.digest()?;
    machines::keys::supersede_all(tx, known.id, applicant.now).await?;
    certificates::revoke(tx, known.id, Revoked::All, RevocationReason::Superseded, applicant.now).await?;
    let (grounds, assurance) = (backing.grounds, backing.grounds.assurance());
    let (key, claims, now) = (applicant.key(), &applicant.claims, applicant.now);
    machines::record::replace_key(tx, known.id, key, claims, grounds, now).await?;
    machines::presence::replace_key(tx, known.id, applicant.key(), digest).await?;
    machines::presence::use_nonce(tx, known.id, applicant.nonce).await?;
    record(tx, services, applicant, backing, known.id, Some(known), false).await?;
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
    backing: &Backing,
    known: &Identity,
) -> Result<Decided, EnrollError> {
    let enrollment_id = record(tx, services, applicant, backing, known.id, Some(known), true).await?;
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
        waiting_since: applicant.now,
    })
}

/// Keeps the key and what was decided on it.
async fn record(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
    backing: &Backing,
    machine_id: Uuid,
    replaces: Option<&Identity>,
    waits: bool,
) -> Result<Uuid, EnrollError> {
    let key_status = if waits { KeyStatus::Pending } else { KeyStatus::Current };
    machines::keys::insert(tx, applicant.csr.public_key(), machine_id, key_status, applicant.now).await?;
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
        token_id: backing.token.as_ref().map(|token| token.id),
        claims: &applicant.claims,
        now: applicant.now,
        expires_at: applicant.now.saturating_add(services.policy.pending_ttl),
    };
    enrollments::insert(tx, &new).await?;
    Ok(id)
}

async fn announce(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
    machine_id: Uuid,
    what: (&'static str, &'static str),
    before: Value,
    value: (&str, Value),
) -> Result<(), EnrollError> {
    let (event, change) = trace(applicant, machine_id, what, before, value)?;
    events::insert_all(tx, services.clock.as_ref(), &[event]).await?;
    audit_entries::insert(tx, services.clock.as_ref(), &applicant.origin(machine_id), change).await?;
    Ok(())
}

/// What is told of a key that got in, in an event and in the audit.
pub(super) fn trace(
    applicant: &Applicant,
    machine_id: Uuid,
    (action, kind): (&'static str, &'static str),
    before: Value,
    (member, value): (&str, Value),
) -> Result<(NewEvent, Change), StoreError> {
    let machine = store::json(&applicant.claims.machine)?;
    let after = json!({"key": applicant.key(), "machine": machine, member: value});
    let event = NewEvent {
        machine_id,
        kind,
        detail: json!({"before": before, "after": after}),
    };
    let mut change = Change::new(action, "machine", machine_id).after(after);
    if !before.is_null() {
        change = change.before(before);
    }
    Ok((event, change))
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
