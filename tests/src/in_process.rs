//! A server in the test process: the real router over real TLS and Postgres, with a mock clock.
//!
//! [`Answer`] checks every response against the conventions for all responses.

use std::fmt::{self, Debug};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;

use assay_protocol::admin_api::api_keys::Role;
use assay_server::clock::{Clock, MockClock, SystemClock};
use assay_server::config::Config;
use assay_server::running::RunningServer;
use reqwest::{Client, Method, RequestBuilder};
use rustls::client::WantsClientCert;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, SupportedProtocolVersion};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::administrator::{items, token_of};
use crate::answer::Answer;
use crate::api::{Api, Called};
use crate::apple::Apple;
use crate::cluster::Database;
use crate::machine::Machine;
use crate::processes::program;

/// The servers' public URL. In each test, the name resolves to the test's own server.
pub const PUBLIC_URL: &str = "https://assay.example.com";
/// The base of the revocation URLs in certificates.
pub const REVOCATION_URL: &str = "http://assay.example.com:8080";
const HOST: &str = "assay.example.com";

/// All servers share one master key, because the keys that it seals end with the test.
const MASTER_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

/// A running server, with a client that trusts it, and mostly with a database of its own.
pub struct InProcess {
    server: RunningServer,
    clock: MockClock,
    api: Api,
    tls: Arc<ClientConfig>,
    keys: [String; Role::ALL.len()],
    variables: Vec<(String, String)>,
    database: Option<Database<'static>>,
    _data_dir: TempDir,
}

impl InProcess {
    /// Starts a server with the default configuration.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts a server with these configuration keys, named by path: `check_in.interval`.
    pub async fn start_with(settings: &[(&str, &str)]) -> Self {
        let database = Database::create().await;
        let mut server = Self::start_on(&database.url(), settings).await;
        server.database = Some(database);
        server
    }

    /// Starts a server that trusts a new stand-in for Apple.
    pub async fn with_apple(settings: &[(&str, &str)]) -> (Self, Apple) {
        let apple = Apple::new();
        let server = Self::start_with(&[settings, &[apple.setting()]].concat()).await;
        (server, apple)
    }

    /// Starts a server on a database that the test owns.
    pub async fn start_on(database_url: &str, settings: &[(&str, &str)]) -> Self {
        Self::start_at(SystemClock.now(), database_url, settings).await
    }

    /// Starts a server at another time.
    pub async fn start_at(now: OffsetDateTime, database_url: &str, settings: &[(&str, &str)]) -> Self {
        Self::start_by(MockClock::new(now), database_url, settings).await
    }

    /// Starts a server with this clock, which another replica may share.
    pub async fn start_by(clock: MockClock, database_url: &str, settings: &[(&str, &str)]) -> Self {
        let data_dir = tempfile::tempdir().unwrap();
        let variables = variables(database_url, &data_dir, settings);
        let config = Config::load(None, variables.clone().into_iter()).unwrap();
        let server = RunningServer::start(&config, Arc::new(clock.clone())).await.unwrap();
        let tls = Arc::new(client_config(&server.roots_pem(), &clock));
        let client = client_builder(&tls, server.address(), &[b"h2", b"http/1.1"]);
        let mut keys = [const { String::new() }; Role::ALL.len()];
        for (key, role) in keys.iter_mut().zip(Role::ALL) {
            // Replicas share the database, where names are unique.
            let name = format!("{role:?} {:016x}", rand::random::<u64>());
            let secret = server.create_api_key(&name, role).await.unwrap();
            secret.expose_secret().clone_into(key);
        }
        Self {
            server,
            clock,
            api: Api::with(client, PUBLIC_URL, PUBLIC_URL),
            tls,
            keys,
            variables,
            database: None,
            _data_dir: data_dir,
        }
    }

