//! Evidence and certificate requests, signed with the machine's keys.

use assay_protocol::{
    Csr, EvidenceClaims, Purpose, UnverifiedCsr,
    csr::{BuildCsrError, CsrError},
    evidence::PROFILE,
    machine::KeyClaim,
    sha256,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use p256::ecdsa::Signature;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    facts::MachineFacts,
    key_store::{KeyFault, KeyStore, KeyStoreError, MachineKey, SealedKey},
    trust::ServerUrl,
};

/// The content of one piece of evidence.
#[derive(Debug, Clone)]
pub(crate) struct Statement {
    pub(crate) purpose: Purpose,
    pub(crate) audience: ServerUrl,
    pub(crate) subject: Option<Uuid>,
    pub(crate) continuity: Option<String>,
    pub(crate) facts: MachineFacts,
    pub(crate) nonce: String,
    pub(crate) issued_at: OffsetDateTime,
}

/// The keys of a proof.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    /// Signs the evidence.
    pub(crate) signing: MachineKey,
    /// Signs the certificate request. In a key rotation this is the next key.
    pub(crate) certified: MachineKey,
}

impl Keys {
    /// One key for both.
    pub(crate) fn one(key: MachineKey) -> Self {
        Self {
            certified: key.clone(),
            signing: key,
        }
    }
}

/// Signed evidence, with a certificate request if the purpose needs one.
#[derive(Debug)]
pub(crate) struct Proof {
    /// PEM. Empty for a check-in.
    pub(crate) csr: String,
    pub(crate) evidence: String,
}

/// Why evidence or a certificate request cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The key failed.
    #[error("the machine's key cannot be used")]
    Key(#[from] KeyFault),
    /// The claims cannot be encoded.
    #[error("the evidence cannot be encoded")]
    Encode(#[from] serde_json::Error),
    /// The certificate request cannot be made.
    #[error("the certificate request cannot be made")]
    Csr(#[source] BuildCsrError<KeyStoreError>),
    /// The certificate request's own signature does not verify, so the server would refuse it.
    #[error("the signature of the certificate request is invalid")]
    OwnCsr(#[from] CsrError),
    /// The key store's signature is not an ECDSA signature in DER.
    #[error("the key store's signature is not valid DER")]
    Signature(#[source] p256::ecdsa::Error),
}

/// Signs the evidence, and the certificate request if the purpose needs one.
pub(crate) async fn prove(keys: &Keys, statement: Statement) -> Result<Proof, ProofError> {
    let csr = match statement.purpose {
        Purpose::Enroll | Purpose::Renew => keys.certified.use_key(build_csr).await?,
        Purpose::CheckIn => String::new(),
    };
    let sign = move |store: &dyn KeyStore, sealed: &SealedKey| {
        let public_key = store.public_key(sealed).map_err(KeyFault::Store)?;
        let claims = EvidenceClaims {
            eat_profile: PROFILE.to_owned(),
            eat_nonce: statement.nonce,
            aud: statement.audience.as_str().to_owned(),
            iat: statement.issued_at.unix_timestamp(),
            purpose: statement.purpose,
            sub: statement.subject,
            csr_sha256: match statement.purpose {
                Purpose::Renew => Some(csr_digest(&csr)?),
                Purpose::Enroll | Purpose::CheckIn => None,
            },
            continuity: statement.continuity,
            machine: statement.facts.machine,
            posture: statement.facts.posture,
            key: KeyClaim {
                store: store.kind(),
                accessibility: store.accessibility(sealed),
            },
        };
        let evidence = claims.sign(public_key.thumbprint(), |message| sign_fixed(store, sealed, message))?;
        Ok(Proof { csr, evidence })
    };
    keys.signing.use_key(sign).await
}

fn build_csr(store: &dyn KeyStore, sealed: &SealedKey) -> Result<String, ProofError> {
    let public_key = store.public_key(sealed).map_err(KeyFault::Store)?;
    Csr::build(&public_key, |message| store.sign(sealed, message)).map_err(|error| match error {
        // Callers distinguish a locked key, which is temporary, from a request that cannot be made.
        BuildCsrError::Sign(error) => ProofError::Key(KeyFault::Store(error)),
        error @ BuildCsrError::Encode(_) => ProofError::Csr(error),
    })
}

fn csr_digest(csr: &str) -> Result<String, ProofError> {
    let csr = UnverifiedCsr::from_pem(csr)?.verify()?;
    Ok(URL_SAFE_NO_PAD.encode(sha256(csr.der())))
}

pub(super) fn sign_fixed(store: &dyn KeyStore, sealed: &SealedKey, message: &[u8]) -> Result<[u8; 64], ProofError> {
    let der = store.sign(sealed, message).map_err(KeyFault::Store)?;
    let signature = Signature::from_der(&der).map_err(ProofError::Signature)?;
    Ok(signature.to_bytes().into())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use assay_protocol::{UnverifiedEvidence, evidence::Expectation};
    use rstest::rstest;

    use super::*;
    use crate::{key_store::SoftwareKeyStore, state::StateDirectory};

    #[rstest]
    #[case(Purpose::Enroll, None)]
    #[case(Purpose::CheckIn, Some(Uuid::from_u128(7)))]
    #[case(Purpose::Renew, Some(Uuid::from_u128(7)))]
    #[tokio::test]
    async fn proofs_verify(#[case] purpose: Purpose, #[case] subject: Option<Uuid>) {
        let folder = tempfile::tempdir().unwrap();
        let directory = StateDirectory::create(folder.path().to_owned()).unwrap();
        let key = MachineKey::new(Arc::new(SoftwareKeyStore), directory.clone());
        let lock = Arc::new(directory.lock().unwrap());
        let public_key = key.save(lock, key.create().await.unwrap()).await.unwrap();
        let statement = Statement {
            purpose,
            audience: "https://assay.example.com/".parse().unwrap(),
            subject,
            continuity: Some("value".into()),
            facts: MachineFacts::default(),
            nonce: "nonce".into(),
            issued_at: OffsetDateTime::UNIX_EPOCH,
        };
        let proof = prove(&Keys::one(key), statement).await.unwrap();
        let expected = Expectation {
            audience: "https://assay.example.com",
            purpose,
            subject,
        };
        let evidence = UnverifiedEvidence::parse(&proof.evidence).unwrap();
        let evidence = evidence.verify(&public_key, &expected).unwrap();
        assert_eq!(evidence.claims().eat_nonce, "nonce");
        assert_eq!(evidence.claims().continuity.as_deref(), Some("value"));
        if purpose == Purpose::CheckIn {
            assert_eq!(proof.csr, "");
            return;
        }
        let csr = UnverifiedCsr::from_pem(&proof.csr).unwrap().verify().unwrap();
        assert_eq!(csr.public_key(), &public_key);
        let digest = URL_SAFE_NO_PAD.encode(sha256(csr.der()));
        let signed_digest = evidence.claims().csr_sha256.clone();
        assert_eq!(signed_digest, (purpose == Purpose::Renew).then_some(digest));
    }
}
