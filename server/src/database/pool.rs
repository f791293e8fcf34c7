//! Connections and migrations.

use std::{net::IpAddr, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    ConnectOptions, Connection, Executor, PgConnection, PgPool,
    migrate::MigrateError,
    postgres::{PgConnectOptions, PgPoolOptions, PgSslMode},
};
use tokio::time::{Instant, sleep, timeout};

use super::{DatabaseError, MIGRATIONS, privileges};

/// How long a request waits for a connection. Callers must get their 503 within 5 s.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the server waits at its start for a database that is starting.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// A server that hangs in a transaction must not keep its rows locked: other replicas wait for them. A statement that
/// is no longer waited for must end.
const SESSION: &str = "SET idle_in_transaction_session_timeout = '10s'; SET statement_timeout = '10s'";

/// How long a migration waits for a lock. Callers get no answer meanwhile, and must get their 503 within 5 s.
const MIGRATION: &str = "SET lock_timeout = '3s'";
/// How long callers are served before a migration asks for the lock again.
const MIGRATE_AGAIN_AFTER: Duration = Duration::from_secs(5);

pub(super) fn parse(key: &'static str, url: &SecretString) -> Result<PgConnectOptions, DatabaseError> {
    let parsed = url.expose_secret().parse();
    parsed.map_err(|source| DatabaseError::Url { key, source })
}

/// The host of a database elsewhere whose TLS certificate is not verified. Anyone on the way could read and answer.
pub(super) fn unverified_host(options: &PgConnectOptions) -> Option<&str> {
    let host = options.get_host();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let is_here = options.get_socket().is_some()
        || host.starts_with('/')
        || host.eq_ignore_ascii_case("localhost")
        || address.is_ok_and(|address| address.to_canonical().is_loopback());
    let is_verified = matches!(options.get_ssl_mode(), PgSslMode::VerifyCa | PgSslMode::VerifyFull);
    (!is_here && !is_verified).then_some(host)
}

pub(super) async fn connect(options: PgConnectOptions, max_connections: u32) -> Result<PgPool, DatabaseError> {
    let options = options
        .application_name("assay-server")
        .log_slow_statements(tracing::log::LevelFilter::Off, Duration::ZERO);
    let pool = PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_connect(|connection, _| Box::pin(async move { connection.execute(SESSION).await.map(drop) }))
        .connect_lazy_with(options.clone());
    wait_for(&options).await?;
    Ok(pool)
}

/// Uses its own connection, because a migration may take longer than the statements of requests.
pub(super) async fn migrate(owner: &PgConnectOptions, server_role: &str) -> Result<(), DatabaseError> {
    // Otherwise each start logs that the table of migrations already exists.
    let owner = owner.clone().options([("client_min_messages", "warning")]);
    let mut connection = owner.connect().await.map_err(DatabaseError::Connect)?;
    // A role that owns nothing cannot run the statement that creates the table of migrations if it is missing.
    if !is_migrated(&mut connection).await.unwrap_or(false) {
        run_migrations(&owner).await?;
    }
    privileges::grant(&mut connection, server_role).await
}

/// Runs the migrations, and begins again while another transaction has locked a table.
///
/// A statement that alters a table waits for all transactions that use it, and all later ones wait behind it. With one
/// transaction that takes long, such as a backup, the whole service would wait. So a migration does not wait long.
async fn run_migrations(owner: &PgConnectOptions) -> Result<(), DatabaseError> {
    loop {
        // A failed run leaves its advisory lock to the connection, so each run has its own.
        let mut connection = owner.connect().await.map_err(DatabaseError::Connect)?;
        connection.execute(MIGRATION).await.map_err(DatabaseError::Connect)?;
        let Err(error) = MIGRATIONS.run(&mut connection).await else {
            return Ok(());
        };
        if !is_lock_timeout(&error) {
            return Err(not_migrated(error));
        }
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "a migration waits for a lock that another transaction or replica has; it is tried again"
        );
        // The connection ends with this, and its advisory lock too.
        let _ = connection.close().await;
        sleep(MIGRATE_AGAIN_AFTER).await;
    }
}

fn is_lock_timeout(error: &MigrateError) -> bool {
    let (MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _)) = error else {
        return false;
    };
    let code = source.as_database_error().and_then(|error| error.code());
    // Not available in time, or the victim of a deadlock with a transaction of an older replica.
    matches!(code.as_deref(), Some("55P03" | "40P01"))
}

