//! Verifying the audit log: is every sealed entry unchanged, in its place, and present? Is a hash that an auditor
//! recorded still part of the chain?

use std::sync::atomic::{AtomicBool, Ordering};

use assay_protocol::admin_api::audit::{AuditEntry, AuditVerification};
use uuid::Uuid;

use crate::{
    changes::{chain::EntryHash, personal_data::PersonalData},
    store::{self, Store, StoreError, audit_seals::Seal},
};

/// How many entries are read at once, because the log may be larger than memory.
const BATCH: i64 = 1_000;

/// Why the verification could not run. This does not mean that the log is broken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerificationError {
    #[error("cannot serialize an entry")]
    Entry(#[source] serde_json::Error),
    #[error("another verification of the audit log is running; try again when it has ended")]
    Busy,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The first fault in the chain.
#[derive(Debug, PartialEq, Eq)]
struct Broken {
    /// `None` if the fault is at the chain's end.
    entry_id: Option<Uuid>,
    reason: String,
}

/// The position reached in the chain.
#[derive(Debug)]
struct Follower {
    sequence: i64,
    hash: EntryHash,
    /// The recorded hash, until it is found.
    noted: Option<EntryHash>,
}

/// Verifies for callers of the API, one at a time: each verification reads the whole log.
#[derive(Debug, Default)]
pub(crate) struct Verifier(AtomicBool);

impl Verifier {
    /// Like [`verify`]. `Busy` while another caller's verification runs on this replica.
    pub(crate) async fn verify(
        &self,
        store: &Store,
        noted: Option<EntryHash>,
    ) -> Result<AuditVerification, VerificationError> {
        if self.0.swap(true, Ordering::AcqRel) {
            return Err(VerificationError::Busy);
        }
        // Also when the caller goes away and this future is dropped.
        let _running = Running(&self.0);
        verify(store, noted).await
    }
}

struct Running<'a>(&'a AtomicBool);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Follows the chain to its end, or to the first entry that breaks it. `noted` is the hash of an entry that was once
/// sealed: a chain without it is broken.
pub(crate) async fn verify(store: &Store, noted: Option<EntryHash>) -> Result<AuditVerification, VerificationError> {
    let mut connection = store.connection().await?;
    let mut follower = Follower::new(noted);
    loop {
        let links = store::audit_seals::list_with_entries(&mut connection, follower.sequence, BATCH).await?;
        for (seal, entry) in &links {
            let broken = follower
                .follow(seal, entry.as_ref())
                .map_err(VerificationError::Entry)?;
            if let Some(broken) = broken {
                let sealed = store::audit_seals::count(&mut connection).await?;
                return Ok(follower.verification(sealed, Some(broken)));
            }
        }
        if links.is_empty() {
            break;
        }
    }
    let left_out = store::audit_entries::first_left_out(&mut connection).await?;
    let broken = left_out.map(|entry_id| Broken {
        entry_id: Some(entry_id),
        reason: "the entry was inserted, or removed from the chain, without being sealed".to_owned(),
    });
    let broken = broken.or_else(|| follower.lacks_noted_hash());
    Ok(follower.verification(follower.sequence, broken))
}

impl Follower {
    fn new(noted: Option<EntryHash>) -> Self {
        Self {
            sequence: 0,
            hash: EntryHash::genesis(),
            noted,
        }
    }

    fn follow(&mut self, seal: &Seal, entry: Option<&AuditEntry>) -> Result<Option<Broken>, serde_json::Error> {
        let broken = |reason: String| {
            Ok(Some(Broken {
                entry_id: Some(seal.entry_id),
                reason,
            }))
        };
        let expected = self.sequence.saturating_add(1);
        if seal.sequence != expected {
            return broken(format!(
                "the entry with the number {expected}, before this one, is missing from the chain"
            ));
        }
        let Some(entry) = entry else {
            return broken(format!("the entry with the number {expected} was deleted"));
        };
        let hash = self.hash.next(entry)?;
        if hash != seal.hash {
            return broken(format!(
                "the entry with the number {expected} was changed or moved after it was sealed"
            ));
        }
        if !has_its_personal_data(entry) {
            return broken(format!(
                "the name or the address of the entry with the number {expected} was changed after it was sealed"
            ));
        }
        *self = Self {
            sequence: expected,
            hash,
            noted: self.noted.filter(|noted| *noted != hash),
        };
        Ok(None)
    }

    fn lacks_noted_hash(&self) -> Option<Broken> {
        self.noted.map(|noted| Broken {
            entry_id: None,
            reason: format!(
                "no entry has the hash {}: the end of the chain was removed, or the chain was rewritten",
                hex::encode(noted.as_bytes())
            ),
        })
    }

