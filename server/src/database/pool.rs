//! Connections, and the schema that they find.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    ConnectOptions, Connection, PgConnection, PgPool,
    migrate::MigrateError,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::time::{Instant, sleep, timeout};

use super::{DatabaseError, MIGRATIONS, privileges};

/// How long a request waits for a connection. A caller is owed its 503 within 5 s.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a start waits for a database that is itself starting.
const PATIENCE: Duration = Duration::from_secs(30);
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// A server that hangs in the middle of a transaction must not hold its rows against the other replicas; and a
/// statement that nobody waits for any more ends.
const SESSION: &str = "SET idle_in_transaction_session_timeout = '10s'; SET statement_timeout = '10s'";

pub(super) fn parse(key: &'static str, url: &SecretString) -> Result<PgConnectOptions, DatabaseError> {
    let parsed = url.expose_secret().parse();
    parsed.map_err(|source| DatabaseError::Url { key, source })
}

pub(super) async fn connect(options: PgConnectOptions, max_connections: u32) -> Result<PgPool, DatabaseError> {
    let options = options
        .application_name("assay-server")
        .log_slow_statements(tracing::log::LevelFilter::Off, Duration::ZERO);
    let pool = PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_connect(|connection, _| {
            Box::pin(async move { sqlx::raw_sql(SESSION).execute(connection).await.map(drop) })
        })
        .connect_lazy_with(options.clone());
    wait_for(&options).await?;
    Ok(pool)
}

/// On a connection of its own, since a migration may take longer than any request's statement.
pub(super) async fn migrate(owner: &PgConnectOptions, server_role: &str) -> Result<(), DatabaseError> {
    // Else each start logs that the table of migrations exists already.
    let owner = owner.clone().options([("client_min_messages", "warning")]);
    let mut connection = owner.connect().await.map_err(DatabaseError::Connect)?;
    // A role that owns nothing could not even ask whether the table of migrations has to be made.
    if !is_migrated(&mut connection).await.unwrap_or(false) {
        MIGRATIONS.run(&mut connection).await.map_err(not_migrated)?;
    }
    privileges::grant(&mut connection, server_role).await
}

/// Tells a role that may not from a migration that fails.
fn not_migrated(error: MigrateError) -> DatabaseError {
    match error {
        MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) if is_lack_of_privileges(&source) => {
            DatabaseError::NoPrivileges(source)
        }
        other => DatabaseError::Migrate(other),
    }
}

/// A role that may not even use the schema is told that there is none (3F000).
fn is_lack_of_privileges(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("42501" | "3F000"))
}

/// Whether everything that this server needs has been applied, as it is in this server. An error says nothing but that
/// there is something to do.
async fn is_migrated(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let applied = applied(connection).await?;
    Ok(applied.iter().all(|(_, _, success)| *success) && compare(&applied).is_ok())
}

/// Version, checksum, and whether it succeeded.
type Applied = (i64, Vec<u8>, bool);

async fn applied(connection: &mut PgConnection) -> Result<Vec<Applied>, sqlx::Error> {
    sqlx::query_as("SELECT version, checksum, success FROM _sqlx_migrations ORDER BY version")
        .fetch_all(connection)
        .await
}

/// Demands every migration that this server knows. Further ones are fine: migrations only add, and replicas are replaced one
/// after the other.
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
        // There is no table of migrations.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => compare(&[]),
        Err(error) => Err(DatabaseError::Connect(error)),
    }
}

/// Tries without the pool, which would say of every failure that it timed out.
async fn wait_for(options: &PgConnectOptions) -> Result<(), DatabaseError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let connected = timeout(ACQUIRE_TIMEOUT, options.connect()).await;
        match connected.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
            Ok(connection) => {
                // It has served its purpose, however its end goes.
                let _ = connection.close().await;
                return Ok(());
            }
            Err(error) if Instant::now() >= deadline || !may_pass(&error) => return Err(DatabaseError::Connect(error)),
            Err(error) => tracing::warn!(%error, "the database cannot be reached yet"),
        }
        sleep(RETRY_EVERY).await;
    }
}

/// A wrong password or a missing database stays so; a server that is starting does not.
fn may_pass(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => true,
        sqlx::Error::Database(error) => error
            .code()
            .is_some_and(|code| code.starts_with("57P") || code == "53300"),
        _ => false,
    }
}
