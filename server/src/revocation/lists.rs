//! Revocation lists (CRLs). One replica signs a new list within seconds of a revocation, and before the last one
//! expires. Every replica reads new lists and returns them from memory.

use std::{sync::Arc, time::Duration};

use assay_authority::{
    Authority, AuthorityError, RevocationList, RevokedCertificate, key_identifier, serial_number, validity,
};
use assay_protocol::admin_api::certificates::RevocationReason;
use pem::{EncodeConfig, LineEnding, Pem};
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Bundle, PublishedList, Revocation};
use crate::{
    changes::Origin,
    keyring::KeyringError,
    periodic::{self, Turns, Work},
    services::Services,
    store::{
        self, StoreError, Transaction,
        duties::{self, Duty},
        revocation_lists::{ListState, StoredList},
        sealed_keys::SealedKey,
        tx,
    },
};

const NAME: &str = "publish revocation lists";
/// How long a revocation waits for its list, and a list for every replica, while the servers and the database work.
const INTERVAL: Duration = Duration::from_millis(500);
pub(crate) const WORK: Work = Work::every(INTERVAL, NAME);
/// How long a list is kept before it is replaced because of a revocation. With two intervals, one to sign and one to load,
/// a revocation is on every replica's list within 5 s.
const SHORTEST_LIFE: Duration = Duration::from_secs(2);
/// How far a list's time is backdated. Relying parties' clocks run late by seconds, and reject lists from the future.
const BACKDATING: time::Duration = time::Duration::seconds(60);
/// Another replica's list is accepted if its clock was ahead by less than this.
const CLOCKS_DIFFER: time::Duration = time::Duration::minutes(5);

/// How long an expired certificate stays listed at least.
const LISTED_AFTER_EXPIRY: time::Duration = time::Duration::hours(24);

