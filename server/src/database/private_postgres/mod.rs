//! The server's private Postgres, for installations without a database of their own.
//!
//! It runs the programs installed on the system, listens only on a Unix socket under `data_dir`, and runs as long as a
//! process uses it. Three file locks coordinate this; the system releases them when a process dies. A process locks
//! *startup* to start or stop it, and *users* while it uses it. Postgres itself inherits the lock *running*. A
//! killed server leaves Postgres running. The next server joins it and stops it in the end.

mod account;
mod cluster;
mod directory;
mod error;
mod installation;
mod supervisor;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use sqlx::postgres::PgConnectOptions;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use cluster::Cluster;
use directory::Directory;

pub use account::Account;
pub use error::PrivatePostgresError;
pub use installation::{Installation, OLDEST_MAJOR, Version, binary_places, installed};

/// Where a private Postgres is, and its settings.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory of all of this server's files. Postgres uses `postgres` in it. It is created if it is missing.
    pub data_dir: PathBuf,
    /// How many connections the server's pool may open. A running Postgres keeps the limit with which it was started.
    pub max_connections: u32,
    /// Where to look for Postgres' programs: see [`binary_places`].
    pub binary_places: Vec<PathBuf>,
}

/// A reference to a running private Postgres. If Postgres dies, it is restarted while this value exists.
///
/// Dropping it without [`stop`](Self::stop) leaves Postgres running, and the next server joins it.
#[derive(Debug)]
pub struct PrivatePostgres {
    cluster: Arc<Cluster>,
    users: File,
    restarts: watch::Receiver<u64>,
    supervisor: AbortOnDropHandle<()>,
}

impl PrivatePostgres {
    /// Starts the Postgres of `data_dir`, or joins it if it runs. Returns when it accepts connections. A new database
    /// takes one or two seconds, a start some tenths of a second.
    ///
    /// # Errors
    /// One line that says what to install, allow or change. Nothing stays running then.
    pub async fn start(options: &Options) -> Result<Self, PrivatePostgresError> {
        let directory = Directory::new(&options.data_dir)?;
        let account = Account::to_run_postgres(&directory.cluster(), directory.data_dir())?;
        directory.create(account.as_ref())?;
        let startup = directory.lock_startup().await?;
        let users = directory.join_users()?;
        let cluster = Arc::new(Cluster {
            directory,
            account,
            binary_places: options.binary_places.clone(),
            max_connections: options.max_connections,
        });
        cluster.ensure_running().await?;
        drop(startup);
        let supervised = Arc::clone(&cluster);
        let (counter, restarts) = watch::channel(0);
        let supervisor = tokio::spawn(async move { supervisor::supervise(&supervised, &counter).await });
        Ok(Self {
            cluster,
            users,
            restarts,
            supervisor: AbortOnDropHandle::new(supervisor),
        })
    }

    /// The options to connect to the database `assay` as a superuser.
    #[must_use]
    pub fn connect_options(&self) -> PgConnectOptions {
        self.cluster.connect_options()
    }

    /// The options to connect as the server's role. It owns nothing, and has the privileges that the superuser grants
    /// it.
    #[must_use]
    pub fn server_options(&self) -> PgConnectOptions {
        self.cluster.server_options()
    }

    /// How often Postgres accepted connections again after it had died or closed them, since this value was created.
    #[must_use]
    pub fn restarts(&self) -> watch::Receiver<u64> {
        self.restarts.clone()
    }

