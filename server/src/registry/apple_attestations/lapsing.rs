//! Attestations that have become too old: the machines fall back to what else stands behind their serial numbers.
//!
//! That an attestation is too old is a matter of time alone: whoever reads a record, and whoever evaluates grants, looks at
//! the time. The background work writes it down, for searches, with an event, and for good.

use std::{sync::Arc, time::Duration};

use assay_protocol::text::rfc3339;
use serde_json::json;
use uuid::Uuid;

use crate::{
    changes::{Change, Origin},
    periodic::{Turns, Work},
    registry::record,
    services::Services,
    store::{
        self, StoreError, Transaction,
        duties::{self, Duty},
        machines,
    },
};

const NAME: &str = "expire attestations";
const INTERVAL: Duration = Duration::from_secs(10);
pub(crate) const WORK: Work = Work::every(INTERVAL, NAME);
/// How many machines one transaction lowers: it holds them until it commits.
const BATCH: i64 = 50;
const REASON: &str = "the Apple attestation is older than apple.attestation_max_age";

/// Lowers whatever rests on an attestation that is too old, again and again, until the server stops.
pub(crate) async fn run(services: Arc<Services>, turns: Turns) {
    turns.repeat(|| lapse_overdue(&services)).await;
}

/// Lowers all of them; nothing when another replica does.
async fn lapse_overdue(services: &Services) -> Result<(), StoreError> {
    loop {
        let lowered = services
            .store
            .tx(NAME, services, |tx, services| Box::pin(lapse_batch(tx, services)));
        if i64::try_from(lowered.await?).unwrap_or(BATCH) < BATCH {
            return Ok(());
        }
    }
}

async fn lapse_batch(tx: &mut Transaction, services: &Services) -> Result<usize, StoreError> {
    if !duties::try_take(tx, Duty::LapseAttestations).await? {
        return Ok(0);
    }
    let attested_since = record::boundaries(services).attested_since;
    let mut overdue = machines::grounds::resting_on_attestations_until(tx, attested_since, BATCH).await?;
    // Whoever holds several machines takes them in this order.
    overdue.sort_unstable();
    for id in &overdue {
        lapse(tx, services, *id).await?;
    }
    Ok(overdue.len())
}

async fn lapse(tx: &mut Transaction, services: &Services, id: Uuid) -> Result<(), StoreError> {
    if record::hold(tx, services, id).await?.is_none() {
        return Ok(());
    }
    // Read now that the machine is held: a newer attestation may have come first.
    let attested_since = record::boundaries(services).attested_since;
    let Some(before) = machines::grounds::find(tx, id).await? else {
        return Ok(());
    };
    let after = before.as_of(attested_since);
    let (Some(attestation), true) = (after.attestation, after != before) else {
        return Ok(());
    };
    machines::grounds::set(tx, id, after).await?;
    machines::presence::bump_record_version(tx, id).await?;
    let (from, to) = (
        json!({ "assurance": before.assurance() }),
        json!({ "assurance": after.assurance() }),
    );
    let detail = json!({
        "before": from, "after": to, "reason": REASON, "attestation_id": attestation.id(),
        "attested_at": rfc3339(attestation.attested_at()),
    });
    let clock = services.clock.as_ref();
    store::events::insert(tx, clock, id, "machine.assurance-lowered", detail).await?;
    let change = Change::new("machine.lower-assurance", "machine", id)
        .reason(Some(REASON))
        .before(from)
        .after(to);
    store::audit_entries::insert(tx, clock, &Origin::system(), change).await
}
