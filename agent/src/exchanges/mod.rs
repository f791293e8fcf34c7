//! The exchanges with the server, one file each. [`Agent`] runs one at a time.

mod check_in;
mod credential;
mod enrollment;
mod error;
mod evidence;
mod failure;
mod hardware;
mod machine;
mod options;
mod possession;
mod renewal;
mod rotation;
#[cfg(test)]
mod scripted_server;
mod trust_bundle;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use assay_protocol::{
    Chain, ProblemKind,
    agent_api::{CheckedIn, Renewed},
    machine::MachineStatus,
};
use secrecy::SecretString;

use self::machine::update_record;
pub(crate) use self::{
    check_in::interval,
    credential::Credential,
    machine::{Machine, run_blocking},
    possession::{PossessionError, ProvenRequest, Prover},
};
pub use self::{
    enrollment::EnrollOutcome, error::AgentError, evidence::ProofError, failure::Failure, options::EnrollOptions,
    rotation::RotationOutcome,
};
use crate::{
    clock::Clock,
    connection::Refusal,
    facts::Facts,
    key_store::{self, KeyStore, MachineKey},
    state::{Record, RecordedFailure, StateDirectory, StateError, StateLock},
};

/// The exchange that gets a certificate for the next key, as failures name it.
pub(crate) const ROTATE_KEY: &str = "rotate-key";

/// The parts of a machine.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// The directory of its key and record. Created with mode 0700 if missing.
    pub state_dir: PathBuf,
    /// The key store.
    pub key_store: Arc<dyn KeyStore>,
    /// The facts that its evidence claims.
    pub facts: Arc<dyn Facts>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

/// One machine. A process can run many. On one state directory, only one exchange runs at a time.
#[derive(Debug)]
pub struct Agent {
    machine: Machine,
}

impl Agent {
    /// Opens a machine's state directory. Sends nothing, and creates no key.
    pub fn open(options: AgentOptions) -> Result<Self, AgentError> {
        let directory = StateDirectory::create(options.state_dir)?;
        let key = MachineKey::new(options.key_store, directory.clone());
        Ok(Self {
            machine: Machine::new(directory, key, options.facts, options.clock),
        })
    }

    /// Enrolls the machine, or repeats an incomplete enrollment. Safe to repeat: the same key leads to the same
    /// machine.
    pub async fn enroll(&self, options: EnrollOptions) -> Result<EnrollOutcome, AgentError> {
        let lock = self.machine.lock().await?;
        let left = hardware::leave_foreign_state(&self.machine, &lock).await;
        self.record_failure(&lock, "enroll", left).await?;
        let result = match self.settle_rotation(&lock).await {
            Ok(()) => enrollment::enroll(&self.machine, &lock, options).await,
            Err(error) if error.failure().asks_for_enrollment() => {
                let problem = error.refusal().and_then(Refusal::kind);
                update_record(&lock, move |record| {
                    rotation::keep_used_key(record);
                    note_refusal(record, problem);
                })
                .await?;
                enrollment::enroll(&self.machine, &lock, options).await
            }
            Err(error) => Err(error),
        };
        self.record_failure(&lock, "enroll", result).await
    }

    /// Checks in: proves the machine's presence and state, and receives its grants.
    pub async fn check_in(&self) -> Result<CheckedIn, AgentError> {
        let lock = self.lock_own_state("check-in").await?;
        let result = self.check_in_with_current_or_next_key(&lock).await;
        self.record_failure(&lock, "check-in", result).await
    }

    /// Renews the machine's certificate, with the same key.
    pub async fn renew(&self) -> Result<Renewed, AgentError> {
        let lock = self.lock_own_state("renew").await?;
        let result = match self.settle_rotation(&lock).await {
            Ok(()) => renewal::renew(&self.machine, &lock).await,
            Err(error) => Err(error),
        };
        self.record_failure(&lock, "renew", result).await
    }

