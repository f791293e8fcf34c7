//! Public keys by thumbprint, in memory. A cached key never changes, so a key that waits is not cached. The database decides
//! at each check-in whether a key is still valid.

use std::sync::Arc;

use assay_protocol::{KeyThumbprint, PublicKey};
use moka::sync::Cache;
use uuid::Uuid;

use crate::{
    store::{
        Store,
        batcher::{BatchError, Batcher},
        machines::{self, keys::OwnedKey},
    },
    telemetry::Metrics,
};

/// The most keys that are cached: about 300 bytes each.
const CAPACITY: u64 = 50_000;

/// A key and its machine.
#[derive(Debug, Clone)]
pub(crate) struct KeyLookup {
    pub(crate) machine_id: Uuid,
    pub(crate) public_key: Arc<PublicKey>,
}

/// The keys that were used recently.
pub(crate) struct KeyCache {
    keys: Cache<KeyThumbprint, KeyLookup>,
    on_record: Batcher<KeyThumbprint, OwnedKey>,
}

impl KeyCache {
    /// Starts the task that reads keys that are not cached.
    pub(crate) fn start(store: Store, metrics: &Metrics) -> Self {
        Self {
            keys: Cache::new(CAPACITY),
            on_record: Batcher::start_reader(store, metrics.key_reader.clone(), |connection, keys| {
                Box::pin(machines::keys::find_public_keys(connection, keys))
            }),
        }
    }

    /// Finds a key. A key that is not on record is not cached, because it may enroll at any moment.
    pub(crate) async fn find(&self, key: KeyThumbprint) -> Result<Option<KeyLookup>, BatchError> {
        if let Some(found) = self.keys.get(&key) {
            return Ok(Some(found));
        }
        let Some(owned) = self.on_record.call(key).await? else {
            return Ok(None);
        };
        let found = KeyLookup {
            machine_id: owned.machine_id,
            public_key: Arc::new(owned.public_key),
        };
        if !owned.may_change {
            self.keys.insert(key, found.clone());
        }
        Ok(Some(found))
    }
}
