//! Expiry of enrollments that were not decided in time. The server forgets the key, and deletes the record of a machine
//! that was never admitted. The key may enroll again as a new one.
//!
//! An enrollment expires by the clock alone, and this periodic work only cleans up. A late decision is refused, and a
//! repeated enrollment gets the same response, whether or not the work has run.

use std::{sync::Arc, time::Duration};

use assay_protocol::{
    KeyThumbprint,
    admin_api::enrollments::{Enrollment, EnrollmentKind, EnrollmentStatus},
    machine::MachineStatus,
};
use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::effects::audited;
use crate::{
    changes::{Action, Change, EventKind, Origin},
    periodic::{Turns, Work, is_full},
    registry::record,
    services::{Policy, Services},
    store::{
        self, StoreError, Transaction,
        duties::{self, Duty},
        tx,
    },
};

const NAME: &str = "expire enrollments";
const INTERVAL: Duration = Duration::from_secs(10);
pub(crate) const WORK: Work = Work::every(INTERVAL, NAME);
/// How many enrollments one transaction expires. Their machines are locked until it commits.
const BATCH: i64 = 50;
const REASON: &str = "no administrator decided in time";

/// Expires overdue enrollments periodically, until the server stops.
pub(crate) async fn run(services: Arc<Services>, turns: Turns) {
    turns.repeat(|| expire_overdue(&services)).await;
}

/// Whether a pending enrollment can no longer be decided.
pub(super) fn is_overdue(enrollment: &Enrollment, now: OffsetDateTime) -> bool {
    enrollment.expires_at.is_some_and(|end| now >= end)
}

/// Forgets a key whose enrollment is overdue, as the periodic work would.
pub(super) async fn forget_if_overdue(
    tx: &mut Transaction,
    policy: &Policy,
    key: KeyThumbprint,
    serial_number: Option<&str>,
) -> Result<(), StoreError> {
    let Some(asked) = store::enrollments::find_decision(tx, key).await? else {
        return Ok(());
    };
    if asked.status != EnrollmentStatus::Pending || tx.now() < asked.expires_at {
        return Ok(());
    }
    // Before the machine, which is locked next.
    if let Some(serial_number) = serial_number {
        store::inventory::lock(tx, serial_number).await?;
    }
    let caller = tx.act_as(Origin::system());
    expire(tx, policy, asked.id, asked.machine_id).await?;
    tx.act_as(caller);
    Ok(())
}

/// Expires all overdue enrollments. Does nothing if another replica is doing it.
async fn expire_overdue(services: &Services) -> Result<(), StoreError> {
    while tx!(services.store, ExpireEnrollments, &Origin::system() => expire_batch(&services.policy)).await? {}
    Ok(())
}

async fn expire_batch(tx: &mut Transaction, policy: &Policy) -> Result<bool, StoreError> {
    if !duties::try_take(tx, Duty::ExpireEnrollments).await? {
        return Ok(false);
    }
    let now = tx.now();
    let overdue = store::enrollments::retention::overdue(tx, now, BATCH).await?;
    for &(id, machine_id) in &overdue {
        expire(tx, policy, id, machine_id).await?;
    }
    Ok(is_full(overdue.len(), BATCH))
}

async fn expire(tx: &mut Transaction, policy: &Policy, id: Uuid, machine_id: Uuid) -> Result<(), StoreError> {
    let now = tx.now();
    let machine = record::lock(tx, policy, machine_id).await?;
    // Read with the lock, because it may have been decided since.
    let Some(before) = store::enrollments::lock(tx, id)
        .await?
        .map(|waiting| waiting.enrollment)
    else {
        return Ok(());
    };
    if !is_overdue(&before, now) {
        return Ok(());
    }
    let (expired, key) = (EnrollmentStatus::Expired, before.key.thumbprint);
    store::enrollments::decide(tx, id, expired, Some(REASON)).await?;
    store::machines::keys::forget(tx, key).await?;
    let never_admitted = machine.filter(|(_, machine)| machine.status == MachineStatus::Pending);
    if let (EnrollmentKind::Enrollment, Some((locked, _))) = (before.kind, never_admitted) {
        store::machines::delete(tx, &locked).await?;
    }
    let detail = json!({ "enrollment_id": id, "key": key, "reason": REASON });
    let after = store::enrollments::find(tx, id)
        .await?
        .map(|expired| expired.enrollment);
    let change = Change::new(Action::EnrollmentExpire, id)
        .reason(Some(REASON))
        .before(audited(&before)?)
        .after(after.as_ref().map(audited).transpose()?.unwrap_or_default())
        .event(machine_id, EventKind::EnrollmentExpired, detail);
    tx.record(change).await
}
