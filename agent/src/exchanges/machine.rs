//! One machine, and what its exchanges share: its directory, its key, its facts, and the way to its server.

use std::sync::{Arc, Mutex, PoisonError};

use assay_protocol::{Chain, KeyThumbprint, PublicKey, Purpose, Retry};
use serde::Serialize;
use uuid::Uuid;

use super::{
    credential::Credential,
    error::AgentError,
    evidence::{Keys, Proof, ProofError, Statement, prove},
};
use crate::{
    clock::Clock,
    connection::{Answer, Client, ClientCertificate, ClientError, Identity, Refusal, presentable},
    facts::{Facts, MachineFacts},
    key_store::{self, MachineKey},
    state::{Record, StateDirectory, StateLock},
    trust::ServerOnRecord,
};

/// How often one exchange is tried with a fresh nonce before it counts as failed.
const MOST_NONCES: u32 = 3;

/// One machine.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) directory: StateDirectory,
    pub(crate) key: MachineKey,
    pub(crate) clock: Arc<dyn Clock>,
    facts: Arc<dyn Facts>,
    /// Kept between exchanges for its connections and its nonce.
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

    /// What the machine remembers.
    pub(crate) async fn record(&self) -> Result<Record, AgentError> {
        let directory = self.directory.clone();
        off_the_network(move || Ok(directory.record()?)).await
    }

    /// Waits for the state directory, and removes the key that a crash or a rotation left in it.
    pub(super) async fn lock(&self) -> Result<Arc<StateLock>, AgentError> {
        let directory = self.directory.clone();
        off_the_network(move || {
            let lock = directory.lock()?;
            key_store::remove_left_over(&lock)?;
            Ok(Arc::new(lock))
        })
        .await
    }

    /// The public key that the server knows this machine by; an error when there is none, or another.
    pub(crate) async fn key_on_record(&self, record: &Record) -> Result<PublicKey, AgentError> {
        self.expect_key(&self.key.at(record.key_place), record.key).await
    }

    /// The public half of a key, which has to be this one.
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

    /// The way to this server without a certificate.
    pub(crate) fn anonymous_client(&self, server: &ServerOnRecord) -> Result<Arc<Client>, AgentError> {
        let open = self.open_client();
        match open.filter(|client| client.server() == server && client.identity().is_none()) {
            Some(client) => Ok(client),
            None => self.keep_open(server, Identity::None),
        }
    }

    /// The way to the machine's server with a certificate of the machine's: the one that is open, unless it leads
    /// elsewhere or presents another certificate than the one to present now.
    pub(crate) async fn client(
        &self,
        server: &ServerOnRecord,
        credential: &Credential,
    ) -> Result<Arc<Client>, AgentError> {
        if !server.url.is_https() {
            return self.anonymous_client(server);
        }
        let presentable = presentable(&credential.certificate, self.clock.now());
        let open = self.open_client().filter(|client| client.server() == server);
        if let Some(client) = open.filter(|client| client.identity().is_presenting(presentable)) {
            return Ok(client);
        }
        let identity =
            match ClientCertificate::load(&credential.certificate, &credential.key, Arc::clone(&self.clock)).await {
                Ok(Some(certificate)) => Identity::Certificate(Arc::new(certificate)),
                Ok(None) => Identity::Withheld,
                // The evidence will not be signed either, and says why.
                Err(fault) => {
                    tracing::debug!(error = %Chain(&fault), "no certificate is presented");
                    Identity::Withheld
                }
            };
        self.keep_open(server, identity)
    }

    fn open_client(&self) -> Option<Arc<Client>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep_open(&self, server: &ServerOnRecord, identity: Identity) -> Result<Arc<Client>, AgentError> {
        let client = Arc::new(Client::new(server.clone(), identity, Arc::clone(&self.clock))?);
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&client));
        Ok(client)
    }

    /// One exchange: evidence over a nonce, and again with the fresh one that comes with a `bad-nonce`.
    pub(crate) async fn exchange<R: Serialize>(
        &self,
        client: &Client,
        keys: &Keys,
        (purpose, subject): (Purpose, Option<Uuid>),
        request: impl Fn(Proof) -> R,
    ) -> Result<Answer, AgentError> {
        let facts = self.read_facts().await?;
        let mut tries = 1;
        loop {
            let statement = Statement {
                purpose,
                audience: client.server().url.clone(),
                subject,
                facts: facts.clone(),
                nonce: client.nonce().await?,
                issued_at: self.clock.now(),
            };
            let proof = prove(keys, statement).await?;
            match client.post(path(purpose), &request(proof)).await {
                Err(ClientError::Refused(refusal))
                    if tries < MOST_NONCES
                        && (is_repeated_at_once(&refusal, client) || client.turns_down_certificate(&refusal)) =>
                {
                    tries += 1;
                }
                answer => return Ok(answer?),
            }
        }
    }

    async fn read_facts(&self) -> Result<MachineFacts, AgentError> {
        let facts = Arc::clone(&self.facts);
        let mut facts = off_the_network(move || Ok(facts.read()?)).await?;
        let version = &mut facts.posture.agent_version;
        version.get_or_insert_with(|| env!("CARGO_PKG_VERSION").to_owned());
        Ok(facts)
    }
}

/// Changes what is remembered, in one atomic write.
pub(crate) async fn update_record(
    lock: &Arc<StateLock>,
    change: impl FnOnce(&mut Record) + Send + 'static,
) -> Result<(), AgentError> {
    // The lock goes along: when the exchange is abandoned, it holds until this write is through.
    let lock = Arc::clone(lock);
    off_the_network(move || {
        let mut record = lock.record()?;
        change(&mut record);
        Ok(lock.write(&record)?)
    })
    .await
}

/// Runs what waits for the disk on a thread that may wait.
pub(crate) async fn off_the_network<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AgentError> + Send + 'static,
) -> Result<T, AgentError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(AgentError::Interrupted))
}

/// Where a purpose is served.
fn path(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Enroll => "/v1/enroll",
        Purpose::CheckIn => "/v1/check-in",
        Purpose::Renew => "/v1/renew",
    }
}

fn is_repeated_at_once(refusal: &Refusal, client: &Client) -> bool {
    refusal.problem.retry() == Retry::Now && client.has_nonce()
}
