//! An administrator's decision on a pending key: it becomes a machine's key, or is denied permanently.

use assay_protocol::{
    KeyThumbprint,
    admin_api::{
        audit::Actor,
        enrollments::{Enrollment, EnrollmentKind, EnrollmentStatus},
        machines::Machine,
    },
    machine::MachineStatus,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use super::{
    effects::{Subject, approve_current_key, audited, carry_out, lock},
    expiry,
};
use crate::{
    changes::{Action, Change, Origin},
    machines::opening::OpeningState,
    registry::reason::{NoReason, Reason},
    registry::record,
    services::{Policy, Services},
    store::{self, Store, StoreError, Transaction, tx},
};

/// Why nothing changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApprovalError {
    #[error(transparent)]
    Reason(#[from] NoReason),
    #[error("there is no such enrollment")]
    Unknown,
    #[error("there is no such machine")]
    UnknownMachine,
    #[error("this machine has no pending enrollment")]
    NothingPending,
    #[error("this machine has no pending enrollment; it is quarantined: release it instead")]
    Quarantined,
    #[error("this machine has no pending enrollment; it is revoked, and must enroll with a new key")]
    Revoked,
    #[error("several keys claim this machine's record: name one by key_thumbprint, or decide on its enrollment")]
    SeveralPending,
    #[error("the key with this thumbprint is neither pending for this machine nor the current key of an active one")]
    NoSuchKey,
    #[error("the machine is not active: release it first, or deny this request")]
    NotActive,
    #[error("the key that requested this rotation was replaced since then: deny the request")]
    KeyReplaced,
    #[error("{0}")]
    DecidedBefore(String),
    #[error("the enrollment expired at {0}: the machine must enroll again")]
    Expired(OffsetDateTime),
    #[error("the machine's record was deleted")]
    MachineDeleted,
    #[error("the machine is no longer pending")]
    NotPending,
    #[error(
        "the machine {0} has this serial number: if this is the same hardware, deny this request and have the machine ask \
         with a new key, which waits to take that record over; if that record is wrong, revoke or delete it first"
    )]
    SerialNumberTaken(Uuid),
    #[error("another machine with this serial number was admitted at the same time: look it up, and decide again")]
    SerialNumberJustTaken,
    #[error(
        "another key took the machine's record over since this one asked (enrollment {0}): deny this one, and have the \
         machine ask with a new key if that was a mistake"
    )]
    TakenOver(Uuid),
    #[error("cannot serialize the claims")]
    Claims(#[source] serde_json::Error),
    #[error(transparent)]
    Store(StoreError),
}

crate::store::has_store_error!(ApprovalError);

/// A unique index decides when two records race for one serial number.
impl From<StoreError> for ApprovalError {
    fn from(error: StoreError) -> Self {
        if error.violates(store::machines::ONE_PER_SERIAL_NUMBER) {
            return Self::SerialNumberJustTaken;
        }
        Self::Store(error)
    }
}

/// An administrator's decision.
#[derive(Debug, Clone)]
pub(crate) enum Decision {
    /// Admits the key.
    Approve(Option<Reason>),
    /// Refuses the key permanently.
    Deny(Reason),
}

impl Decision {
    /// An approval. The reason is optional.
    pub(crate) fn approve(reason: Option<&str>) -> Result<Self, NoReason> {
        reason.map(Reason::parse).transpose().map(Self::Approve)
    }

    /// A denial. The agent shows the reason on the machine.
    pub(crate) fn deny(reason: &str) -> Result<Self, NoReason> {
        Reason::parse(reason).map(Self::Deny)
    }

    pub(super) fn status(&self) -> EnrollmentStatus {
        match self {
            Self::Approve(_) => EnrollmentStatus::Approved,
            Self::Deny(_) => EnrollmentStatus::Denied,
        }
    }

    /// Whether the enrollment was decided in the same way, for the same reason. Then the response may have been lost.
    fn is_that_of(&self, enrollment: &Enrollment) -> bool {
        enrollment.status == self.status() && enrollment.reason.as_deref() == self.reason()
    }

    pub(super) fn reason(&self) -> Option<&str> {
        match self {
            Self::Approve(reason) => reason.as_ref().map(Reason::as_str),
            Self::Deny(reason) => Some(reason.as_str()),
        }
    }
}

/// A page of enrollments, in the order in which they were requested.
pub(crate) async fn list(
    store: &Store,
    status: Option<EnrollmentStatus>,
    after: Option<Uuid>,
    rows: i64,
) -> Result<Vec<Enrollment>, ApprovalError> {
    let mut snapshot = store.snapshot().await?;
    let found = store::enrollments::list(&mut snapshot, status, after, rows).await?;
    store::end(snapshot).await?;
    Ok(found)
}

