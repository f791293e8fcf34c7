//! Public keys by thumbprint, in memory. A cached key never changes, so a key that waits is not cached. The database decides
//! at each check-in whether a key is still valid.

use std::sync::Arc;

use assay_protocol::{KeyThumbprint, PublicKey};
use moka::sync::Cache;
use tokio::{
    sync::Semaphore,
    time::{Duration, Instant, sleep},
};
use uuid::Uuid;

use crate::{
    store::{
        Store,
        batcher::{BatchError, Batcher},
        machines::{
            self,
            keys::{KeyStatus, OwnedKey},
        },
    },
    telemetry::Metrics,
};

/// The most keys that are cached: about 300 bytes each.
const CAPACITY: u64 = 50_000;

/// How often keys are looked up for networks that are over their limit.
const OVER_LIMIT_PACE: Duration = Duration::from_millis(50);

/// How many calls from networks over their limit wait for a look-up at once. It is a part of the reader's queue.
const OVER_LIMIT_WAITING: usize = 4096;

/// A key and its machine.
#[derive(Debug, Clone)]
pub(crate) struct KeyLookup {
    pub(crate) machine_id: Uuid,
    pub(crate) public_key: Arc<PublicKey>,
    /// Its status when it was read.
    pub(crate) status: KeyStatus,
}

/// The keys that were used recently.
pub(crate) struct KeyCache {
    keys: Cache<KeyThumbprint, KeyLookup>,
    on_record: Batcher<KeyThumbprint, OwnedKey>,
    over_limit: Semaphore,
    started: Instant,
}

impl KeyCache {
    /// Starts the task that reads keys that are not cached.
    pub(crate) fn start(store: Store, metrics: &Metrics) -> Self {
        Self {
            keys: Cache::new(CAPACITY),
            over_limit: Semaphore::new(OVER_LIMIT_WAITING),
            started: Instant::now(),
            on_record: Batcher::start_reader(store, metrics.key_reader.clone(), |connection, keys| {
                Box::pin(machines::keys::find_public_keys(connection, keys))
            }),
        }
    }

    /// Finds a key. A key that is not on record is not cached, because it may enroll at any moment.
    pub(crate) async fn find(&self, key: KeyThumbprint) -> Result<Option<KeyLookup>, BatchError> {
        match self.find_in_memory(key) {
            Some(found) => Ok(Some(found)),
            None => self.look_up(key).await,
        }
    }

    /// Finds a key for a network that is over its limit. All such look-ups wait for the same moments and share one
    /// statement then, so a flood of made-up keys costs the database no more than a few.
    pub(crate) async fn find_over_limit(&self, key: KeyThumbprint) -> Result<Option<KeyLookup>, BatchError> {
        if let Some(found) = self.find_in_memory(key) {
            return Ok(Some(found));
        }
        let _place = self.over_limit.try_acquire().map_err(|_| BatchError::Overloaded)?;
        let since = self.started.elapsed().as_millis() % OVER_LIMIT_PACE.as_millis();
        let since = Duration::from_millis(u64::try_from(since).unwrap_or_default());
        sleep(OVER_LIMIT_PACE.saturating_sub(since)).await;
        self.look_up(key).await
    }

    /// Finds a key that was found before.
    pub(crate) fn find_in_memory(&self, key: KeyThumbprint) -> Option<KeyLookup> {
        self.keys.get(&key)
    }

    /// Forgets a key whose call was refused, so the next call reads its status anew. A key that was replaced, denied or
    /// revoked since it was cached then uses up its own rate limit, and not the machine's.
    pub(crate) fn forget(&self, key: KeyThumbprint) {
        self.keys.invalidate(&key);
    }

    async fn look_up(&self, key: KeyThumbprint) -> Result<Option<KeyLookup>, BatchError> {
        let Some(owned) = self.on_record.call(key).await? else {
            return Ok(None);
        };
        let found = KeyLookup {
            machine_id: owned.machine_id,
            public_key: Arc::new(owned.public_key),
            status: owned.status,
        };
        // A pending request may expire, and be made again for another machine.
        if owned.status != KeyStatus::Pending {
            self.keys.insert(key, found.clone());
        }
        Ok(Some(found))
    }
}
