//! The lists: one replica signs a new one within a second of a revocation, and before the last one runs out; every replica
//! looks for new ones and serves them from memory.

use std::{sync::Arc, time::Duration};

use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::PublishedList;
use crate::{
    authority::{AuthorityError, RevocationList},
    founding::FoundingError,
    services::Services,
    store::{
        self, AsStoreError, StoreError, Transaction,
        duties::{self, Duty},
        revocation_lists::{ListState, StoredList},
    },
    upkeep,
};

const NAME: &str = "publish revocations";
/// How long a revocation waits for its list, and a list for every replica, while the servers and the database are well.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long a list of machines' certificates may be relied on. Another one is signed after half of it at the latest, so
/// that nobody runs out of lists before this server has been away for half a day.
const ISSUING_LIFE: time::Duration = time::Duration::hours(24);
/// The same for what the root has issued, which is a CA in years.
const ROOT_LIFE: time::Duration = time::Duration::days(30);
/// How far a list's time lies back: relying parties' clocks run late by seconds, and take none of the future.
const BACKDATING: time::Duration = time::Duration::seconds(60);
/// A list that another replica signed by a clock that is ahead by less than this is good enough.
const CLOCKS_DIFFER: time::Duration = time::Duration::minutes(5);
/// How long a certificate stays listed after its end, so that it is on a list that was signed after that (RFC 5280,
/// section 3.3).
const LISTED_AFTER_EXPIRY: time::Duration = ISSUING_LIFE;

/// Why no list was published.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishingError {
    #[error("a revocation list cannot be signed")]
    Sign(#[from] AuthorityError),
    #[error("the root's key cannot be opened")]
    Root(#[from] FoundingError),
    #[error("the numbers of revocation lists are used up")]
    Full,
    #[error("the signing of a revocation list ended by itself")]
    Ended(#[from] tokio::task::JoinError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AsStoreError for PublishingError {
    fn as_store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) => Some(error),
            _ => None,
        }
    }
}

/// A CA that has a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Issuer {
    /// The one that issues to machines.
    Issuing,
    /// The one above it.
    Root,
}

impl Issuer {
    const ALL: [Self; 2] = [Self::Issuing, Self::Root];

    fn id(self, services: &Services) -> Uuid {
        match self {
            Self::Issuing => services.issuer_id,
            Self::Root => services.root.id,
        }
    }

    fn key_identifier(self, services: &Services) -> Vec<u8> {
        match self {
            Self::Issuing => services.authority.load().issuing().key_identifier().to_vec(),
            Self::Root => services.root.key_identifier.clone(),
        }
    }

    fn life(self) -> time::Duration {
        match self {
            Self::Issuing => ISSUING_LIFE,
            Self::Root => ROOT_LIFE,
        }
    }

    /// Whether there is no list, or one that lacks something or is half over. One of the future was signed by a clock that
    /// was ahead: relying parties would not take it yet.
    fn is_due(self, state: Option<&ListState>, now: OffsetDateTime) -> bool {
        state.is_none_or(|state| {
            let half = state.this_update + (state.next_update - state.this_update) / 2;
            state.is_stale || now >= half || now + CLOCKS_DIFFER < state.this_update
        })
    }
}

/// Publishes once, so that a server that listens has lists to serve.
pub(crate) async fn publish_first(services: &Arc<Services>) {
    upkeep::attempt(NAME, publish(services)).await;
}

/// Publishes again and again, until the server stops.
pub(crate) async fn keep_published(services: Arc<Services>, shutdown: CancellationToken) {
    upkeep::repeat(NAME, INTERVAL, &shutdown, || publish(&services)).await;
}

/// The list of the present issuing CA.
pub(crate) fn of_issuing_ca(services: &Services) -> Option<Arc<PublishedList>> {
    let key_identifier = Issuer::Issuing.key_identifier(services);
    find(services, &key_identifier)
}

/// The list of the CA with this subject key identifier. None that has run out: its reader would take a certificate for
/// good that has been revoked since.
pub(crate) fn find(services: &Services, key_identifier: &[u8]) -> Option<Arc<PublishedList>> {
    let lists = services.revocation.lists.load();
    let list = lists.iter().find(|list| list.key_identifier == key_identifier)?;
    list.is_in_force(services).then(|| Arc::clone(list))
}

/// The lists of all CAs of a machine's path; `None` unless every one is there.
pub(crate) fn all(services: &Services) -> Option<Vec<Arc<PublishedList>>> {
    let issuers = Issuer::ALL.iter();
    issuers
        .map(|issuer| find(services, &issuer.key_identifier(services)))
        .collect()
}

