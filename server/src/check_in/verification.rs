//! Verification of a machine's evidence, before anything of its record is read.

use assay_protocol::{
    KeyThumbprint, UnverifiedEvidence,
    evidence::{Evidence, Expectation, Purpose},
};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{CheckInError, keys::KeyLookup};
use crate::{
    changes::{Identity, RequestSource},
    machines::{claims::Claims, client_certificate::ClientCertificate, continuity::Carried},
    rate_limits::OverLimit,
    registry::{admission::Refusal, client_certificate},
    services::Services,
    store::machines,
};

/// Evidence with a valid signature, nonce and subject.
pub(crate) struct Verified {
    pub(crate) machine_id: Uuid,
    pub(crate) evidence: Evidence,
    pub(crate) nonce: OffsetDateTime,
    pub(crate) carried: Carried,
    pub(crate) claims: Claims,
}

/// Verifies a machine's evidence and the client certificate. What only the machine's row can tell comes later.
pub(crate) async fn verify(
    services: &Services,
    source: &RequestSource,
    over_limit: Option<&OverLimit>,
    certificate: Option<&ClientCertificate>,
    jws: &str,
    purpose: Purpose,
    now: OffsetDateTime,
) -> Result<Verified, CheckInError> {
    let unverified = UnverifiedEvidence::parse(jws)?;
    let nonce = services.nonces.recognize(unverified.unverified_nonce(), now)?;
    let subject = unverified.unverified_subject();
    let kid = unverified.unverified_key();
    let found = match over_limit {
        Some(over_limit) => find_over_limit(services, over_limit, certificate, kid).await?,
        None => services.keys.find(kid).await?,
    };
    let Some(KeyLookup {
        machine_id,
        public_key,
        status,
    }) = found
    else {
        // The database may have been restored, or the key never enrolled: the agent must enroll again.
        return Err(subject.map_or(CheckInError::NoSubject, |_| Refusal::Unknown.into()));
    };
    let expected = Expectation {
        audience: &services.policy.public_url,
        purpose,
        subject,
    };
    let evidence = unverified.verify(&public_key, &expected).inspect_err(|_| {
        if let Some(over_limit) = over_limit {
            services.rate_limits.charge_failure(over_limit, kid);
        }
    })?;
    if status.proves_machine() {
        source.identify(Identity::Machine(machine_id));
    }
    // A stranger can have a key wait for this machine's record. It must not use up the machine's limit.
    match status.is_machines_own() {
        true => services.rate_limits.charge_machine(machine_id)?,
        false => services.rate_limits.charge_applicant(kid)?,
    }
    let appraised = match require_subject(services, subject, machine_id).await {
        Ok(()) => client_certificate::appraise(certificate, &services.policy, kid, now).map_err(CheckInError::from),
        Err(error) => Err(error),
    };
    // Its status is read anew: a key that was replaced must not go on to use up the machine's limit.
    appraised.inspect_err(|_| services.keys.forget(kid))?;
    let carried = (services.continuity).recognize(machine_id, evidence.claims().continuity.as_deref());
    let claims = Claims::of(&evidence);
    Ok(Verified {
        machine_id,
        evidence,
        nonce: nonce.order(),
        carried,
        claims,
    })
}

/// Finds a key for a network that is over its limit. A key in memory is always found, so a stranger's failures never bar a
/// signature that verifies. A client certificate for the key proves that the key is on record.
async fn find_over_limit(
    services: &Services,
    over_limit: &OverLimit,
    certificate: Option<&ClientCertificate>,
    key: KeyThumbprint,
) -> Result<Option<KeyLookup>, CheckInError> {
    if let Some(found) = services.keys.find_in_memory(key) {
        return Ok(Some(found));
    }
    if certificate.is_some_and(|certificate| certificate.key == key) {
        return Ok(services.keys.find(key).await?);
    }
    services.rate_limits.check_failures(over_limit, key)?;
    let found = services.keys.find_over_limit(key).await?;
    if found.is_none() {
        services.rate_limits.charge_failure(over_limit, key);
        return Err(over_limit.exceeded.into());
    }
    Ok(found)
}

/// An unknown machine must enroll. The key of another machine is refused.
async fn require_subject(services: &Services, subject: Option<Uuid>, machine_id: Uuid) -> Result<(), CheckInError> {
    let subject = subject.ok_or(CheckInError::NoSubject)?;
    if subject == machine_id {
        return Ok(());
    }
    let mut connection = services.store.connection().await?;
    match machines::presence::exists(&mut connection, subject).await? {
        true => Err(CheckInError::ForeignKey),
        false => Err(Refusal::Unknown.into()),
    }
}
