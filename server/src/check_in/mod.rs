//! Check-in: nonce → verify → commit → grants.

mod changed;
pub(crate) mod committer;
mod evaluation;
pub(crate) mod introspection;
pub(crate) mod keys;
#[cfg(feature = "measuring")]
mod measuring;
pub(crate) mod nonce;
mod verification;

use std::sync::Arc;

use assay_protocol::{
    agent_api::{Action, AudienceGrant, CheckInRequest, CheckedIn},
    evidence::{EvidenceError, Purpose},
    machine::{KeyStoreKind, MachineStatus},
    text::rfc3339,
};
use time::{Duration, OffsetDateTime};

#[cfg(not(feature = "measuring"))]
pub(crate) use self::committer::Committer;
pub(crate) use self::evaluation::{EvaluationCache, evaluate_now};
#[cfg(feature = "measuring")]
pub(crate) use self::measuring::MeasuredCommitter as Committer;
pub(crate) use self::verification::{Verified, verify};
use assay_authority::GrantTokenError;

use self::{
    evaluation::{Evaluated, Settled},
    nonce::NonceError,
};
use crate::{
    changes::{Origin, RequestSource},
    machines::{
        client_certificate::ClientCertificate,
        continuity::{Carried, Judgement},
        liveness::LivenessBoundaries,
    },
    rate_limits::{Exceeded, OverLimit},
    registry::{
        admission::{Attempt, Mismatch, Refusal},
        client_certificate::CertificateRefusal,
    },
    services::{Policy, Services},
    store::{
        StoreError,
        batcher::BatchError,
        certificates,
        machines::check_ins::{CheckIn, Recorded},
        tx,
    },
};

/// How often a check-in is evaluated anew because the machine's record changes meanwhile.
const MOST_EVALUATIONS: u32 = 5;

/// The shortest interval that short-lived tokens may bring about: an audience's tokens live for a minute at least.
const SHORTEST_INTERVAL: Duration = Duration::seconds(30);

