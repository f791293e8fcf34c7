//! The state that all requests share.

use std::{num::NonZeroU32, sync::Arc};

use arc_swap::ArcSwap;
use assay_authority::{AcmeSecrets, Authority, WebhookSecrets, attestation::apple::AttestationRoots};
use time::Duration;

use crate::{
    administration::stats::StatsCache,
    audit::verification::Verifier,
    check_in::{Committer, EvaluationCache, keys::KeyCache, nonce::Nonces},
    clock::Clock,
    config::{ClientCertificates, Config, Continuity, OpeningPolicy, Reenrollment, WithoutToken},
    enrollment,
    events::feed::Feed,
    machines::continuity::ContinuityValues,
    mdm::NanoMdm,
    periodic::BackgroundWork,
    rate_limits::RateLimits,
    readiness::Readiness,
    registry::liveness_sweep::LargeFleet,
    retention::Retention,
    revocation::Revocation,
    rotation::Rotation,
    store::Store,
    telemetry::Metrics,
    webhooks,
};

/// The parts of a running server. They keep no state except caches: replicas share only the database.
pub(crate) struct Services {
    pub(crate) policy: Policy,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) store: Store,
    pub(crate) authority: Arc<ArcSwap<Authority>>,
    pub(crate) rotation: Rotation,
    pub(crate) nonces: Nonces,
    pub(crate) continuity: ContinuityValues,
    pub(crate) acme: Acme,
    pub(crate) keys: KeyCache,
    pub(crate) evaluations: EvaluationCache,
    pub(crate) committer: Committer,
    pub(crate) enrollments: enrollment::committer::Committer,
    pub(crate) large_fleet: LargeFleet,
    pub(crate) stats_cache: StatsCache,
    pub(crate) audit_verifier: Verifier,
    pub(crate) rate_limits: Arc<RateLimits>,
    pub(crate) readiness: Readiness,
    pub(crate) feed: Arc<Feed>,
    pub(crate) webhook_secrets: WebhookSecrets,
    pub(crate) webhook_client: webhooks::Client,
    pub(crate) revocation: Revocation,
    /// The roots under which Apple's attestations are accepted.
    pub(crate) attestation_roots: AttestationRoots,
    /// The MDM that asks machines for attestations. `None` if the administrator's own tools do that.
    pub(crate) nano_mdm: Option<NanoMdm>,
    pub(crate) background_work: BackgroundWork,
    pub(crate) metrics: Arc<Metrics>,
}

/// The state that only ACME needs.
pub(crate) struct Acme {
    pub(crate) secrets: AcmeSecrets,
    pub(crate) nonces: Nonces,
}

/// The configured values that requests depend on.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    /// Without a trailing slash.
    pub(crate) public_url: String,
    pub(crate) trust_domain: String,
    pub(crate) certificate_ttl: Duration,
    pub(crate) renewal_grace: Duration,
    /// The age at which machines must rotate their keys. `None` for no limit.
    pub(crate) rotate_key_after: Option<Duration>,
    pub(crate) check_in_interval: Duration,
    pub(crate) continuity: Continuity,
    pub(crate) grants_ttl: Duration,
    pub(crate) reenrollment: Reenrollment,
    pub(crate) opening: OpeningPolicy,
    pub(crate) without_token: WithoutToken,
    /// The most machines without a token that may wait for a decision at once.
    pub(crate) without_token_limit: u32,
    /// How long an enrollment waits for an administrator's decision.
    pub(crate) pending_ttl: Duration,
    pub(crate) retention: Retention,
    pub(crate) client_certificates: ClientCertificates,
    /// How long after its signing an attestation counts.
    pub(crate) attestation_max_age: Duration,
    /// Renewals of one machine in a day; `None` for no limit.
    pub(crate) renewals_per_day: Option<NonZeroU32>,
    pub(crate) acme_enabled: bool,
    pub(crate) device_certificate_ttl: Duration,
    /// How long a revocation list is valid.
    pub(crate) list_lifetime: Duration,
}

impl Policy {
    pub(crate) fn of(config: &Config) -> Self {
        // The configuration limits each of these to a few years.
        let duration = |duration: std::time::Duration| Duration::try_from(duration).unwrap_or(Duration::MAX);
        Self {
            public_url: config.public_url.as_str().to_owned(),
            trust_domain: config.trust_domain.as_str().to_owned(),
            certificate_ttl: duration(config.certificates.ttl),
            renewal_grace: duration(config.certificates.renewal_grace),
            rotate_key_after: config.certificates.rotate_key_after.map(duration),
            check_in_interval: duration(config.check_in.interval),
            continuity: config.check_in.continuity,
            grants_ttl: duration(config.grants.ttl),
            reenrollment: config.enrollment.reenrollment,
            opening: config.enrollment.opening,
            without_token: config.enrollment.without_token,
            without_token_limit: config.enrollment.without_token_limit,
            pending_ttl: duration(config.enrollment.pending_ttl),
            retention: Retention::of(&config.retention),
            client_certificates: config.client_certificates,
            attestation_max_age: duration(config.apple.attestation_max_age),
            renewals_per_day: config.rate_limit.renewals_per_day,
            acme_enabled: config.acme.enabled,
            device_certificate_ttl: duration(config.acme.certificate_ttl),
            list_lifetime: duration(config.revocation.list_lifetime),
        }
    }
}