    /// A command of `assay-server` with this server's configuration. It uses the system's clock.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("assay-server"));
        command.args(arguments).envs(self.variables.clone());
        command
    }

    /// The server's clock. It stands still unless the test or [`nonce`](Self::nonce) sets it forward.
    #[must_use]
    pub fn clock(&self) -> &MockClock {
        &self.clock
    }

    /// The database that was created for this server.
    ///
    /// # Panics
    /// If the test owns the database.
    #[must_use]
    pub fn database(&self) -> &Database<'static> {
        self.database.as_ref().unwrap()
    }

    /// Trusts the server's current roots, after a rotation.
    pub fn trust_again(&mut self) {
        self.tls = Arc::new(client_config(&self.roots_pem(), &self.clock));
        let client = client_builder(&self.tls, self.address(), &[b"h2", b"http/1.1"]);
        self.api = Api::with(client, PUBLIC_URL, PUBLIC_URL);
    }

    /// The address that it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// The address of revocation lists and OCSP over plain HTTP.
    ///
    /// # Panics
    /// If the test has switched them off.
    #[must_use]
    pub fn revocation_address(&self) -> SocketAddr {
        self.server.revocation_address().unwrap()
    }

    /// What is served over plain HTTP.
    #[must_use]
    pub fn revocation_api(&self) -> Api {
        Api::plain(&format!("http://{}", self.revocation_address()), PUBLIC_URL)
    }

    /// The TLS configuration for a test's own connections: the server's roots and clock.
    #[must_use]
    pub fn tls(&self) -> &Arc<ClientConfig> {
        &self.tls
    }

    /// A client with connections of its own that speaks only HTTP/1.1.
    #[must_use]
    pub fn http1_client(&self) -> Client {
        client_builder(&self.tls, self.address(), &[b"http/1.1"])
            .build()
            .unwrap()
    }

    /// The same server over other connections, which present a certificate for this machine's key.
    #[must_use]
    pub fn presenting(&self, chain_pem: &str, machine: &Machine, connections: Connections) -> Presenting<'_> {
        self.presenting_key(chain_pem, &machine.private_key_pem(), connections)
    }

    /// The same server over connections that present a certificate for any key.
    #[must_use]
    pub fn presenting_key(&self, chain_pem: &str, key_pem: &str, connections: Connections) -> Presenting<'_> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
            .map(Result::unwrap)
            .collect();
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).unwrap();
        let versions: &[_] = match connections {
            Connections::Kept | Connections::Resumed => &[&TLS13, &TLS12],
            Connections::KeptTls12 | Connections::ResumedTls12 => &[&TLS12],
        };
        let config = client_config_builder(&self.roots_pem(), &self.clock, versions);
        let config = Arc::new(config.with_client_cert_resolver(certified(chain, &key)));
        let client = client_builder(&config, self.address(), &[b"http/1.1"]);
        let client = match connections {
            Connections::Kept | Connections::KeptTls12 => client,
            Connections::Resumed | Connections::ResumedTls12 => client.pool_max_idle_per_host(0),
        };
        Presenting {
            server: self,
            api: Api::with(client, PUBLIC_URL, PUBLIC_URL),
        }
    }

    fn roots_pem(&self) -> String {
        self.server.roots_pem()
    }

    /// The API key for this role, which was created when the server started.
    #[must_use]
    pub fn api_key(&self, role: Role) -> &str {
        let position = Role::ALL.iter().position(|other| *other == role).unwrap();
        &self.keys[position]
    }

    /// The `aud` of evidence for it.
    #[must_use]
    pub fn audience(&self) -> &'static str {
        PUBLIC_URL
    }

    /// Its API.
    #[must_use]
    pub fn reached(&self) -> &Api {
        &self.api
    }

    /// A request to it.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.api.request(method, path)
    }

    /// A request with the API key for the role `admin`.
    pub fn admin(&self, method: Method, path: &str) -> RequestBuilder {
        self.request(method, path).bearer_auth(self.api_key(Role::Admin))
    }

    /// Sends a request and checks the response against the conventions.
    pub async fn send(&self, request: RequestBuilder) -> Answer {
        Answer::to(request).await
    }

    /// Reads as an administrator.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.admin(Method::GET, path)).await
    }

    /// Changes something as an administrator.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(self.admin(Method::POST, path).json(body)).await
    }

    /// Deletes something as an administrator.
    pub async fn delete(&self, path: &str) -> Answer {
        self.send(self.admin(Method::DELETE, path)).await
    }

    /// Calls an endpoint for agents.
    pub async fn call(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    /// A fresh nonce. Sets the clock forward a little, because each nonce of a machine must be later than its last one.
    pub async fn nonce(&self) -> String {
        self.clock.advance(Duration::milliseconds(1));
        self.send(self.request(Method::GET, "/v1/nonce"))
            .await
            .nonce()
            .to_owned()
    }

    /// Creates an enrollment token with these members. Otherwise it is for a day, for a thousand machines with any serial
    /// number, and needs no approval.
    pub async fn enrollment_token(&self, fields: Value) -> String {
        let created = self.create_enrollment_token(fields).await;
        created["token"].as_str().unwrap().to_owned()
    }

    /// Creates an enrollment token, and returns the whole response.
    pub async fn create_enrollment_token(&self, fields: Value) -> Value {
        let mut request = token_of(json!({"expires_in_seconds": 86_400, "max_uses": 1000}));
        for (name, value) in fields.as_object().unwrap() {
            request[name] = value.clone();
        }
        let created = self.post("/v1/admin/enrollment-tokens", &request).await;
        created.expect(201).json()
    }

    /// The items of a list's first page.
    pub async fn items(&self, path: &str) -> Vec<Value> {
        items(self.get(path).await.expect(200).json())
    }

    /// A machine's record.
    pub async fn record(&self, machine: &Machine) -> Value {
        self.get(&machine.path()).await.expect(200).json()
    }

    /// A machine's events, newest first.
    pub async fn events(&self, machine: &Machine) -> Vec<Value> {
        self.items(&format!("{}/events", machine.path())).await
    }

    /// Enrolls a new machine with a token of its own.
    pub async fn enrolled(&self, serial_number: &str) -> Machine {
        let token = self.enrollment_token(json!({"max_uses": 1})).await;
        let machine = Machine::with_serial_number(serial_number);
        let _enrolled = machine.enroll(self, Some(&token)).await.expect(201);
        machine
    }

    /// Its metrics.
    pub async fn metrics(&self) -> String {
        let mut connection = TcpStream::connect(self.server.telemetry_address()).await.unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nHost: telemetry\r\nConnection: close\r\n\r\n";
        connection.write_all(request).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// A machine whose key an attestation counts for: it claims the Secure Enclave, and came with a token for its serial number.
    pub async fn attestable(&self, serial_number: &str) -> Machine {
        let token = self.enrollment_token(json!({"serial_numbers": [serial_number]})).await;
        let machine = Machine::with_serial_number(serial_number).in_enclave();
        let _enrolled = machine.enroll(self, Some(&token)).await.expect(201);
        machine
    }

    /// Stops it.
    pub async fn stop(self) {
        drop(self.api);
        self.server.stop().await.unwrap();
    }
}

impl Called for InProcess {
    fn api(&self) -> &Api {
        &self.api
    }

    /// Always a fresh nonce, because the test may have set the clock past the end of an older one.
    async fn next_nonce(&self, _at_hand: Option<String>) -> String {
        self.nonce().await
    }
}

/// How a machine with a certificate connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// One connection for all calls.
    Kept,
    /// One connection for all calls, with TLS 1.2.
    KeptTls12,
    /// A new connection for each call, which resumes the TLS session.
    Resumed,
    /// A new connection for each call, which resumes the TLS session, with TLS 1.2.
    ResumedTls12,
}