    /// Leaves Postgres. The last process that leaves stops it and waits for its end. Close the pool first: a fast
    /// shutdown closes the remaining connections.
    ///
    /// # Errors
    /// `StillRunning` if it does not end, and `Io`.
    pub async fn stop(self) -> Result<(), PrivatePostgresError> {
        let Self {
            cluster,
            users,
            supervisor,
            ..
        } = self;
        supervisor.abort();
        // This error says that the task was aborted. Until then, it may have the startup lock.
        drop(supervisor.await);
        let _startup = cluster.directory.lock_startup().await?;
        if cluster.directory.leave_users(&users)? {
            cluster.stop().await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::time::Duration;

    use rustix::process::{Pid, Signal};
    use sqlx::{ConnectOptions, Connection, PgConnection};

    use super::*;

    /// A data directory that the unprivileged account may pass through, like `/var/lib/assay`.
    struct Fixture {
        parent: tempfile::TempDir,
        options: Options,
    }

    impl Fixture {
        fn new() -> Self {
            let parent = tempfile::tempdir().unwrap();
            fs::set_permissions(parent.path(), Permissions::from_mode(0o711)).unwrap();
            let data_dir = parent.path().join("assay");
            let binary_places = binary_places(&crate::config::search_path());
            Self {
                parent,
                options: Options {
                    data_dir,
                    max_connections: 16,
                    binary_places,
                },
            }
        }

        fn postgres(&self) -> PathBuf {
            self.options.data_dir.join("postgres")
        }

        fn postmaster(&self) -> Pid {
            let content = fs::read_to_string(self.postgres().join("cluster/postmaster.pid")).unwrap();
            Pid::from_raw(content.lines().next().unwrap().parse().unwrap()).unwrap()
        }

        /// Waits until all processes of Postgres have ended: each has this lock.
        fn wait_for_end(&self) {
            File::options()
                .read(true)
                .write(true)
                .open(self.postgres().join("running.lock"))
                .unwrap()
                .lock()
                .unwrap();
        }

        fn has_ended(&self) -> bool {
            let lock = File::options()
                .read(true)
                .write(true)
                .open(self.postgres().join("running.lock"))
                .unwrap();
            lock.try_lock().is_ok()
        }
    }

    impl Drop for Fixture {
        /// A failing test must not leave Postgres running.
        fn drop(&mut self) {
            if self.postgres().join("cluster/postmaster.pid").exists() && !self.has_ended() {
                rustix::process::kill_process(self.postmaster(), Signal::KILL).unwrap();
                self.wait_for_end();
            }
        }
    }

    async fn connect(postgres: &PrivatePostgres) -> PgConnection {
        postgres.connect_options().connect().await.unwrap()
    }

    /// Identifies one run of Postgres.
    async fn started_at(connection: &mut PgConnection) -> String {
        sqlx::query_scalar("SELECT pg_postmaster_start_time()::text")
            .fetch_one(connection)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn runs_unprivileged_on_a_socket_and_ends_with_its_user() {
        let fixture = Fixture::new();
        let postgres = PrivatePostgres::start(&fixture.options).await.unwrap();

        let mut connection = connect(&postgres).await;
        let query = "SELECT current_database() || ' ' || current_user || ' ' || lower('\u{c4}') \
                     || ' ' || current_setting('listen_addresses') || ' ' || current_setting('data_checksums')";
        let described: String = sqlx::query_scalar(query).fetch_one(&mut connection).await.unwrap();
        assert_eq!(described, "assay assay \u{e4}  on");
        connection.close().await.unwrap();

        let cluster = fs::metadata(fixture.postgres().join("cluster")).unwrap();
        let socket = fs::metadata(fixture.postgres().join("socket")).unwrap();
        assert_ne!(cluster.uid(), 0);
        assert_eq!((cluster.uid(), cluster.mode() & 0o777), (socket.uid(), 0o700));
        assert_eq!(socket.mode() & 0o777, 0o700);
        // The account of Postgres passes through the directory, and cannot list it.
        let expected = Account::unprivileged().unwrap().map_or(0o700, |_| 0o711);
        let data_dir = fs::metadata(&fixture.options.data_dir).unwrap();
        assert_eq!(data_dir.mode() & 0o777, expected);
        let group = rustix::process::getpgid(Some(fixture.postmaster())).unwrap();
        assert_ne!(
            group,
            rustix::process::getpgrp(),
            "Ctrl-C would reach it before the server has finished"
        );

        postgres.stop().await.unwrap();
        assert!(fixture.has_ended());
        assert!(
            !fixture.postgres().join("cluster/postmaster.pid").exists(),
            "it has not shut down properly"
        );
    }

    /// The account that runs Postgres may also run other clusters of this host.
    #[tokio::test]
    async fn only_the_servers_account_may_connect() {
        let Some(account) = Account::unprivileged().unwrap() else {
            return;
        };
        let fixture = Fixture::new();
        let postgres = PrivatePostgres::start(&fixture.options).await.unwrap();
        let places = &fixture.options.binary_places;
        let installations = installed(places);
        let mut programs = installations.iter().map(|installation| installation.program("psql"));
        let psql = programs.find(|psql| psql.is_file()).unwrap();
        let connect = |role: &str, uid: u32, gid: u32| {
            let mut psql = tokio::process::Command::new(&psql);
            psql.args(["--no-psqlrc", "--host"])
                .arg(fixture.postgres().join("socket"));
            psql.args(["--username", role, "--dbname", "assay", "--command", "SELECT 1"]);
            psql.env_clear().current_dir("/").uid(uid).gid(gid).output()
        };
        for role in ["assay", "assay_server"] {
            let refused = connect(role, account.uid, account.gid).await.unwrap();
            assert!(!refused.status.success(), "{role}");
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(said.contains("eer authentication failed"), "{said}");
            assert!(connect(role, 0, 0).await.unwrap().status.success(), "{role}");
        }
        postgres.stop().await.unwrap();
    }

    #[tokio::test]
    async fn is_shared_and_stops_with_the_last() {
        let fixture = Fixture::new();
        let (first, second) = tokio::try_join!(
            PrivatePostgres::start(&fixture.options),
            PrivatePostgres::start(&fixture.options)
        )
        .unwrap();
        let mut of_first = connect(&first).await;
        let mut of_second = connect(&second).await;
        assert_eq!(started_at(&mut of_first).await, started_at(&mut of_second).await);

        first.stop().await.unwrap();
        of_second.ping().await.unwrap();
        of_first.ping().await.unwrap();
        second.stop().await.unwrap();
        assert!(fixture.has_ended());
        assert!(of_second.ping().await.is_err());
    }

    #[tokio::test]
    async fn is_joined_after_a_crash_of_the_server_and_started_after_a_crash_of_both() {
        let fixture = Fixture::new();
        let crashed = PrivatePostgres::start(&fixture.options).await.unwrap();
        let mut connection = connect(&crashed).await;
        sqlx::query("CREATE TABLE kept AS SELECT 1 AS n")
            .execute(&mut connection)
            .await
            .unwrap();
        let first_start = started_at(&mut connection).await;
        // Like the end of a process, this releases the locks and stops nothing.
        drop(crashed);

        let next = PrivatePostgres::start(&fixture.options).await.unwrap();
        assert_eq!(started_at(&mut connect(&next).await).await, first_start);
        drop(next);
        let process_id_file = fixture.postgres().join("cluster/postmaster.pid");
        let stale = fs::read_to_string(&process_id_file).unwrap();
        rustix::process::kill_process(fixture.postmaster(), Signal::KILL).unwrap();
        fixture.wait_for_end();
        // The process id now belongs to another program: this one.
        let (_, rest) = stale.split_once('\n').unwrap();
        fs::write(&process_id_file, format!("{}\n{rest}", std::process::id())).unwrap();

        let last = PrivatePostgres::start(&fixture.options).await.unwrap();
        let mut connection = connect(&last).await;
        assert_ne!(started_at(&mut connection).await, first_start);
        let kept: i32 = sqlx::query_scalar("SELECT n FROM kept")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(kept, 1);
        last.stop().await.unwrap();
    }

    #[tokio::test]
    async fn is_started_again_when_it_dies() {
        let fixture = Fixture::new();
        let postgres = PrivatePostgres::start(&fixture.options).await.unwrap();
        let first_start = started_at(&mut connect(&postgres).await).await;
        let mut restarts = postgres.restarts();

        rustix::process::kill_process(fixture.postmaster(), Signal::KILL).unwrap();
        let restarted = tokio::time::timeout(Duration::from_secs(60), restarts.wait_for(|count| *count == 1));
        restarted.await.expect("it was not restarted").unwrap();

        assert_ne!(started_at(&mut connect(&postgres).await).await, first_start);
        postgres.stop().await.unwrap();
        assert!(fixture.has_ended());
    }

    #[tokio::test]
    async fn says_why_it_cannot_start() {
        let mut fixture = Fixture::new();
        let (places, data_dir) = (fixture.options.binary_places.clone(), fixture.options.data_dir.clone());

        fixture.options.binary_places = vec![fixture.parent.path().to_owned()];
        let error = PrivatePostgres::start(&fixture.options).await.unwrap_err();
        assert!(
            matches!(error, PrivatePostgresError::NotInstalled { found: None }),
            "{error}"
        );

        fixture.options.binary_places = places;
        fixture.options.data_dir = data_dir.join("x".repeat(80));
        let error = PrivatePostgres::start(&fixture.options).await.unwrap_err();
        assert!(
            matches!(error, PrivatePostgresError::SocketPathTooLong { length, .. } if length > 103),
            "{error}"
        );

        fixture.options.data_dir = data_dir;
        let broken = fixture.postgres().join("cluster");
        fs::create_dir(&broken).unwrap();
        fs::write(broken.join("PG_VERSION"), "14\n").unwrap();
        let error = PrivatePostgres::start(&fixture.options).await.unwrap_err();
        assert!(
            matches!(error, PrivatePostgresError::VersionNotInstalled { major: 14, .. }),
            "{error}"
        );
    }

    #[tokio::test]
    async fn names_the_directory_that_the_unprivileged_account_may_not_enter() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let fixture = Fixture::new();
        fs::set_permissions(fixture.parent.path(), Permissions::from_mode(0o700)).unwrap();
        let error = PrivatePostgres::start(&fixture.options).await.unwrap_err();
        let PrivatePostgresError::NotTraversable { directory, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(directory, fixture.parent.path());
    }
}
