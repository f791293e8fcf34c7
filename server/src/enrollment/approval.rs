//! What an administrator decides on a key that waits: it becomes a machine's key, or it never does.

use assay_protocol::{
    admin_api::{
        enrollments::{Enrollment, EnrollmentKind, EnrollmentStatus},
        machines::Machine,
    },
    machine::{Assurance, MachineStatus},
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    administration::{
        reason::{NoReason, Reason},
        standing,
    },
    audit::{Change, Origin},
    machines::record,
    services::Services,
    store::{self, AsStoreError, StoreError, Transaction, enrollments::ClaimedEnrollment},
};

/// The reason of RFC 5280 for the certificates of a key that another one replaces.
const SUPERSEDED: &str = "superseded";

/// Why nothing was decided.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApprovalError {
    #[error(transparent)]
    Reason(#[from] NoReason),
    #[error("there is no such enrollment")]
    Unknown,
    #[error("there is no such machine")]
    UnknownMachine,
    #[error("nothing of this machine waits for a decision")]
    NothingPending,
    #[error("the enrollment was approved before")]
    Approved,
    #[error("the enrollment was denied before, and a denied key stays denied")]
    Denied,
    #[error("the machine's record was deleted")]
    MachineDeleted,
    #[error("the machine is pending no more")]
    NotPending,
    #[error("the machine {0} has this serial number")]
    SerialNumberTaken(Uuid),
    #[error("another machine has this serial number")]
    SerialNumberJustTaken,
    #[error("the claims cannot be written down")]
    Claims(#[source] serde_json::Error),
    #[error(transparent)]
    Store(StoreError),
}

impl AsStoreError for ApprovalError {
    fn as_store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) => Some(error),
            _ => None,
        }
    }
}

/// The index decides when two records race for one serial number.
impl From<StoreError> for ApprovalError {
    fn from(error: StoreError) -> Self {
        if error.violates(store::machines::ONE_PER_SERIAL_NUMBER) {
            return Self::SerialNumberJustTaken;
        }
        Self::Store(error)
    }
}

/// What an administrator decides.
#[derive(Debug, Clone)]
pub(crate) enum Decision {
    /// Lets the key in.
    Approve(Option<Reason>),
    /// Keeps the key out for good.
    Deny(Reason),
}

impl Decision {
    /// An approval, for which a reason may be given.
    pub(crate) fn approve(reason: Option<&str>) -> Result<Self, NoReason> {
        reason.map(Reason::parse).transpose().map(Self::Approve)
    }

    /// A denial; the machine's administrator reads the reason.
    pub(crate) fn deny(reason: &str) -> Result<Self, NoReason> {
        Reason::parse(reason).map(Self::Deny)
    }

    fn status(&self) -> EnrollmentStatus {
        match self {
            Self::Approve(_) => EnrollmentStatus::Approved,
            Self::Deny(_) => EnrollmentStatus::Denied,
        }
    }

    fn reason(&self) -> Option<&str> {
        match self {
            Self::Approve(reason) => reason.as_ref().map(Reason::as_str),
            Self::Deny(reason) => Some(reason.as_str()),
        }
    }
}

/// A page of enrollments, in the order in which they were asked for.
pub(crate) async fn list(
    services: &Services,
    status: Option<EnrollmentStatus>,
    after: Option<Uuid>,
    rows: i64,
) -> Result<Vec<Enrollment>, ApprovalError> {
    Ok(store::enrollments::list(&mut *services.store.connection().await?, status, after, rows).await?)
}

/// Decides an enrollment. The same decision again changes nothing; the other one is refused.
pub(crate) async fn decide(
    services: &Services,
    origin: &Origin,
    id: Uuid,
    decision: &Decision,
) -> Result<Enrollment, ApprovalError> {
    services
        .store
        .tx(
            "decide an enrollment",
            &(services, origin, id, decision),
            |tx, &(services, origin, id, decision)| Box::pin(decide_once(tx, services, origin, id, decision)),
        )
        .await
}

/// Decides what waits of a machine: its first enrollment, else the newest that would take its record over.
pub(crate) async fn decide_of_machine(
    services: &Services,
    origin: &Origin,
    machine_id: Uuid,
    decision: &Decision,
) -> Result<Machine, ApprovalError> {
    services
        .store
        .tx(
            "decide a machine's enrollment",
            &(services, origin, machine_id, decision),
            |tx, &(services, origin, id, decision)| {
                Box::pin(decide_of_machine_once(tx, services, origin, id, decision))
            },
        )
        .await
}

async fn decide_once(
    tx: &mut Transaction,
    services: &Services,
    origin: &Origin,
    id: Uuid,
    decision: &Decision,
) -> Result<Enrollment, ApprovalError> {
    let found = store::enrollments::find(tx, id).await?.ok_or(ApprovalError::Unknown)?;
    let machine = record::hold(tx, services, found.enrollment.machine_id).await?;
    let before = store::enrollments::lock(tx, id).await?.ok_or(ApprovalError::Unknown)?;
    match before.enrollment.status {
        EnrollmentStatus::Pending => {}
        status if status == decision.status() => return Ok(before.enrollment),
        EnrollmentStatus::Approved => return Err(ApprovalError::Approved),
        EnrollmentStatus::Denied => return Err(ApprovalError::Denied),
    }
    let machine = machine.ok_or(ApprovalError::MachineDeleted)?;
    carry_out(tx, services, origin, &machine, &before, decision).await?;
    let after = store::enrollments::find(tx, id).await?.ok_or(ApprovalError::Unknown)?;
    let action = match decision {
        Decision::Approve(_) => "enrollment.approve",
        Decision::Deny(_) => "enrollment.deny",
    };
    let change = Change::new(action, "enrollment", id)
        .reason(decision.reason())
        .before(store::json(&before.enrollment)?)
        .after(store::json(&after.enrollment)?);
    store::audit_entries::insert(tx, services.clock.as_ref(), origin, change).await?;
    Ok(after.enrollment)
}

