//! A machine that runs the agent's program.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

use crate::installation::Installation;
use crate::process::Process;
use crate::processes::{agent_command, agent_command_with_software_keys, enclave_folder};

/// An exit code: the command succeeded.
pub const DONE: i32 = 0;
/// An exit code: the command failed.
pub const FAILED: i32 = 1;
/// An exit code: the command line is wrong.
pub const WRONG_USAGE: i32 = 2;
/// An exit code: an administrator must approve.
pub const WAITING_FOR_APPROVAL: i32 = 3;
/// An exit code: the server refused.
pub const REFUSED: i32 = 4;
/// An exit code: the server cannot be reached.
pub const SERVER_UNREACHABLE: i32 = 5;
/// An exit code: the key store does not exist on this machine.
pub const KEY_STORE_UNAVAILABLE: i32 = 6;

/// A machine that runs the agent's program. A file contains its facts.
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

    /// A new machine with the released agent, and with a key in this store.
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
        let machine = json!({"serial_number": self.serial_number, "hardware_uuid": self.hardware_uuid()});
        self.states(&json!({"machine": machine, "posture": posture}));
    }

    /// Sets all of its facts.
    pub fn states(&self, facts: &Value) {
        fs::write(self.facts(), facts.to_string()).unwrap();
    }

    /// Its hardware UUID.
    #[must_use]
    pub fn hardware_uuid(&self) -> String {
        format!("UUID-{}", self.serial_number)
    }

    /// Another holder of this machine's state, who claims the same hardware. Its key must be in a file.
    #[must_use]
    pub fn copied(&self) -> Self {
        assert_eq!(self.key_store, "software");
        let folder = tempfile::tempdir().unwrap();
        let roots = folder.path().join("roots.pem");
        for (from, to) in [
            (Path::new(&self.roots), &roots),
            (&self.facts(), &folder.path().join("facts.json")),
        ] {
            fs::copy(from, to).unwrap();
        }
        let copy = Self {
            serial_number: self.serial_number.clone(),
            url: self.url.clone(),
            roots: roots.to_str().unwrap().to_owned(),
            state: folder.path().join("state"),
            folder,
            key_store: self.key_store,
        };
        copy.restore(&self.back_up());
        copy
    }

    /// The files of its state directory, as a backup has them.
    #[must_use]
    pub fn back_up(&self) -> Vec<(OsString, Vec<u8>)> {
        let entries = fs::read_dir(&self.state).unwrap().map(Result::unwrap);
        let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
        files
            .map(|file| (file.file_name(), fs::read(file.path()).unwrap()))
            .collect()
    }

    /// Replaces its state directory by a backup.
    pub fn restore(&self, backup: &[(OsString, Vec<u8>)]) {
        if self.state.exists() {
            fs::remove_dir_all(&self.state).unwrap();
        }
        fs::create_dir(&self.state).unwrap();
        fs::set_permissions(&self.state, fs::Permissions::from_mode(0o700)).unwrap();
        for (name, content) in backup {
            let file = self.state.join(name);
            fs::write(&file, content).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }

    fn facts(&self) -> PathBuf {
        self.folder.path().join("facts.json")
    }

    /// Its serial number.
    #[must_use]
    pub fn serial_number(&self) -> &str {
        &self.serial_number
    }

    /// The URL of the server to enroll with.
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

    /// Lets every user of this machine enter the parent of the state directory, as they can enter /var/db.
    pub fn open_folder(&self) {
        fs::set_permissions(self.folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
    }

    /// Changes the agent's record by replacing the file, as the agent does.
    pub fn rewrite_state(&self, change: impl FnOnce(&mut Value)) {
        let file = self.state.join("state.json");
        let mut state = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        change(&mut state);
        let changed = self.folder.path().join("state.json.changed");
        fs::write(&changed, state.to_string()).unwrap();
        fs::rename(changed, file).unwrap();
    }

    /// The file with the enrollment token, for a daemon whose configuration says to enroll.
    #[must_use]
    pub fn token_file(&self) -> PathBuf {
        self.folder.path().join("token")
    }

    /// Starts the daemon, configured by files, as an administrator of a fleet would.
    #[must_use]
    pub fn start_daemon(&self, token: &str) -> Process {
        self.start_daemon_with(token, "")
    }

    /// Starts the daemon with more lines of configuration.
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

    /// A file of the stand-in for its Secure Enclave. `agent/src/shim/stand_in.rs` explains these files.
    #[must_use]
    pub fn enclave_file(&self, name: &str) -> PathBuf {
        let folder = enclave_folder(&self.state);
        fs::create_dir_all(&folder).unwrap();
        folder.join(name)
    }

    /// Sets the faults of its Secure Enclave, one on each line.
    pub fn enclave_fails(&self, faults: &str) {
        // Replaces the file, so a concurrent call reads either the old faults or the new ones.
        let new = self.enclave_file("faults.new");
        fs::write(&new, format!("{faults}\n")).unwrap();
        fs::rename(new, self.enclave_file("faults")).unwrap();
    }

    /// Sets the settings that a configuration profile forces.
    pub fn is_managed(&self, settings: &Value) {
        let new = self.enclave_file("managed.new");
        fs::write(&new, settings.to_string()).unwrap();
        fs::rename(new, self.enclave_file("managed.json")).unwrap();
    }

    /// How often its Secure Enclave performed `create`, `public-key` or `sign`.
    #[must_use]
    pub fn enclave_calls(&self, name: &str) -> usize {
        let calls = fs::read_to_string(self.enclave_file("calls")).unwrap_or_default();
        calls.lines().filter(|call| *call == name).count()
    }

    /// Moves everything except the Secure Enclave to another machine, as Migration Assistant does.
    pub fn becomes_another_machine(&mut self) {
        self.serial_number = format!("C02{}", Uuid::new_v4().simple());
        self.gets_another_enclave();
        self.says(&json!({"filevault_enabled": true, "os_name": "macOS", "os_version": "26.1"}));
    }

    /// Replaces its Secure Enclave by one that cannot open the sealed keys.
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
        command.arg("--facts").arg(self.facts()).args(arguments);
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

    /// The output of `status --json`.
    pub async fn status(&self) -> Value {
        let status = self.run(&["status", "--json"], DONE).await;
        serde_json::from_str(&status).unwrap_or_else(|error| panic!("{error} in {status}"))
    }
}
