//! A Postgres in memory. It ends with the test process, even if that is killed. Its databases are copies of a template
//! with the schema.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use assay_server::database::private_postgres::Account;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::output::Output;
use crate::seed::{self, tls};

/// The database with the schema.
pub(crate) const TEMPLATE: &str = "assay_template";

/// The role that owns the tables.
pub const SUPERUSER: &str = "assay";
/// The role that servers connect as. It owns nothing.
pub(crate) const SERVER_ROLE: &str = "assay_server";
const STARTED_WITHIN: Duration = Duration::from_secs(30);

/// How many unused databases are kept. Dropping one takes longer than creating one, and each needs 8 MB.
const DATABASES_KEPT: usize = 24;

/// Runs Postgres in the directory `$2`, and reads commands from standard input. Standard input ends with the test
/// process. The script then ends Postgres and removes its files.
const KEEPER: &str = r#"
start() {
    "$1/postgres" -D "$2/cluster" -k "$2" -c ssl=on -c max_connections=300 -c unix_socket_permissions=0777 \
        -c log_min_messages=log -c log_checkpoints=off $3 2>&1 < /dev/null &
    postgres=$!
}
start "$1" "$2" "$3"
while read -r order; do
    case $order in
        start) start "$1" "$2" "$3" ;;
        stop) kill -INT "$postgres"; wait "$postgres"; echo "the keeper has stopped it" ;;
        crash) kill -QUIT "$postgres"; wait "$postgres"; echo "the keeper has stopped it" ;;
        pause) kill -STOP "$postgres"; kill -STOP $(pgrep -P "$postgres"); echo "the keeper has paused it" ;;
        resume) kill -CONT $(pgrep -P "$postgres") "$postgres"; echo "the keeper has resumed it" ;;
    esac
done
kill -QUIT "$postgres" 2> /dev/null
kill -CONT $(pgrep -P "$postgres") "$postgres" 2> /dev/null
wait "$postgres"
rm -rf "$2"
"#;

/// Settings for tests, whose data need not survive.
pub(crate) const IN_MEMORY: &str = "-c fsync=off -c full_page_writes=off -c wal_level=minimal -c max_wal_senders=0 \
    -c max_wal_size=128MB -c min_wal_size=32MB -c autovacuum=off -c dynamic_shared_memory_type=mmap";

/// Settings for measurements, as in `server/src/database/private_postgres/cluster.rs`: every commit is on disk.
const DURABLE: &str =
    "-c shared_buffers=256MB -c max_wal_size=2GB -c synchronous_commit=on -c fsync=on -c full_page_writes=on";

/// A running Postgres. Dropping it, or the end of the test process, stops it and removes its files.
#[derive(Debug)]
pub struct Cluster {
    directory: PathBuf,
    keeper: Child,
    orders: Option<ChildStdin>,
    output: Output,
    next_database: AtomicU32,
    out_of_use: Mutex<Vec<String>>,
    address: Ipv4Addr,
}

impl Cluster {
    /// The cluster that the tests of this process share.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Cluster> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    /// Starts a cluster of its own, for a test that stops it.
    pub async fn start() -> Self {
        let seed = seed::seed().await;
        let directory = seed::memory_directory();
        seed::copy(&seed.cluster, &directory.join("cluster"));
        Self::run(&seed.binaries, directory, IN_MEMORY).await
    }

    /// Starts a durable cluster on disk, for measurements. It has the role that servers connect as, but no template with
    /// the schema: use [`create_empty_database`](Self::create_empty_database).
    pub async fn durable() -> Self {
        let installation = seed::installation();
        let directory = seed::directory_in(&std::env::temp_dir());
        seed::initialize(&installation, &directory.join("cluster"), &["--data-checksums"]);
        let binaries = installation.program("postgres").parent().unwrap().to_owned();
        let cluster = Self::run(&binaries, directory, DURABLE).await;
        let mut connection = cluster.administer().await;
        execute(&mut connection, format!("CREATE ROLE {SERVER_ROLE} LOGIN")).await;
        connection.close().await.unwrap();
        cluster
    }

