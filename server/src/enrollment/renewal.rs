//! Renewal: the machine's key authenticates itself and gets a new certificate, for itself or for the next key. The
//! proof is the key and not the old certificate, so an expired certificate can be renewed for a while.

use assay_protocol::{
    KeyThumbprint, PublicKey, UnverifiedCsr,
    agent_api::{IssuedCertificate, RenewRequest, Renewed, RotationPending},
    csr::CsrError,
    evidence::Purpose,
    machine::MachineStatus,
    sha256,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    EnrollError, certificate, expiry, pending_retry_seconds, renewal_limit,
    rotation::{self, Asking, Begun, Presented},
};
use crate::{
    changes::{Origin, RequestSource},
    check_in::{self, CheckInError, Verified},
    machines::client_certificate::ClientCertificate,
    rate_limits::OverLimit,
    registry::{
        admission::{self, Attempt, Refusal},
        key_rotation::RotationRefusal,
    },
    secrets::SecretHash,
    services::{Policy, Services},
    store::{
        AsStoreError, StoreError, Transaction, certificates, enrollment_tokens,
        machines::{self, presence::LockedMachine},
        tx,
    },
};

/// Why a renewal is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RenewError {
    #[error(transparent)]
    Csr(#[from] CsrError),
    #[error(transparent)]
    Evidence(#[from] CheckInError),
    #[error("the evidence's csr_sha256 is not the digest of this CSR")]
    OtherCsr,
    #[error(transparent)]
    Rotation(#[from] RotationRefusal),
    #[error(
        "the certificate expired at {expired_at}, longer ago than the renewal grace; the machine must enroll again"
    )]
    Expired { expired_at: OffsetDateTime },
    #[error(transparent)]
    Issue(#[from] EnrollError),
    #[error(transparent)]
    Store(StoreError),
}

/// If two machines request the same key at the same time, a unique index rejects one of them.
impl From<StoreError> for RenewError {
    fn from(error: StoreError) -> Self {
        if error.violates(machines::keys::PRIMARY_KEY) {
            return RotationRefusal::OtherMachinesKey.into();
        }
        Self::Store(error)
    }
}

impl AsStoreError for RenewError {
    fn as_store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) | Self::Issue(EnrollError::Store(error)) => Some(error),
            _ => None,
        }
    }
}

/// The result of a renewal.
pub(crate) enum Outcome {
    Issued(Renewed),
    /// The next key waits for an administrator.
    Pending(RotationPending),
}

/// The result, and the nonce that was used.
pub(crate) struct Answer {
    pub(crate) outcome: Outcome,
    pub(crate) nonce_used: OffsetDateTime,
}

/// The parts of a renewal's request.
struct Requested<'a> {
    public_key: &'a PublicKey,
    token: Option<SecretHash>,
}

/// Renews. A CSR with another key starts a rotation; repeating that returns the certificate that was issued first.
pub(crate) async fn renew(
    services: &Services,
    source: &RequestSource,
    over_limit: Option<&OverLimit>,
    certificate: Option<&ClientCertificate>,
    request: &RenewRequest,
) -> Result<Answer, RenewError> {
    let csr = UnverifiedCsr::from_pem(&request.csr)?.verify()?;
    let now = services.clock.now();
    let verified = check_in::verify(
        services,
        source,
        over_limit,
        certificate,
        &request.evidence,
        Purpose::Renew,
        now,
    )
    .await?;
    let digest = URL_SAFE_NO_PAD.encode(sha256(csr.der()));
    if verified.evidence.claims().csr_sha256.as_deref() != Some(&digest) {
        services.keys.forget(verified.evidence.key());
        return Err(RenewError::OtherCsr);
    }
    let origin = Origin::machine(verified.machine_id, source);
    let requested = Requested {
        public_key: csr.public_key(),
        token: request.token.as_deref().map(SecretHash::of),
    };
    let (verified, requested) = (&verified, &requested);
    let outcome = tx!(services.store, Renew, &origin => decide(services, certificate, verified, requested)).await?;
    let outcome = outcome.map_err(|refusal| {
        if refusal.ends_key() {
            services.keys.forget(verified.evidence.key());
        }
        RenewError::Evidence(refusal.into())
    })?;
    Ok(Answer {
        outcome,
        nonce_used: verified.nonce,
    })
}

