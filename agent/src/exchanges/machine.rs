//! What the exchanges share: the machine's directory, key, facts, and connection to the server.

use std::sync::{Arc, Mutex, PoisonError};

use assay_protocol::{Chain, KeyThumbprint, PublicKey, Purpose, Retry};
use serde::Serialize;
use uuid::Uuid;

use super::{
    credential::Credential,
    error::AgentError,
    evidence::{Keys, Proof, ProofError, Statement, prove},
    possession::Prover,
};
use crate::{
    clock::Clock,
    connection::{ApiResponse, Client, ClientCertificate, ClientError, Identity, Refusal, presentable},
    facts::{Facts, MachineFacts},
    key_store::{self, MachineKey},
    state::{Record, StateDirectory, StateLock},
    trust::KnownServer,
};

/// Maximum attempts of one exchange, each with a fresh nonce.
const MAX_ATTEMPTS: u32 = 3;

/// One machine.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) directory: StateDirectory,
    pub(crate) key: MachineKey,
    pub(crate) clock: Arc<dyn Clock>,
    facts: Arc<dyn Facts>,
    /// Reused between exchanges, with its connections and its nonce.
    client: Mutex<Option<Arc<Client>>>,
}

impl Machine {
    pub(super) fn new(
        directory: StateDirectory,
        key: MachineKey,
        facts: Arc<dyn Facts>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            directory,
            key,
            clock,
            facts,
            client: Mutex::default(),
        }
    }

    /// Reads the record.
    pub(crate) async fn record(&self) -> Result<Record, AgentError> {
        let directory = self.directory.clone();
        run_blocking(move || Ok(directory.record()?)).await
    }

    /// Locks the state directory, and removes a key file that a crash or a rotation left behind.
    pub(super) async fn lock(&self) -> Result<Arc<StateLock>, AgentError> {
        let directory = self.directory.clone();
        run_blocking(move || {
            let lock = directory.lock()?;
            key_store::remove_left_over(&lock)?;
            Ok(Arc::new(lock))
        })
        .await
    }

    /// The current public key. Fails if the key file is missing or does not match the record.
    pub(crate) async fn key_on_record(&self, record: &Record) -> Result<PublicKey, AgentError> {
        self.expect_key(&self.key.at(record.key_place), record.key).await
    }

    /// The public half of a key. Fails if the key file is missing or contains a key other than the expected one.
    pub(crate) async fn expect_key(
        &self,
        key: &MachineKey,
        expected: Option<KeyThumbprint>,
    ) -> Result<PublicKey, AgentError> {
        let public_key = key.public_key().await.map_err(ProofError::Key)?;
        let public_key = public_key.ok_or_else(|| AgentError::KeyLost(key.file()))?;
        match expected {
            Some(thumbprint) if thumbprint != public_key.thumbprint() => Err(AgentError::KeyReplaced(key.file())),
            _ => Ok(public_key),
        }
    }

    /// A client without a certificate.
    pub(crate) fn anonymous_client(&self, server: &KnownServer) -> Result<Arc<Client>, AgentError> {
        let open = self.current_client();
        match open.filter(|client| client.server() == server && client.identity().is_none()) {
            Some(client) => Ok(client),
            None => self.replace_client(server, Identity::None),
        }
    }

    /// A client with the machine's certificate. The existing client is reused if its server and certificate are still
    /// current.
    pub(crate) async fn client(
        &self,
        server: &KnownServer,
        credential: &Credential,
    ) -> Result<Arc<Client>, AgentError> {
        if !server.url.is_https() {
            return self.anonymous_client(server);
        }
        let presentable = presentable(&credential.certificate, self.clock.now());
        let open = self.current_client().filter(|client| client.server() == server);
        if let Some(client) = open.filter(|client| client.identity().is_presenting(presentable)) {
            return Ok(client);
        }
        let identity =
            match ClientCertificate::load(&credential.certificate, &credential.key, Arc::clone(&self.clock)).await {
                Ok(Some(certificate)) => Identity::Certificate(Arc::new(certificate)),
                Ok(None) => Identity::Withheld,
                // The evidence cannot be signed either, and its error is reported.
                Err(fault) => {
                    tracing::debug!(error = %Chain(&fault), "no client certificate");
                    Identity::Withheld
                }
            };
        self.replace_client(server, identity)
    }

    fn current_client(&self) -> Option<Arc<Client>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace_client(&self, server: &KnownServer, identity: Identity) -> Result<Arc<Client>, AgentError> {
        let client = Arc::new(Client::new(server.clone(), identity, Arc::clone(&self.clock))?);
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&client));
        Ok(client)
    }

    /// One exchange with signed evidence. It is repeated with the fresh nonce of a `bad-nonce` response, and without
    /// the certificate if the server rejected it.
    pub(crate) async fn exchange<R: Serialize>(
        &self,
        client: &Client,
        keys: &Keys,
        (purpose, subject): (Purpose, Option<Uuid>),
        request: impl Fn(Proof) -> R,
    ) -> Result<ApiResponse, AgentError> {
        let facts = self.read_facts().await?;
        // The caller holds the lock of the state directory, so this is the value of the last answer.
        let continuity = self.record().await?.continuity;
        let mut tries = 1;
        loop {
            let statement = Statement {
                purpose,
                audience: client.server().url.clone(),
                subject,
                continuity: continuity.clone(),
                facts: facts.clone(),
                nonce: client.nonce().await?,
                issued_at: self.clock.now(),
            };
            let proof = prove(keys, statement).await?;
            match client.post(path(purpose), &request(proof)).await {
                Err(ClientError::Refused(refusal))
                    if tries < MAX_ATTEMPTS
                        && (should_retry(&refusal, client) || client.drop_rejected_certificate(&refusal)) =>
                {
                    tries += 1;
                }
                response => return Ok(response?),
            }
        }
    }

    /// The hardware UUID of this machine. `None` if it cannot be read.
    ///
    /// Fails if the record belongs to another machine: nothing may be signed with its key here.
    pub(crate) async fn require_own_state(&self, record: &Record) -> Result<Option<String>, AgentError> {
        require_own_state(&self.facts, record).await
    }

    /// Signs proofs for requests of this machine's programs.
    pub(crate) fn prover(&self) -> Prover {
        Prover::new(
            self.directory.clone(),
            self.key.clone(),
            Arc::clone(&self.facts),
            Arc::clone(&self.clock),
        )
    }

    async fn read_facts(&self) -> Result<MachineFacts, AgentError> {
        let facts = Arc::clone(&self.facts);
        let mut facts = run_blocking(move || Ok(facts.read()?)).await?;
        let version = &mut facts.posture.agent_version;
        version.get_or_insert_with(|| env!("CARGO_PKG_VERSION").to_owned());
        Ok(facts)
    }
}

