//! Sealing: appends new audit entries to the hash chain. It runs apart from the changes that wrote them: no change
//! waits for another.

use std::{sync::Arc, time::Duration};

use crate::{
    changes::{Origin, chain::EntryHash},
    periodic::{Turns, Work, is_full},
    services::Services,
    store::{
        self, Store, StoreError, Transaction,
        audit_seals::Seal,
        duties::{self, Duty},
        tx,
    },
};

const NAME: &str = "seal the audit log";
/// How long an entry waits at most, while the server and the database work.
const INTERVAL: Duration = Duration::from_millis(500);
pub(crate) const WORK: Work = Work::every(INTERVAL, NAME);
/// How many entries one transaction seals.
const BATCH: i64 = 500;

/// Why nothing was sealed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealingError {
    #[error("cannot serialize an entry")]
    Entry(#[source] serde_json::Error),
    #[error("the chain's sequence numbers are exhausted")]
    Full,
    #[error(transparent)]
    Store(#[from] StoreError),
}

crate::store::has_store_error!(SealingError);

/// Seals new entries until the server stops, and then once more.
pub(crate) async fn run_sealer(services: Arc<Services>, turns: Turns) {
    let seal = || seal_pending(&services.store);
    turns.repeat(seal).await;
    turns.once(seal()).await;
}

/// Seals all entries that are not sealed yet. Does nothing if another replica is sealing.
pub(crate) async fn seal_pending(store: &Store) -> Result<(), SealingError> {
    while tx!(store, SealAudit, &Origin::system() => seal_batch()).await? {}
    Ok(())
}

async fn seal_batch(tx: &mut Transaction) -> Result<bool, SealingError> {
    if !duties::try_take(tx, Duty::SealAudit).await? {
        return Ok(false);
    }
    let entries = store::audit_entries::waiting(tx, BATCH).await?;
    if entries.is_empty() {
        return Ok(false);
    }
    let last = store::audit_seals::last(tx).await?;
    let (mut sequence, mut hash) = last.map_or_else(|| (0, EntryHash::genesis()), |seal| (seal.sequence, seal.hash));
    let mut seals = Vec::with_capacity(entries.len());
    for entry in &entries {
        sequence = sequence.checked_add(1).ok_or(SealingError::Full)?;
        hash = hash.next(entry).map_err(SealingError::Entry)?;
        seals.push(Seal {
            sequence,
            entry_id: entry.id,
            hash,
        });
    }
    store::audit_seals::append(tx, &seals).await?;
    Ok(is_full(seals.len(), BATCH))
}
