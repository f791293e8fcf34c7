//! The Postgres cluster in one directory: initializing, starting and stopping it. Callers must have the startup lock.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::account::Account;
use super::directory::{Directory, last_line};
use super::{PrivatePostgresError, installation};

/// Recovery after a crash replays everything since the last checkpoint. This takes seconds, and rarely minutes.
const READY_TIMEOUT: Duration = Duration::from_secs(300);
/// A fast shutdown writes a checkpoint.
const FAST_STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// An immediate shutdown writes nothing.
const IMMEDIATE_STOP_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_millis(250);

/// The superuser, and the name of the database.
const NAME: &str = "assay";

/// The server's role.
const SERVER_ROLE: &str = "assay_server";

/// Who may connect if Postgres has an account of its own: the accounts that `users.conf` maps to a role. Postgres'
/// account may also run other clusters of this host. The kernel tells Postgres the account of each connection.
const ACCESS: &str = "local all assay,assay_server peer map=assay\n";

/// SQLSTATEs of a Postgres that will accept connections soon: `cannot_connect_now`, `admin_shutdown`, `crash_shutdown`,
/// `too_many_connections`.
const TRANSIENT: [&str; 4] = ["57P03", "57P01", "57P02", "53300"];

/// Connections in addition to the server's pool: Postgres' reserve for superusers (3), the supervisor's, and some for
/// commands that run beside the server.
const FURTHER_CONNECTIONS: u32 = 12;

#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) directory: Directory,
    pub(super) account: Option<Account>,
    pub(super) binary_places: Vec<PathBuf>,
    pub(super) max_connections: u32,
}

impl Cluster {
    pub(super) fn connect_options(&self) -> PgConnectOptions {
        // This sets everything that `new_without_pgpass` takes from PG… variables and that matters for a socket.
        PgConnectOptions::new_without_pgpass()
            .host("localhost")
            .port(5432)
            .socket(self.directory.socket_directory())
            .ssl_mode(PgSslMode::Disable)
            .username(NAME)
            .database(NAME)
    }

    pub(super) fn server_options(&self) -> PgConnectOptions {
        self.connect_options().username(SERVER_ROLE)
    }

    /// Starts Postgres unless it runs, and waits until it accepts connections. Creates the database and the server's
    /// role if they are missing: clusters of older versions lack the role.
    ///
    /// # Errors
    /// The reason why it cannot run.
    pub(super) async fn ensure_running(&self) -> Result<(), PrivatePostgresError> {
        self.directory
            .create_for_postgres(&self.directory.socket_directory(), self.account.as_ref())?;
        let mut connection = self.start_and_connect().await?;
        let exists: Option<i32> = sqlx::query_scalar("SELECT 1 FROM pg_database WHERE datname = $1")
            .bind(NAME)
            .fetch_optional(&mut connection)
            .await?;
        if exists.is_none() {
            sqlx::query("CREATE DATABASE assay").execute(&mut connection).await?;
        }
        let role: Option<i32> = sqlx::query_scalar("SELECT 1 FROM pg_roles WHERE rolname = $1")
            .bind(SERVER_ROLE)
            .fetch_optional(&mut connection)
            .await?;
        if role.is_none() {
            sqlx::query("CREATE ROLE assay_server LOGIN")
                .execute(&mut connection)
                .await?;
        }
        connection.close().await?;
        Ok(())
    }

    /// Stops Postgres if it runs, and waits for its end. Connections are closed, and committed data is on disk.
    ///
    /// # Errors
    /// `StillRunning` if neither a fast nor an immediate shutdown ended it, and `Io`.
    pub(super) async fn stop(&self) -> Result<(), PrivatePostgresError> {
        for (signal, within) in [(Signal::INT, FAST_STOP_TIMEOUT), (Signal::QUIT, IMMEDIATE_STOP_TIMEOUT)] {
            if self.directory.try_lock_running()?.is_some() {
                return Ok(());
            }
            self.signal(signal).await?;
            if timeout(within, self.ended()).await.is_ok_and(|ended| ended.is_ok()) {
                return Ok(());
            }
        }
        Err(PrivatePostgresError::StillRunning)
    }