    /// Gets a certificate for the machine's next key, which it creates unless a rotation is in progress. The next
    /// check-in is signed by the next key and completes the rotation. Safe to repeat.
    ///
    /// A token that is bound to the serial number admits the next key without an administrator.
    pub async fn rotate_key(&self, token: Option<SecretString>) -> Result<RotationOutcome, AgentError> {
        let lock = self.lock_own_state(ROTATE_KEY).await?;
        let result = rotation::begin(&self.machine, &lock, token).await;
        self.record_failure(&lock, ROTATE_KEY, result).await
    }

    /// Reads the record.
    pub async fn record(&self) -> Result<Record, AgentError> {
        self.machine.record().await
    }

    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Locks the state directory, which must be this machine's own.
    async fn lock_own_state(&self, exchange: &str) -> Result<Arc<StateLock>, AgentError> {
        let lock = self.machine.lock().await?;
        let own = hardware::require_own_state(&self.machine, &lock).await;
        self.record_failure(&lock, exchange, own).await?;
        Ok(lock)
    }

    /// Checks in if the next key may have signed evidence, which ends the rotation. The server may have superseded the current
    /// key by then. Evidence that this key signs would look like a copy's.
    async fn settle_rotation(&self, lock: &Arc<StateLock>) -> Result<(), AgentError> {
        let record = self.machine.record().await?;
        if record.rotation.is_some_and(|rotation| rotation.is_used) {
            self.check_in_with_current_or_next_key(lock).await?;
        }
        Ok(())
    }

    /// Checks in with the next key if it has its certificate, otherwise with the current key.
    async fn check_in_with_current_or_next_key(&self, lock: &Arc<StateLock>) -> Result<CheckedIn, AgentError> {
        let record = self.machine.record().await?;
        match Credential::next(&self.machine.key, &record) {
            Some(next) => rotation::complete(&self.machine, lock, &record, next).await,
            None => check_in::check_in(&self.machine, lock, &record).await,
        }
    }

    /// Records the failure of an exchange. If it cannot be recorded, the exchange's error is still the result.
    async fn record_failure<T>(
        &self,
        lock: &Arc<StateLock>,
        exchange: &str,
        result: Result<T, AgentError>,
    ) -> Result<T, AgentError> {
        let Err(error) = result else {
            return result;
        };
        let failure = error.failure();
        let concerns_next_key_alone = exchange == ROTATE_KEY && rotation::concerns_next_key_alone(&error);
        let problem = error.refusal().and_then(Refusal::kind);
        let on_record = RecordedFailure {
            at: self.machine.clock.now(),
            exchange: exchange.to_owned(),
            problem: error.refusal().map(|refusal| refusal.problem.kind_urn.clone()),
            message: Chain(&error).to_string(),
            key: error.key_trouble(),
        };
        let written = update_record(lock, move |record| {
            // If the server would no longer issue the grants, the agent no longer hands them out.
            let keeps_grants = concerns_next_key_alone
                || matches!(
                    failure,
                    Failure::Unreachable { .. }
                        | Failure::KeyLocked
                        | Failure::KeyRefused
                        | Failure::KeyStore
                        | Failure::Local
                );
            if let Some(last) = record.last_check_in.as_mut().filter(|_| !keeps_grants) {
                last.grants.clear();
            }
            record.last_failure = Some(on_record);
            note_refusal(record, problem);
        })
        .await;
        if let Err(error) = written {
            tracing::warn!(error = %Chain(&error), "the failure could not be recorded");
        }
        Err(error)
    }
}

/// What the server's refusal says about the machine's record there.
fn note_refusal(record: &mut Record, problem: Option<ProblemKind>) {
    match problem {
        Some(ProblemKind::MachineQuarantined | ProblemKind::IdentityMismatch) => {
            record.suspension = Some(MachineStatus::Quarantined);
        }
        Some(ProblemKind::MachineRevoked) => record.suspension = Some(MachineStatus::Revoked),
        // The server has no record to which the value belongs. With a new record the value would be foreign. If the
        // answer to the enrollment were lost, its repetition would look like a copy.
        Some(ProblemKind::MachineUnknown) => {
            record.suspension = None;
            record.continuity = None;
        }
        _ => {}
    }
}

