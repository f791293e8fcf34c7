//! The event feed of one replica: a single reader of the database for all its streams.
//!
//! A stream that falls behind, or that starts in the past, reads from the database until it has caught up. The memory
//! of a replica is therefore bounded, however slow a caller is.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::Duration,
};

use assay_protocol::admin_api::events::AnnouncedEvent;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Semaphore, broadcast};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    periodic::{Turns, Work},
    services::Services,
    store::{self, Store, StoreError},
    telemetry::Metrics,
};

/// The longest wait of an announced event until the streams of a replica have it.
const READ_INTERVAL: Duration = Duration::from_millis(250);
pub(crate) const READING: Work = Work::every(READ_INTERVAL, "read announced events");
/// The longest time that a stream outlives its API key.
const KEY_INTERVAL: Duration = Duration::from_secs(2);
pub(crate) const CHECKING_KEYS: Work = Work::every(KEY_INTERVAL, "check the keys of event streams");
/// How often the lengths of the queues are measured.
const DEPTH_INTERVAL: Duration = Duration::from_secs(10);
pub(crate) const MEASURING: Work = Work::every(DEPTH_INTERVAL, "measure the event queues");
/// The number of events per read.
pub(super) const PAGE: i64 = 500;
/// How many events a stream may lag behind before it must read from the database.
const REMEMBERED: usize = 1024;
/// How many streams may read from the database at once. Check-ins need the connections more.
const MOST_CATCHING_UP: usize = 2;
/// The most streams of one replica.
const MOST_STREAMS: usize = 500;
/// The most streams of one API key on one replica.
pub(crate) const MOST_STREAMS_OF_A_KEY: usize = 20;

/// Why no further stream is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TooManyStreams {
    #[error("this API key has {MOST_STREAMS_OF_A_KEY} streams on this replica, which is the limit")]
    OfKey,
    #[error("this replica has {MOST_STREAMS} streams, which is the limit")]
    OfReplica,
}

/// The state that the streams of one replica share.
pub(crate) struct Feed {
    events: broadcast::Sender<Arc<AnnouncedEvent>>,
    /// The position of the last event that was read.
    position: AtomicI64,
    streams: Mutex<HashMap<Uuid, KeyStreams>>,
    open: Gauge,
    shutdown: CancellationToken,
    pub(super) catching_up: Semaphore,
}

/// The streams of one API key.
struct KeyStreams {
    count: usize,
    ended: CancellationToken,
}

/// The permission to stream. It counts as one stream until it is dropped.
pub(crate) struct Admission {
    feed: Arc<Feed>,
    api_key: Uuid,
    ended: CancellationToken,
}

impl Feed {
    /// Starts a feed at the next event to be announced. It ends with the server.
    pub(crate) async fn start(
        store: &Store,
        metrics: &Metrics,
        shutdown: CancellationToken,
    ) -> Result<Arc<Self>, StoreError> {
        let position = store::events::last_sequence(&mut *store.connection().await?).await?;
        Ok(Arc::new(Self::at(position, metrics.events.streams.clone(), shutdown)))
    }

    fn at(position: i64, open: Gauge, shutdown: CancellationToken) -> Self {
        Self {
            events: broadcast::Sender::new(REMEMBERED),
            position: AtomicI64::new(position),
            streams: Mutex::default(),
            open,
            shutdown,
            catching_up: Semaphore::new(MOST_CATCHING_UP),
        }
    }

    /// Admits one more stream of this key, unless there are too many.
    pub(crate) fn admit(self: &Arc<Self>, api_key: Uuid) -> Result<Admission, TooManyStreams> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if streams.values().map(|of_key| of_key.count).sum::<usize>() >= MOST_STREAMS {
            return Err(TooManyStreams::OfReplica);
        }
        let of_key = streams.entry(api_key).or_insert_with(|| KeyStreams {
            count: 0,
            ended: self.shutdown.child_token(),
        });
        if of_key.count >= MOST_STREAMS_OF_A_KEY {
            return Err(TooManyStreams::OfKey);
        }
        of_key.count += 1;
        self.open.inc();
        Ok(Admission {
            feed: Arc::clone(self),
            api_key,
            ended: of_key.ended.clone(),
        })
    }

    /// Receives all events that are read from now on.
    pub(super) fn subscribe(&self) -> broadcast::Receiver<Arc<AnnouncedEvent>> {
        self.events.subscribe()
    }

    fn api_keys(&self) -> Vec<Uuid> {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.keys().copied().collect()
    }

    /// Ends the streams of all checked keys that are not valid.
    fn end_invalid(&self, checked: &[Uuid], valid: &[Uuid]) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        for api_key in checked.iter().filter(|api_key| !valid.contains(api_key)) {
            if let Some(of_key) = streams.remove(api_key) {
                of_key.ended.cancel();
            }
        }
    }
}

