//! Verifying the audit: is every sealed entry as it was when it was sealed, in its place, and none missing?

use assay_protocol::admin_api::audit::{AuditEntry, AuditVerification};
use uuid::Uuid;

use super::chain::EntryHash;
use crate::store::{self, Store, StoreError, audit_seals::Seal};

/// How many entries are read at once: the audit may be larger than memory.
const BATCH: i64 = 1_000;

/// Why the audit could not be verified; not that it is broken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerificationError {
    #[error("an entry cannot be written down")]
    Entry(#[source] serde_json::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The first thing that is not as it was.
#[derive(Debug, PartialEq, Eq)]
struct Broken {
    entry_id: Uuid,
    reason: String,
}

/// How far the chain has been followed.
#[derive(Debug)]
struct Follower {
    sequence: i64,
    hash: EntryHash,
}

/// Follows the chain from its beginning to its end, or to the first entry that breaks it.
pub(crate) async fn verify(store: &Store) -> Result<AuditVerification, VerificationError> {
    let mut connection = store.connection().await?;
    let mut follower = Follower {
        sequence: 0,
        hash: EntryHash::genesis(),
    };
    loop {
        let links = store::audit_seals::list_with_entries(&mut connection, follower.sequence, BATCH).await?;
        for (seal, entry) in &links {
            let broken = follower
                .follow(seal, entry.as_ref())
                .map_err(VerificationError::Entry)?;
            if let Some(broken) = broken {
                return Ok(verification(
                    store::audit_seals::count(&mut connection).await?,
                    Some(broken),
                ));
            }
        }
        if links.is_empty() {
            break;
        }
    }
    let left_out = store::audit_entries::first_left_out(&mut connection).await?;
    let broken = left_out.map(|entry_id| Broken {
        entry_id,
        reason: "the entry was taken out before it was sealed".to_owned(),
    });
    Ok(verification(follower.sequence, broken))
}

impl Follower {
    fn follow(&mut self, seal: &Seal, entry: Option<&AuditEntry>) -> Result<Option<Broken>, serde_json::Error> {
        let broken = |reason: String| {
            Ok(Some(Broken {
                entry_id: seal.entry_id,
                reason,
            }))
        };
        let expected = self.sequence.saturating_add(1);
        if seal.sequence != expected {
            return broken(format!("before this entry the chain lacks the place {expected}"));
        }
        let Some(entry) = entry else {
            return broken(format!("the entry at the place {expected} was deleted"));
        };
        let hash = self.hash.next(entry)?;
        if hash != seal.hash {
            return broken(format!(
                "the entry at the place {expected} was changed or moved after it was sealed"
            ));
        }
        *self = Self {
            sequence: expected,
            hash,
        };
        Ok(None)
    }
}

fn verification(sealed: i64, broken: Option<Broken>) -> AuditVerification {
    let (first_broken_id, reason) = broken.map(|broken| (broken.entry_id, broken.reason)).unzip();
    AuditVerification {
        valid: first_broken_id.is_none(),
        entries: u64::try_from(sealed).unwrap_or_default(),
        first_broken_id,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::chain::tests::entry, *};

    fn chain(length: u32) -> Vec<(Seal, Option<AuditEntry>)> {
        let mut hash = EntryHash::genesis();
        (1..=length)
            .map(|number| {
                let entry = entry(number);
                hash = hash.next(&entry).unwrap();
                let seal = Seal {
                    sequence: number.into(),
                    entry_id: entry.id,
                    hash,
                };
                (seal, Some(entry))
            })
            .collect()
    }

    fn follow(links: &[(Seal, Option<AuditEntry>)]) -> Option<Broken> {
        let mut follower = Follower {
            sequence: 0,
            hash: EntryHash::genesis(),
        };
        links
            .iter()
            .find_map(|(seal, entry)| follower.follow(seal, entry.as_ref()).unwrap())
    }

    proptest! {
        #[test]
        fn a_chain_as_it_was_sealed_is_whole(length in 0_u32..20) {
            prop_assert_eq!(follow(&chain(length)), None);
        }

        #[test]
        fn the_first_entry_that_was_tampered_with_is_named(length in 2_usize..12, place in 0_usize..12, how in 0_u8..4) {
            let place = place % (length - 1);
            let mut links = chain(u32::try_from(length).unwrap());
            let broken = match how {
                0 => {
                    links[place].1.as_mut().unwrap().action.push('x');
                    links[place].0.entry_id
                }
                1 => {
                    links[place].1 = None;
                    links[place].0.entry_id
                }
                2 => {
                    links.remove(place);
                    links[place].0.entry_id
                }
                _ => {
                    let (left, right) = (links[place].0.entry_id, links[place + 1].0.entry_id);
                    links[place].0.entry_id = right;
                    links[place + 1].0.entry_id = left;
                    let entry = links[place].1.take();
                    links[place].1 = links[place + 1].1.take();
                    links[place + 1].1 = entry;
                    right
                }
            };
            prop_assert_eq!(follow(&links).map(|broken| broken.entry_id), Some(broken));
        }
    }
}
