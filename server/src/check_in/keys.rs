//! Public keys by thumbprint, in memory. What is kept here never changes: a key that waits is not kept. Whether a key
//! still serves, the database decides at each check-in.

use std::sync::Arc;

use assay_protocol::{KeyThumbprint, PublicKey};
use moka::sync::Cache;
use uuid::Uuid;

use crate::store::{Store, StoreError, machine_keys};

/// The most keys that are kept: about 300 bytes each.
const CAPACITY: u64 = 100_000;

/// A key and the machine that it belongs to.
#[derive(Debug, Clone)]
pub(crate) struct KeyLookup {
    pub(crate) machine_id: Uuid,
    pub(crate) public_key: Arc<PublicKey>,
}

/// The keys that were asked for lately.
pub(crate) struct KeyCache {
    keys: Cache<KeyThumbprint, KeyLookup>,
}

impl KeyCache {
    pub(crate) fn new() -> Self {
        Self {
            keys: Cache::new(CAPACITY),
        }
    }

    /// Finds a key. One that is not on record is not remembered: it may be enrolled in the next moment.
    pub(crate) async fn find(&self, store: &Store, key: KeyThumbprint) -> Result<Option<KeyLookup>, StoreError> {
        if let Some(found) = self.keys.get(&key) {
            return Ok(Some(found));
        }
        let mut connection = store.connection().await?;
        let Some(owned) = machine_keys::find_public_key(&mut connection, key).await? else {
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
