//! Announces events. A committed event gets its position in the order that all readers share. The same transaction
//! creates one delivery for each webhook that wants the event.
//!
//! The id of an event is generated before its transaction commits, so a reader that orders by id would miss a late
//! commit. Only one replica at a time assigns positions, so no event can appear later at an earlier position.

use std::{sync::Arc, time::Duration};

use crate::{
    changes::Origin,
    clock::{self, Clock},
    periodic::{Turns, Work, is_full},
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
/// The longest wait of an event, if the servers and the database work.
const INTERVAL: Duration = Duration::from_millis(250);
pub(crate) const WORK: Work = Work::every(INTERVAL, NAME);
/// How many events one transaction announces.
const BATCH: i64 = 500;

/// Announces waiting events until the server stops.
pub(crate) async fn run_announcer(services: Arc<Services>, turns: Turns) {
    turns.repeat(|| announce_waiting(&services.store)).await;
}

/// Announces all waiting events. Does nothing while another replica does.
async fn announce_waiting(store: &Store) -> Result<(), StoreError> {
    while tx!(store, AnnounceEvents, &Origin::system() => announce_batch()).await? {}
    Ok(())
}

async fn announce_batch(tx: &mut Transaction) -> Result<bool, StoreError> {
    if !duties::try_take(tx, Duty::AnnounceEvents).await? {
        return Ok(false);
    }
    let announced = store::events::announce(tx, BATCH).await?;
    if announced.is_empty() {
        return Ok(false);
    }
    let interests = store::webhooks::interests(tx).await?;
    let deliveries = deliveries(&announced, &interests, tx.clock());
    let now = tx.now();
    store::webhook_deliveries::insert(tx, &deliveries, now).await?;
    Ok(is_full(announced.len(), BATCH))
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
