//! Enrollment of an unknown key: it becomes a new machine, replaces the key of its serial number's record, or waits.

use assay_protocol::{
    admin_api::{
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
    opening, token,
};
use crate::{
    changes::{Action, Change, EventKind},
    config::{Reenrollment, WithoutToken},
    machines::{assurance::Grounds, continuity::Continuity, labels::Labels},
    registry::key_replacement::{self, Replacement},
    services::{Policy, Services},
    store::{
        self, StoreError, Transaction,
        duties::{self, Duty},
        enrollments::{self, NewKeyRequest},
        inventory,
        machines::{self, keys::KeyStatus, new::NewRows, presence::LockedMachine, record::Identity},
    },
};

/// The audit action and the event kind for a new machine.
pub(super) const ENROLLED: (Action, EventKind) = (Action::MachineEnroll, EventKind::MachineEnrolled);

/// What supports an enrollment.
pub(super) struct EnrollmentBasis {
    /// `None` if the request has no token, and none is required.
    token: Option<EnrollmentToken>,
    grounds: Grounds,
    /// The labels for a new machine: the token's, and those of the inventory that the token does not set. The token
    /// takes precedence, because the machine only claims to be the one in the inventory.
    labels: Labels,
    /// Why the token that came does not count. With it, a key may only wait for a record.
    lapsed: Option<TokenRefusal>,
}

/// How a key takes a record over.
#[derive(Debug, Clone, Copy)]
pub(super) enum Entry {
    /// At its first call.
    New,
    /// After it waited, as this enrollment.
    Waited(Uuid),
}

impl EnrollmentBasis {
    /// Only the key's own claims.
    pub(super) fn none() -> Self {
        Self {
            token: None,
            grounds: Grounds::default(),
            labels: Labels::new(),
            lapsed: None,
        }
    }

    /// Whether an administrator must decide.
    fn waits(&self) -> bool {
        self.token
            .as_ref()
            .is_none_or(|token| token.approval == Approval::Manual)
    }

    fn token_id(&self) -> Option<Uuid> {
        self.token.as_ref().map(|token| token.id)
    }

    /// Whether the token is bound to this serial number, and allows a new key to take over its record.
    fn allows_to_replace(&self) -> bool {
        self.grounds.token.is_some() && self.token.as_ref().is_some_and(|token| token.allow_reenrollment)
    }
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
    let basis = match basis(tx, services, applicant).await {
        Err(EnrollError::Token(refusal)) => without_lapsed_token(tx, services, applicant, refusal).await?,
        basis => basis?,
    };
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
        machines::openings::end(tx, &locked).await?;
        return take_over(tx, services, applicant, &basis, (&locked, &known), Entry::New).await;
    }
    if !allowed && services.policy.reenrollment == Reenrollment::Refuse {
        if let Some(refusal) = basis.lapsed {
            return Err(refusal.into());
        }
        return Err(EnrollError::Exists {
            serial_number: known.serial_number.unwrap_or_default(),
        });
    }
    wait_to_take_over(tx, &services.policy, applicant, &basis, &known).await
}

/// Locks the token first, then the serial number's row in the inventory. A concurrent removal of that row either came
/// first, or waits and then removes the ground of this enrollment.
async fn basis(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
) -> Result<EnrollmentBasis, EnrollError> {
    let serial_number = applicant.claims.machine.serial_number.as_deref();
    let token = match (applicant.token, services.policy.without_token) {
        (Some(secret), _) => Some(token::spend(tx, secret, serial_number, applicant.now).await?),
        (None, WithoutToken::Refuse) => return Err(TokenRefusal::Missing.into()),
        (None, WithoutToken::Pending) => {
            require_room(tx, services, applicant).await?;
            None
        }
    };
    // Charged only with a valid token. Otherwise a stranger could use up the limit of this serial number.
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
    Ok(EnrollmentBasis {
        token,
        grounds,
        labels,
        lapsed: None,
    })
}

/// The basis of a key whose token was for its serial number, and was used up or expired. It may wait for the record, if
/// there is one, as a key without a token does. Its token limits no more how many keys wait.
async fn without_lapsed_token(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
    refusal: TokenRefusal,
) -> Result<EnrollmentBasis, EnrollError> {
    let (Some(secret), Some(serial_number)) = (applicant.token, applicant.claims.machine.serial_number.as_deref())
    else {
        return Err(refusal.into());
    };
    let may_wait = token::has_lapsed(tx, secret, Some(serial_number), refusal).await?
        && machines::record::find_by_serial_number(tx, serial_number)
            .await?
            .is_some();
    if !may_wait {
        return Err(refusal.into());
    }
    require_room(tx, services, applicant).await?;
    Ok(EnrollmentBasis {
        lapsed: Some(refusal),
        ..EnrollmentBasis::none()
    })
}

/// The grounds of a key, and the labels of its machine if that is new. The token's labels take precedence over those of
/// the inventory.
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

/// Limits how many machines without a token wait at the same time. Administrators could otherwise not keep up.
async fn require_room(tx: &mut Transaction, services: &Services, applicant: &Applicant) -> Result<(), EnrollError> {
    applicant.keep_address_charge();
    let limit = services.policy.without_token_limit;
    let is_full = async |tx: &mut Transaction| {
        let waiting = enrollments::count_waiting_without_token(tx, applicant.now).await?;
        Ok::<_, EnrollError>(waiting >= i64::from(limit))
    };
    // Checked without the lock first, so a flood of calls does not queue for it.
    if is_full(tx).await? {
        return Err(EnrollError::NoRoom { limit });
    }
    duties::wait_for(tx, Duty::WaitWithoutToken).await?;
    if is_full(tx).await? {
        return Err(EnrollError::NoRoom { limit });
    }
    Ok(())
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
