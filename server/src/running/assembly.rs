//! Assembles the parts of a server before it accepts requests.

use std::{io, path::Path, sync::Arc};

use arc_swap::ArcSwap;
use assay_authority::{attestation::apple::AttestationRoots, secret_file};
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::RunError;
use crate::{
    administration::stats::StatsCache,
    audit::verification::Verifier,
    check_in::{EvaluationCache, committer, keys::KeyCache, nonce::Nonces},
    clock::Clock,
    config::{self, Config},
    database::Database,
    enrollment,
    events::feed::Feed,
    machines::continuity::ContinuityValues,
    mdm::NanoMdm,
    periodic::BackgroundWork,
    rate_limits::RateLimits,
    readiness::Readiness,
    registry::liveness_sweep::LargeFleet,
    revocation::Revocation,
    rotation::bootstrap::{self, Bootstrapped},
    services::{Acme, Policy, Services},
    store::Store,
    telemetry::Metrics,
    webhooks,
};

/// Builds the services, after bringing the database's schema up to date.
pub(crate) async fn prepare(
    config: &Config,
    clock: Arc<dyn Clock>,
    database: &Database,
    attestation_roots: AttestationRoots,
    shutdown: &CancellationToken,
) -> Result<Arc<Services>, RunError> {
    if config.database.migrate {
        database.migrate().await?;
    }
    database.check_schema().await?;
    if database.could_alter_audit().await? {
        tracing::warn!(
            "this server's database role could alter the audit: let the owner of the schema be another \
             (database.migration_url)"
        );
    }
    let metrics = Arc::new(Metrics::new());
    let store = Store::new(database.pool().clone(), Arc::clone(&clock), Arc::clone(&metrics));
    let bootstrapped = bootstrap::bootstrap(&store, config).await?;
    let feed = Feed::start(&store, &metrics, shutdown.clone()).await?;
    assemble(config, clock, store, metrics, bootstrapped, feed, attestation_roots)
}

fn assemble(
    config: &Config,
    clock: Arc<dyn Clock>,
    store: Store,
    metrics: Arc<Metrics>,
    bootstrapped: Bootstrapped,
    feed: Arc<Feed>,
    attestation_roots: AttestationRoots,
) -> Result<Arc<Services>, RunError> {
    let rate_limits = Arc::new(RateLimits::new(&config.rate_limit));
    let enrollments = enrollment::committer::Committer::start(store.clone(), Arc::clone(&rate_limits), &metrics);
    let committer = committer::start(store.clone(), &metrics);
    #[cfg(feature = "measuring")]
    let committer = crate::check_in::Committer::new(committer, config.recording, store.clone());
    let background_work = BackgroundWork::new(Arc::clone(&clock), Arc::clone(&metrics));
    Ok(Arc::new(Services {
        policy: Policy::of(config),
        clock,
        committer,
        enrollments,
        keys: KeyCache::start(store.clone(), &metrics),
        evaluations: EvaluationCache::start(store.clone(), &metrics),
        store,
        authority: Arc::new(ArcSwap::from_pointee(bootstrapped.authority)),
        rotation: bootstrapped.rotation,
        nonces: Nonces::new(&bootstrapped.nonce_key),
        continuity: ContinuityValues::new(&bootstrapped.nonce_key),
        acme: Acme {
            nonces: Nonces::new(&bootstrapped.acme_secrets.nonce_key()),
            secrets: bootstrapped.acme_secrets,
        },
        large_fleet: LargeFleet::default(),
        stats_cache: StatsCache::default(),
        audit_verifier: Verifier::default(),
        rate_limits,
        readiness: Readiness::default(),
        feed,
        webhook_secrets: bootstrapped.webhook_secrets,
        webhook_client: webhooks::Client::new(config.webhooks.private_addresses)?,
        revocation: Revocation::new(config.database.max_connections),
        attestation_roots,
        nano_mdm: config.nano_mdm.as_ref().map(nano_mdm).transpose()?,
        background_work,
        metrics,
    }))
}

fn nano_mdm(config: &config::NanoMdm) -> Result<NanoMdm, RunError> {
    let api_key = match &config.api_key {
        config::ApiKey::Value(value) => value.clone(),
        config::ApiKey::File(path) => read_secret(path).map_err(|source| RunError::MdmKey {
            path: path.clone(),
            source,
        })?,
    };
    Ok(NanoMdm::new(config.url.clone(), api_key)?)
}

/// Reads a file that contains a secret, with or without a line break at its end.
fn read_secret(path: &Path) -> io::Result<SecretString> {
    let text = Zeroizing::new(io::read_to_string(secret_file::open(path)?)?);
    let secret = text.trim();
    if secret.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty"));
    }
    Ok(SecretString::from(secret))
}