/// Whether this server has such a CA at all.
pub(crate) fn is_known(services: &Services, key_identifier: &[u8]) -> bool {
    Issuer::ALL
        .iter()
        .any(|issuer| issuer.key_identifier(services) == key_identifier)
}

impl PublishedList {
    fn is_in_force(&self, services: &Services) -> bool {
        services.clock.now() < self.next_update
    }
}

/// Signs what is due, if no other replica does, and reads what is new.
async fn publish(services: &Arc<Services>) -> Result<(), PublishingError> {
    let mut states = states(services).await?;
    let now = services.clock.now();
    for issuer in Issuer::ALL {
        if issuer.is_due(state_of(&states, issuer.id(services)), now) {
            services
                .store
                .tx(NAME, &(services, issuer), |tx, &(services, issuer)| {
                    Box::pin(sign(tx, services, issuer))
                })
                .await?;
            states = self::states(services).await?;
        }
    }
    refresh(services, &states).await
}

async fn states(services: &Services) -> Result<Vec<ListState>, StoreError> {
    store::revocation_lists::states(&mut *services.store.connection().await?).await
}

fn state_of(states: &[ListState], issuer_id: Uuid) -> Option<&ListState> {
    states.iter().find(|state| state.issuer_id == issuer_id)
}

/// Signs the next list of a CA; nothing when another replica is at it, or was.
async fn sign(tx: &mut Transaction, services: &Arc<Services>, issuer: Issuer) -> Result<(), PublishingError> {
    if !duties::try_take(tx, Duty::SignRevocationLists).await? {
        return Ok(());
    }
    let (issuer_id, now) = (issuer.id(services), services.clock.now());
    let states = store::revocation_lists::states(tx).await?;
    let last = state_of(&states, issuer_id);
    if !issuer.is_due(last, now) {
        return Ok(());
    }
    store::revocation_lists::take_waiting(tx, issuer_id).await?;
    // After an outage, what expired meanwhile is still on no list that was signed after its end.
    let listed_after = now - LISTED_AFTER_EXPIRY;
    let listed_after = last.map_or(listed_after, |last| last.this_update.min(listed_after));
    let revoked = store::certificates::list_revoked(tx, issuer_id, listed_after).await?;
    let number = last
        .map_or(0, |last| last.number)
        .checked_add(1)
        .ok_or(PublishingError::Full)?;
    let entries = revoked.len();
    let list = RevocationList {
        number: u64::try_from(number).map_err(|_| PublishingError::Full)?,
        this_update: now - BACKDATING,
        next_update: now + issuer.life(),
        revoked,
    };
    let next_update = list.next_update;
    let signing = Arc::clone(services);
    let der = tokio::task::spawn_blocking(move || sign_with(&signing, issuer, list)).await??;
    let stored = StoredList {
        number,
        der,
        next_update,
    };
    store::revocation_lists::replace(tx, issuer_id, now, &stored).await?;
    services.metrics.revocation.list_signed();
    tracing::debug!(?issuer, number, entries, "a revocation list was signed");
    Ok(())
}

/// Hundreds of thousands of entries take long enough to keep other tasks waiting.
fn sign_with(services: &Services, issuer: Issuer, list: RevocationList) -> Result<Vec<u8>, PublishingError> {
    match issuer {
        Issuer::Issuing => Ok(services.authority.load().issuing().revocation_lists().sign(list)?),
        Issuer::Root => Ok(services.root.revocation_lists()?.sign(list)?),
    }
}

/// Reads the lists that are newer than those in memory.
async fn refresh(services: &Services, states: &[ListState]) -> Result<(), PublishingError> {
    let published = services.revocation.lists.load_full();
    let mut lists = Vec::new();
    let mut is_new = false;
    for issuer in Issuer::ALL {
        let issuer_id = issuer.id(services);
        let Some(state) = state_of(states, issuer_id) else {
            continue;
        };
        let known = published.iter().find(|list| list.issuer_id == issuer_id);
        if let Some(known) = known.filter(|known| known.number == state.number) {
            lists.push(Arc::clone(known));
        } else if let Some(stored) =
            store::revocation_lists::find(&mut *services.store.connection().await?, issuer_id).await?
        {
            is_new = true;
            lists.push(Arc::new(PublishedList {
                issuer_id,
                key_identifier: issuer.key_identifier(services),
                number: stored.number,
                der: stored.der.into(),
                next_update: stored.next_update,
            }));
        }
    }
    if is_new {
        publish_metrics(services, &lists);
        services.revocation.lists.store(Arc::new(lists));
    }
    Ok(())
}

fn publish_metrics(services: &Services, lists: &[Arc<PublishedList>]) {
    if let Some(first) = lists.iter().map(|list| list.next_update).min() {
        services.metrics.revocation.lists_end_at(first.unix_timestamp());
    }
}
