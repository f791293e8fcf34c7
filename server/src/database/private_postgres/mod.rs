//! A Postgres of the server's own, for installations that have no database to point it at.
//!
//! It runs the binaries that are installed on the system, listens on a Unix socket under `data_dir` and nowhere else,
//! and lives as long as one process uses it. Three file locks, which the system releases when a process dies, carry
//! that: *startup* (who starts or stops it), *users* (who is connected) and *running* (inherited by Postgres itself).
//! A server that was killed leaves Postgres running; the next one joins it, and stops it in the end.

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

/// Where a private Postgres lives and what it is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory that holds everything of this server; Postgres gets `postgres` in it. Made when it is missing.
    pub data_dir: PathBuf,
    /// How many connections the server's pool may open. A process that joins a running Postgres takes what is left of
    /// the number that it was started with.
    pub max_connections: u32,
    /// Where to look for Postgres' programs: [`binary_places`].
    pub binary_places: Vec<PathBuf>,
}

/// A share in a running private Postgres. When it dies, it is started again as long as this lives.
///
/// Dropped without [`stop`](Self::stop), it leaves Postgres running for the next one to take over.
#[derive(Debug)]
pub struct PrivatePostgres {
    cluster: Arc<Cluster>,
    users: File,
    restarts: watch::Receiver<u64>,
    supervisor: AbortOnDropHandle<()>,
}

impl PrivatePostgres {
    /// Starts the Postgres of `data_dir`, or joins it if it runs, and returns once it accepts connections. A new
    /// database takes a second or two, a start some tenths.
    ///
    /// # Errors
    /// One line that says what to install, allow or change. Nothing that was started is in use then.
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

    /// How to connect to the database `assay`, as a superuser.
    #[must_use]
    pub fn connect_options(&self) -> PgConnectOptions {
        self.cluster.connect_options()
    }

    /// How to connect to it as the role that a server works as: it owns nothing, and has the privileges that the
    /// superuser gives it.
    #[must_use]
    pub fn server_options(&self) -> PgConnectOptions {
        self.cluster.server_options()
    }

    /// How often it accepted connections again after it had died or closed them, since this was started.
    #[must_use]
    pub fn restarts(&self) -> watch::Receiver<u64> {
        self.restarts.clone()
    }

    /// Leaves it; whoever leaves last stops it, and returns when it has ended. Close the pool first: a fast shutdown
    /// cuts the connections that are left.
    ///
    /// # Errors
    /// `StillRunning` when it does not end, and `Io`.
    pub async fn stop(self) -> Result<(), PrivatePostgresError> {
        let Self {
            cluster,
            users,
            supervisor,
            ..
        } = self;
        supervisor.abort();
        // The error says that the task was aborted. It may hold the startup lock until here.
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

    /// A data directory that the unprivileged account may pass through, as `/var/lib/assay` is.
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

        /// Waits until no process of Postgres is left: each holds this lock.
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
        /// A test that fails leaves no Postgres behind.
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

    /// Two Postgres have started at different times; one has started once.
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
            "it has not shut down in order"
        );
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
    async fn is_taken_over_after_a_crash_of_the_server_and_started_after_one_of_both() {
        let fixture = Fixture::new();
        let crashed = PrivatePostgres::start(&fixture.options).await.unwrap();
        let mut connection = connect(&crashed).await;
        sqlx::query("CREATE TABLE kept AS SELECT 1 AS n")
            .execute(&mut connection)
            .await
            .unwrap();
        let first_start = started_at(&mut connection).await;
        // As the end of a process does, this releases the locks and stops nothing.
        drop(crashed);

        let next = PrivatePostgres::start(&fixture.options).await.unwrap();
        assert_eq!(started_at(&mut connect(&next).await).await, first_start);
        drop(next);
        let process_id_file = fixture.postgres().join("cluster/postmaster.pid");
        let stale = fs::read_to_string(&process_id_file).unwrap();
        rustix::process::kill_process(fixture.postmaster(), Signal::KILL).unwrap();
        fixture.wait_for_end();
        // The number now belongs to another program: this one.
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
        restarted.await.expect("it is not started again").unwrap();

        assert_ne!(started_at(&mut connect(&postgres).await).await, first_start);
        postgres.stop().await.unwrap();
        assert!(fixture.has_ended());
    }

    #[tokio::test]
    async fn says_what_stands_in_its_way() {
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
