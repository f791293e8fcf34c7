//! Renewal: the machine's key proves itself and gets a new certificate, for itself or for the key that is to replace it.
//! The key, not the old certificate, is the proof, so an expired one can be renewed for a while.

use assay_protocol::{
    KeyThumbprint, PublicKey, UnverifiedCsr,
    agent_api::{RenewRequest, Renewed},
    csr::CsrError,
    evidence::Purpose,
    sha256,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{EnrollError, certificate};
use crate::{
    changes::Origin,
    check_in::{self, CheckInError, Verified},
    machines::client_certificate::ClientCertificate,
    rate_limits::OverLimit,
    registry::{
        admission::{self, Attempt, Refusal},
        key_rotation::{self, RotationRefusal},
    },
    services::{Policy, Services},
    store::{AsStoreError, StoreError, Transaction, certificates, machines, tx},
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
        "the certificate expired at {expired_at}, longer ago than the renewal grace; the machine has to enroll again"
    )]
    Expired { expired_at: OffsetDateTime },
    #[error(transparent)]
    Issue(#[from] EnrollError),
    #[error(transparent)]
    Store(StoreError),
}

/// Of two machines that ask for one key in the same moment, the index lets one have it.
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

/// The answer, and the nonce that was used up with it.
pub(crate) struct Answer {
    pub(crate) renewed: Renewed,
    pub(crate) nonce_used: OffsetDateTime,
}

/// Renews, and rotates where the CSR has another key. A repeated call gets the certificate that the first one got.
pub(crate) async fn renew(
    services: &Services,
    request_id: &str,
    over_limit: Option<&OverLimit>,
    certificate: Option<&ClientCertificate>,
    request: &RenewRequest,
) -> Result<Answer, RenewError> {
    let csr = UnverifiedCsr::from_pem(&request.csr)?.verify()?;
    let now = services.clock.now();
    let verified = check_in::verify(
        services,
        over_limit,
        certificate,
        &request.evidence,
        Purpose::Renew,
        now,
    )
    .await?;
    let digest = URL_SAFE_NO_PAD.encode(sha256(csr.der()));
    if verified.evidence.claims().csr_sha256.as_deref() != Some(&digest) {
        return Err(RenewError::OtherCsr);
    }
    let origin = Origin::machine(verified.machine_id, request_id.to_owned());
    let (verified, public_key) = (&verified, csr.public_key());
    let renewed = tx!(services.store, Renew, &origin => issue(services, certificate, verified, public_key)).await?;
    let renewed = renewed.map_err(|refusal| RenewError::Evidence(refusal.into()))?;
    Ok(Answer {
        renewed,
        nonce_used: verified.nonce,
    })
}

async fn issue(
    tx: &mut Transaction,
    services: &Services,
    presented: Option<&ClientCertificate>,
    verified: &Verified,
    public_key: &PublicKey,
) -> Result<Result<Renewed, Refusal>, RenewError> {
    let machine_id = verified.machine_id;
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
    demand_within_grace(tx, &services.policy, machine_id, attempt.key).await?;
    machines::presence::use_nonce(tx, &admitted.presence.machine, verified.nonce).await?;
    let issued_before = if public_key.thumbprint() == attempt.key {
        None
    } else {
        key_rotation::begin(tx, &admitted, public_key).await??;
        certificates::find_last_of_key(tx, machine_id, public_key.thumbprint()).await?
    };
    let certificate = match issued_before.filter(|before| before.is_in_force(tx.now())) {
        Some(before) => certificate::on_record(&services.authority.load(), &before).map_err(EnrollError::from)?,
        None => certificate::issue(tx, services, machine_id, public_key).await?,
    };
    Ok(Ok(Renewed {
        certificate,
        trust_bundle: services.authority.load().roots_pem().to_owned(),
        continuity: Some(services.continuity.issue(machine_id, verified.nonce)),
    }))
}

async fn demand_within_grace(
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
