//! Which roots an agent trusts, against a server that a thief could run: it has the honest server's TLS key, or the key
//! of its issuing CA, and answers as it likes.

use std::sync::{Arc, Mutex};

use assay_server::clock::{Clock, SystemClock};
use assay_tests::mac::{DONE, SERVER_UNREACHABLE};
use assay_tests::processes::agent_command_with_software_keys;
use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tempfile::TempDir;
use time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::commands::{Outcome, run};

const MACHINE: &str = "01910000-0000-7000-8000-000000000001";
const RUN_ONCE: &[&str] = &["run", "--once"];

/// A CA with its key.
struct Ca {
    key: KeyPair,
    params: CertificateParams,
}

impl Ca {
    fn root(name: &str) -> Self {
        Self::new(name, BasicConstraints::Unconstrained)
    }

    fn issuing(name: &str) -> Self {
        Self::new(name, BasicConstraints::Constrained(0))
    }

    fn new(name: &str, constraints: BasicConstraints) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(constraints);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self {
            key: KeyPair::generate().unwrap(),
            params,
        }
    }

    /// Its self-signed certificate, always the same for its fingerprint: the caller keeps it.
    fn self_signed(&self) -> String {
        self.params.self_signed(&self.key).unwrap().pem()
    }

    /// A certificate of its subject and key by another CA.
    fn by(&self, issuer: &Self) -> String {
        let issuer = Issuer::from_params(&issuer.params, &issuer.key);
        self.params.signed_by(&self.key, &issuer).unwrap().pem()
    }

    /// The same as a root that anyone may make of a key: without the path length.
    fn posing_as_root(&self) -> String {
        let mut params = self.params.clone();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.self_signed(&self.key).unwrap().pem()
    }

    /// The subject key identifier in hex.
    fn key_identifier(&self) -> String {
        hex::encode(self.params.key_identifier(&self.key))
    }

    /// A TLS configuration with a new certificate of this CA, followed by a path.
    fn tls(&self, path: &[&str]) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let issuer = Issuer::from_params(&self.params, &self.key);
        let leaf = leaf.signed_by(&key, &issuer).unwrap();
        let path = path.iter().map(|pem| der(pem));
        let chain = std::iter::once(leaf.der().clone()).chain(path).collect();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth();
        Arc::new(config.with_single_cert(chain, key).unwrap())
    }
}

fn der(pem: &str) -> CertificateDer<'static> {
    pem::parse(pem).unwrap().into_contents().into()
}

fn fingerprint(pem: &str) -> String {
    hex::encode(digest(&SHA256, &der(pem)))
}

/// How the server presents itself, and what it says of its CAs.
struct Says {
    tls: Arc<ServerConfig>,
    bundle: String,
    withdrawn: Vec<String>,
}

/// A server that speaks the agents' protocol and accepts every machine.
struct Server {
    url: String,
    says: Arc<Mutex<Says>>,
}

impl Server {
    async fn start(tls: Arc<ServerConfig>, bundle: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let says = Arc::new(Mutex::new(Says {
            tls,
            bundle: bundle.to_owned(),
            withdrawn: Vec::new(),
        }));
        let said = Arc::clone(&says);
        tokio::spawn(async move {
            for nonce in 1_u32.. {
                let (stream, _) = listener.accept().await.unwrap();
                let said = Arc::clone(&said);
                let acceptor = TlsAcceptor::from(Arc::clone(&said.lock().unwrap().tls));
                tokio::spawn(async move {
                    // An agent that does not trust this server ends the handshake.
                    let Ok(mut stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let (target, body) = request(&mut stream).await;
                    let answer = respond(&said.lock().unwrap(), &target, &body);
                    let length = answer.len();
                    let head = format!(
                        "HTTP/1.1 200 OK\r\nreplay-nonce: nonce-{nonce}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
                    );
                    let _ended = stream.write_all((head + &answer).as_bytes()).await;
                    let _ended = stream.shutdown().await;
                });
            }
        });
        Self { url, says }
    }

    fn answers(&self, bundle: &str, withdrawn: &[String]) {
        let mut says = self.says.lock().unwrap();
        (says.bundle, says.withdrawn) = (bundle.to_owned(), withdrawn.to_vec());
    }

    fn presents(&self, tls: Arc<ServerConfig>) {
        self.says.lock().unwrap().tls = tls;
    }
}

async fn request(stream: &mut (impl AsyncRead + Unpin)) -> (String, Value) {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return (String::new(), Value::Null);
        }
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head.lines().filter_map(|line| line.split_once(": "));
        let length = length.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let length = length.map(|(_, value)| value.parse().unwrap()).next().unwrap_or(0);
        if body.len() >= length {
            let target = head.lines().next().unwrap().trim_end_matches(" HTTP/1.1");
            return (target.to_owned(), serde_json::from_str(body).unwrap_or(Value::Null));
        }
    }
}