/// The hardware UUID of this machine, if the record does not belong to another one.
pub(super) async fn require_own_state(facts: &Arc<dyn Facts>, record: &Record) -> Result<Option<String>, AgentError> {
    let facts = Arc::clone(facts);
    let present = run_blocking(move || Ok(facts.hardware_uuid()?)).await?;
    match (record.other_hardware(present.as_deref()), present) {
        (Some(recorded), Some(present)) => Err(AgentError::ForeignState {
            recorded: recorded.to_owned(),
            present,
        }),
        (_, present) => Ok(present),
    }
}

/// Changes the record in one atomic write.
pub(crate) async fn update_record(
    lock: &Arc<StateLock>,
    change: impl FnOnce(&mut Record) + Send + 'static,
) -> Result<(), AgentError> {
    // The closure owns a reference to the lock: if the exchange is dropped, the lock is kept until the write is
    // complete.
    let lock = Arc::clone(lock);
    run_blocking(move || {
        let mut record = lock.record()?;
        change(&mut record);
        Ok(lock.write(&record)?)
    })
    .await
}

/// Runs blocking work on a thread for it.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AgentError> + Send + 'static,
) -> Result<T, AgentError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(AgentError::Interrupted))
}

/// The endpoint for a purpose.
fn path(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Enroll => "/v1/enroll",
        Purpose::CheckIn => "/v1/check-in",
        Purpose::Renew => "/v1/renew",
    }
}

fn should_retry(refusal: &Refusal, client: &Client) -> bool {
    refusal.problem.retry() == Retry::Now && client.has_nonce()
}
