//! A new key of a machine whose record is open. It needs no token, but the recorded hardware UUID, and it must be the only
//! key that waits. It takes the record over as `asserted`.
//!
//! The opening says that the Mac was wiped, and not which key is the Mac's. So the server watches for a second key
//! after the takeover. If one comes, the first key gets no grants until an administrator decides between the two.

use assay_protocol::{admin_api::enrollment_tokens::Approval, machine::MachineStatus};
use serde_json::json;
use uuid::Uuid;

use super::{
    Applicant, Decided, EnrollError,
    basis::EnrollmentBasis,
    new_key::{self, Entry},
    token,
};
use crate::{
    changes::{Action, Change, EventKind},
    machines::{
        claims::is_same_hardware_uuid,
        opening::{Opening, OpeningState},
    },
    services::Services,
    store::{
        Transaction, enrollment_tokens, enrollments,
        machines::{self, openings, presence::LockedMachine, record::Identity},
    },
};

/// How many keys may wait for one open record.
const MOST_WAITING: u32 = 10;

/// Decides on a new key, if the record of its serial number is open for its hardware. `None` if the usual rules apply.
pub(super) async fn decide(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
) -> Result<Option<Decided>, EnrollError> {
    let Some(serial_number) = &applicant.claims.machine.serial_number else {
        return Ok(None);
    };
    // Most serial numbers are not open, so nothing is locked for this look.
    let found = machines::record::find_by_serial_number(tx, serial_number).await?;
    let Some(found) = found else { return Ok(None) };
    if of(tx, applicant, &found).await?.is_none() || has_fit_token(tx, applicant).await? {
        return Ok(None);
    }
    applicant.keep_address_charge();
    let Some((locked, known)) = new_key::lock(tx, Some(found)).await? else {
        return Ok(None);
    };
    let Some(opening) = of(tx, applicant, &known).await? else {
        return Ok(None);
    };
    let is_alone = is_alone(tx, applicant, known.id).await?;
    if opening.state(tx.now()) == OpeningState::Open && is_alone {
        return take_over(tx, services, applicant, (&locked, &known), (&opening, Entry::New))
            .await
            .map(Some);
    }
    // The first key that contests a takeover always finds room. Otherwise the one that took over could fill the places.
    if opening.state(tx.now()) != OpeningState::Watched {
        require_place(tx, known.id).await?;
    }
    contest(tx, &locked, &opening).await?;
    let waits = new_key::wait_to_take_over(tx, &services.policy, applicant, &EnrollmentBasis::none(), &known).await?;
    Ok(Some(waits))
}

/// Decides on a key that already waits for the record. `None` if it still waits.
pub(super) async fn decide_waiting(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
    (machine_id, enrollment_id): (Uuid, Uuid),
) -> Result<Option<Decided>, EnrollError> {
    let Some(found) = machines::record::find_identity(tx, machine_id).await? else {
        return Ok(None);
    };
    let Some((locked, known)) = new_key::lock(tx, Some(found)).await? else {
        return Ok(None);
    };
    let Some(opening) = of(tx, applicant, &known).await? else {
        return Ok(None);
    };
    if opening.state(tx.now()) != OpeningState::Open || !is_alone(tx, applicant, machine_id).await? {
        return Ok(None);
    }
    let entry = (&opening, Entry::Waited(enrollment_id));
    take_over(tx, services, applicant, (&locked, &known), entry)
        .await
        .map(Some)
}

/// The opening that applies to this key: of an active machine with its serial number and its hardware UUID.
async fn of(tx: &mut Transaction, applicant: &Applicant, known: &Identity) -> Result<Option<Opening>, EnrollError> {
    let claimed = &applicant.claims.machine;
    let has_hardware = match (&known.hardware_uuid, &claimed.hardware_uuid) {
        (Some(recorded), Some(claimed)) => is_same_hardware_uuid(recorded, claimed),
        _ => false,
    };
    let has_serial_number = known.serial_number.is_some() && known.serial_number == claimed.serial_number;
    if known.status != MachineStatus::Active || !has_hardware || !has_serial_number {
        return Ok(None);
    }
    let opening = openings::find(tx, known.id).await?;
    Ok(opening.filter(|opening| opening.state(tx.now()) != OpeningState::Over))
}

/// Whether the token alone gives the record to this key. An unfit one is ignored, and not used.
async fn has_fit_token(tx: &mut Transaction, applicant: &Applicant) -> Result<bool, EnrollError> {
    let Some(secret) = applicant.token else {
        return Ok(false);
    };
    let token = enrollment_tokens::lock_by_secret(tx, secret).await?;
    let serial_number = applicant.claims.machine.serial_number.as_deref();
    Ok(token.is_some_and(|token| {
        token.approval == Approval::Automatic
            && token.allow_reenrollment
            && token::check_bound(&token, serial_number, applicant.now).is_ok()
    }))
}

/// Anyone who knows the hardware can make keys that wait, so only so many may.
pub(super) async fn require_place(tx: &mut Transaction, machine_id: Uuid) -> Result<(), EnrollError> {
    let now = tx.now();
    let waiting = enrollments::pending_of_machine(tx, machine_id, now, i64::from(MOST_WAITING)).await?;
    match u32::try_from(waiting.len()) {
        Ok(count) if count < MOST_WAITING => Ok(()),
        _ => Err(EnrollError::NoRoom { limit: MOST_WAITING }),
    }
}

/// Whether no other key waits for the machine.
async fn is_alone(tx: &mut Transaction, applicant: &Applicant, machine_id: Uuid) -> Result<bool, EnrollError> {
    let now = tx.now();
    let waiting = enrollments::pending_of_machine(tx, machine_id, now, 2).await?;
    let mut others = waiting
        .iter()
        .filter(|other| other.key.thumbprint != applicant.key() && !super::expiry::is_overdue(other, now));
    Ok(others.next().is_none())
}

async fn take_over(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
    (locked, known): (&LockedMachine, &Identity),
    (opening, entry): (&Opening, Entry),
) -> Result<Decided, EnrollError> {
    let decided = new_key::take_over(
        tx,
        services,
        applicant,
        &EnrollmentBasis::none(),
        (locked, known),
        entry,
    )
    .await?;
    let watched_until = tx.now().saturating_add(opening.length());
    openings::take(tx, locked, applicant.key(), watched_until).await?;
    Ok(decided)
}

/// A key that comes after a takeover contests it, once.
async fn contest(tx: &mut Transaction, locked: &LockedMachine, opening: &Opening) -> Result<(), EnrollError> {
    if opening.state(tx.now()) != OpeningState::Watched {
        return Ok(());
    }
    openings::contest(tx, locked).await?;
    machines::presence::bump_record_version(tx, locked).await?;
    let detail = json!({ "opening_id": opening.id });
    let change = Change::new(Action::MachineContestOpening, locked.id())
        .after(detail.clone())
        .event(locked.id(), EventKind::MachineOpeningContested, detail);
    Ok(tx.record(change).await?)
}
