//! Requests that nobody decided in time: the key is forgotten, with the record of a machine that was never let in, and
//! may ask anew as if it were new.
//!
//! That a request is over is a matter of time alone. The background work only tidies up after it: a decision that comes
//! too late is refused, and a key that asks again is answered the same, whether the work has come by or not.

use std::{sync::Arc, time::Duration};

use assay_protocol::{
    admin_api::enrollments::{Enrollment, EnrollmentKind, EnrollmentStatus},
    machine::MachineStatus,
};
use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::Applicant;
use crate::{
    changes::{Change, Origin},
    periodic::{Turns, Work},
    registry::record,
    services::Services,
    store::{
        self, StoreError, Transaction,
        duties::{self, Duty},
    },
};

const NAME: &str = "expire enrollments";
const INTERVAL: Duration = Duration::from_secs(10);
pub(crate) const WORK: Work = Work::every(INTERVAL, NAME);
/// How many requests one transaction ends: it holds their machines until it commits.
const BATCH: i64 = 50;
const REASON: &str = "nobody decided in time";

/// Ends what is over, again and again, until the server stops.
pub(crate) async fn run(services: Arc<Services>, turns: Turns) {
    turns.repeat(|| expire_overdue(&services)).await;
}

/// Whether a request that waits can be decided no more.
pub(super) fn is_overdue(enrollment: &Enrollment, now: OffsetDateTime) -> bool {
    enrollment.expires_at.is_some_and(|end| now >= end)
}

/// Forgets a key whose request is over, as the background work would have; otherwise changes nothing.
pub(super) async fn forget_if_overdue(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
) -> Result<(), StoreError> {
    let Some(asked) = store::enrollments::find_decision(tx, applicant.key()).await? else {
        return Ok(());
    };
    if asked.status != EnrollmentStatus::Pending || services.clock.now() < asked.expires_at {
        return Ok(());
    }
    // Before the machine, as everybody takes the two: what follows needs it.
    if let Some(serial_number) = &applicant.claims.machine.serial_number {
        store::inventory::hold(tx, serial_number).await?;
    }
    expire(tx, services, asked.id, asked.machine_id).await
}

/// Ends whatever is over; nothing when another replica does.
async fn expire_overdue(services: &Services) -> Result<(), StoreError> {
    loop {
        let ended = services
            .store
            .tx(NAME, services, |tx, services| Box::pin(expire_batch(tx, services)));
        if i64::try_from(ended.await?).unwrap_or(BATCH) < BATCH {
            return Ok(());
        }
    }
}

async fn expire_batch(tx: &mut Transaction, services: &Services) -> Result<usize, StoreError> {
    if !duties::try_take(tx, Duty::ExpireEnrollments).await? {
        return Ok(0);
    }
    let overdue = store::enrollments::overdue(tx, services.clock.now(), BATCH).await?;
    for &(id, machine_id) in &overdue {
        expire(tx, services, id, machine_id).await?;
    }
    Ok(overdue.len())
}

async fn expire(tx: &mut Transaction, services: &Services, id: Uuid, machine_id: Uuid) -> Result<(), StoreError> {
    let (origin, now) = (Origin::system(), services.clock.now());
    let machine = record::hold(tx, services, machine_id).await?;
    // Read now that the machine is held: a decision may have come first.
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
    store::enrollments::decide(tx, id, expired, &origin.actor, Some(REASON), now).await?;
    store::machines::keys::forget(tx, key).await?;
    let was_never_let_in = machine.is_some_and(|machine| machine.status == MachineStatus::Pending);
    if before.kind == EnrollmentKind::Enrollment && was_never_let_in {
        store::machines::delete(tx, machine_id).await?;
    }
    let detail = json!({ "enrollment_id": id, "key": key, "reason": REASON });
    store::events::insert(tx, services.clock.as_ref(), machine_id, "enrollment.expired", detail).await?;
    let after = store::enrollments::find(tx, id)
        .await?
        .map(|expired| expired.enrollment);
    let change = Change::new("enrollment.expire", "enrollment", id)
        .reason(Some(REASON))
        .before(store::json(&before)?)
        .after(store::json(&after)?);
    store::audit_entries::insert(tx, services.clock.as_ref(), &origin, change).await
}
