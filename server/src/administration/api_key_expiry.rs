//! Announces the end of API keys in advance, so that operators replace a key before the program that uses it fails.

use std::{sync::Arc, time::Duration};

use assay_protocol::{admin_api::api_keys::ApiKey, text::rfc3339};
use serde_json::json;

use crate::{
    changes::{EventKind, Origin},
    periodic::{Turns, Work, is_full},
    services::Services,
    store::{
        self, Store, StoreError, Transaction,
        duties::{self, Duty},
        tx,
    },
};

const NAME: &str = "announce the end of API keys";
/// How late an announcement may be, which is little beside its notice.
const INTERVAL: Duration = Duration::from_secs(60);
pub(crate) const WORK: Work = Work::every(INTERVAL, NAME);
/// How long before its end a key is announced. A key with a shorter life is not: its creator knows.
const NOTICE: time::Duration = time::Duration::days(30);
/// How many keys one transaction announces.
const BATCH: i64 = 100;

/// Announces keys that end soon, until the server stops.
pub(crate) async fn run(services: Arc<Services>, turns: Turns) {
    turns.repeat(|| announce_due(&services.store)).await;
}

/// Does nothing while another replica does it.
async fn announce_due(store: &Store) -> Result<(), StoreError> {
    while tx!(store, AnnounceEndOfApiKeys, &Origin::system() => announce_batch()).await? {}
    Ok(())
}

async fn announce_batch(tx: &mut Transaction) -> Result<bool, StoreError> {
    if !duties::try_take(tx, Duty::AnnounceEndOfApiKeys).await? {
        return Ok(false);
    }
    let now = tx.now();
    let keys = store::api_keys::take_ending(tx, now, NOTICE, BATCH).await?;
    for key in &keys {
        announce(tx, key).await?;
    }
    Ok(is_full(keys.len(), BATCH))
}

async fn announce(tx: &mut Transaction, key: &ApiKey) -> Result<(), StoreError> {
    let expires_at = key.expires_at.map(rfc3339);
    tracing::warn!(api_key = %key.id, expires_at, "an API key ends soon: create another one and replace it");
    let detail = json!({
        "api_key_id": key.id, "prefix": key.prefix, "name": key.name, "role": key.role, "expires_at": expires_at,
    });
    tx.announce_apart(EventKind::ApiKeyExpiring, detail).await
}