    /// Starts the cluster that is in `directory`, and takes ownership of the directory.
    pub(crate) async fn run(binaries: &Path, directory: PathBuf, settings: &str) -> Self {
        let address = own_address();
        tls::certify(&directory.join("cluster"), address);
        fs::copy(directory.join("cluster").join(tls::ROOT), directory.join(tls::ROOT)).unwrap();
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(KEEPER)
            .arg("keeper")
            .arg(binaries)
            .arg(&directory)
            .arg(format!("{settings} -c listen_addresses={address}"));
        // In the test's own process group, Ctrl-C would end the script before it has cleaned up.
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .current_dir("/");
        as_account(&mut command);
        let mut keeper = command.spawn().unwrap();
        let orders = keeper.stdin.take();
        let output = Output::read(vec![Box::new(keeper.stdout.take().unwrap())]);
        let (next_database, out_of_use) = (AtomicU32::new(0), Mutex::new(Vec::new()));
        let cluster = Self {
            directory,
            keeper,
            orders,
            output,
            next_database,
            out_of_use,
            address,
        };
        cluster
            .wait_for(0, "database system is ready to accept connections")
            .await;
        cluster
    }

    /// Creates a database without the schema.
    pub async fn create_empty_database(&self) -> Database<'_> {
        let name = format!("assay_{}", self.next_database.fetch_add(1, Ordering::Relaxed));
        let mut connection = self.administer().await;
        execute(&mut connection, format!("CREATE DATABASE {name}")).await;
        connection.close().await.unwrap();
        Database { name, cluster: self }
    }

    /// The process id of the postmaster.
    #[must_use]
    pub fn process(&self) -> u32 {
        let file = fs::read_to_string(self.directory.join("cluster/postmaster.pid")).unwrap();
        file.lines().next().unwrap().trim().parse().unwrap()
    }

    /// Creates an empty database with the schema.
    pub async fn create_database(&self) -> Database<'_> {
        let name = format!("assay_{}", self.next_database.fetch_add(1, Ordering::Relaxed));
        let mut connection = self.administer().await;
        let superfluous = {
            let mut out_of_use = self.out_of_use.lock().unwrap_or_else(PoisonError::into_inner);
            if out_of_use.len() > DATABASES_KEPT {
                std::mem::take(&mut *out_of_use)
            } else {
                Vec::new()
            }
        };
        for database in superfluous {
            execute(&mut connection, format!("DROP DATABASE {database} WITH (FORCE)")).await;
        }
        execute(
            &mut connection,
            format!("CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY FILE_COPY"),
        )
        .await;
        connection.close().await.unwrap();
        Database { name, cluster: self }
    }

    /// Shuts Postgres down as an administrator would. It closes connections, and loses no data.
    pub async fn stop(&mut self) {
        self.end("stop").await;
    }

    /// Ends Postgres immediately, as a power cut would. It recovers at the next start.
    pub async fn crash(&mut self) {
        self.end("crash").await;
    }

    /// Starts it again after [`stop`](Self::stop) or [`crash`](Self::crash).
    pub async fn restart(&mut self) {
        self.command("start", "database system is ready to accept connections")
            .await;
    }

    /// Suspends all of its processes. Connections remain open without an answer.
    pub async fn pause(&mut self) {
        self.command("pause", "the keeper has paused it").await;
    }

    /// Continues it after [`pause`](Self::pause).
    pub async fn resume(&mut self) {
        self.command("resume", "the keeper has resumed it").await;
    }

    /// The URL of a database of this cluster for one of its roles. The roles have no passwords.
    fn url(&self, role: &str, database: &str) -> String {
        let socket: String =
            url::form_urlencoded::byte_serialize(self.directory.as_os_str().as_encoded_bytes()).collect();
        format!("postgres://{role}@localhost:5432/{database}?host={socket}&sslmode=disable")
    }

    /// The same over TCP and TLS, as most databases on another host are reached.
    fn url_over_tls(&self, role: &str, database: &str) -> String {
        let root = self.directory.join(tls::ROOT);
        let root: String = url::form_urlencoded::byte_serialize(root.as_os_str().as_encoded_bytes()).collect();
        let address = self.tcp_address();
        format!("postgres://{role}@{address}/{database}?sslmode=verify-full&sslrootcert={root}")
    }

    /// Where it listens for TCP.
    #[must_use]
    pub fn tcp_address(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.address, 5432)
    }

    /// Options to connect to a database of this cluster as the superuser.
    #[must_use]
    pub fn connect_options(&self, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .socket(&self.directory)
            .port(5432)
            .ssl_mode(PgSslMode::Disable)
            .username(SUPERUSER)
            .database(database)
    }

    /// A connection to a database that no test uses.
    pub(crate) async fn administer(&self) -> PgConnection {
        self.connect_options("template1").connect().await.unwrap()
    }

    /// The log of Postgres.
    #[must_use]
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// The directory with the socket.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    async fn end(&mut self, order: &str) {
        self.command(order, "the keeper has stopped it").await;
    }

    async fn command(&mut self, order: &str, answer: &str) {
        let from = self.output.lines().len();
        self.order(order);
        self.wait_for(from, answer).await;
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders.as_mut().unwrap(), "{order}").unwrap();
    }

    async fn wait_for(&self, from: usize, text: &str) {
        let found = self
            .output
            .wait_for(from, STARTED_WITHIN, |line| line.contains(text).then_some(()))
            .await;
        found.unwrap_or_else(|| panic!("Postgres in {} has ended:\n{}", self.directory.display(), self.output));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.orders.take());
        self.keeper.wait().unwrap();
    }
}

