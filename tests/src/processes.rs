//! The real programs, as processes of their own.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use assay_server::config::process_environment;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::cluster::Database;
use crate::output::Output;
use crate::process::Process;
use crate::seed::{profile_directory, target_directory};

const READY_WITHIN: Duration = Duration::from_secs(60);

/// Another process may take a free port before the server binds it.
const ATTEMPTS: u32 = 5;

/// Shared by all servers of the tests, because replicas on one database need the same key.
const MASTER_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

/// The path of a program of this workspace, built with the profile of the tests. The first call builds all programs.
pub fn program(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let directory = profile_directory();
        let profile = match directory.file_name().and_then(OsStr::to_str).unwrap() {
            "debug" => "dev",
            profile => profile,
        };
        let mut build = Command::new(env!("CARGO"));
        build.args([
            "build",
            "--quiet",
            "--workspace",
            "--bins",
            "--profile",
            profile,
            "--target-dir",
        ]);
        let status = build
            .arg(target_directory())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(status.success(), "the programs do not build");
    });
    let program = profile_directory().join(name);
    assert!(program.is_file(), "there is no program {}", program.display());
    program
}

/// The agent with a stand-in for the Secure Enclave. It differs from `assay-agent` only by a feature of that crate, so
/// building it reuses the dependencies. It does not build in a release profile.
fn agent_with_stand_in() -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--workspace", "--bin", "assay-agent-with-stand-in"]);
        build.args(["--features", "assay-agent/enclave-stand-in", "--target-dir"]);
        let status = build
            .arg(target_directory())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(status.success(), "the agent with a stand-in does not build");
    });
    target_directory().join("debug/assay-agent-with-stand-in")
}

/// The agent with a state directory and a key in a stand-in for the Secure Enclave, whose folder is beside the state
/// directory. The caller adds arguments.
#[must_use]
pub fn agent_command(state_dir: &Path) -> Command {
    let mut command = clean_command(&agent_with_stand_in());
    command
        .arg("--state-dir")
        .arg(state_dir)
        .args(["--key-store", "secure-enclave"]);
    let enclave = enclave_folder(state_dir);
    fs::create_dir_all(&enclave).unwrap();
    command.env("ASSAY_STAND_IN", enclave);
    command
}

/// The folder of the Secure Enclave's stand-in for the agent with this state directory.
#[must_use]
pub fn enclave_folder(state_dir: &Path) -> PathBuf {
    state_dir.with_extension("enclave")
}

/// `assay-agent` as it is released, with a state directory and software keys. The caller adds arguments.
#[must_use]
pub fn agent_command_with_software_keys(state_dir: &Path) -> Command {
    let mut command = clean_command(&program("assay-agent"));
    command
        .arg("--state-dir")
        .arg(state_dir)
        .args(["--key-store", "software"]);
    command
}

/// The configuration of a server to start. Clones share the data directory.
#[derive(Clone, Debug)]
pub struct ServerConfiguration {
    settings: BTreeMap<String, String>,
    /// Other variables of the environment.
    variables: BTreeMap<String, String>,
    data_dir: Arc<DataDirectory>,
    /// Another build of the server to run.
    program: Option<PathBuf>,
    ports: Option<Ports>,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    api: u16,
    telemetry: u16,
    revocation: u16,
}

impl Ports {
    /// Any free ports.
    const ANY: Self = Self {
        api: 0,
        telemetry: 0,
        revocation: 0,
    };
}

impl ServerConfiguration {
    /// A server on a database of the tests.
    #[must_use]
    pub fn new(database: &Database<'_>) -> Self {
        Self::with_private_postgres().set("database.url", &database.url())
    }

    /// A server with a private Postgres under its data directory.
    #[must_use]
    pub fn with_private_postgres() -> Self {
        let configuration = Self {
            settings: BTreeMap::new(),
            variables: BTreeMap::new(),
            data_dir: DataDirectory::new(),
            program: None,
            ports: None,
        };
        configuration
            .set("trust_domain", "example.com")
            .set("master_key", MASTER_KEY)
    }