fn respond(says: &Says, target: &str, body: &Value) -> String {
    let Says { bundle, withdrawn, .. } = says;
    match target {
        "GET /v1/ca/bundle.pem" => return bundle.clone(),
        "POST /v1/enroll" => json!({
            "machine_id": MACHINE, "status": "active", "assurance": "asserted", "spiffe_id": "spiffe://x/machine/1",
            "certificate": certificate(body), "trust_bundle": bundle, "withdrawn_issuers": withdrawn,
            "next_check_in_seconds": 300,
        }),
        "POST /v1/check-in" => json!({
            "machine_id": MACHINE, "status": "active", "assurance": "asserted", "grants": [], "denied": [],
            "actions": [], "trust_bundle": bundle, "withdrawn_issuers": withdrawn, "next_check_in_seconds": 300,
        }),
        _ => return String::new(),
    }
    .to_string()
}

/// A certificate for the key of a CSR.
fn certificate(body: &Value) -> Value {
    let issuer = Issuer::new(CertificateParams::default(), KeyPair::generate().unwrap());
    let request = CertificateSigningRequestParams::from_pem(body["csr"].as_str().unwrap()).unwrap();
    let chain = request.signed_by(&issuer).unwrap().pem();
    let now = SystemClock.now();
    let [from, end] = [now, now + Duration::days(7)].map(assay_protocol::text::rfc3339);
    json!({"serial_number": "0a", "not_before": from, "not_after": end, "chain": chain})
}

/// A machine with the released agent.
struct Agent(TempDir);

impl Agent {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let facts = json!({"machine": {"serial_number": "C02"}, "posture": {}});
        std::fs::write(folder.path().join("facts.json"), facts.to_string()).unwrap();
        Self(folder)
    }

    async fn run(&self, arguments: &[&str], exit_code: i32) -> Outcome {
        let mut command = agent_command_with_software_keys(&self.0.path().join("state"));
        command.arg("--facts").arg(self.0.path().join("facts.json"));
        command.args(arguments);
        let outcome = run(command).await;
        assert_eq!(outcome.code, Some(exit_code), "{arguments:?}: {}", outcome.stderr);
        outcome
    }

    async fn enroll(&self, server: &Server, fingerprint: &str, exit_code: i32) {
        let enroll = ["enroll", "--server", &server.url, "--ca-fingerprint", fingerprint];
        let _enrolled = self.run(&enroll, exit_code).await;
    }

    /// The names of the trusted roots.
    fn trusted(&self) -> Vec<CertificateDer<'static>> {
        let state = self.state();
        let roots = state["server"]["trust"]["certificates"].as_str().unwrap().to_owned();
        let roots = pem::parse_many(roots).unwrap();
        roots.into_iter().map(|root| root.into_contents().into()).collect()
    }

    fn state(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.file()).unwrap()).unwrap()
    }

    fn file(&self) -> std::path::PathBuf {
        self.0.path().join("state/state.json")
    }

    fn rewrite_state(&self, change: impl FnOnce(&mut Value)) {
        let mut state = self.state();
        change(&mut state);
        std::fs::write(self.file(), state.to_string()).unwrap();
    }
}

#[tokio::test]
async fn an_answer_under_a_stolen_tls_key_adds_no_root() {
    let [honest, evil] = ["honest root", "evil root"].map(Ca::root);
    let issuing = Ca::issuing("issuing");
    let (root, evil_root, path) = (honest.self_signed(), evil.self_signed(), issuing.by(&honest));
    let stolen = issuing.tls(&[&path]);
    let server = Server::start(Arc::clone(&stolen), &root).await;
    let agent = Agent::new();
    agent.enroll(&server, &fingerprint(&root), DONE).await;
    let trusted = [der(&root)];
    assert_eq!(agent.trusted(), trusted);
    for bundle in [
        format!("{root}{evil_root}"),
        evil_root.clone(),
        // What the holder of the issuing key can sign.
        format!("{root}{path}{}", issuing.posing_as_root()),
        format!("{root}{path}{evil_root}{}", evil.by(&issuing)),
        format!("{path}{evil_root}{}", evil.by(&issuing)),
        "no certificate".to_owned(),
    ] {
        server.answers(&bundle, &[]);
        let _checked_in = agent.run(RUN_ONCE, DONE).await;
        assert_eq!(agent.trusted(), trusted, "{bundle}");
    }
    server.presents(evil.tls(&[]));
    let _refused = agent.run(RUN_ONCE, SERVER_UNREACHABLE).await;
    server.presents(stolen);
    let _checked_in = agent.run(RUN_ONCE, DONE).await;
}

