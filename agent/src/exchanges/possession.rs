//! Proofs of possession (DPoP, RFC 9449) for requests of this machine's programs, signed with the machine's key.

use std::sync::{Arc, Mutex, PoisonError};

use assay_protocol::{
    KeyThumbprint,
    agent_api::AudienceGrant,
    dpop::{DpopNonce, HttpMethod, ProofClaims, TargetUri, access_token_hash},
};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use tokio::sync::Semaphore;

use super::{
    error::AgentError,
    evidence::{ProofError, sign_fixed},
    machine::{require_own_state, run_blocking},
};
use crate::{
    clock::Clock,
    facts::Facts,
    key_store::{KeyFault, KeyStore, MachineKey, SealedKey},
    state::{GrantError, Record, StateDirectory, current_grant},
};

/// Limit for proofs that are signed at once; others wait. The key store refuses calls above its own limit, so programs
/// that request many proofs could otherwise stop the check-ins.
const MAX_AT_ONCE: usize = 2;

/// Signs proofs for requests of this machine's programs.
#[derive(Debug)]
pub(crate) struct Prover {
    directory: StateDirectory,
    key: MachineKey,
    facts: Arc<dyn Facts>,
    clock: Arc<dyn Clock>,
    slots: Semaphore,
    /// The key that was last found to be this machine's own. Reading the facts may take long.
    own: Mutex<Option<KeyThumbprint>>,
}

/// The request that a proof is for.
#[derive(Debug, Clone)]
pub(crate) struct ProvenRequest {
    pub(crate) method: HttpMethod,
    pub(crate) target: TargetUri,
    pub(crate) nonce: Option<DpopNonce>,
}