/// One enrollment.
pub(crate) async fn find(store: &Store, id: Uuid) -> Result<Enrollment, ApprovalError> {
    let found = store::enrollments::find(&mut *store.connection().await?, id).await?;
    Ok(found.ok_or(ApprovalError::Unknown)?.enrollment)
}

/// Decides an enrollment. Repeating a decision with the same reason changes nothing. Any other decision is refused.
pub(crate) async fn decide(
    services: &Services,
    origin: &Origin,
    id: Uuid,
    decision: &Decision,
) -> Result<Enrollment, ApprovalError> {
    tx!(services.store, DecideEnrollment, origin => decide_once(&services.policy, id, decision)).await
}

/// Decides on a key of a machine: on the pending one, or on the one with this thumbprint. Approving the current key of
/// an active machine adds a ground to that key.
pub(crate) async fn decide_of_machine(
    services: &Services,
    origin: &Origin,
    machine_id: Uuid,
    key: Option<KeyThumbprint>,
    decision: &Decision,
) -> Result<Machine, ApprovalError> {
    let policy = &services.policy;
    tx!(services.store, DecideMachineEnrollment, origin => decide_of_machine_once(policy, machine_id, key, decision))
        .await
}

async fn decide_once(
    tx: &mut Transaction,
    policy: &Policy,
    id: Uuid,
    decision: &Decision,
) -> Result<Enrollment, ApprovalError> {
    let found = store::enrollments::find(tx, id).await?.ok_or(ApprovalError::Unknown)?;
    let subject = lock(tx, policy, found.enrollment.machine_id).await?;
    let before = store::enrollments::lock(tx, id).await?.ok_or(ApprovalError::Unknown)?;
    match before.enrollment.status {
        EnrollmentStatus::Pending => require_in_time(&before.enrollment, tx.now())?,
        _ if decision.is_that_of(&before.enrollment) => return Ok(before.enrollment),
        _ => return Err(decided_before(&before.enrollment)),
    }
    let subject = subject.ok_or(ApprovalError::MachineDeleted)?;
    carry_out(tx, &subject, &before, decision).await?;
    let after = store::enrollments::find(tx, id).await?.ok_or(ApprovalError::Unknown)?;
    let action = match decision {
        Decision::Approve(_) => Action::EnrollmentApprove,
        Decision::Deny(_) => Action::EnrollmentDeny,
    };
    let change = Change::new(action, id)
        .reason(decision.reason())
        .before(audited(&before.enrollment)?)
        .after(audited(&after.enrollment)?);
    tx.record(change).await?;
    remove_if_denied(tx, &subject, &before.enrollment, decision).await?;
    Ok(after.enrollment)
}

async fn decide_of_machine_once(
    tx: &mut Transaction,
    policy: &Policy,
    machine_id: Uuid,
    key: Option<KeyThumbprint>,
    decision: &Decision,
) -> Result<Machine, ApprovalError> {
    let Some(subject) = lock(tx, policy, machine_id).await? else {
        // A denial has deleted the record. A second decision is told the first one.
        let last = store::enrollments::last_decision_on_machine(tx, machine_id).await?;
        let denied = last.filter(|last| last.status == EnrollmentStatus::Denied);
        return Err(denied.as_ref().map_or(ApprovalError::UnknownMachine, decided_before));
    };
    let before = &subject.machine;
    if let Some(key) = key {
        return decide_of_key(tx, policy, &subject, key, decision).await;
    }
    // The key that took an open record over is current, and the other one is the only one that waits.
    let opening = store::machines::openings::find(tx, machine_id).await?;
    if opening.is_some_and(|opening| opening.state(tx.now()) == OpeningState::Contested) {
        return Err(ApprovalError::SeveralPending);
    }
    let Some(id) = only_pending(tx, machine_id).await? else {
        let last = store::enrollments::last_decision_on_machine(tx, machine_id).await?;
        return match (decision, before.status, last) {
            (Decision::Approve(_), MachineStatus::Quarantined, _) => Err(ApprovalError::Quarantined),
            (Decision::Approve(_), MachineStatus::Revoked, _) => Err(ApprovalError::Revoked),
            (_, _, Some(last)) if decision.is_that_of(&last) => Ok(subject.machine),
            (_, _, Some(last)) if last.status == decision.status() => Err(decided_before(&last)),
            _ => Err(ApprovalError::NothingPending),
        };
    };
    decide_waiting(tx, policy, &subject, id, decision).await
}