    async fn start_and_connect(&self) -> Result<PgConnection, PrivatePostgresError> {
        let deadline = Instant::now() + READY_TIMEOUT;
        let mut pause = FIRST_PAUSE;
        let mut child = None;
        loop {
            // Postgres may also end during this loop, if it was shutting down when the last server was killed.
            if child.is_none()
                && let Some(running) = self.directory.try_lock_running()?
            {
                child = Some(self.start(running).await?);
            }
            match self.connect().await {
                Ok(connection) => return Ok(connection),
                Err(error) if !is_transient(&error) || Instant::now() >= deadline => {
                    return Err(PrivatePostgresError::NotAccepting(error));
                }
                Err(_) => {}
            }
            match &mut child {
                None => sleep(pause).await,
                Some(child) => tokio::select! {
                    _ = child.wait() => {
                        return Err(PrivatePostgresError::Ended {
                            message: self.directory.last_log_line(),
                            log: self.directory.log(),
                        });
                    }
                    () = sleep(pause) => {}
                },
            }
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// The timeout is for a Postgres stopped with SIGSTOP: it accepts connections and never responds.
    async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        let options = self.connect_options().database("postgres");
        let connecting = timeout(CONNECT_TIMEOUT, options.connect());
        connecting
            .await
            .unwrap_or_else(|elapsed| Err(sqlx::Error::Io(io::Error::from(elapsed))))
    }

    async fn start(&self, running: File) -> Result<Child, PrivatePostgresError> {
        let made_by = self.directory.cluster_version()?;
        let places = self.binary_places.clone();
        let installations = tokio::task::spawn_blocking(move || installation::installed(&places))
            .await
            .map_err(io::Error::other)
            .map_err(PrivatePostgresError::io("find the programs of", "Postgres"))?;
        let chosen = installation::choose(installations, made_by, &self.directory.cluster())?;
        if made_by.is_none() {
            self.initialize(&chosen, &running).await?;
        }
        self.remove_stale_process_id()?;
        let access = self.write_access()?;
        let log = self.directory.new_log()?;
        let program = chosen.program("postgres");
        tracing::info!(version = %chosen.version(), "starting the private Postgres");
        let mut command = self.command(program.as_os_str(), running);
        command
            .arg("-D")
            .arg(self.directory.cluster())
            .arg("-k")
            .arg(self.directory.socket_directory())
            .args(["-p", "5432"])
            .args(
                self.settings()
                    .iter()
                    .chain(&access)
                    .flat_map(|setting| ["-c", setting.as_str()]),
            );
        let log_for_errors = log
            .try_clone()
            .map_err(PrivatePostgresError::io("share", self.directory.log()))?;
        command.stdout(log).stderr(log_for_errors);
        command.spawn().map_err(PrivatePostgresError::io("run", program))
    }

    /// Initializes the cluster in another directory and renames it. An incomplete cluster is thus never used.
    async fn initialize(
        &self,
        chosen: &installation::Installation,
        running: &File,
    ) -> Result<(), PrivatePostgresError> {
        let new_cluster = self.directory.new_cluster();
        match fs::remove_dir_all(&new_cluster) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(PrivatePostgresError::io("remove", new_cluster)(error));
            }
            _ => {}
        }
        self.directory
            .create_for_postgres(&new_cluster, self.account.as_ref())?;
        let program = chosen.program("initdb");
        // An initdb that outlives a killed server keeps the lock. The next server then waits for it.
        let running = running
            .try_clone()
            .map_err(PrivatePostgresError::io("share", "running.lock"))?;
        let mut command = self.command(program.as_os_str(), running);
        command.args([
            "--auth-local=trust",
            "--auth-host=reject",
            "--encoding=UTF8",
            "--data-checksums",
        ]);
        command
            .args(["--no-instructions", "--username", NAME])
            .args(chosen.locale_arguments());
        command.arg("-D").arg(&new_cluster).kill_on_drop(true);
        let output = command
            .output()
            .await
            .map_err(PrivatePostgresError::io("run", program))?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            return Err(PrivatePostgresError::Initialization {
                message: last_line(&said),
            });
        }
        let cluster = self.directory.cluster();
        fs::rename(&new_cluster, &cluster).map_err(PrivatePostgresError::io("rename", new_cluster))?;
        let parent = cluster.parent().unwrap_or(&cluster);
        let synced = File::open(parent).and_then(|parent| parent.sync_all());
        synced.map_err(PrivatePostgresError::io("write", parent))
    }

    /// Writes who may connect, and returns the settings that name the files. Postgres reads them at its start, and its
    /// account cannot change them. Without an account of its own, Postgres belongs to the server's account, and only that
    /// account reaches the socket.
    fn write_access(&self) -> Result<Vec<String>, PrivatePostgresError> {
        if self.account.is_none() {
            return Ok(Vec::new());
        }
        let mut users = String::new();
        for user in self.directory.owners()? {
            for role in [NAME, SERVER_ROLE] {
                users.push_str(&format!("assay \"{user}\" {role}\n"));
            }
        }
        let access = self.directory.publish("access.conf", ACCESS)?;
        let users = self.directory.publish("users.conf", &users)?;
        Ok(vec![
            format!("hba_file={}", access.display()),
            format!("ident_file={}", users.display()),
        ])
    }

    /// Removes the process id file of a dead Postgres. The caller has the running lock, so no process of a Postgres
    /// started here is left. Postgres itself would mistake any program that now has the old process id for its
    /// predecessor, and refuse to start. A Postgres started manually, with another socket, is not touched: Postgres
    /// itself decides about it.
    fn remove_stale_process_id(&self) -> Result<(), PrivatePostgresError> {
        let path = self.directory.postmaster_pid();
        let socket_directory = self.directory.socket_directory();
        let started_here = fs::read_to_string(&path)
            .is_ok_and(|content| content.lines().nth(4).map(OsStr::new) == Some(socket_directory.as_os_str()));
        if started_here {
            fs::remove_file(&path).map_err(PrivatePostgresError::io("remove", path))?;
        }
        for name in [".s.PGSQL.5432", ".s.PGSQL.5432.lock"] {
            match fs::remove_file(socket_directory.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(PrivatePostgresError::io("remove", socket_directory.join(name))(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A command that runs a program of Postgres under its account. It inherits no environment variables, because ours
    /// contain secrets. It has its own process group: Ctrl-C goes to a whole group, and the server still needs the
    /// database while it stops.
    fn command(&self, program: &OsStr, running: File) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .env("PATH", "/usr/bin:/bin");
        command
            .process_group(0)
            .current_dir(self.directory.socket_directory())
            .stdin(Stdio::from(running));
        if let Some(account) = &self.account {
            command.uid(account.uid).gid(account.gid);
        }
        command
    }

    fn settings(&self) -> [String; 17] {
        [
            "listen_addresses=".to_owned(),
            "unix_socket_permissions=0700".to_owned(),
            format!(
                "max_connections={}",
                self.max_connections.saturating_add(FURTHER_CONNECTIONS)
            ),
            "shared_buffers=256MB".to_owned(),
            "max_wal_size=2GB".to_owned(),
            "synchronous_commit=on".to_owned(),
            "fsync=on".to_owned(),
            "full_page_writes=on".to_owned(),
            // Logs events of Postgres itself, but no statements or values: those can be secret.
            "logging_collector=off".to_owned(),
            "log_destination=stderr".to_owned(),
            "log_min_messages=log".to_owned(),
            "log_min_error_statement=panic".to_owned(),
            "log_error_verbosity=terse".to_owned(),
            "log_checkpoints=off".to_owned(),
            "log_autovacuum_min_duration=-1".to_owned(),
            "log_line_prefix=%m [%p] ".to_owned(),
            "cluster_name=assay".to_owned(),
        ]
    }

    /// Sends a signal to the process that listens on the socket. If there is none, Postgres is already ending.
    async fn signal(&self, signal: Signal) -> Result<(), PrivatePostgresError> {
        if UnixStream::connect(self.directory.socket()).await.is_err() {
            return Ok(());
        }
        let path = self.directory.postmaster_pid();
        let content = fs::read_to_string(&path).map_err(PrivatePostgresError::io("read", &path))?;
        let process = content
            .lines()
            .next()
            .and_then(|line| line.trim().parse().ok())
            .and_then(Pid::from_raw);
        let Some(process) = process else {
            let source = io::Error::new(io::ErrorKind::InvalidData, "the first line is not a process id");
            return Err(PrivatePostgresError::io("read", path)(source));
        };
        match rustix::process::kill_process(process, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(PrivatePostgresError::io("signal the process in", path)(error.into())),
        }
    }

    /// Polls, because there is no event for the end of another process' child.
    async fn ended(&self) -> Result<(), PrivatePostgresError> {
        while self.directory.try_lock_running()?.is_none() {
            sleep(FIRST_PAUSE).await;
        }
        Ok(())
    }
}

fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => error.kind() != io::ErrorKind::PermissionDenied,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| TRANSIENT.contains(&code.as_ref())),
        _ => false,
    }
}