/// Distinguishes missing privileges from a failing migration.
fn not_migrated(error: MigrateError) -> DatabaseError {
    match error {
        MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) if is_lack_of_privileges(&source) => {
            DatabaseError::NoPrivileges(source)
        }
        other => DatabaseError::Migrate(other),
    }
}

/// Postgres reports a schema as missing (3F000) if the role may not use it.
fn is_lack_of_privileges(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("42501" | "3F000"))
}

/// Whether all of this server's migrations are applied and unchanged. An error only means that the migrations must run.
async fn is_migrated(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let applied = applied(connection).await?;
    Ok(applied.iter().all(|(_, _, success)| *success) && compare(&applied).is_ok())
}

/// The version, the checksum, and whether the migration succeeded.
type Applied = (i64, Vec<u8>, bool);

async fn applied(connection: &mut PgConnection) -> Result<Vec<Applied>, sqlx::Error> {
    sqlx::query_as("SELECT version, checksum, success FROM _sqlx_migrations ORDER BY version")
        .fetch_all(connection)
        .await
}

/// Requires every migration of this server. More are allowed: migrations only add, and replicas are upgraded one after
/// the other.
fn compare(applied: &[Applied]) -> Result<(), DatabaseError> {
    for needed in MIGRATIONS.iter() {
        let version = needed.version;
        match applied.iter().find(|(found, _, success)| *found == version && *success) {
            None => return Err(DatabaseError::Outdated { missing: version }),
            Some((_, checksum, _)) if **checksum != *needed.checksum => return Err(DatabaseError::Foreign { version }),
            Some(_) => {}
        }
    }
    Ok(())
}

pub(super) async fn check_schema(pool: &PgPool) -> Result<(), DatabaseError> {
    let mut connection = pool.acquire().await.map_err(DatabaseError::Connect)?;
    match applied(&mut connection).await {
        Ok(applied) => compare(&applied),
        Err(error) if is_lack_of_privileges(&error) => Err(DatabaseError::NoPrivileges(error)),
        // The table of migrations does not exist.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => compare(&[]),
        Err(error) => Err(DatabaseError::Connect(error)),
    }
}

/// Connects without the pool, which would report every failure as a timeout.
async fn wait_for(options: &PgConnectOptions) -> Result<(), DatabaseError> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let connected = timeout(ACQUIRE_TIMEOUT, options.connect()).await;
        match connected.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
            Ok(connection) => {
                // The connection has done its work. An error at its end does not matter.
                let _ = connection.close().await;
                return Ok(());
            }
            Err(error) if Instant::now() >= deadline || !is_transient(&error) => {
                return Err(DatabaseError::Connect(error));
            }
            Err(error) => tracing::warn!(%error, "cannot connect to the database yet"),
        }
        sleep(RETRY_EVERY).await;
    }
}

/// A wrong password or a missing database is permanent. A server that is starting is not.
fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => true,
        sqlx::Error::Database(error) => error
            .code()
            .is_some_and(|code| code.starts_with("57P") || code == "53300"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("postgres://u@db.example.com/assay", Some("db.example.com"))]
    #[case("postgres://u@db.example.com/assay?sslmode=prefer", Some("db.example.com"))]
    #[case("postgres://u@db.example.com/assay?sslmode=require", Some("db.example.com"))]
    #[case("postgres://u@192.0.2.7/assay?sslmode=disable", Some("192.0.2.7"))]
    #[case("postgres://u@localhost.example.com/assay", Some("localhost.example.com"))]
    #[case("postgres://u@db.example.com/assay?sslmode=verify-full", None)]
    #[case("postgres://u@db.example.com/assay?sslmode=verify-ca", None)]
    #[case("postgres://u@localhost/assay", None)]
    #[case("postgres://u@127.0.0.1/assay", None)]
    #[case("postgres://u@[::1]/assay", None)]
    #[case("postgres://u@localhost/assay?host=/run/postgresql", None)]
    #[case("postgres://u@%2Frun%2Fpostgresql/assay", None)]
    fn a_host_elsewhere_without_verified_tls_is_named(#[case] url: &str, #[case] host: Option<&str>) {
        let options = parse("database.url", &url.into()).unwrap();
        assert_eq!(unverified_host(&options), host);
    }
}