#[tokio::test]
async fn enrolling_with_the_fingerprint_brings_the_honest_root_back() {
    let [honest, evil] = ["honest root", "evil root"].map(Ca::root);
    let (root, evil_root) = (honest.self_signed(), evil.self_signed());
    let server = Server::start(honest.tls(&[]), &root).await;
    let agent = Agent::new();
    agent.enroll(&server, &fingerprint(&root), DONE).await;
    // As an earlier agent's record was after two answers of a thief, and as it was after one.
    for certificates in [evil_root.clone(), format!("{root}{evil_root}")] {
        let fingerprint = fingerprint(&root);
        agent.rewrite_state(|state| {
            state["server"]["trust"] =
                json!({"kind": "roots", "certificates": certificates, "pinned": fingerprint.as_str()});
        });
        server.presents(evil.tls(&[]));
        let _thief = agent.run(RUN_ONCE, DONE).await;
        server.presents(honest.tls(&[]));
        agent.enroll(&server, &fingerprint, DONE).await;
        assert_eq!(agent.trusted(), [der(&root)]);
        server.presents(evil.tls(&[]));
        let _refused = agent.run(RUN_ONCE, SERVER_UNREACHABLE).await;
        server.presents(honest.tls(&[]));
        let _checked_in = agent.run(RUN_ONCE, DONE).await;
    }
}

#[tokio::test]
async fn an_agent_that_slept_follows_by_the_chain_of_the_connection_and_then_by_the_bundle() {
    let [one, two, three] = ["one", "two", "three"].map(Ca::root);
    let (first, third) = (one.self_signed(), three.self_signed());
    let links = [two.by(&one), three.by(&two)];
    let server = Server::start(one.tls(&[]), &first).await;
    let agent = Agent::new();
    agent.enroll(&server, &fingerprint(&first), DONE).await;
    server.presents(three.tls(&[]));
    server.answers(&third, &[]);
    let _lost = agent.run(RUN_ONCE, SERVER_UNREACHABLE).await;
    server.presents(three.tls(&[&links[1], &links[0]]));
    let _follows = agent.run(RUN_ONCE, DONE).await;
    assert_eq!(agent.trusted(), [der(&first)], "the bundle shows nothing yet");
    server.answers(&format!("{third}{}", links.concat()), &[]);
    let _follows = agent.run(RUN_ONCE, DONE).await;
    assert_eq!(agent.trusted(), [der(&third)]);
    server.presents(three.tls(&[]));
    let _checked_in = agent.run(RUN_ONCE, DONE).await;
    // The old fingerprint leads to the old root, which the agent has kept, and to those that follow it.
    agent.enroll(&server, &fingerprint(&first), SERVER_UNREACHABLE).await;
    server.presents(three.tls(&[&links[1], &links[0]]));
    agent.enroll(&server, &fingerprint(&first), DONE).await;
    assert_eq!(agent.trusted(), [der(&third)]);
}

#[tokio::test]
async fn a_withdrawn_issuing_ca_is_refused_for_good() {
    let root = Ca::root("root");
    let (stolen, next) = (Ca::issuing("stolen"), Ca::issuing("next"));
    let (root_certificate, paths) = (root.self_signed(), [&stolen, &next].map(|ca| ca.by(&root)));
    let server = Server::start(stolen.tls(&[&paths[0]]), &root_certificate).await;
    let agent = Agent::new();
    let fingerprint = fingerprint(&root_certificate);
    agent.enroll(&server, &fingerprint, DONE).await;
    server.presents(next.tls(&[&paths[1]]));
    server.answers(
        &root_certificate,
        &[stolen.key_identifier().to_uppercase(), "no key".to_owned()],
    );
    let _told = agent.run(RUN_ONCE, DONE).await;
    assert_eq!(agent.state()["server"]["withdrawn"], json!([stolen.key_identifier()]));
    // A server that was restored from a backup does not know of it.
    server.answers(&root_certificate, &[]);
    let _checked_in = agent.run(RUN_ONCE, DONE).await;
    for path in [&[paths[0].as_str()][..], &[&paths[0], &paths[1]]] {
        server.presents(stolen.tls(path));
        let _refused = agent.run(RUN_ONCE, SERVER_UNREACHABLE).await;
        agent.enroll(&server, &fingerprint, SERVER_UNREACHABLE).await;
    }
    server.presents(next.tls(&[&paths[1], &paths[0]]));
    let _checked_in = agent.run(RUN_ONCE, DONE).await;
}