    fn verification(&self, sealed: i64, broken: Option<Broken>) -> AuditVerification {
        let place = u64::try_from(self.sequence).ok().filter(|place| *place > 0);
        AuditVerification {
            valid: broken.is_none(),
            entries: u64::try_from(sealed).unwrap_or_default(),
            first_broken_id: broken.as_ref().and_then(|broken| broken.entry_id),
            reason: broken.map(|broken| broken.reason),
            last_sequence: place,
            last_hash: place.map(|_| hex::encode(self.hash.as_bytes())),
        }
    }
}

/// Whether name and address are those that the sealed entry has the digest of, or were deleted.
fn has_its_personal_data(entry: &AuditEntry) -> bool {
    let salt = entry.personal_salt.as_deref().map(hex::decode);
    match (&entry.personal_digest, salt) {
        // The entry itself has the name, in earlier versions, and the chain covers it.
        (None, None) => entry.address.is_none(),
        (Some(_), None) => entry.actor.name.is_none() && entry.address.is_none(),
        (Some(digest), Some(Ok(salt))) => salt.try_into().is_ok_and(|salt| {
            let personal = PersonalData {
                name: entry.actor.name.clone(),
                address: entry.address.clone(),
                salt,
            };
            personal.digest() == *digest
        }),
        (None, Some(_)) | (Some(_), Some(Err(_))) => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::changes::chain::tests::entry;

    fn chain(length: u32) -> Vec<(Seal, Option<AuditEntry>)> {
        let mut hash = EntryHash::genesis();
        (1..=length)
            .map(|number| {
                let entry = AuditEntry {
                    address: None,
                    personal_salt: None,
                    ..entry(number)
                };
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
        let mut follower = Follower::new(None);
        links
            .iter()
            .find_map(|(seal, entry)| follower.follow(seal, entry.as_ref()).unwrap())
    }

    /// A chain of one entry with this name and address beside it.
    fn with_personal_data(personal: &PersonalData) -> (Seal, AuditEntry) {
        let mut entry = entry(1);
        entry.personal_digest = Some(personal.digest());
        entry.personal_salt = Some(hex::encode(personal.salt));
        entry.actor.name = personal.name.clone();
        entry.address = personal.address.clone();
        let seal = Seal {
            sequence: 1,
            entry_id: entry.id,
            hash: EntryHash::genesis().next(&entry).unwrap(),
        };
        (seal, entry)
    }

    #[test]
    fn names_and_addresses_may_be_deleted_but_not_altered() {
        type Alter = fn(&mut AuditEntry);
        let delete: Alter = |entry| {
            (entry.personal_salt, entry.actor.name, entry.address) = (None, None, None);
        };
        let alters: [(Alter, bool); 8] = [
            (|_entry| {}, true),
            (delete, true),
            (|entry| entry.actor.name = Some("eve".into()), false),
            (|entry| entry.address = Some("192.0.2.9".into()), false),
            (|entry| entry.address = None, false),
            (|entry| entry.personal_salt = Some("00".repeat(32)), false),
            (|entry| entry.personal_salt = None, false),
            (
                |entry| (entry.personal_digest, entry.personal_salt) = (None, None),
                false,
            ),
        ];
        let personal = PersonalData {
            name: Some("ada".into()),
            address: Some("192.0.2.7".into()),
            salt: [7; 32],
        };
        for (place, (alter, is_whole)) in alters.into_iter().enumerate() {
            let (seal, mut entry) = with_personal_data(&personal);
            alter(&mut entry);
            assert_eq!(follow(&[(seal, Some(entry))]).is_none(), is_whole, "alteration {place}");
        }
    }

    #[test]
    fn an_entry_without_a_digest_has_no_address_beside_it() {
        let mut links = chain(1);
        links[0].1.as_mut().unwrap().address = Some("192.0.2.9".into());
        assert!(follow(&links).is_some());
        links[0].1.as_mut().unwrap().personal_salt = Some("00".repeat(32));
        assert!(follow(&links).is_some());
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
            prop_assert_eq!(follow(&links).and_then(|broken| broken.entry_id), Some(broken));
        }

        #[test]
        fn a_noted_hash_is_found_unless_the_chain_was_truncated_before_it(
            length in 1_usize..12, noted in 0_usize..12, left in 0_usize..12
        ) {
            let links = chain(u32::try_from(length).unwrap());
            let (noted, left) = (noted % length, left % (length + 1));
            let mut follower = Follower::new(Some(links[noted].0.hash));
            for (seal, entry) in &links[..left] {
                prop_assert_eq!(follower.follow(seal, entry.as_ref()).unwrap(), None);
            }
            prop_assert_eq!(follower.lacks_noted_hash().is_none(), noted < left);
            let verification = follower.verification(follower.sequence, None);
            prop_assert_eq!(verification.last_sequence.unwrap_or(0), u64::try_from(left).unwrap());
        }
    }
}
