//! The feed of one replica: one reader of the database for all of its streams.
//!
//! A stream that falls behind, or that begins in the past, reads from the database until it has caught up: what is kept
//! in memory is bounded, however slow a caller is.

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

/// How long an announced event waits at most until the streams of a replica have it.
const READ_INTERVAL: Duration = Duration::from_millis(250);
pub(crate) const READING: Work = Work::every(READ_INTERVAL, "read announced events");
/// How long a stream outlives its API key at most.
const KEY_INTERVAL: Duration = Duration::from_secs(2);
pub(crate) const CHECKING_KEYS: Work = Work::every(KEY_INTERVAL, "check the keys of event streams");
/// How often the depths of the queues are measured.
const DEPTH_INTERVAL: Duration = Duration::from_secs(10);
pub(crate) const MEASURING: Work = Work::every(DEPTH_INTERVAL, "measure the event queues");
/// How many events are read at once.
pub(super) const PAGE: i64 = 500;
/// How many events streams may lag behind before they have to read from the database.
const REMEMBERED: usize = 1024;
/// How many streams may read from the database at once: check-ins need its connections more.
const CATCHING_UP: usize = 2;
/// Streams of one replica.
const MOST_STREAMS: usize = 500;
/// Streams of one API key on one replica.
pub(crate) const MOST_STREAMS_OF_A_KEY: usize = 20;

/// Why there is no further stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TooManyStreams {
    #[error("this API key has {MOST_STREAMS_OF_A_KEY} streams on this replica already")]
    OfKey,
    #[error("this replica has {MOST_STREAMS} streams already")]
    OfReplica,
}

/// What the streams of one replica share.
pub(crate) struct Feed {
    events: broadcast::Sender<Arc<AnnouncedEvent>>,
    /// What was read last.
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

/// The right to stream, counted until it is dropped.
pub(crate) struct Admission {
    feed: Arc<Feed>,
    api_key: Uuid,
    ended: CancellationToken,
}

impl Feed {
    /// A feed that begins with what will be announced next, and ends with the server.
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
            catching_up: Semaphore::new(CATCHING_UP),
        }
    }

    /// Lets one more stream of this key in, unless there are too many.
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

    /// Everything that is read from now on.
    pub(super) fn subscribe(&self) -> broadcast::Receiver<Arc<AnnouncedEvent>> {
        self.events.subscribe()
    }

    fn api_keys(&self) -> Vec<Uuid> {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.keys().copied().collect()
    }

    /// Ends the streams of all keys that were looked at and do not serve.
    fn end_others(&self, looked_at: &[Uuid], serving: &[Uuid]) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        for api_key in looked_at.iter().filter(|api_key| !serving.contains(api_key)) {
            if let Some(of_key) = streams.remove(api_key) {
                of_key.ended.cancel();
            }
        }
    }
}

impl Admission {
    /// Waits until the key serves no more, or the server stops.
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
        // After the key's streams were ended, a later entry of the same key is not this one's.
        if let Some(of_key) = streams.get_mut(&self.api_key).filter(|_| !self.ended.is_cancelled()) {
            of_key.count -= 1;
            if of_key.count == 0 {
                streams.remove(&self.api_key);
            }
        }
    }
}

/// Reads what is announced, for all streams of this replica, until the server stops.
pub(crate) async fn run_reader(services: Arc<Services>, turns: Turns) {
    turns.repeat(|| read_on(&services.store, &services.feed)).await;
}

/// Ends the streams of API keys that were revoked or have expired, until the server stops.
pub(crate) async fn run_key_check(services: Arc<Services>, turns: Turns) {
    turns.repeat(|| check_keys(&services)).await;
}

/// Measures what waits, until the server stops.
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
            // Nobody listens: then nobody misses it.
            let _ = feed.events.send(Arc::new(event));
        }
        if is_last {
            return Ok(());
        }
    }
}

async fn check_keys(services: &Services) -> Result<(), StoreError> {
    let looked_at = services.feed.api_keys();
    if looked_at.is_empty() {
        return Ok(());
    }
    let mut connection = services.store.connection().await?;
    let serving = store::api_keys::serving(&mut connection, &looked_at, services.clock.now()).await?;
    services.feed.end_others(&looked_at, &serving);
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
    fn a_key_and_a_replica_have_so_many_streams_and_places_come_free() {
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
        feed.end_others(&feed.api_keys(), &[kept]);
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