impl Admission {
    /// Waits until the key is no longer valid, or the server stops.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    pub(super) fn feed(&self) -> &Feed {
        &self.feed
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.feed.open.dec();
        let mut streams = self.feed.streams.lock().unwrap_or_else(PoisonError::into_inner);
        // The key's streams have ended. An entry that the key has now belongs to later streams.
        if let Some(of_key) = streams.get_mut(&self.api_key).filter(|_| !self.ended.is_cancelled()) {
            of_key.count -= 1;
            if of_key.count == 0 {
                streams.remove(&self.api_key);
            }
        }
    }
}

/// Reads announced events for all streams of this replica, until the server stops.
pub(crate) async fn run_reader(services: Arc<Services>, turns: Turns) {
    turns.repeat(|| read_on(&services.store, &services.feed)).await;
}

/// Ends the streams of revoked and expired API keys, until the server stops.
pub(crate) async fn run_key_check(services: Arc<Services>, turns: Turns) {
    turns.repeat(|| check_keys(&services)).await;
}

/// Measures the queues until the server stops.
pub(crate) async fn run_depth_gauge(services: Arc<Services>, turns: Turns) {
    turns.repeat(|| measure(&services)).await;
}

async fn read_on(store: &Store, feed: &Feed) -> Result<(), StoreError> {
    loop {
        let position = feed.position.load(Relaxed);
        let events = store::events::announced_after(&mut *store.connection().await?, position, PAGE).await?;
        let is_last = i64::try_from(events.len()).unwrap_or(PAGE) < PAGE;
        for event in events {
            feed.position.store(event.sequence, Relaxed);
            // Sending fails if there is no stream. The event is then not needed.
            let _ = feed.events.send(Arc::new(event));
        }
        if is_last {
            return Ok(());
        }
    }
}

async fn check_keys(services: &Services) -> Result<(), StoreError> {
    let checked = services.feed.api_keys();
    if checked.is_empty() {
        return Ok(());
    }
    let mut connection = services.store.connection().await?;
    let valid = store::api_keys::find_valid(&mut connection, &checked, services.clock.now()).await?;
    services.feed.end_invalid(&checked, &valid);
    Ok(())
}

async fn measure(services: &Services) -> Result<(), StoreError> {
    let mut connection = services.store.connection().await?;
    let waiting = store::events::count_waiting(&mut connection).await?;
    let pending = store::webhook_deliveries::count_pending(&mut connection).await?;
    services.metrics.events.measured(waiting, pending);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed() -> Arc<Feed> {
        Arc::new(Feed::at(0, Gauge::default(), CancellationToken::new()))
    }

    #[test]
    fn streams_are_limited_by_key_and_by_replica_and_slots_are_freed() {
        let (feed, first_key) = (feed(), Uuid::from_u128(1));
        let mut admissions: Vec<_> = (0..MOST_STREAMS_OF_A_KEY)
            .map(|_| feed.admit(first_key).unwrap())
            .collect();
        assert_eq!(feed.admit(first_key).err(), Some(TooManyStreams::OfKey));
        let others = (10_u128..).map(|number| feed.admit(Uuid::from_u128(number / 10 + 1)));
        admissions.extend(others.map_while(Result::ok));
        assert_eq!(feed.admit(Uuid::nil()).err(), Some(TooManyStreams::OfReplica));
        assert_eq!(admissions.len(), MOST_STREAMS);
        assert_eq!(feed.open.get(), i64::try_from(MOST_STREAMS).unwrap());
        drop(admissions.remove(0));
        assert!(feed.admit(first_key).is_ok());
        drop(admissions);
        assert!(feed.api_keys().is_empty());
        assert_eq!(feed.open.get(), 0);
    }

    #[tokio::test]
    async fn the_streams_of_a_key_that_serves_no_more_end_and_count_no_more() {
        let feed = feed();
        let (kept, revoked) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let (staying, ending) = (feed.admit(kept).unwrap(), feed.admit(revoked).unwrap());
        feed.end_invalid(&feed.api_keys(), &[kept]);
        ending.ended().await;
        assert!(!staying.ended.is_cancelled());
        let again = feed.admit(revoked).unwrap();
        drop(ending);
        assert_eq!(feed.streams.lock().unwrap()[&revoked].count, 1);
        assert!(!again.ended.is_cancelled());
        feed.shutdown.cancel();
        staying.ended().await;
        again.ended().await;
    }
}
