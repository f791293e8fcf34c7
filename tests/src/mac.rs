//! A machine with the agent's program.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

use crate::installation::Installation;
use crate::process::Process;
use crate::processes::{agent_command, agent_command_with_software_keys, enclave_folder};

/// An exit code: it did what it was asked.
pub const DONE: i32 = 0;
/// An exit code: it failed.
pub const FAILED: i32 = 1;
/// An exit code: it was asked in a wrong way.
pub const WRONG_USAGE: i32 = 2;
/// An exit code: an administrator must approve.
pub const WAITING_FOR_APPROVAL: i32 = 3;
/// An exit code: the server said no.
pub const REFUSED: i32 = 4;
/// An exit code: the server cannot be reached.
pub const SERVER_UNREACHABLE: i32 = 5;
/// An exit code: there is no such key store.
pub const KEY_STORE_UNAVAILABLE: i32 = 6;

/// A machine with the agent's program, and what it says of itself in a file.
#[derive(Debug)]
pub struct Mac {
    folder: TempDir,
    serial_number: String,
    url: String,
    roots: String,
    state: PathBuf,
    key_store: &'static str,
}

impl Mac {
    /// A new machine for this server, with its key in a stand-in for the Secure Enclave.
    #[must_use]
    pub fn new(installation: &Installation) -> Self {
        Self::with_key_store(installation, "secure-enclave")
    }

    /// The same with the agent as it is released, and a key in this store.
    #[must_use]
    pub fn with_key_store(installation: &Installation, key_store: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let roots = folder.path().join("roots.pem");
        fs::write(&roots, &installation.roots).unwrap();
        let mac = Self {
            serial_number: format!("C02{}", Uuid::new_v4().simple()),
            url: installation.servers[0].public_url(),
            roots: roots.to_str().unwrap().to_owned(),
            state: folder.path().join("state"),
            folder,
            key_store,
        };
        mac.says(&json!({"filevault_enabled": true, "os_name": "macOS", "os_version": "26.1"}));
        mac
    }

    /// Sets its posture.
    pub fn says(&self, posture: &Value) {
        let machine =
            json!({"serial_number": self.serial_number, "hardware_uuid": format!("UUID-{}", self.serial_number)});
        let facts = json!({"machine": machine, "posture": posture});
        fs::write(self.folder.path().join("facts.json"), facts.to_string()).unwrap();
    }

    /// Its serial number.
    #[must_use]
    pub fn serial_number(&self) -> &str {
        &self.serial_number
    }

    /// The server that it is to enroll at.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The file with the roots to trust.
    #[must_use]
    pub fn roots(&self) -> &str {
        &self.roots
    }

    /// The agent's state directory.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Lets every user of this machine pass through the folder that the state directory is in, as through /var/db.
    pub fn open_folder(&self) {
        fs::set_permissions(self.folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
    }

    /// Changes what the agent remembers, in one step as it does itself.
    pub fn rewrite_state(&self, change: impl FnOnce(&mut Value)) {
        let file = self.state.join("state.json");
        let mut state = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        change(&mut state);
        let changed = self.folder.path().join("state.json.changed");
        fs::write(&changed, state.to_string()).unwrap();
        fs::rename(changed, file).unwrap();
    }

    /// The file with the enrollment token of a daemon that enrolls by its configuration.
    #[must_use]
    pub fn token_file(&self) -> PathBuf {
        self.folder.path().join("token")
    }

    /// Starts the daemon, configured as a fleet's administrator would: by files.
    #[must_use]
    pub fn start_daemon(&self, token: &str) -> Process {
        self.start_daemon_with(token, "")
    }

    /// The same with more lines of its configuration.
    #[must_use]
    pub fn start_daemon_with(&self, token: &str, more: &str) -> Process {
        self.start(&["run", "--config", &self.configure(token, more)])
    }

    /// Writes a configuration with this token and these further lines, and returns its file.
    #[must_use]
    pub fn configure(&self, token: &str, further: &str) -> String {
        fs::write(self.token_file(), token).unwrap();
        let configuration = self.folder.path().join("agent.toml");
        let content = format!(
            "server = {:?}\nca_file = {:?}\ntoken_file = {:?}\n{further}\n",
            self.url,
            self.roots,
            self.token_file()
        );
        fs::write(&configuration, content).unwrap();
        configuration.to_str().unwrap().to_owned()
    }

    /// A file of the stand-in for its Secure Enclave: `agent/src/shim/stand_in.rs` explains them.
    #[must_use]
    pub fn enclave_file(&self, name: &str) -> PathBuf {
        let folder = enclave_folder(&self.state);
        fs::create_dir_all(&folder).unwrap();
        folder.join(name)
    }

    /// What its Secure Enclave does to the calls from now on, one fault a line.
    pub fn enclave_fails(&self, faults: &str) {
        // A call that reads it meanwhile sees the old faults or the new ones.
        let new = self.enclave_file("faults.new");
        fs::write(&new, format!("{faults}\n")).unwrap();
        fs::rename(new, self.enclave_file("faults")).unwrap();
    }

    /// What a configuration profile forces on it from now on.
    pub fn is_managed(&self, settings: &Value) {
        let new = self.enclave_file("managed.new");
        fs::write(&new, settings.to_string()).unwrap();
        fs::rename(new, self.enclave_file("managed.json")).unwrap();
    }

    /// How often its Secure Enclave was asked for this: `create`, `public-key` or `sign`.
    #[must_use]
    pub fn enclave_calls(&self, name: &str) -> usize {
        let calls = fs::read_to_string(self.enclave_file("calls")).unwrap_or_default();
        calls.lines().filter(|call| *call == name).count()
    }

    /// Everything that it has is another machine's from now on: what Migration Assistant leaves.
    pub fn becomes_another_machine(&mut self) {
        self.serial_number = format!("C02{}", Uuid::new_v4().simple());
        self.gets_another_enclave();
        self.says(&json!({"filevault_enabled": true, "os_name": "macOS", "os_version": "26.1"}));
    }

    /// Its Secure Enclave does not open what it sealed before.
    pub fn gets_another_enclave(&self) {
        fs::write(self.enclave_file("secret"), Uuid::new_v4().simple().to_string()).unwrap();
    }

    /// Starts a command.
    #[must_use]
    pub fn start(&self, arguments: &[&str]) -> Process {
        let mut command = match self.key_store {
            "software" => agent_command_with_software_keys(&self.state),
            _ => agent_command(&self.state),
        };
        command
            .arg("--facts")
            .arg(self.folder.path().join("facts.json"))
            .args(arguments);
        Process::spawn(command)
    }

    /// Runs a command, checks its exit code, and returns its output.
    pub fn run(&self, arguments: &[&str], exit_code: i32) -> impl Future<Output = String> {
        let process = self.start(arguments);
        let called = format!("{arguments:?}");
        async move {
            let status = process.ended().await;
            assert_eq!(status.code(), Some(exit_code), "{called}:\n{}", process.output());
            process.output().ended().await;
            process.output().lines().join("\n")
        }
    }

    /// Enrolls with a token, and checks the exit code.
    pub async fn enroll(&self, token: &str, exit_code: i32) -> String {
        let arguments = [
            "enroll",
            "--server",
            &self.url,
            "--ca-file",
            &self.roots,
            "--token",
            token,
        ];
        self.run(&arguments, exit_code).await
    }

    /// What `status --json` says.
    pub async fn status(&self) -> Value {
        let status = self.run(&["status", "--json"], DONE).await;
        serde_json::from_str(&status).unwrap_or_else(|error| panic!("{error} in {status}"))
    }
}