/// A database of a test's own, with the schema.
#[derive(Debug)]
pub struct Database<'a> {
    name: String,
    cluster: &'a Cluster,
}

impl Database<'static> {
    /// A database with the same content. No server may use this one meanwhile.
    pub async fn copy(&self) -> Self {
        let copy = self.cluster.create_empty_database().await;
        copy.replace_with(self).await;
        copy
    }

    /// Creates one in the shared cluster.
    pub async fn create() -> Self {
        Cluster::shared().await.create_database().await
    }
}

impl Database<'_> {
    /// Its name in the cluster.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The URL for `database.url`. Its role owns nothing, so a missing privilege fails the test.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of(SERVER_ROLE)
    }

    /// The URL for `database.url` over TCP and TLS.
    #[must_use]
    pub fn url_over_tls(&self) -> String {
        self.cluster.url_over_tls(SERVER_ROLE, &self.name)
    }

    /// The URL for another role of the cluster.
    #[must_use]
    pub fn url_of(&self, role: &str) -> String {
        self.cluster.url(role, &self.name)
    }

    /// Options to connect to it as the superuser.
    #[must_use]
    pub fn connect_options(&self) -> PgConnectOptions {
        self.cluster.connect_options(&self.name)
    }

    /// Replaces its content by that of another one. No server may use either meanwhile; the connections of tests are cut.
    pub async fn replace_with(&self, source: &Database<'_>) {
        let mut connection = self.cluster.administer().await;
        let (name, source) = (&self.name, &source.name);
        for statement in [
            format!("DROP DATABASE {name} WITH (FORCE)"),
            format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{source}'"),
            format!("CREATE DATABASE {name} TEMPLATE {source} STRATEGY FILE_COPY"),
        ] {
            execute(&mut connection, statement).await;
        }
        connection.close().await.unwrap();
    }

    /// A small pool, for a test that reads the tables.
    pub async fn pool(&self) -> PgPool {
        PgPoolOptions::new()
            .max_connections(4)
            .connect_with(self.connect_options())
            .await
            .unwrap()
    }

    /// Revokes a machine's certificates, without changing its status and its key.
    pub async fn revoke_certificates_of(&self, machine: Uuid) {
        let statement = "WITH revoked AS (
                 UPDATE certificates SET revoked_at = now(), revocation_reason = 'superseded' WHERE machine_id = $1
             ), current AS (UPDATE machines SET certificate_serial_number = NULL WHERE id = $1)
             UPDATE machine_presence SET record_version = record_version + 1 WHERE machine_id = $1";
        let pool = self.pool().await;
        let revoked = sqlx::query(statement).bind(machine).execute(&pool).await;
        assert_eq!(revoked.unwrap().rows_affected(), 1);
    }
}

impl Drop for Database<'_> {
    fn drop(&mut self) {
        self.cluster
            .out_of_use
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(std::mem::take(&mut self.name));
    }
}

/// A loopback address that no other cluster has. A free port of one address could be taken again before Postgres binds it.
fn own_address() -> Ipv4Addr {
    let [a, b, c, _] = rand::random::<u32>().to_be_bytes();
    Ipv4Addr::new(127, a.max(1), b, c.clamp(1, 254))
}

/// Executes a statement that was made by formatting. The names that this module makes need no quoting.
pub(crate) async fn execute(connection: &mut PgConnection, statement: String) {
    sqlx::raw_sql(&statement).execute(connection).await.unwrap();
}

/// Runs a command under an unprivileged account if the tests run as root, because Postgres refuses to run as root.
pub fn as_account(command: &mut Command) {
    if let Some(account) = Account::unprivileged().unwrap() {
        command.uid(account.uid).gid(account.gid);
    }
}
