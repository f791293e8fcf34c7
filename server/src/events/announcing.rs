//! Announcing: an event that was committed gets its place in the order that all readers share, and in the same
//! transaction one delivery for each webhook that wants it.
//!
//! The id of an event is made before its transaction commits, so a reader who goes by ids would miss the one that commits
//! late. One replica at a time gives the places, so what has one is complete up to there.

use std::{sync::Arc, time::Duration};

use crate::{
    changes::Origin,
    clock::{self, Clock},
    periodic::{Turns, Work},
    services::Services,
    store::{
        self, Store, StoreError, Transaction,
        duties::{self, Duty},
        events::Announcement,
        tx,
        webhook_deliveries::NewDelivery,
        webhooks::Interest,
    },
};

const NAME: &str = "announce events";
/// How long an event waits at most while the server and the database are well.
const INTERVAL: Duration = Duration::from_millis(250);
pub(crate) const WORK: Work = Work::every(INTERVAL, NAME);
/// How many events one transaction announces.
const BATCH: i64 = 500;

/// Announces whatever waits, again and again, until the server stops.
pub(crate) async fn run_announcer(services: Arc<Services>, turns: Turns) {
    turns.repeat(|| announce_waiting(&services.store)).await;
}

/// Announces whatever waits; nothing while another replica does.
async fn announce_waiting(store: &Store) -> Result<(), StoreError> {
    loop {
        let announced = tx!(store, AnnounceEvents, &Origin::system() => announce_batch()).await?;
        if i64::try_from(announced).unwrap_or(BATCH) < BATCH {
            return Ok(());
        }
    }
}

async fn announce_batch(tx: &mut Transaction) -> Result<usize, StoreError> {
    if !duties::try_take(tx, Duty::AnnounceEvents).await? {
        return Ok(0);
    }
    let announced = store::events::announce(tx, BATCH).await?;
    if announced.is_empty() {
        return Ok(0);
    }
    let interests = store::webhooks::interests(tx).await?;
    let deliveries = deliveries(&announced, &interests, tx.clock());
    let now = tx.now();
    store::webhook_deliveries::insert(tx, &deliveries, now).await?;
    Ok(announced.len())
}

fn deliveries(announced: &[Announcement], interests: &[Interest], clock: &dyn Clock) -> Vec<NewDelivery> {
    let wanted = |announcement: &Announcement, interest: &Interest| {
        let kinds = interest.kinds.as_ref();
        kinds.is_none_or(|kinds| kinds.contains(&announcement.kind))
    };
    let mut deliveries = Vec::new();
    for announcement in announced {
        for interest in interests.iter().filter(|interest| wanted(announcement, interest)) {
            deliveries.push(NewDelivery {
                id: clock::new_id(clock),
                webhook_id: interest.webhook_id,
                event: Some((announcement.event_id, announcement.sequence)),
                kind: announcement.kind.clone(),
            });
        }
    }
    deliveries
}