/// Deletes a machine's identity: its keys and its record. Returns the removed files.
///
/// It needs no key store, so it works if the key store does not.
pub fn reset(state_dir: &Path) -> Result<Vec<PathBuf>, StateError> {
    if !state_dir.exists() {
        return Ok(Vec::new());
    }
    let directory = StateDirectory::create(state_dir.to_owned())?;
    let files = key_store::files(&directory);
    directory.lock()?.reset(files)
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use assay_protocol::UnverifiedEvidence;
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use rstest::rstest;
    use secrecy::ExposeSecret;
    use serde_json::{Value, json};
    use uuid::Uuid;

    use super::{
        scripted_server::{Received, Reply, ScriptedServer},
        *,
    };
    use crate::{
        clock::SystemClock, connection::ClientError, facts::MachineFacts, key_store::SoftwareKeyStore,
        trust::TrustAnchor,
    };

    const MACHINE: Uuid = Uuid::from_u128(7);

    struct Machine {
        folder: tempfile::TempDir,
        agent: Agent,
    }

    impl Machine {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let agent = Agent::open(AgentOptions {
                state_dir: folder.path().to_owned(),
                key_store: Arc::new(SoftwareKeyStore),
                facts: Arc::new(MachineFacts::default()),
                clock: Arc::new(SystemClock),
            });
            Self {
                folder,
                agent: agent.unwrap(),
            }
        }

        async fn enroll(&self, server: &ScriptedServer, token: Option<&str>) -> Result<EnrollOutcome, AgentError> {
            let options = EnrollOptions {
                server: server.url.clone(),
                token: token.map(Into::into),
                trust: Some(TrustAnchor::Certificates(
                    include_str!("../../testdata/roots.pem").into(),
                )),
            };
            self.agent.enroll(options).await
        }

        async fn token_on_disk(&self) -> Option<String> {
            let pending = self.agent.record().await.unwrap().pending?;
            pending.token.map(|token| token.expose_secret().to_owned())
        }

        async fn grants(&self) -> usize {
            let last = self.agent.record().await.unwrap().last_check_in;
            last.map_or(0, |last| last.grants.len())
        }

        fn key_file(&self) -> PathBuf {
            self.folder.path().join("software.key")
        }
    }

    fn certificate_for(csr: &str) -> Value {
        let issuer_key = rcgen::KeyPair::generate().unwrap();
        let issuer = rcgen::Issuer::new(rcgen::CertificateParams::default(), issuer_key);
        let request = rcgen::CertificateSigningRequestParams::from_pem(csr).unwrap();
        let chain = request.signed_by(&issuer).unwrap().pem();
        json!({"serial_number": "0a", "not_before": "2026-11-22T10:00:00Z", "not_after": "2026-11-29T10:00:00Z", "chain": chain})
    }

    /// The responses of a server without errors.
    fn well(request: &Received) -> Reply {
        let body = match request.what.as_str() {
            "POST /v1/check-in" => json!({
                "machine_id": MACHINE, "status": "active", "assurance": "asserted", "denied": [],
                "grants": [{"audience": "wiki", "permissions": ["read"], "token": "e.y.J", "expires_at": "2026-11-22T10:10:00Z"}],
                "next_check_in_seconds": 300, "actions": [{"type": "of_a_newer_server"}],
            }),
            "POST /v1/enroll" => json!({
                "machine_id": MACHINE, "status": "active", "assurance": "asserted", "spiffe_id": "spiffe://x/machine/7",
                "certificate": certificate_for(request.body["csr"].as_str().unwrap()),
                "trust_bundle": "", "next_check_in_seconds": 300,
            }),
            _ => json!({"certificate": certificate_for(request.body["csr"].as_str().unwrap()), "trust_bundle": ""}),
        };
        Reply::Response(200, String::new(), body)
    }

    fn evidence_nonce(request: &Received) -> String {
        let evidence = request.body["evidence"].as_str().unwrap().to_owned();
        UnverifiedEvidence::parse(&evidence)
            .unwrap()
            .unverified_nonce()
            .to_owned()
    }

    fn carried_value(request: &Received) -> Option<String> {
        let evidence = request.body["evidence"].as_str().unwrap().to_owned();
        let payload = URL_SAFE_NO_PAD.decode(evidence.split('.').nth(1).unwrap()).unwrap();
        let claims: Value = serde_json::from_slice(&payload).unwrap();
        claims["continuity"].as_str().map(str::to_owned)
    }

    #[tokio::test]
    async fn evidence_carries_the_value_of_the_last_answer() {
        let mut replies = vec![
            Some("enrolled"),
            Some("checked in"),
            None,
            Some("unknown"),
            Some("renewed"),
            Some("lost"),
            Some("enrolled again"),
            Some("too long"),
            Some("last"),
        ]
        .into_iter();
        let server = ScriptedServer::start(move |request| {
            let value = replies.next().unwrap();
            let Reply::Response(status, headers, mut body) = well(request) else {
                unreachable!()
            };
            match value {
                Some("unknown") => return Reply::problem(404, "machine-unknown"),
                Some("lost") => return Reply::Lost,
                Some("too long") => body["continuity"] = json!("x".repeat(65)),
                Some(value) => body["continuity"] = json!(value),
                None => {}
            }
            Reply::Response(status, headers, body)
        })
        .await;
        let machine = Machine::new();
        machine.enroll(&server, None).await.unwrap();
        machine.agent.check_in().await.unwrap();
        // This answer has no value.
        machine.agent.check_in().await.unwrap();
        machine.agent.check_in().await.unwrap_err();
        machine.agent.renew().await.unwrap();
        machine.agent.check_in().await.unwrap_err();
        machine.enroll(&server, None).await.unwrap();
        machine.agent.check_in().await.unwrap();
        machine.agent.check_in().await.unwrap();
        let received = server.received().into_iter();
        let posts = received.filter(|request| request.what.starts_with("POST"));
        let carried: Vec<_> = posts.map(|request| carried_value(&request)).collect();
        let expected = [
            None,
            Some("enrolled"),
            Some("checked in"),
            None,
            None,
            Some("renewed"),
            Some("renewed"),
            Some("enrolled again"),
            None,
        ];
        assert_eq!(carried, expected.map(|value| value.map(str::to_owned)));
    }

    #[tokio::test]
    async fn a_server_that_does_not_know_the_machine_gets_no_value() {
        let mut is_unknown = false;
        let server = ScriptedServer::start(move |request| {
            if request.what == "POST /v1/check-in" && std::mem::replace(&mut is_unknown, true) {
                return Reply::problem(404, "machine-unknown");
            }
            let Reply::Response(status, headers, mut body) = well(request) else {
                unreachable!()
            };
            body["continuity"] = json!("value");
            Reply::Response(status, headers, body)
        })
        .await;
        let machine = Machine::new();
        machine.enroll(&server, None).await.unwrap();
        machine.agent.check_in().await.unwrap();
        machine.agent.check_in().await.unwrap_err();
        machine.enroll(&server, None).await.unwrap();
        let last = server.received().pop().unwrap();
        assert_eq!((last.what.as_str(), carried_value(&last)), ("POST /v1/enroll", None));
    }

    #[tokio::test]
    async fn in_steady_state_an_exchange_takes_one_round_trip() {
        let server = ScriptedServer::start(well).await;
        let machine = Machine::new();
        machine.enroll(&server, None).await.unwrap();
        machine.agent.check_in().await.unwrap();
        machine.agent.renew().await.unwrap();
        machine.agent.check_in().await.unwrap();
        let posts = [
            "POST /v1/enroll",
            "POST /v1/check-in",
            "POST /v1/renew",
            "POST /v1/check-in",
        ];
        assert_eq!(server.calls()[0], "HEAD /v1/nonce");
        assert_eq!(server.calls()[1..], posts);
        let nonces: Vec<_> = server.received()[1..].iter().map(evidence_nonce).collect();
        assert_eq!(nonces, ["nonce-1", "nonce-2", "nonce-3", "nonce-4"]);
    }

    #[tokio::test]
    async fn a_bad_nonce_is_retried_at_once_with_the_nonce_of_the_response() {
        let mut refusals = 2;
        let server = ScriptedServer::start(move |request| match refusals {
            0 => well(request),
            _ => {
                refusals -= 1;
                Reply::problem(400, "bad-nonce")
            }
        })
        .await;
        let machine = Machine::new();
        machine.enroll(&server, None).await.unwrap();
        let nonces: Vec<_> = server.received()[1..].iter().map(evidence_nonce).collect();
        assert_eq!(nonces, ["nonce-1", "nonce-2", "nonce-3"]);
    }

    #[tokio::test]
    async fn attempts_are_limited_if_the_server_rejects_every_nonce() {
        let server = ScriptedServer::start(|_| Reply::problem(400, "bad-nonce")).await;
        let error = Machine::new().enroll(&server, None).await.unwrap_err();
        assert_eq!(error.failure(), Failure::Unreachable { retry_after: None });
        assert_eq!(server.calls().len(), 1 + 3);
    }

    #[tokio::test]
    async fn after_a_lost_response_the_same_key_and_token_are_sent_again() {
        let mut is_lost = true;
        let server = ScriptedServer::start(move |request| match std::mem::take(&mut is_lost) {
            true => Reply::Lost,
            false => well(request),
        })
        .await;
        let machine = Machine::new();
        let error = machine.enroll(&server, Some("secret")).await.unwrap_err();
        assert_eq!(error.failure(), Failure::Unreachable { retry_after: None });
        assert_eq!(machine.token_on_disk().await.as_deref(), Some("secret"));
        let key = fs::read(machine.key_file()).unwrap();
        machine.enroll(&server, None).await.unwrap();
        assert_eq!(fs::read(machine.key_file()).unwrap(), key);
        let received = server.received();
        let posts: Vec<_> = received
            .iter()
            .filter(|request| request.what == "POST /v1/enroll")
            .collect();
        assert_eq!(posts.len(), 2);
        assert!(posts.iter().all(|request| request.body["token"] == "secret"));
        assert_eq!(machine.token_on_disk().await, None);
    }

    #[tokio::test]
    async fn a_refused_token_is_deleted_and_does_not_bind_the_machine_to_the_server() {
        let refusing = ScriptedServer::start(|_| Reply::problem(401, "enrollment-token-invalid")).await;
        let other = ScriptedServer::start(well).await;
        let machine = Machine::new();
        let error = machine.enroll(&refusing, Some("secret")).await.unwrap_err();
        assert_eq!(error.failure(), Failure::Refused);
        assert_eq!(machine.token_on_disk().await, None);
        machine.enroll(&other, Some("another")).await.unwrap();
        let error = machine.enroll(&refusing, Some("secret")).await.unwrap_err();
        assert!(matches!(error, AgentError::OtherServer { .. }), "{error}");
    }

    #[tokio::test]
    async fn the_token_is_kept_until_approval() {
        let pending =
            json!({"enrollment_id": MACHINE, "machine_id": null, "status": "pending", "retry_after_seconds": 60});
        let mut is_approved = false;
        let server = ScriptedServer::start(move |request| match std::mem::replace(&mut is_approved, true) {
            true => well(request),
            false => Reply::Response(202, String::new(), pending.clone()),
        })
        .await;
        let machine = Machine::new();
        let outcome = machine.enroll(&server, Some("secret")).await.unwrap();
        assert!(matches!(outcome, EnrollOutcome::Pending(_)));
        assert_eq!(machine.token_on_disk().await.as_deref(), Some("secret"));
        let outcome = machine.enroll(&server, None).await.unwrap();
        assert!(matches!(
            outcome,
            EnrollOutcome::Enrolled {
                was_enrolled: false,
                ..
            }
        ));
        let outcome = machine.enroll(&server, None).await.unwrap();
        assert!(matches!(outcome, EnrollOutcome::Enrolled { was_enrolled: true, .. }));
    }

    #[tokio::test]
    async fn grants_are_deleted_in_quarantine_and_kept_when_the_server_is_busy() {
        let mut replies = vec![
            Reply::problem(403, "machine-quarantined"),
            match Reply::problem(503, "unavailable") {
                Reply::Response(status, headers, body) => {
                    Reply::Response(status, format!("retry-after: 7\r\n{headers}"), body)
                }
                Reply::Lost => Reply::Lost,
            },
        ];
        let mut check_ins = 0;
        let server = ScriptedServer::start(move |request| {
            check_ins += i32::from(request.what == "POST /v1/check-in");
            if check_ins < 2 {
                well(request)
            } else {
                replies.pop().unwrap()
            }
        })
        .await;
        let machine = Machine::new();
        machine.enroll(&server, None).await.unwrap();
        machine.agent.check_in().await.unwrap();
        let error = machine.agent.check_in().await.unwrap_err();
        let retry_after = Some(Duration::from_secs(7));
        assert_eq!(error.failure(), Failure::Unreachable { retry_after });
        assert_eq!(machine.grants().await, 1);
        let error = machine.agent.check_in().await.unwrap_err();
        assert!(matches!(error.failure(), Failure::Suspended { is_pending: false, .. }));
        assert_eq!(machine.grants().await, 0);
        let failure = machine.agent.record().await.unwrap().last_failure.unwrap();
        assert_eq!(
            failure.problem.as_deref(),
            Some("urn:assay:problem:machine-quarantined")
        );
    }

    #[tokio::test]
    async fn a_certificate_for_another_key_is_rejected() {
        let other = Machine::new();
        let other_server = ScriptedServer::start(well).await;
        other.enroll(&other_server, None).await.unwrap();
        let others_answer = well(&other_server.received()[1]);
        let server = ScriptedServer::start(move |_| others_answer.clone()).await;
        let machine = Machine::new();
        let error = machine.enroll(&server, None).await.unwrap_err();
        assert!(
            matches!(error, AgentError::Server(ClientError::InvalidResponse { .. })),
            "{error}"
        );
        assert!(machine.agent.record().await.unwrap().machine.is_none());
    }

    #[tokio::test]
    async fn a_lost_key_is_replaced_only_after_a_reset() {
        let server = ScriptedServer::start(well).await;
        let machine = Machine::new();
        machine.enroll(&server, None).await.unwrap();
        let key = fs::read(machine.key_file()).unwrap();
        fs::remove_file(machine.key_file()).unwrap();
        assert!(matches!(machine.agent.check_in().await, Err(AgentError::KeyLost(_))));
        assert!(matches!(
            machine.enroll(&server, None).await,
            Err(AgentError::KeyLost(_))
        ));
        assert!(!machine.key_file().exists());
        reset(machine.folder.path()).unwrap();
        assert!(matches!(machine.agent.check_in().await, Err(AgentError::NotEnrolled)));
        machine.enroll(&server, None).await.unwrap();
        assert_ne!(fs::read(machine.key_file()).unwrap(), key);
    }

    /// The places of the keys that signed the check-ins, in order.
    async fn keys_of_check_ins(server: &ScriptedServer, current: &str) -> Vec<&'static str> {
        let check_ins = server.received();
        let check_ins = check_ins.iter().filter(|request| request.what == "POST /v1/check-in");
        check_ins
            .map(|request| {
                let evidence = request.body["evidence"].as_str().unwrap().to_owned();
                let key = UnverifiedEvidence::parse(&evidence)
                    .unwrap()
                    .unverified_key()
                    .to_string();
                if key == current { "current" } else { "next" }
            })
            .collect()
    }

    #[rstest]
    #[case::it_waits(Reply::problem(403, "machine-pending"), &["next", "current"])]
    #[case::denied(Reply::problem(403, "enrollment-denied"), &["next", "current"])]
    #[case::restored_database(Reply::problem(404, "machine-unknown"), &["next", "current"])]
    #[case::lost(Reply::Lost, &["next"])]
    #[case::superseded(Reply::problem(403, "key-superseded"), &["next"])]
    #[case::quarantined(Reply::problem(403, "machine-quarantined"), &["next"])]
    #[case::bad_evidence(Reply::problem(401, "bad-evidence"), &["next"])]
    #[tokio::test]
    async fn after_evidence_by_the_next_key_the_current_one_signs_only_if_the_next_one_is_not_admitted(
        #[case] answer: Reply,
        #[case] signers: &[&str],
    ) {
        let mut answer = Some(answer);
        let server = ScriptedServer::start(move |request| match request.what.as_str() {
            "POST /v1/check-in" => answer.take().unwrap_or_else(|| well(request)),
            _ => well(request),
        })
        .await;
        let machine = Machine::new();
        machine.enroll(&server, None).await.unwrap();
        let current = machine.agent.record().await.unwrap().key.unwrap().to_string();
        let outcome = machine.agent.rotate_key(None).await.unwrap();
        assert!(matches!(outcome, RotationOutcome::Certified(_)));
        let checked_in = machine.agent.check_in().await;
        assert_eq!(keys_of_check_ins(&server, &current).await, signers);
        assert_eq!(checked_in.is_ok(), signers.len() == 2);
        // Until the server says that the next key waits or is unknown, only the next key signs, in another process,
        // too.
        if checked_in.is_err() {
            machine.agent.check_in().await.unwrap();
            assert_eq!(keys_of_check_ins(&server, &current).await, ["next", "next"]);
        }
    }

    #[tokio::test]
    async fn a_next_key_that_has_signed_and_is_lost_does_not_bring_the_current_one_back() {
        let mut replies = vec![Reply::Lost];
        let server = ScriptedServer::start(move |request| match request.what.as_str() {
            "POST /v1/check-in" => replies.pop().unwrap_or_else(|| well(request)),
            _ => well(request),
        })
        .await;
        let machine = Machine::new();
        machine.enroll(&server, None).await.unwrap();
        let current = machine.agent.record().await.unwrap().key.unwrap().to_string();
        machine.agent.rotate_key(None).await.unwrap();
        machine.agent.check_in().await.unwrap_err();
        fs::remove_file(machine.folder.path().join("software-2.key")).unwrap();
        for _ in 0..2 {
            assert!(matches!(machine.agent.check_in().await, Err(AgentError::KeyLost(_))));
        }
        assert_eq!(keys_of_check_ins(&server, &current).await, ["next"]);
    }

    #[rstest]
    #[case::renewal("POST /v1/renew")]
    #[case::enrollment("POST /v1/enroll")]
    #[tokio::test]
    async fn after_evidence_by_the_next_key_other_exchanges_end_the_rotation_first(#[case] exchange: &str) {
        let mut replies = vec![Reply::Lost];
        let server = ScriptedServer::start(move |request| match request.what.as_str() {
            "POST /v1/check-in" => replies.pop().unwrap_or_else(|| well(request)),
            _ => well(request),
        })
        .await;
        let machine = Machine::new();
        machine.enroll(&server, None).await.unwrap();
        machine.agent.rotate_key(None).await.unwrap();
        machine.agent.check_in().await.unwrap_err();
        let before = server.received().len();
        match exchange {
            "POST /v1/renew" => drop(machine.agent.renew().await.unwrap()),
            _ => drop(machine.enroll(&server, None).await.unwrap()),
        }
        let record = machine.agent.record().await.unwrap();
        assert!(record.rotation.is_none());
        let next = record.key.unwrap();
        let signed = server.received().into_iter().skip(before);
        let signed: Vec<_> = signed.filter(|request| request.what.starts_with("POST")).collect();
        let exchanges: Vec<_> = signed.iter().map(|request| request.what.as_str()).collect();
        assert_eq!(exchanges, ["POST /v1/check-in", exchange]);
        for request in signed {
            let evidence = request.body["evidence"].as_str().unwrap().to_owned();
            assert_eq!(UnverifiedEvidence::parse(&evidence).unwrap().unverified_key(), next);
        }
    }

    #[tokio::test]
    async fn a_next_key_that_waits_keeps_both_keys_and_the_grants() {
        let mut answers = vec![
            Reply::problem(403, "enrollment-denied"),
            Reply::Response(
                202,
                String::new(),
                json!({"enrollment_id": MACHINE, "status": "pending", "retry_after_seconds": 60}),
            ),
        ];
        let server = ScriptedServer::start(move |request| match request.what.as_str() {
            "POST /v1/renew" => answers.pop().unwrap(),
            _ => well(request),
        })
        .await;
        let machine = Machine::new();
        machine.enroll(&server, None).await.unwrap();
        machine.agent.check_in().await.unwrap();
        let outcome = machine.agent.rotate_key(Some("secret".into())).await.unwrap();
        assert!(matches!(outcome, RotationOutcome::Pending(_)));
        let record = machine.agent.record().await.unwrap();
        let rotation = record.rotation.unwrap();
        assert_eq!(
            (rotation.enrollment_id, rotation.token.is_none()),
            (Some(MACHINE), true)
        );
        machine.agent.check_in().await.unwrap();
        let error = machine.agent.rotate_key(None).await.unwrap_err();
        assert_eq!(error.failure(), Failure::Refused);
        let tokens: Vec<_> = server
            .received()
            .into_iter()
            .filter(|request| request.what == "POST /v1/renew")
            .collect();
        assert_eq!(
            (&tokens[0].body["token"], &tokens[1].body["token"]),
            (&json!("secret"), &Value::Null)
        );
        assert_eq!(tokens.len(), 2);
        let record = machine.agent.record().await.unwrap();
        assert_eq!(record.denied_next_key.map(|denied| denied.key), Some(rotation.key));
        assert!(record.rotation.is_none());
        assert!(!machine.folder.path().join("software-2.key").exists());
        assert_eq!(machine.grants().await, 1);
        machine.agent.check_in().await.unwrap();
    }

    #[tokio::test]
    async fn a_refused_token_ends_a_rotation_that_does_not_wait_yet() {
        let server = ScriptedServer::start(|request| match request.body["token"] == "unfit" {
            true => Reply::problem(401, "enrollment-token-invalid"),
            false => well(request),
        })
        .await;
        let machine = Machine::new();
        machine.enroll(&server, None).await.unwrap();
        let error = machine.agent.rotate_key(Some("unfit".into())).await.unwrap_err();
        assert_eq!(error.failure(), Failure::Refused);
        assert!(machine.agent.record().await.unwrap().rotation.is_none());
        let outcome = machine.agent.rotate_key(Some("fit".into())).await.unwrap();
        assert!(matches!(outcome, RotationOutcome::Certified(_)));
    }

    #[tokio::test]
    async fn exchanges_of_one_machine_do_not_interleave() {
        let server = ScriptedServer::start(well).await;
        let machine = Machine::new();
        machine.enroll(&server, None).await.unwrap();
        let (first, second) = tokio::join!(machine.agent.check_in(), machine.agent.check_in());
        first.unwrap();
        second.unwrap();
        // Two concurrent exchanges would need an extra nonce.
        assert_eq!(
            server.calls().iter().filter(|call| *call == "HEAD /v1/nonce").count(),
            1
        );
    }
}
