//! Every replica follows the keys. It looks for a new version, takes due steps, and swaps in the new authority.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use assay_authority::Authority;
use time::OffsetDateTime;

use super::{RotationError, RotationPolicy, Rotator, advance, keys, steps::Keys};
use crate::{
    keyring::Keyring,
    periodic::{Turns, Work},
    revocation::lists,
    services::Services,
    store::{self, Store, settings},
};

const NAME: &str = "follow the authority's keys";
/// How long a change takes to reach every replica, if the servers and the database work. It is much shorter than any
/// sensible overlap, so all replicas know a key before it signs.
const INTERVAL: Duration = Duration::from_millis(500);
pub(crate) const WORK: Work = Work::every(INTERVAL, NAME);
/// How often the operator is reminded that an external root must sign the next CA.
const REMINDER: time::Duration = time::Duration::DAY;

/// The keys that one replica knows.
pub(crate) struct Rotation {
    pub(crate) keyring: Keyring,
    pub(crate) policy: RotationPolicy,
    /// The keys of the same version as the authority.
    keys: ArcSwap<Keys>,
    reminded_at: Mutex<Option<OffsetDateTime>>,
}

impl Rotation {
    /// Takes due steps and reads the keys, when a server starts.
    pub(crate) async fn begin(
        store: &Store,
        keyring: Keyring,
        policy: RotationPolicy,
    ) -> Result<(Self, Authority), RotationError> {
        let rotation = Self {
            keyring,
            policy,
            keys: ArcSwap::default(),
            reminded_at: Mutex::default(),
        };
        rotation.advance(store).await?;
        let (authority, keys) = rotation.read(store).await?;
        rotation.keys.store(Arc::new(keys));
        Ok((rotation, authority))
    }

    async fn advance(&self, store: &Store) -> Result<(), RotationError> {
        let rotator = Rotator {
            keyring: &self.keyring,
            policy: &self.policy,
        };
        advance(store, &rotator).await
    }

    async fn read(&self, store: &Store) -> Result<(Authority, Keys), RotationError> {
        let mut snapshot = store.snapshot().await?;
        let (version, keys) = keys::read_with_version(&mut snapshot).await?;
        store::end(snapshot).await?;
        let authority = self.keyring.authority(version, &keys, &self.policy.installation)?;
        Ok((authority, keys))
    }

    fn remind(&self, keys: &Keys, now: OffsetDateTime) {
        if !keys.waits_for_external_root(&self.policy, now) {
            return;
        }
        let mut reminded_at = self.reminded_at.lock().unwrap_or_else(PoisonError::into_inner);
        if reminded_at.is_none_or(|at| at + REMINDER <= now) {
            *reminded_at = Some(now);
            tracing::warn!(
                "the issuing CA expires soon, and an external root must sign the next one: run `assay-server ca csr`"
            );
        }
    }
}

/// Follows until the server stops.
pub(crate) async fn run_follower(services: Arc<Services>, turns: Turns) {
    turns.repeat(|| follow(&services)).await;
}

async fn follow(services: &Arc<Services>) -> Result<(), RotationError> {
    let (rotation, now) = (&services.rotation, services.store.now());
    let keys = rotation.keys.load_full();
    if keys.next_step(&rotation.policy, now).is_some() {
        rotation.advance(&services.store).await?;
    }
    rotation.remind(&keys, now);
    let end = services.authority.load().issuing().not_after();
    services.metrics.revocation.issuing_ca_ends_at(end.unix_timestamp());
    let newest = settings::authority_version(&mut *services.store.connection().await?).await?;
    if newest == services.authority.load().version() {
        return Ok(());
    }
    let (authority, keys) = rotation.read(&services.store).await?;
    let authority = Arc::new(authority);
    // Publish the lists first, so that this replica never has a CA without a list.
    lists::publish_for(services, &authority).await;
    tracing::info!(version = authority.version(), "reloaded the authority's keys");
    services.authority.store(authority);
    rotation.keys.store(Arc::new(keys));
    Ok(())
}
