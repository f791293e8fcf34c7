//! Evidence and certificate requests of this machine: what it says, signed with its key.

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

/// What one piece of evidence is to say.
#[derive(Debug, Clone)]
pub(crate) struct Statement {
    pub(crate) purpose: Purpose,
    pub(crate) audience: ServerUrl,
    pub(crate) subject: Option<Uuid>,
    pub(crate) facts: MachineFacts,
    pub(crate) nonce: String,
    pub(crate) issued_at: OffsetDateTime,
}

/// The keys that a proof takes.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    /// Signs the evidence.
    pub(crate) signing: MachineKey,
    /// Gets the certificate that is asked for: another one where the machine replaces its key.
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

/// What is sent to prove it.
#[derive(Debug)]
pub(crate) struct Proof {
    /// PEM; empty for a check-in, which asks for no certificate.
    pub(crate) csr: String,
    pub(crate) evidence: String,
}

/// Why nothing could be proved.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The key failed.
    #[error("this machine's key cannot be used")]
    Key(#[from] KeyFault),
    /// The claims do not encode.
    #[error("the evidence cannot be encoded")]
    Encode(#[from] serde_json::Error),
    /// The certificate request could not be made.
    #[error("the certificate request cannot be made")]
    Csr(#[source] BuildCsrError<KeyStoreError>),
    /// The key store's own signature does not verify: the request would be refused.
    #[error("the certificate request does not verify")]
    OwnCsr(#[from] CsrError),
    /// The key store's signature is not what ECDSA gives.
    #[error("the key store's signature is not in DER")]
    Signature(#[source] p256::ecdsa::Error),
}

/// Signs a statement, and lets the key to be certified sign a request where the purpose takes one.
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
        // A locked key must be told from a request that cannot be made: the one passes, the other does not.
        BuildCsrError::Sign(error) => ProofError::Key(KeyFault::Store(error)),
        error @ BuildCsrError::Encode(_) => ProofError::Csr(error),
    })
}

fn csr_digest(csr: &str) -> Result<String, ProofError> {
    let csr = UnverifiedCsr::from_pem(csr)?.verify()?;
    Ok(URL_SAFE_NO_PAD.encode(sha256(csr.der())))
}

fn sign_fixed(store: &dyn KeyStore, sealed: &SealedKey, message: &[u8]) -> Result<[u8; 64], ProofError> {
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
    async fn what_is_proved_verifies(#[case] purpose: Purpose, #[case] subject: Option<Uuid>) {
        let folder = tempfile::tempdir().unwrap();
        let directory = StateDirectory::create(folder.path().to_owned()).unwrap();
        let key = MachineKey::new(Arc::new(SoftwareKeyStore), directory.clone());
        let lock = Arc::new(directory.lock().unwrap());
        let public_key = key.keep(lock, key.make().await.unwrap()).await.unwrap();
        let statement = Statement {
            purpose,
            audience: "https://assay.example.com/".parse().unwrap(),
            subject,
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