/// A server over connections with a client certificate.
pub struct Presenting<'a> {
    server: &'a InProcess,
    api: Api,
}

impl Called for Presenting<'_> {
    fn api(&self) -> &Api {
        &self.api
    }

    async fn next_nonce(&self, _at_hand: Option<String>) -> String {
        self.server.nonce().await
    }
}

/// The environment of a server with these keys of the configuration.
pub(crate) fn variables(database_url: &str, data_dir: &TempDir, settings: &[(&str, &str)]) -> Vec<(String, String)> {
    let data_dir = data_dir.path().display().to_string();
    let basis = [
        ("public_url", PUBLIC_URL),
        ("trust_domain", "example.com"),
        ("listen", "127.0.0.1:0"),
        ("telemetry.listen", "127.0.0.1:0"),
        ("revocation.listen", "127.0.0.1:0"),
        ("revocation.url", REVOCATION_URL),
        ("data_dir", &data_dir),
        ("database.url", database_url),
        ("database.max_connections", "4"),
        ("master_key", MASTER_KEY),
    ];
    let variables = basis.iter().chain(settings).map(|(key, value)| {
        let variable = format!("ASSAY_{}", key.to_uppercase().replace('.', "__"));
        (variable, (*value).to_owned())
    });
    variables.collect()
}

fn client_builder(tls: &Arc<ClientConfig>, address: SocketAddr, protocols: &[&[u8]]) -> reqwest::ClientBuilder {
    let mut tls = ClientConfig::clone(tls);
    tls.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Client::builder()
        .tls_backend_preconfigured(tls)
        .resolve(HOST, address)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
}

/// Does not check that chain and key match, because the server must refuse them.
fn certified(chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'_>) -> Arc<SingleCertAndKey> {
    let key = aws_lc_rs::sign::any_supported_type(key).unwrap();
    Arc::new(CertifiedKey::new(chain, key).into())
}

fn client_config(roots_pem: &str, clock: &MockClock) -> ClientConfig {
    client_config_builder(roots_pem, clock, &[&TLS13, &TLS12]).with_no_client_auth()
}

fn client_config_builder(
    roots_pem: &str,
    clock: &MockClock,
    versions: &[&'static SupportedProtocolVersion],
) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots_pem.as_bytes()) {
        roots.add(root.unwrap()).unwrap();
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    ClientConfig::builder_with_details(provider, Arc::new(ServersTime(clock.clone())))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
}

/// The client verifies certificates at the time of the server's clock.
#[derive(Clone)]
struct ServersTime(MockClock);

impl Debug for ServersTime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ServersTime")
    }
}

impl TimeProvider for ServersTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().unix_timestamp()).ok()?;
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)))
    }
}