/// Locks the token first, then the machine, in the same order as an enrollment.
async fn decide(
    tx: &mut Transaction,
    services: &Services,
    presented: Option<&ClientCertificate>,
    verified: &Verified,
    requested: &Requested<'_>,
) -> Result<Result<Outcome, Refusal>, RenewError> {
    let token = lock_token(tx, requested.token).await?;
    let next = Some(requested.public_key).filter(|key| key.thumbprint() != verified.evidence.key());
    if let Some(next) = next {
        let serial_number = verified.claims.machine.serial_number.as_deref();
        expiry::forget_if_overdue(tx, &services.policy, next.thumbprint(), serial_number).await?;
    }
    let attempt = Attempt {
        key: verified.evidence.key(),
        nonce: verified.nonce,
        claims: &verified.claims,
        carried: verified.carried,
        continuity: services.policy.continuity,
    };
    let Some(key) = machines::keys::find(tx, attempt.key).await? else {
        return Ok(Err(Refusal::Unknown));
    };
    let admitted = match admission::admit(tx, &key, &attempt).await? {
        Ok(admitted) => admitted,
        Err(refusal) => return Ok(Err(refusal)),
    };
    if let Some(presented) = presented
        && !certificates::is_in_force(tx, presented).await?
    {
        return Err(CheckInError::from(presented.not_in_force()).into());
    }
    require_within_grace(tx, &services.policy, verified.machine_id, attempt.key).await?;
    machines::presence::use_nonce(tx, &admitted.presence.machine, verified.nonce).await?;
    let asking = Asking {
        admitted: &admitted,
        claims: &verified.claims,
        token,
    };
    match next {
        None => rotation::give_token_to_signer(tx, &asking).await?,
        Some(next) => match rotation::begin(tx, &services.policy, &asking, next).await? {
            Ok(Begun::Admitted) => {}
            Ok(Begun::Waits { enrollment_id, since }) => {
                return Ok(Ok(Outcome::Pending(RotationPending {
                    enrollment_id,
                    status: MachineStatus::Pending,
                    retry_after_seconds: pending_retry_seconds(since, tx.now()),
                })));
            }
            Err(refusal) => return Ok(Err(refusal)),
        },
    }
    let certificate = certify(tx, services, &admitted.presence.machine, next, requested.public_key).await?;
    Ok(Ok(Outcome::Issued(Renewed {
        certificate,
        trust_bundle: services.authority.load().trust_bundle().to_owned(),
        withdrawn_issuers: services.authority.load().withdrawn_issuers().to_vec(),
        continuity: Some(services.continuity.issue(verified.machine_id, verified.nonce)),
    })))
}

async fn lock_token(tx: &mut Transaction, secret: Option<SecretHash>) -> Result<Presented, StoreError> {
    let Some(secret) = secret else {
        return Ok(Presented::None);
    };
    let token = enrollment_tokens::lock_by_secret(tx, secret).await?;
    Ok(token.map_or(Presented::Unknown, |token| Presented::Known(Box::new(token))))
}

/// A new certificate; for a next key that has a valid one, that one.
async fn certify(
    tx: &mut Transaction,
    services: &Services,
    machine: &LockedMachine,
    next: Option<&PublicKey>,
    public_key: &PublicKey,
) -> Result<IssuedCertificate, RenewError> {
    let issued_before = match next {
        Some(next) => certificates::find_last_of_key(tx, machine.id(), next.thumbprint()).await?,
        None => None,
    };
    match issued_before.filter(|before| before.is_in_force(tx.now())) {
        Some(before) => Ok(certificate::on_record(&services.authority.load(), &before).map_err(EnrollError::from)?),
        None => {
            renewal_limit::require_renewal(tx, services.policy.renewals_per_day, machine).await?;
            Ok(certificate::issue(tx, services, machine.id(), public_key).await?)
        }
    }
}

async fn require_within_grace(
    tx: &mut Transaction,
    policy: &Policy,
    machine_id: Uuid,
    key: KeyThumbprint,
) -> Result<(), RenewError> {
    let certificate = certificates::find_last_of_key(tx, machine_id, key).await?;
    let expired_at = certificate.map(|certificate| certificate.not_after);
    match expired_at {
        Some(expired_at) if tx.now() >= expired_at + policy.renewal_grace => Err(RenewError::Expired { expired_at }),
        _ => Ok(()),
    }
}
