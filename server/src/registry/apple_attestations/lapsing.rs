//! Recording that attestations are too old. Their machines keep the assurance of their other grounds.
//!
//! Reading a record and evaluating grants compare the attestation's age with the clock, so neither depends on this
//! work. It updates the record for searches, writes an event, and makes the loss permanent.

use std::{sync::Arc, time::Duration};

use assay_protocol::text::rfc3339;
use serde_json::json;
use uuid::Uuid;

use crate::{
    changes::{Action, Change, EventKind, Origin},
    periodic::{Turns, Work, is_full},
    registry::record,
    services::{Policy, Services},
    store::{
        StoreError, Transaction,
        duties::{self, Duty},
        machines::{self, presence::Presence},
        tx,
    },
};

const NAME: &str = "expire attestations";
const INTERVAL: Duration = Duration::from_secs(10);
pub(crate) const WORK: Work = Work::every(INTERVAL, NAME);
/// How many machines one transaction changes. They are locked until it commits.
const BATCH: i64 = 50;
const REASON: &str = "the Apple attestation is older than apple.attestation_max_age";

/// Periodically lowers the assurance of machines whose attestation is too old, until the server stops.
pub(crate) async fn run(services: Arc<Services>, turns: Turns) {
    turns.repeat(|| lapse_overdue(&services)).await;
}

/// Lowers the assurance of all such machines. Does nothing if another replica is doing it.
async fn lapse_overdue(services: &Services) -> Result<(), StoreError> {
    while tx!(services.store, LapseAttestations, &Origin::system() => lapse_batch(&services.policy)).await? {}
    Ok(())
}

async fn lapse_batch(tx: &mut Transaction, policy: &Policy) -> Result<bool, StoreError> {
    if !duties::try_take(tx, Duty::LapseAttestations).await? {
        return Ok(false);
    }
    let attested_since = record::boundaries(policy, tx.now()).attested_since;
    let mut overdue = machines::grounds::resting_on_attestations_until(tx, attested_since, BATCH).await?;
    // Machines are always locked in this order.
    overdue.sort_unstable();
    for id in &overdue {
        lapse(tx, policy, *id).await?;
    }
    Ok(is_full(overdue.len(), BATCH))
}

async fn lapse(tx: &mut Transaction, policy: &Policy, id: Uuid) -> Result<(), StoreError> {
    let Some(Presence { machine, .. }) = machines::presence::lock(tx, id).await? else {
        return Ok(());
    };
    // Read with the lock, because a newer attestation may have been bound since.
    let attested_since = record::boundaries(policy, tx.now()).attested_since;
    let Some(before) = machines::grounds::find(tx, id).await? else {
        return Ok(());
    };
    let after = before.as_of(attested_since);
    let (Some(attestation), true) = (after.attestation, after != before) else {
        return Ok(());
    };
    machines::grounds::set(tx, &machine, after).await?;
    machines::presence::bump_record_version(tx, &machine).await?;
    let (from, to) = (
        json!({ "assurance": before.assurance() }),
        json!({ "assurance": after.assurance() }),
    );
    let detail = json!({
        "before": from, "after": to, "reason": REASON, "attestation_id": attestation.id(),
        "attested_at": rfc3339(attestation.attested_at()),
    });
    let change = Change::new(Action::MachineLowerAssurance, id)
        .reason(Some(REASON))
        .before(from)
        .after(to)
        .event(id, EventKind::MachineAssuranceLowered, detail);
    tx.record(change).await
}