/// Why a check-in, a renewal or an enrollment is refused because of its evidence or its machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckInError {
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    #[error("the evidence is signed by a key that is not this machine's")]
    ForeignKey,
    #[error("the evidence has no sub, the claim that names the machine")]
    NoSubject,
    #[error(transparent)]
    Certificate(#[from] CertificateRefusal),
    #[error(transparent)]
    Nonce(#[from] NonceError),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    RateLimited(#[from] Exceeded),
    #[error(
        "the certificate expired at {}, longer ago than the renewal grace; the machine must enroll again",
        rfc3339(*expired_at)
    )]
    RenewalExpired { expired_at: OffsetDateTime },
    #[error("the machine's record changed several times during this check-in; check in again")]
    Overtaken,
    #[error("a statement for many check-ins failed")]
    Batch(#[from] BatchError),
    #[error("the machine's claims cannot be stored")]
    Claims(#[from] serde_json::Error),
    #[error("a grant token cannot be signed")]
    Token(#[from] GrantTokenError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The answer, and the nonce that this call used up.
pub(crate) struct Answer {
    pub(crate) checked_in: CheckedIn,
    pub(crate) nonce_used: OffsetDateTime,
}

/// Verifies, records, evaluates, grants.
pub(crate) async fn check_in(
    services: &Services,
    source: &RequestSource,
    over_limit: Option<&OverLimit>,
    certificate: Option<&ClientCertificate>,
    request: &CheckInRequest,
) -> Result<Answer, CheckInError> {
    let now = services.clock.now();
    let verified = verify(
        services,
        source,
        over_limit,
        certificate,
        &request.evidence,
        Purpose::CheckIn,
        now,
    )
    .await?;
    let answer = answer(services, source, certificate, &verified, (request, now)).await;
    if let Err(CheckInError::Refused(refusal)) = &answer
        && refusal.ends_key()
    {
        services.keys.forget(verified.evidence.key());
    }
    answer
}

/// Answers a check-in whose evidence is verified.
async fn answer(
    services: &Services,
    source: &RequestSource,
    certificate: Option<&ClientCertificate>,
    verified: &Verified,
    (request, now): (&CheckInRequest, OffsetDateTime),
) -> Result<Answer, CheckInError> {
    let check_in = CheckIn {
        machine_id: verified.machine_id,
        key: verified.evidence.key(),
        nonce: verified.nonce,
        carried: verified.carried.order(),
        claims_digest: verified.claims.digest()?,
        at: now,
        clock_skew_seconds: verified.evidence.claims().iat.saturating_sub(now.unix_timestamp()),
        live_since: LivenessBoundaries::at(now, services.policy.check_in_interval).live_since(),
    };
    let unchanged = match verified.carried {
        Carried::Foreign => None,
        Carried::Nothing | Carried::Genuine(_) => services.committer.call(check_in).await?,
    };
    let recorded = match unchanged {
        Some(recorded) => recorded,
        None => record_changed(services, source, verified, &check_in).await?,
    };
    let (evaluated, grants) = grant(services, certificate, verified, recorded, now).await?;
    let checked_in = CheckedIn {
        machine_id: verified.machine_id,
        status: MachineStatus::Active,
        assurance: evaluated.assurance,
        grants,
        denied: evaluated.evaluation.denied.clone(),
        next_check_in_seconds: next_check_in_seconds(&services.policy, &evaluated),
        actions: actions(services, &evaluated, now),
        trust_bundle: changed_trust_bundle(services, request.trust_bundle_sha256.as_deref()),
        withdrawn_issuers: services.authority.load().withdrawn_issuers().to_vec(),
        continuity: Some(services.continuity.issue(verified.machine_id, verified.nonce)),
    };
    Ok(Answer {
        checked_in,
        nonce_used: verified.nonce,
    })
}

/// Evaluates the machine and signs its grants.
///
/// A changed verdict is written last, with the machine's row locked. If the record has changed by then, the machine is
/// evaluated again, and refused if it was suspended.
async fn grant(
    services: &Services,
    certificate: Option<&ClientCertificate>,
    verified: &Verified,
    mut recorded: Recorded,
    now: OffsetDateTime,
) -> Result<(Arc<Evaluated>, Vec<AudienceGrant>), CheckInError> {
    for _ in 0..MOST_EVALUATIONS {
        let evaluated = evaluation::evaluate(services, verified, &recorded).await?;
        require_within_grace(services, &evaluated, now)?;
        refuse_unless_in_force(services, certificate, &evaluated).await?;
        let grants = evaluation::sign(services, &evaluated, now)?;
        match evaluation::settle_verdict(services, verified.machine_id, &recorded, &evaluated).await? {
            Settled::OnRecord => return Ok((evaluated, grants)),
            Settled::Overtaken { record_version } => {
                recorded.record_version = record_version;
                recorded.verdict_digest = None;
            }
            Settled::Deleted => return Err(Refusal::Unknown.into()),
        }
    }
    Err(CheckInError::Overtaken)
}

/// Past the renewal grace, the key alone proves too little: it may come from an old backup.
fn require_within_grace(services: &Services, evaluated: &Evaluated, now: OffsetDateTime) -> Result<(), CheckInError> {
    match &evaluated.machine.certificate {
        Some(certificate) if now >= certificate.not_after.saturating_add(services.policy.renewal_grace) => {
            let expired_at = certificate.not_after;
            Err(CheckInError::RenewalExpired { expired_at })
        }
        _ => Ok(()),
    }
}

/// Revoking a certificate changes the record's version, and `evaluated` has the version under which this check-in was
/// recorded. So the machine's current certificate needs no look-up. Any other one does.
async fn refuse_unless_in_force(
    services: &Services,
    certificate: Option<&ClientCertificate>,
    evaluated: &Evaluated,
) -> Result<(), CheckInError> {
    let Some(certificate) = certificate.filter(|certificate| !evaluated.has_current(certificate)) else {
        return Ok(());
    };
    let mut connection = services.store.connection().await?;
    match certificates::is_in_force(&mut connection, certificate).await? {
        true => Ok(()),
        false => Err(certificate.not_in_force().into()),
    }
}

async fn record_changed(
    services: &Services,
    source: &RequestSource,
    verified: &Verified,
    check_in: &CheckIn,
) -> Result<Recorded, CheckInError> {
    let origin = Origin::machine(verified.machine_id, source);
    let attempt = Attempt {
        key: check_in.key,
        nonce: check_in.nonce,
        claims: &verified.claims,
        carried: verified.carried,
        continuity: services.policy.continuity,
    };
    let interval = services.policy.check_in_interval;
    let recorded = tx!(services.store, CheckIn, &origin => changed::record(interval, check_in, &attempt)).await?;
    if let Err(Refusal::IdentityMismatch(Mismatch::Continuity)) = &recorded {
        services.metrics.continuity_broken();
    }
    let (recorded, judgement) = recorded?;
    match judgement {
        Judgement::Continues => {}
        Judgement::Broken => services.metrics.continuity_broken(),
        Judgement::DatabaseBehind => {
            services.metrics.database_behind();
            tracing::error!(
                machine_id = %verified.machine_id,
                "a machine has a later answer than the database: the database was restored from a backup"
            );
        }
    }
    Ok(recorded)
}

/// When the machine checks in again: after the interval, or after two thirds of the life that an audience gives its tokens.
fn next_check_in_seconds(policy: &Policy, evaluated: &Evaluated) -> u64 {
    let interval = policy.check_in_interval;
    let lives = evaluated.own_lives_of_tokens();
    let next = lives.fold(interval, |next: Duration, life: Duration| next.min(life * 2 / 3));
    next.max(SHORTEST_INTERVAL.min(interval)).whole_seconds().unsigned_abs()
}

/// The trust bundle, if the machine says that it has another one.
fn changed_trust_bundle(services: &Services, present: Option<&str>) -> Option<String> {
    let authority = services.authority.load();
    let is_another = present.is_some_and(|present| present != authority.trust_bundle_digest());
    is_another.then(|| authority.trust_bundle().to_owned())
}

/// The agent renews by itself at two thirds of the certificate's life. This action reminds an agent that has not. The
/// operator decides how old a key may become.
fn actions(services: &Services, evaluated: &Evaluated, now: OffsetDateTime) -> Vec<Action> {
    let renewal_is_due = evaluated.machine.certificate.as_ref().is_none_or(|certificate| {
        let life = certificate.not_after - certificate.not_before;
        now >= certificate.not_before + life * 2 / 3
    });
    // A key in the Secure Enclave cannot be copied. Replacing it takes an administrator, so it is not due by the calendar.
    let rotation_is_due = evaluated.machine.key_store == KeyStoreKind::Software
        && (services.policy.rotate_key_after)
            .is_some_and(|age| now >= evaluated.machine.key_created_at.saturating_add(age));
    let due = [
        (renewal_is_due, Action::RenewCertificate),
        (rotation_is_due, Action::RotateKey),
    ];
    due.into_iter()
        .filter_map(|(is_due, action)| is_due.then_some(action))
        .collect()
}