/// Why no list was published.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishingError {
    #[error("cannot sign a revocation list")]
    Sign(#[from] AuthorityError),
    #[error("cannot open the root's key")]
    Root(#[from] KeyringError),
    #[error("revocation list numbers are exhausted")]
    Full,
    #[error("the task that signs a revocation list was aborted")]
    Ended(#[from] tokio::task::JoinError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

crate::store::has_store_error!(PublishingError);

/// A CA that has a list: an issuing CA, or a root. The list of a root elsewhere is signed by its owner, and served here
/// once it is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Issuer {
    id: Uuid,
    key_identifier: Vec<u8>,
    is_root: bool,
    is_ours: bool,
}

/// What to do if another replica is signing lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IfBusy {
    /// Wait for its lists.
    Wait,
    /// Skip this round. The next one reads its lists.
    Skip,
}

impl Issuer {
    /// All issuers. The CA that issues now comes first.
    fn all(authority: &Authority) -> Vec<Self> {
        let issuing = authority.all_issuing().map(|ca| Self {
            id: ca.id(),
            key_identifier: ca.key_identifier().to_vec(),
            is_root: false,
            is_ours: true,
        });
        // A root of ours has a key identifier. Without one, a list has no URL.
        let roots = authority.roots().iter().filter_map(|root| {
            Some(Self {
                id: root.id,
                key_identifier: key_identifier(&root.certificate).ok()?,
                is_root: true,
                is_ours: root.is_ours,
            })
        });
        issuing.chain(roots).collect()
    }

    /// Whether there is no list, the list lacks a revocation, or half its validity has passed. A relying party therefore
    /// always has a valid list, unless the server is down for half of that. A list from the future was signed with a
    /// clock that was ahead: relying parties would reject it. One that is valid for too long was signed before the
    /// configuration changed.
    fn is_due(state: Option<&ListState>, lifetime: time::Duration, now: OffsetDateTime) -> bool {
        state.is_none_or(|state| {
            let half = state.this_update + (state.next_update - state.this_update) / 2;
            let is_too_long = now + lifetime + CLOCKS_DIFFER < state.next_update;
            state.is_stale || is_too_long || now >= half || now + CLOCKS_DIFFER < state.this_update
        })
    }
}

/// Publishes once at the start, before the server listens. It then has lists to return.
pub(crate) async fn publish_first(services: &Arc<Services>) {
    let authority = services.authority.load_full();
    publish_for(services, &authority).await;
}

/// Publishes the lists of an authority that will be used next. Other replicas may do the same at this moment.
pub(crate) async fn publish_for(services: &Arc<Services>, authority: &Arc<Authority>) {
    periodic::attempt(NAME, publish(services, authority, IfBusy::Wait)).await;
}

/// Publishes new lists until the server stops.
pub(crate) async fn keep_published(services: Arc<Services>, turns: Turns) {
    let publish = || async {
        let authority = services.authority.load_full();
        publish(&services, &authority, IfBusy::Skip).await
    };
    turns.repeat(publish).await;
}

/// The list of the current issuing CA.
pub(crate) fn of_issuing_ca(services: &Services) -> Option<Arc<PublishedList>> {
    find(services, services.authority.load().issuing().key_identifier())
}

/// The list of the CA with this subject key identifier. An expired list is not returned: its reader would accept
/// certificates that were revoked since.
pub(crate) fn find(services: &Services, key_identifier: &[u8]) -> Option<Arc<PublishedList>> {
    let lists = services.revocation.lists.load();
    let list = lists.iter().find(|list| list.key_identifier == key_identifier)?;
    list.is_in_force(services).then(|| Arc::clone(list))
}

/// The lists of all CAs in machines' paths. `None` if a list is missing that this server signs. The list of a root
/// elsewhere is left out if none is installed or it has expired: the others must not wait for its owner.
fn all(services: &Services) -> Option<Vec<Arc<PublishedList>>> {
    let issuers = Issuer::all(&services.authority.load());
    let lists = issuers.iter().filter_map(|issuer| {
        let list = find(services, &issuer.key_identifier);
        (issuer.is_ours || list.is_some()).then_some(list)
    });
    lists.collect()
}

/// The file with the lists of all CAs in machines' paths. `None` if a list is missing that this server signs.
pub(crate) fn bundle(services: &Services) -> Option<Arc<Bundle>> {
    Some(services.revocation.bundle_of(&all(services)?))
}

impl Revocation {
    /// The file with these lists. It is made anew only if it has others.
    fn bundle_of(&self, lists: &[Arc<PublishedList>]) -> Arc<Bundle> {
        let tags: Vec<String> = lists.iter().map(|list| list.tag()).collect();
        let tag = tags.join(".");
        if let Some(bundle) = self.bundle.load_full().filter(|bundle| bundle.tag == tag) {
            return bundle;
        }
        let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
        let pems = lists.iter();
        let pems = pems.map(|list| pem::encode_config(&Pem::new("X509 CRL", list.der.as_ref()), config));
        let bundle = Arc::new(Bundle {
            tag,
            pem: pems.collect::<String>().into(),
        });
        self.bundle.store(Some(Arc::clone(&bundle)));
        bundle
    }
}

/// Whether the CA with this key identifier has a list here.
pub(crate) fn is_known(services: &Services, key_identifier: &[u8]) -> bool {
    let lists = services.revocation.lists.load();
    Issuer::all(&services.authority.load()).iter().any(|issuer| {
        issuer.key_identifier == key_identifier
            && (issuer.is_ours || lists.iter().any(|list| list.issuer_id == issuer.id))
    })
}

impl PublishedList {
    fn is_in_force(&self, services: &Services) -> bool {
        services.store.now() < self.next_update
    }
}

/// Signs the lists that are due, unless another replica does, and loads new ones.
async fn publish(services: &Arc<Services>, authority: &Arc<Authority>, if_busy: IfBusy) -> Result<(), PublishingError> {
    let issuers = Issuer::all(authority);
    let mut states = states(services).await?;
    let now = services.store.now();
    for issuer in issuers.iter().filter(|issuer| issuer.is_ours) {
        let state = state_of(&states, issuer.id);
        if Issuer::is_due(state, services.policy.list_lifetime, now) && !is_too_early(services, state) {
            let origin = Origin::system();
            tx!(services.store, SignRevocationList, &origin => sign(services, authority, issuer, if_busy)).await?;
            states = self::states(services).await?;
        }
    }
    refresh(services, &issuers, &states).await
}

/// Whether a list that lacks a revocation is so new that it is not replaced yet. Every list contains all revocations, so a
/// storm of revocations must not make a list for each of them.
fn is_too_early(services: &Services, state: Option<&ListState>) -> bool {
    let Some(state) = state.filter(|state| state.is_stale) else {
        return false;
    };
    let lists = services.revocation.lists.load();
    let list = lists
        .iter()
        .find(|list| list.issuer_id == state.issuer_id && list.number == state.number);
    must_stay(list.map(|list| list.loaded_at.elapsed()))
}

/// Whether a list that this replica has had for so long is not replaced yet. A list that it has not loaded is new: another
/// replica has just signed it.
fn must_stay(loaded_for: Option<Duration>) -> bool {
    loaded_for.is_none_or(|loaded_for| loaded_for < SHORTEST_LIFE)
}

async fn states(services: &Services) -> Result<Vec<ListState>, StoreError> {
    store::revocation_lists::states(&mut *services.store.connection().await?).await
}

fn state_of(states: &[ListState], issuer_id: Uuid) -> Option<&ListState> {
    states.iter().find(|state| state.issuer_id == issuer_id)
}

/// Signs the next list of a CA. Does nothing if another replica is signing and `if_busy` says to skip.
async fn sign(
    tx: &mut Transaction,
    services: &Services,
    authority: &Arc<Authority>,
    issuer: &Issuer,
    if_busy: IfBusy,
) -> Result<(), PublishingError> {
    match if_busy {
        IfBusy::Wait => duties::wait_for(tx, Duty::SignRevocationLists).await?,
        IfBusy::Skip if duties::try_take(tx, Duty::SignRevocationLists).await? => {}
        IfBusy::Skip => return Ok(()),
    }
    let now = tx.now();
    let states = store::revocation_lists::states(tx).await?;
    let last = state_of(&states, issuer.id);
    let lifetime = services.policy.list_lifetime;
    if !Issuer::is_due(last, lifetime, now) {
        return Ok(());
    }
    // The CA may have been retired since this replica last looked.
    let keys = store::sealed_keys::list(tx).await?;
    let key = keys.iter().find(|key| key.id == issuer.id && key.sealed.is_some());
    let Some(key) = key else { return Ok(()) };
    store::revocation_lists::take_waiting(tx, issuer.id).await?;
    // An expired certificate must be on at least one list signed after its expiry (RFC 5280, section 3.3). Those that
    // expired during an outage are not yet.
    let listed_after = now - lifetime.max(LISTED_AFTER_EXPIRY);
    let listed_after = last.map_or(listed_after, |last| last.this_update.min(listed_after));
    let mut revoked = store::revocations::list(tx, issuer.id, listed_after).await?;
    revoked.extend(withdrawn_under(&keys, issuer.id, listed_after)?);
    let number = last
        .map_or(0, |last| last.number)
        .checked_add(1)
        .ok_or(PublishingError::Full)?;
    let entries = revoked.len();
    let list = RevocationList {
        number: u64::try_from(number).map_err(|_| PublishingError::Full)?,
        this_update: now - BACKDATING,
        next_update: now + lifetime,
        revoked,
    };
    let next_update = list.next_update;
    let der = match issuer.is_root {
        true => services.rotation.keyring.root_lists(key)?.sign(list)?,
        false => sign_with(authority, issuer.id, list).await?,
    };
    let stored = StoredList {
        number,
        der,
        next_update,
    };
    store::revocation_lists::replace(tx, issuer.id, now, &stored).await?;
    services.metrics.revocation.list_signed();
    tracing::debug!(?issuer, number, entries, "signed a revocation list");
    Ok(())
}

/// The withdrawn issuing CAs under a root, for its list.
fn withdrawn_under(
    keys: &[SealedKey],
    root_id: Uuid,
    expire_after: OffsetDateTime,
) -> Result<Vec<RevokedCertificate>, PublishingError> {
    let mut withdrawn = Vec::new();
    for key in keys.iter().filter(|key| key.root_id == Some(root_id)) {
        let (Some(revoked_at), Some(certificate)) = (key.withdrawn_at, &key.certificate) else {
            continue;
        };
        if validity(certificate)?.1 > expire_after {
            withdrawn.push(RevokedCertificate {
                serial_number: serial_number(certificate)?,
                revoked_at,
                reason: RevocationReason::CaCompromise,
            });
        }
    }
    Ok(withdrawn)
}

/// Runs on a blocking thread: signing hundreds of thousands of entries would delay other tasks.
async fn sign_with(
    authority: &Arc<Authority>,
    issuer_id: Uuid,
    list: RevocationList,
) -> Result<Vec<u8>, PublishingError> {
    let authority = Arc::clone(authority);
    let sign = move || authority.issuer(issuer_id)?.revocation_lists().sign(list);
    Ok(tokio::task::spawn_blocking(sign).await??)
}

/// Loads the lists that are newer than those in memory, and drops those of retired CAs.
async fn refresh(services: &Services, issuers: &[Issuer], states: &[ListState]) -> Result<(), PublishingError> {
    let published = services.revocation.lists.load_full();
    let mut lists = Vec::new();
    let mut is_new = false;
    for issuer in issuers {
        let Some(state) = state_of(states, issuer.id) else {
            continue;
        };
        let known = published.iter().find(|list| list.issuer_id == issuer.id);
        if let Some(known) = known.filter(|known| known.number == state.number) {
            lists.push(Arc::clone(known));
        } else if let Some(stored) =
            store::revocation_lists::find(&mut *services.store.connection().await?, issuer.id).await?
        {
            is_new = true;
            lists.push(Arc::new(PublishedList {
                issuer_id: issuer.id,
                key_identifier: issuer.key_identifier.clone(),
                number: stored.number,
                der: stored.der.into(),
                next_update: stored.next_update,
                loaded_at: Instant::now(),
            }));
        }
    }
    if is_new || lists.len() != published.len() {
        publish_metrics(services, &lists);
        services.revocation.lists.store(Arc::new(lists));
        // Requests do not wait for it.
        let _made = bundle(services);
    }
    Ok(())
}

fn publish_metrics(services: &Services, lists: &[Arc<PublishedList>]) {
    if let Some(first) = lists.iter().map(|list| list.next_update).min() {
        services.metrics.revocation.lists_end_at(first.unix_timestamp());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);
    /// The time to sign and store a list of 100,000 certificates.
    const SIGNING: u32 = 900;
    const STORM: u32 = 60_000;

    /// A replica at its turns, in milliseconds.
    struct Replica {
        offset: u32,
        /// The number of the list that it returns, and since when.
        loaded: (u32, u32),
        signs_until: Option<u32>,
    }

    /// A list: from which moment on it lacks revocations.
    type Signed = Vec<u32>;

    impl Replica {
        /// One millisecond, as `publish` proceeds: sign unless it is too early or another replica signs, then load.
        fn step(&mut self, now: u32, lists: &mut Signed, signing: &mut bool) {
            let newest = |lists: &Signed| u32::try_from(lists.len()).unwrap();
            if let Some(until) = self.signs_until {
                if now < until {
                    return;
                }
                self.signs_until = None;
                *signing = false;
                lists.push(until - SIGNING);
                self.loaded = (newest(lists), now);
                return;
            }
            let interval = u32::try_from(INTERVAL.as_millis()).unwrap();
            if !(now + self.offset).is_multiple_of(interval) {
                return;
            }
            let loaded_for = (self.loaded.0 == newest(lists)).then(|| MILLISECOND * (now - self.loaded.1));
            // There is a revocation at every moment of the storm.
            if !must_stay(loaded_for) && !*signing {
                *signing = true;
                self.signs_until = Some(now + SIGNING);
            } else if self.loaded.0 != newest(lists) {
                self.loaded = (newest(lists), now);
            }
        }
    }

    fn list(number: i64) -> Arc<PublishedList> {
        Arc::new(PublishedList {
            issuer_id: Uuid::nil(),
            key_identifier: vec![7],
            number,
            der: vec![0x30, 0].into(),
            next_update: OffsetDateTime::UNIX_EPOCH,
            loaded_at: Instant::now(),
        })
    }

    #[test]
    fn the_file_with_all_lists_is_made_once_for_each_set_of_lists() {
        let revocation = Revocation::new(16);
        let first = revocation.bundle_of(&[list(1), list(2)]);
        assert_eq!(first.tag, "07-1.07-2");
        assert!(first.pem.starts_with(b"-----BEGIN X509 CRL-----\n"));
        let again = revocation.bundle_of(&[list(1), list(2)]);
        assert!(Arc::ptr_eq(&first, &again));
        let newer = revocation.bundle_of(&[list(1), list(3)]);
        assert_eq!(newer.tag, "07-1.07-3");
    }

    #[test]
    fn a_storm_of_revocations_makes_few_lists_and_each_is_listed_everywhere_within_5_s() {
        let mut replicas = [0, 130, 260].map(|offset| Replica {
            offset,
            loaded: (0, 0),
            signs_until: None,
        });
        let (mut lists, mut signing) = (Signed::new(), false);
        let mut longest = 0;
        for now in 1..=STORM {
            for replica in &mut replicas {
                replica.step(now, &mut lists, &mut signing);
                let complete_until = match replica.loaded.0 {
                    0 => 0,
                    number => lists[usize::try_from(number).unwrap() - 1],
                };
                longest = longest.max(now - complete_until);
            }
        }
        assert!(longest <= 5000, "a revocation is listed after {longest} ms");
        let most = usize::try_from(STORM).unwrap() / usize::try_from(SHORTEST_LIFE.as_millis()).unwrap();
        assert!(
            lists.len() <= most && lists.len() >= 10,
            "{} lists, at most {most}",
            lists.len()
        );
    }
}
