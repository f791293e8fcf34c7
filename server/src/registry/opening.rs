//! Opens the record of a machine: for some hours, the new key of a Mac that was wiped may take the record over without a
//! token. Taking over is in `enrollment::opening`.

use assay_protocol::{admin_api::machines, machine::MachineStatus, text::rfc3339};
use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    reason::{NoReason, Reason},
    record,
};
use crate::{
    changes::{Action, Change, EventKind, Origin},
    machines::opening::{DEFAULT_HOURS, MAX_HOURS, Opening, OpeningState},
    services::{Policy, Services},
    store::{
        self, StoreError, Transaction,
        machines::{openings, presence::LockedMachine},
        tx,
    },
};

/// The reason on record of an opening by an MDM's report.
const MDM_REASON: &str = "its MDM reports that the Mac enrolls anew";

/// Why a record is not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpeningError {
    #[error(transparent)]
    Reason(#[from] NoReason),
    #[error("hours must be from 1 to {MAX_HOURS}")]
    Hours,
    #[error("there is no such machine")]
    Unknown,
    #[error("the machine is {0}, and only the record of an active one can be opened")]
    Status(MachineStatus),
    #[error("the record has no {0}, by which the new key could be recognized")]
    Missing(&'static str),
    #[error("the record is open already, for other hours or for another reason")]
    OpenAlready,
    #[error("a key has taken the record over since it was opened; another one waits for an approval")]
    Taken,
    #[error("two keys claim the record since it was opened: approve one of them by key_thumbprint")]
    Contested,
    #[error(transparent)]
    Store(#[from] StoreError),
}

crate::store::has_store_error!(OpeningError);

/// How long, and why.
pub(crate) struct Request {
    hours: u32,
    reason: Option<Reason>,
}

impl Request {
    pub(crate) fn parse(request: &machines::OpenMachine) -> Result<Self, OpeningError> {
        let hours = request.hours.unwrap_or(DEFAULT_HOURS);
        if !(1..=MAX_HOURS).contains(&hours) {
            return Err(OpeningError::Hours);
        }
        let reason = request.reason.as_deref().map(Reason::parse).transpose()?;
        Ok(Self { hours, reason })
    }

    fn is_that_of(&self, opening: &Opening) -> bool {
        self.hours == opening.hours && self.reason.as_ref().map(Reason::as_str) == opening.reason.as_deref()
    }
}

/// Opens the record of an active machine. Repeating the call with the same hours and reason changes nothing.
pub(crate) async fn open(
    services: &Services,
    origin: &Origin,
    id: Uuid,
    request: &Request,
) -> Result<machines::Opening, OpeningError> {
    let policy = &services.policy;
    let opening = tx!(services.store, OpenMachine, origin => open_once(policy, id, request)).await?;
    Ok(opening.to_api())
}

/// Opens the record of a machine because its MDM says that the Mac enrolls anew. A record that cannot be opened does
/// not change, and the MDM gets no reason.
pub(crate) async fn open_by_mdm(services: &Services, origin: &Origin, id: Uuid) -> Result<(), StoreError> {
    let request = Request {
        hours: DEFAULT_HOURS,
        reason: Reason::parse(MDM_REASON).ok(),
    };
    match open(services, origin, id, &request).await {
        Ok(_) => Ok(()),
        Err(OpeningError::Store(error)) => Err(error),
        Err(refusal) => {
            tracing::info!(machine = %id, %refusal, "an MDM's word does not open the record");
            Ok(())
        }
    }
}

/// Ends an opening that no key has used, because the machine's own key checked in or the machine was suspended.
pub(crate) async fn end_unused(tx: &mut Transaction, machine: &LockedMachine, why: &str) -> Result<(), StoreError> {
    let Some(opening) = openings::find(tx, machine.id()).await? else {
        return Ok(());
    };
    if opening.state(tx.now()) != OpeningState::Open {
        return Ok(());
    }
    end(tx, machine, &opening, why).await
}

/// Ends an opening of the machine, if it has one, because it was decided which key is the machine's.
pub(crate) async fn end_decided(tx: &mut Transaction, machine: &LockedMachine, why: &str) -> Result<(), StoreError> {
    match openings::find(tx, machine.id()).await? {
        Some(opening) => end(tx, machine, &opening, why).await,
        None => Ok(()),
    }
}

/// The same for a request of this time. A request from before the opening says nothing about the Mac since it was wiped.
/// Once a key has taken the record over, only that key can have asked, whatever the clock of its replica said.
pub(crate) async fn end_decided_since(
    tx: &mut Transaction,
    machine: &LockedMachine,
    requested_at: OffsetDateTime,
    why: &str,
) -> Result<(), StoreError> {
    match openings::find(tx, machine.id()).await? {
        Some(opening) if opening.watched_until.is_some() || opening.opened_at <= requested_at => {
            end(tx, machine, &opening, why).await
        }
        _ => Ok(()),
    }
}

async fn end(tx: &mut Transaction, machine: &LockedMachine, opening: &Opening, why: &str) -> Result<(), StoreError> {
    let was_over = opening.state(tx.now()) == OpeningState::Over;
    openings::end(tx, machine).await?;
    if was_over {
        return Ok(());
    }
    let detail = json!({ "opening_id": opening.id, "reason": why });
    let change = Change::new(Action::MachineEndOpening, machine.id())
        .reason(Some(why))
        .event(machine.id(), EventKind::MachineOpeningEnded, detail);
    tx.record(change).await
}

async fn open_once(
    tx: &mut Transaction,
    policy: &Policy,
    id: Uuid,
    request: &Request,
) -> Result<Opening, OpeningError> {
    let (locked, machine) = record::lock(tx, policy, id).await?.ok_or(OpeningError::Unknown)?;
    if let Some(opening) = openings::find(tx, id).await? {
        match opening.state(tx.now()) {
            OpeningState::Over => openings::end(tx, &locked).await?,
            OpeningState::Contested => return Err(OpeningError::Contested),
            _ if request.is_that_of(&opening) => return Ok(opening),
            OpeningState::Open => return Err(OpeningError::OpenAlready),
            OpeningState::Watched => return Err(OpeningError::Taken),
        }
    }
    if machine.status != MachineStatus::Active {
        return Err(OpeningError::Status(machine.status));
    }
    if machine.serial_number.is_none() {
        return Err(OpeningError::Missing("serial number"));
    }
    if machine.hardware_uuid.is_none() {
        return Err(OpeningError::Missing("hardware UUID"));
    }
    let opening = new(tx, id, request);
    openings::insert(tx, &locked, &opening).await?;
    // The next check-in by the recorded key must end this, so it must not take the statement for unchanged machines.
    store::machines::presence::forget_claims(tx, &locked).await?;
    let detail = json!({ "opening_id": opening.id, "ends_at": rfc3339(opening.ends_at), "reason": opening.reason });
    let change = Change::new(Action::MachineOpen, id)
        .reason(opening.reason.as_deref())
        .after(store::json(&opening.to_api())?)
        .event(id, EventKind::MachineOpened, detail);
    tx.record(change).await?;
    Ok(opening)
}

fn new(tx: &mut Transaction, machine_id: Uuid, request: &Request) -> Opening {
    let (id, now) = (tx.new_id(), tx.now());
    let opening = Opening {
        id,
        machine_id,
        hours: request.hours,
        reason: request.reason.as_ref().map(|reason| reason.as_str().to_owned()),
        opened_by: tx.origin().actor.clone(),
        opened_at: now,
        ends_at: now,
        watched_until: None,
        contested_at: None,
    };
    Opening {
        ends_at: now.saturating_add(opening.length()),
        ..opening
    }
}