/// A grant, and a proof for one request with its token.
#[derive(Debug)]
pub(crate) struct ProvenGrant {
    pub(crate) grant: AudienceGrant,
    pub(crate) proof: String,
}

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PossessionError {
    #[error(transparent)]
    Grant(#[from] GrantError),
    #[error("the agent cannot use its state")]
    State(#[source] AgentError),
    #[error("the machine's key cannot be used")]
    Key(#[from] KeyFault),
    #[error("the proof cannot be signed")]
    Sign(#[source] ProofError),
    #[error("the system's random number generator failed")]
    Random,
    #[error("the agent is stopping")]
    Stopping,
}

impl Prover {
    pub(super) fn new(
        directory: StateDirectory,
        key: MachineKey,
        facts: Arc<dyn Facts>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            directory,
            key,
            facts,
            clock,
            slots: Semaphore::new(MAX_AT_ONCE),
            own: Mutex::default(),
        }
    }

    /// A proof for a request with the current grant token for an audience.
    pub(crate) async fn prove(&self, audience: &str, request: &ProvenRequest) -> Result<ProvenGrant, PossessionError> {
        let _slot = self.slots.acquire().await.map_err(|_| PossessionError::Stopping)?;
        match self.prove_once(audience, request).await {
            // A rotation has replaced the key since the record was read.
            Err(PossessionError::Key(KeyFault::Missing(_))) => self.prove_once(audience, request).await,
            proven => proven,
        }
    }

    async fn prove_once(&self, audience: &str, request: &ProvenRequest) -> Result<ProvenGrant, PossessionError> {
        let directory = self.directory.clone();
        let record = run_blocking(move || Ok(directory.record()?)).await;
        let record = record.map_err(PossessionError::State)?;
        let now = self.clock.now();
        let grant = current_grant(&record, audience, now)?.clone();
        self.require_own_key(&record).await?;
        let claims = ProofClaims {
            jti: random_id()?,
            htm: request.method.clone(),
            htu: request.target.clone(),
            iat: now.unix_timestamp(),
            ath: Some(access_token_hash(&grant.token)),
            nonce: request.nonce.clone(),
        };
        let (key, expected) = (self.key.at(record.key_place), record.key);
        let file = key.file();
        let signed = key.use_key(move |store: &dyn KeyStore, sealed: &SealedKey| {
            let public_key = store.public_key(sealed).map_err(KeyFault::Store)?;
            if expected.is_some_and(|expected| expected != public_key.thumbprint()) {
                return Err(PossessionError::State(AgentError::KeyReplaced(file)));
            }
            let signed = claims.sign(&public_key, |message| sign_fixed(store, sealed, message));
            signed.map_err(PossessionError::from)
        });
        Ok(ProvenGrant {
            proof: signed.await?,
            grant,
        })
    }

    /// Fails if the record belongs to another machine: nothing may be signed with its key here.
    async fn require_own_key(&self, record: &Record) -> Result<(), PossessionError> {
        let own = *self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if own.is_some() && own == record.key {
            return Ok(());
        }
        require_own_state(&self.facts, record)
            .await
            .map_err(PossessionError::State)?;
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = record.key;
        Ok(())
    }
}

impl From<ProofError> for PossessionError {
    fn from(error: ProofError) -> Self {
        match error {
            ProofError::Key(fault) => Self::Key(fault),
            error => Self::Sign(error),
        }
    }
}

/// 128 random bits: no two proofs have the same id.
fn random_id() -> Result<String, PossessionError> {
    let mut id = [0; 16];
    SystemRandom::new().fill(&mut id).map_err(|_| PossessionError::Random)?;
    Ok(URL_SAFE_NO_PAD.encode(id))
}

#[cfg(test)]
mod tests {
    use assay_protocol::{
        agent_api::IssuedCertificate,
        dpop::{Expectation, UnverifiedProof},
        machine::{Assurance, MachineStatus},
    };
    use time::{Duration, OffsetDateTime};
    use uuid::Uuid;

    use super::*;
    use crate::{
        clock::SystemClock,
        facts::{FactsError, MachineFacts},
        key_store::SoftwareKeyStore,
        state::{EnrolledMachine, RecordedCheckIn},
    };

    #[derive(Debug)]
    struct NoFacts;

    impl Facts for NoFacts {
        fn read(&self) -> Result<MachineFacts, FactsError> {
            Ok(MachineFacts::default())
        }
    }

    /// Enrolled, with a grant for `wiki`.
    fn granted(record: &mut Record, now: OffsetDateTime) {
        record.machine = Some(EnrolledMachine {
            machine_id: Uuid::from_u128(7),
            spiffe_id: "spiffe://example.com/machine/7".into(),
            assurance: Assurance::Verified,
            enrolled_at: now,
            certificate: IssuedCertificate {
                serial_number: "0a".into(),
                not_before: now,
                not_after: now + Duration::days(7),
                chain: String::new(),
            },
            trust_bundle: String::new(),
        });
        record.last_check_in = Some(RecordedCheckIn {
            at: now,
            status: MachineStatus::Active,
            grants: vec![AudienceGrant {
                audience: "wiki".into(),
                permissions: vec!["read".into()],
                token: "e.y.J".into(),
                expires_at: now + Duration::minutes(10),
            }],
            denied: Vec::new(),
        });
    }

    #[tokio::test]
    async fn a_proof_is_for_its_request_and_the_current_token_and_only_with_the_key_on_record() {
        let folder = tempfile::tempdir().unwrap();
        let directory = StateDirectory::create(folder.path().to_owned()).unwrap();
        let key = MachineKey::new(Arc::new(SoftwareKeyStore), directory.clone());
        let lock = Arc::new(directory.lock().unwrap());
        let public_key = key.save(Arc::clone(&lock), key.create().await.unwrap()).await.unwrap();
        let prover = Prover::new(directory, key, Arc::new(NoFacts), Arc::new(SystemClock));
        let request = ProvenRequest {
            method: "GET".parse().unwrap(),
            target: "https://wiki.example.com/%2e%2e//a?b".parse().unwrap(),
            nonce: Some("a-nonce".parse().unwrap()),
        };
        let refused = prover.prove("wiki", &request).await.unwrap_err();
        assert!(matches!(refused, PossessionError::Grant(GrantError::NotEnrolled)));

        let now = SystemClock.now();
        let mut record = lock.record().unwrap();
        granted(&mut record, now);
        record.key = Some(public_key.thumbprint());
        lock.write(&record).unwrap();
        let mut ids = Vec::new();
        for _ in 0..2 {
            let proven = prover.prove("wiki", &request).await.unwrap();
            assert_eq!(proven.grant.token, "e.y.J");
            let expected = Expectation {
                key: public_key.thumbprint(),
                method: &request.method,
                target: &request.target,
                access_token_hash: &access_token_hash("e.y.J"),
                nonce: request.nonce.as_ref(),
                now: now.unix_timestamp(),
            };
            let proof = UnverifiedProof::parse(&proven.proof)
                .unwrap()
                .verify(&expected)
                .unwrap();
            ids.push(proof.claims().jti.clone());
        }
        assert_ne!(ids[0], ids[1]);
        let refused = prover.prove("vault", &request).await.unwrap_err();
        assert!(matches!(refused, PossessionError::Grant(GrantError::NotGranted { .. })));

        record.key = Some(KeyThumbprint::from([7; 32]));
        lock.write(&record).unwrap();
        let refused = prover.prove("wiki", &request).await.unwrap_err();
        assert!(matches!(refused, PossessionError::State(AgentError::KeyReplaced(_))));
    }
}