async fn decide_of_key(
    tx: &mut Transaction,
    policy: &Policy,
    subject: &Subject,
    key: KeyThumbprint,
    decision: &Decision,
) -> Result<Machine, ApprovalError> {
    let machine = &subject.machine;
    let own = store::enrollments::find_decision(tx, key).await?;
    let own = match own.filter(|own| own.machine_id == machine.id) {
        Some(own) => store::enrollments::lock(tx, own.id).await?.map(|own| own.enrollment),
        None => None,
    };
    match &own {
        Some(own) if own.status == EnrollmentStatus::Pending => {
            require_in_time(own, tx.now())?;
            return decide_waiting(tx, policy, subject, own.id, decision).await;
        }
        Some(own) if own.decided_by.is_some() && decision.is_that_of(own) => return Ok(machine.clone()),
        Some(own) if own.decided_by.is_some() => return Err(decided_before(own)),
        _ => {}
    }
    let is_current = machine.status == MachineStatus::Active && machine.key.thumbprint == key;
    if !is_current || matches!(decision, Decision::Deny(_)) {
        return Err(ApprovalError::NoSuchKey);
    }
    approve_current_key(tx, subject, own.map(|own| own.id), decision.reason()).await?;
    let change = Change::new(Action::MachineApprove, machine.id).reason(decision.reason());
    Ok(record::write(tx, policy, change, machine).await?)
}

async fn decide_waiting(
    tx: &mut Transaction,
    policy: &Policy,
    subject: &Subject,
    id: Uuid,
    decision: &Decision,
) -> Result<Machine, ApprovalError> {
    let enrollment = store::enrollments::lock(tx, id).await?.ok_or(ApprovalError::Unknown)?;
    carry_out(tx, subject, &enrollment, decision).await?;
    let action = match decision {
        Decision::Approve(_) => Action::MachineApprove,
        Decision::Deny(_) => Action::MachineDeny,
    };
    let change = Change::new(action, subject.machine.id).reason(decision.reason());
    let after = record::write(tx, policy, change, &subject.machine).await?;
    remove_if_denied(tx, subject, &enrollment.enrollment, decision).await?;
    Ok(after)
}

/// Deletes the record of a denied first enrollment. Strangers could otherwise create any number of records. The key
/// stays denied, and the enrollment keeps the claims and the reason.
async fn remove_if_denied(
    tx: &mut Transaction,
    subject: &Subject,
    enrollment: &Enrollment,
    decision: &Decision,
) -> Result<(), StoreError> {
    match (decision, enrollment.kind) {
        (Decision::Deny(_), EnrollmentKind::Enrollment) => store::machines::delete(tx, &subject.locked).await,
        _ => Ok(()),
    }
}

/// The enrollment that a decision on a machine is for. If several keys request one record, the decision must name a
/// key. Otherwise a stranger's request could be approved by mistake.
async fn only_pending(tx: &mut Transaction, machine_id: Uuid) -> Result<Option<Uuid>, ApprovalError> {
    let now = tx.now();
    let waiting = store::enrollments::pending_of_machine(tx, machine_id, now, 2).await?;
    let Some(first) = waiting.first() else {
        return Ok(None);
    };
    require_in_time(first, now)?;
    let others = waiting.iter().skip(1).any(|other| !expiry::is_overdue(other, now));
    if others {
        return Err(ApprovalError::SeveralPending);
    }
    Ok(Some(first.id))
}

fn require_in_time(enrollment: &Enrollment, now: OffsetDateTime) -> Result<(), ApprovalError> {
    match enrollment.expires_at {
        Some(end) if expiry::is_overdue(enrollment, now) => Err(ApprovalError::Expired(end)),
        _ => Ok(()),
    }
}

/// The error for a second decision. It names the first decision, with its time, actor and reason.
fn decided_before(enrollment: &Enrollment) -> ApprovalError {
    let at = enrollment.decided_at.and_then(|at| at.format(&Rfc3339).ok());
    let what = match enrollment.status {
        EnrollmentStatus::Denied => "was denied",
        EnrollmentStatus::Expired => "expired",
        EnrollmentStatus::Approved | EnrollmentStatus::Pending => "was approved",
    };
    let by = match &enrollment.decided_by {
        Some(Actor { name: Some(name), .. }) => format!(" by {name}"),
        Some(_) => String::new(),
        None => " without an administrator".to_owned(),
    };
    let reason = enrollment
        .reason
        .iter()
        .map(|reason| format!(": {reason}"))
        .collect::<String>();
    let rest = match enrollment.status {
        EnrollmentStatus::Denied => "; a denied key stays denied",
        EnrollmentStatus::Expired => "; the machine must enroll again",
        EnrollmentStatus::Approved | EnrollmentStatus::Pending => "",
    };
    ApprovalError::DecidedBefore(format!(
        "the enrollment {what} at {}{by}{reason}{rest}",
        at.unwrap_or_default()
    ))
}