    /// Sets a key of the configuration, by its path: `check_in.interval`.
    #[must_use]
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.settings.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sets a variable of the environment that is no key of the configuration.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Runs another build of the server.
    #[must_use]
    pub fn program(mut self, program: &Path) -> Self {
        self.program = Some(program.to_owned());
        self
    }

    /// Removes a key, so its default applies.
    #[must_use]
    pub fn without(mut self, key: &str) -> Self {
        self.settings.remove(key);
        self
    }

    /// Its data directory. It is removed when the configuration, its clones and its servers are dropped.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        self.data_dir.0.path()
    }

    /// Starts `assay-server serve`, and waits until it listens.
    ///
    /// # Panics
    /// With the server's output, if it ends before it listens.
    pub async fn start(&self) -> Server {
        for _ in 0..ATTEMPTS {
            let ports = self.ports.unwrap_or_else(|| Ports {
                api: free_port(),
                telemetry: free_port(),
                revocation: free_port(),
            });
            match Server::start(self.clone(), ports).await {
                Ok(server) => return server,
                Err(output) if self.ports.is_none() && output.to_string().contains("in use") => {}
                Err(output) => panic!("the server has ended before it listened:\n{output}"),
            }
        }
        panic!("no port stayed free in {ATTEMPTS} attempts");
    }

    /// Another command of `assay-server` with this configuration. It may run beside a server or alone.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_on(self.ports.unwrap_or(Ports::ANY), arguments)
    }

    /// Runs `api-key create`, and returns the key that it prints.
    ///
    /// # Panics
    /// If the command fails.
    pub async fn create_api_key(&self, name: &str, role: &str) -> String {
        let mut command = self.command(&["api-key", "create", "--name", name, "--role", role]);
        let output = tokio::task::spawn_blocking(move || command.output())
            .await
            .unwrap()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Its settings as environment variables, for a server in the test process, which binds free ports.
    #[must_use]
    pub fn environment(&self) -> BTreeMap<String, String> {
        self.environment_on(Ports::ANY)
    }

    fn environment_on(&self, ports: Ports) -> BTreeMap<String, String> {
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)).to_string();
        let mut settings = self.settings.clone();
        settings
            .entry("public_url".to_owned())
            .or_insert_with(|| format!("https://{}", loopback(ports.api)));
        settings.insert("listen".to_owned(), loopback(ports.api));
        settings.insert("telemetry.listen".to_owned(), loopback(ports.telemetry));
        settings
            .entry("revocation.listen".to_owned())
            .or_insert_with(|| loopback(ports.revocation));
        settings.insert("data_dir".to_owned(), self.data_dir().display().to_string());
        let variable = |key: &str| format!("ASSAY_{}", key.to_uppercase().replace('.', "__"));
        settings
            .into_iter()
            .map(|(key, value)| (variable(&key), value))
            .collect()
    }

    fn command_on(&self, ports: Ports, arguments: &[&str]) -> Command {
        let program = self.program.clone().unwrap_or_else(|| program("assay-server"));
        let mut command = clean_command(&program);
        command
            .args(arguments)
            .envs(&self.variables)
            .envs(self.environment_on(ports));
        command
    }
}

/// A running `assay-server serve`. Dropping it kills it with all of its processes. If the test has failed, its output
/// is printed.
#[derive(Debug)]
pub struct Server {
    configuration: ServerConfiguration,
    ports: Ports,
    process: Process,
}

