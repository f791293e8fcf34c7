//! Renewal: the machine's key proves itself and gets a new certificate. The key, not the old certificate, is the proof,
//! so an expired one can be renewed for a while.

use assay_protocol::{
    UnverifiedCsr,
    agent_api::{RenewRequest, Renewed},
    csr::CsrError,
    evidence::Purpose,
};
use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use time::OffsetDateTime;

use super::{EnrollError, certificate};
use crate::{
    audit::Origin,
    check_in::{self, CheckInError, Verified},
    machines::admission::{self, Attempt, Refusal},
    services::Services,
    store::{AsStoreError, StoreError, Transaction, certificates, machine_keys, machine_presence},
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
    #[error("the CSR is for another key than the one that signed the evidence; this server does not rotate keys yet")]
    OtherKey,
    #[error(
        "the certificate expired at {expired_at}, longer ago than the renewal grace; the machine has to enroll again"
    )]
    Expired { expired_at: OffsetDateTime },
    #[error(transparent)]
    Issue(#[from] EnrollError),
    #[error(transparent)]
    Store(#[from] StoreError),
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

/// Renews with the same key.
pub(crate) async fn renew(services: &Services, request_id: &str, request: &RenewRequest) -> Result<Answer, RenewError> {
    let csr = UnverifiedCsr::from_pem(&request.csr)?.verify()?;
    let now = services.clock.now();
    let verified = check_in::verify(services, &request.evidence, Purpose::Renew, now).await?;
    let digest = URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, csr.der()));
    if verified.evidence.claims().csr_sha256.as_deref() != Some(&digest) {
        return Err(RenewError::OtherCsr);
    }
    if csr.public_key().thumbprint() != verified.evidence.key() {
        return Err(RenewError::OtherKey);
    }
    let context = (services, request_id, &verified, csr.public_key());
    let renewed = services
        .store
        .tx(
            "renew",
            &context,
            |tx, &(services, request_id, verified, public_key)| {
                Box::pin(issue(tx, services, request_id, verified, public_key))
            },
        )
        .await?;
    let renewed = renewed.map_err(|refusal| RenewError::Evidence(refusal.into()))?;
    Ok(Answer {
        renewed,
        nonce_used: verified.nonce,
    })
}

async fn issue(
    tx: &mut Transaction,
    services: &Services,
    request_id: &str,
    verified: &Verified,
    public_key: &assay_protocol::PublicKey,
) -> Result<Result<Renewed, Refusal>, RenewError> {
    let machine_id = verified.machine_id;
    let origin = Origin::machine(machine_id, request_id.to_owned());
    let attempt = Attempt {
        key: verified.evidence.key(),
        nonce: verified.nonce,
        claims: &verified.claims,
    };
    let Some(key) = machine_keys::find(tx, attempt.key).await? else {
        return Ok(Err(Refusal::Unknown));
    };
    if let Err(refusal) = admission::admit(tx, services.clock.as_ref(), &origin, &key, &attempt).await? {
        return Ok(Err(refusal));
    }
    let now = services.clock.now();
    if let Some(current) = certificates::find_current(tx, machine_id).await?
        && now >= current.not_after + services.policy.renewal_grace
    {
        return Err(RenewError::Expired {
            expired_at: current.not_after,
        });
    }
    machine_presence::use_nonce(tx, machine_id, verified.nonce).await?;
    let certificate = certificate::issue(tx, services, &origin, machine_id, public_key).await?;
    Ok(Ok(Renewed {
        certificate,
        trust_bundle: services.authority.load().roots_pem().to_owned(),
    }))
}
