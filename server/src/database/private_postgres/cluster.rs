//! The Postgres of one directory: made, started, told to stop. Callers hold the startup lock.

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

/// Recovery after a crash replays what was written since the last checkpoint: seconds, rarely minutes.
const READY_WITHIN: Duration = Duration::from_secs(300);
/// A fast shutdown ends with a checkpoint.
const STOPPED_WITHIN: Duration = Duration::from_secs(60);
/// An immediate shutdown writes nothing.
const STOPPED_AT_ONCE_WITHIN: Duration = Duration::from_secs(10);
const CONNECTED_WITHIN: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// The superuser of the cluster, and the database that it is for.
const NAME: &str = "assay";

/// The role that a server works as.
const SERVER_ROLE: &str = "assay_server";

/// SQLSTATE of a Postgres that will answer in a moment: `cannot_connect_now`, `admin_shutdown`, `crash_shutdown`,
/// `too_many_connections`.
const TRANSIENT: [&str; 4] = ["57P03", "57P01", "57P02", "53300"];

/// Connections beyond what the server's pool may take: Postgres' own reserve for superusers (3), the supervisor's, and
/// some for commands that run beside the server.
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
        // Every setting that `new_without_pgpass` takes from the PG… variables and that matters on a socket is set here.
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

    /// Starts Postgres unless it runs, waits until it accepts connections, and makes the database and the server's role
    /// when they are missing, as the role is in a cluster of an older version.
    ///
    /// # Errors
    /// What keeps it from running.
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

    /// Stops Postgres if it runs: connections are cut, what was committed is on disk. Waits for its end.
    ///
    /// # Errors
    /// `StillRunning` when neither a fast nor an immediate shutdown ended it, and `Io`.
    pub(super) async fn stop(&self) -> Result<(), PrivatePostgresError> {
        for (signal, within) in [(Signal::INT, STOPPED_WITHIN), (Signal::QUIT, STOPPED_AT_ONCE_WITHIN)] {
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
        let deadline = Instant::now() + READY_WITHIN;
        let mut pause = FIRST_PAUSE;
        let mut child = None;
        loop {
            // It may also end while this waits: a shutdown that was under way when the last server was killed.
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
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// A Postgres that was stopped with SIGSTOP accepts and never answers, hence the limit.
    async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        let options = self.connect_options().database("postgres");
        let connecting = timeout(CONNECTED_WITHIN, options.connect());
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
            .map_err(PrivatePostgresError::io("look for the programs of", "Postgres"))?;
        let chosen = installation::choose(installations, made_by, &self.directory.cluster())?;
        if made_by.is_none() {
            self.initialize(&chosen, &running).await?;
        }
        self.remove_stale_process_id()?;
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
            .args(self.settings().iter().flat_map(|setting| ["-c", setting.as_str()]));
        let log_for_errors = log
            .try_clone()
            .map_err(PrivatePostgresError::io("share", self.directory.log()))?;
        command.stdout(log).stderr(log_for_errors);
        command.spawn().map_err(PrivatePostgresError::io("run", program))
    }

    /// Makes the cluster beside its place and renames it, so that a half-made one is never taken for a database.
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
        // An initdb that outlives a killed server keeps the lock, so that the next server waits for it.
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

    /// The caller has the running lock, so no process of a Postgres that was started here is left. Postgres itself
    /// would take any program that has got the old process id since for its predecessor, and refuse to start.
    /// A Postgres that somebody started by hand, on another socket, is left to Postgres' own judgement.
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

    /// A program of Postgres, as the account that runs it, and with no variable of ours: they hold secrets. In a process
    /// group of its own, as Ctrl-C goes to all processes of a group, and the server still has requests to answer then.
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
            // What happens to Postgres itself, and no statement or value: those can be secret.
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

    /// Sends a signal to the process that has the socket, if one has it: otherwise Postgres is ending already.
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
            let source = io::Error::new(io::ErrorKind::InvalidData, "no process id in its first line");
            return Err(PrivatePostgresError::io("read", path)(source));
        };
        match rustix::process::kill_process(process, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(PrivatePostgresError::io("signal the process in", path)(error.into())),
        }
    }

    /// No event tells of the end of a process that is another's child, so this looks.
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