async fn decide_of_machine_once(
    tx: &mut Transaction,
    services: &Services,
    origin: &Origin,
    machine_id: Uuid,
    decision: &Decision,
) -> Result<Machine, ApprovalError> {
    let before = record::hold(tx, services, machine_id)
        .await?
        .ok_or(ApprovalError::UnknownMachine)?;
    let Some(id) = store::enrollments::pending_of_machine(tx, machine_id).await? else {
        // The answer to the same decision may have been lost.
        let last = store::enrollments::last_decision_on_machine(tx, machine_id).await?;
        return if last == Some(decision.status()) {
            Ok(before)
        } else {
            Err(ApprovalError::NothingPending)
        };
    };
    let enrollment = store::enrollments::lock(tx, id).await?.ok_or(ApprovalError::Unknown)?;
    carry_out(tx, services, origin, &before, &enrollment, decision).await?;
    let action = match decision {
        Decision::Approve(_) => "machine.approve",
        Decision::Deny(_) => "machine.deny",
    };
    let change = Change::new(action, "machine", machine_id).reason(decision.reason());
    Ok(record::audit(tx, services, origin, change, &before).await?)
}

/// Does what was decided on an enrollment that waits, with its machine held.
async fn carry_out(
    tx: &mut Transaction,
    services: &Services,
    origin: &Origin,
    machine: &Machine,
    waiting: &ClaimedEnrollment,
    decision: &Decision,
) -> Result<(), ApprovalError> {
    let (id, now) = (waiting.enrollment.id, services.clock.now());
    let (status, by) = (decision.status(), &origin.actor);
    store::enrollments::decide(tx, id, status, by, decision.reason(), now).await?;
    match (decision, waiting.enrollment.kind) {
        (Decision::Approve(_), EnrollmentKind::Enrollment) => {
            admit(tx, services, machine, waiting, decision.reason()).await
        }
        (Decision::Approve(_), EnrollmentKind::ReEnrollment) => {
            replace_key(tx, services, machine, waiting, decision.reason()).await
        }
        (Decision::Deny(reason), _) => deny(tx, services, origin, machine, waiting, reason.as_str()).await,
    }
}

async fn admit(
    tx: &mut Transaction,
    services: &Services,
    machine: &Machine,
    waiting: &ClaimedEnrollment,
    reason: Option<&str>,
) -> Result<(), ApprovalError> {
    if machine.status != MachineStatus::Pending {
        return Err(ApprovalError::NotPending);
    }
    demand_free_serial_number(tx, machine.id, machine.serial_number.as_deref()).await?;
    store::machine_records::set_status(tx, machine.id, MachineStatus::Active, reason).await?;
    let assurance = machine.assurance.max(Assurance::Verified);
    store::machines::set_assurance(tx, machine.id, assurance).await?;
    store::machine_presence::set_admitted(tx, machine.id, true).await?;
    store::machine_keys::make_current(tx, waiting.enrollment.key.thumbprint).await?;
    let detail = json!({ "enrollment_id": waiting.enrollment.id, "reason": reason });
    store::events::insert(tx, services.clock.as_ref(), machine.id, "machine.approved", detail).await?;
    Ok(())
}

/// The record stays, with its labels and history; the old key and its certificates serve no more.
async fn replace_key(
    tx: &mut Transaction,
    services: &Services,
    machine: &Machine,
    waiting: &ClaimedEnrollment,
    reason: Option<&str>,
) -> Result<(), ApprovalError> {
    let (id, key, claims, now) = (
        machine.id,
        waiting.enrollment.key.thumbprint,
        &waiting.claims,
        services.clock.now(),
    );
    demand_free_serial_number(tx, id, machine.serial_number.as_deref()).await?;
    let created_at = store::machine_keys::created_at(tx, key).await?.unwrap_or(now);
    let digest = claims.digest().map_err(ApprovalError::Claims)?;
    store::machine_presence::replace_key(tx, id, key, digest).await?;
    store::machine_keys::supersede_all(tx, id, now).await?;
    store::machine_keys::make_current(tx, key).await?;
    store::certificates::revoke_all(tx, id, SUPERSEDED, now).await?;
    store::machine_records::replace_key(tx, id, key, claims, Assurance::Verified, created_at).await?;
    store::machine_records::set_status(tx, id, MachineStatus::Active, reason).await?;
    let detail = json!({
        "enrollment_id": waiting.enrollment.id,
        "before": { "key": machine.key.thumbprint, "status": machine.status, "assurance": machine.assurance },
        "after": { "key": key },
        "reason": reason,
    });
    store::events::insert(tx, services.clock.as_ref(), id, "machine.re-enrolled", detail).await?;
    Ok(())
}

async fn deny(
    tx: &mut Transaction,
    services: &Services,
    origin: &Origin,
    machine: &Machine,
    waiting: &ClaimedEnrollment,
    reason: &str,
) -> Result<(), ApprovalError> {
    let key = waiting.enrollment.key.thumbprint;
    store::machine_keys::deny(tx, key, reason, services.clock.now()).await?;
    let detail = json!({ "enrollment_id": waiting.enrollment.id, "key": key, "reason": reason });
    store::events::insert(tx, services.clock.as_ref(), machine.id, "enrollment.denied", detail).await?;
    if waiting.enrollment.kind == EnrollmentKind::Enrollment && machine.status == MachineStatus::Pending {
        standing::revoke_everything(tx, services, origin, machine.id, reason).await?;
    }
    Ok(())
}

async fn demand_free_serial_number(
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