impl Server {
    /// The address of its API.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.api).into()
    }

    /// The address of its metrics.
    #[must_use]
    pub fn telemetry_address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.telemetry).into()
    }

    /// The address of revocation lists and OCSP over plain HTTP.
    #[must_use]
    pub fn revocation_address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.revocation).into()
    }

    /// The base of the revocation URLs in certificates. Replicas share it, but each has an address of its own.
    #[must_use]
    pub fn revocation_url(&self) -> String {
        let own = || format!("http://{}", self.revocation_address());
        self.configuration
            .settings
            .get("revocation.url")
            .cloned()
            .unwrap_or_else(own)
    }

    /// Its public URL. Replicas may share a public URL, but each has an address of its own.
    #[must_use]
    pub fn public_url(&self) -> String {
        let own = || format!("https://{}", self.address());
        self.configuration
            .settings
            .get("public_url")
            .cloned()
            .unwrap_or_else(own)
    }

    /// Its configuration with its ports and public URL, to restart it on the same address or to run a command beside it.
    #[must_use]
    pub fn configuration(&self) -> ServerConfiguration {
        let mut configuration = self
            .configuration
            .clone()
            .set("public_url", &self.public_url())
            .set("revocation.url", &self.revocation_url());
        configuration.ports = Some(self.ports);
        configuration
    }

    /// The configuration of another replica. Public URL and database are the same; ports and data directory are new.
    #[must_use]
    pub fn replica(&self) -> ServerConfiguration {
        ServerConfiguration {
            ports: None,
            data_dir: DataDirectory::new(),
            ..self.configuration()
        }
    }

    /// Its output.
    #[must_use]
    pub fn output(&self) -> &Output {
        self.process.output()
    }

    /// Waits for a line with this message in its log, from its start on.
    pub async fn wait_for_message(&self, message: &str) -> Option<Value> {
        self.process
            .output()
            .wait_for(0, READY_WITHIN, |line| log_line(line, message))
            .await
    }

    /// Kills it as `kill -9` does.
    pub async fn kill(&self) -> ExitStatus {
        self.process.signal(Signal::KILL);
        self.process.ended().await
    }

    /// Sends SIGTERM, as systemd and Kubernetes do, and waits for its end.
    pub async fn terminate(&self) -> ExitStatus {
        self.process.signal(Signal::TERM);
        self.process.ended().await
    }

    /// Suspends it. It then neither answers nor closes a connection.
    pub fn pause(&self) {
        self.process.signal(Signal::STOP);
    }

    /// Continues it.
    pub fn resume(&self) {
        self.process.signal(Signal::CONT);
    }

    async fn start(configuration: ServerConfiguration, ports: Ports) -> Result<Self, Output> {
        let process = Process::spawn(configuration.command_on(ports, &["serve"]));
        let server = Self {
            configuration,
            ports,
            process,
        };
        match server.wait_for_message("listening").await {
            Some(_) => Ok(server),
            None => Err(server.process.output().clone()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the server on {} wrote:\n{}", self.address(), self.process.output());
        }
    }
}

/// The data directory of a server. A killed server leaves its private Postgres running for the next server. Dropping
/// the directory ends that Postgres.
#[derive(Debug)]
struct DataDirectory(tempfile::TempDir);

impl DataDirectory {
    fn new() -> Arc<Self> {
        let directory = tempfile::Builder::new().prefix("assay-").tempdir().unwrap();
        // The modes of /var/lib/assay: under root, Postgres runs as another account, which must be able to enter.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711)).unwrap();
        Arc::new(Self(directory))
    }
}

impl Drop for DataDirectory {
    fn drop(&mut self) {
        let postgres = self.0.path().join("postgres");
        let Ok(content) = fs::read_to_string(postgres.join("cluster/postmaster.pid")) else {
            return;
        };
        let Ok(running) = File::options()
            .read(true)
            .write(true)
            .open(postgres.join("running.lock"))
        else {
            return;
        };
        let process = content
            .lines()
            .next()
            .and_then(|line| line.parse().ok())
            .and_then(Pid::from_raw);
        // The processes of Postgres hold this lock while they run.
        if let (Some(process), Err(TryLockError::WouldBlock)) = (process, running.try_lock()) {
            kill_process(process, Signal::QUIT).unwrap();
            running.lock().unwrap();
        }
    }
}

/// The fields of a JSON log line with this message. They are members of the line, or of its member `fields`, which is
/// the default of `tracing_subscriber`.
fn log_line(line: &str, message: &str) -> Option<Value> {
    let value: Value = serde_json::from_str(line).ok()?;
    let fields = value.get("fields").unwrap_or(&value);
    (fields.get("message")? == message).then(|| fields.clone())
}

/// A command without the variables for Assay and Postgres in the environment of the tests.
fn clean_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    let inherited = process_environment().filter(|(name, _)| !name.starts_with("ASSAY_") && !name.starts_with("PG"));
    command.env_clear().envs(inherited).stdin(Stdio::null());
    command
}

/// A free port.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}
