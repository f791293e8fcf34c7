//! Connections, and the schema that they find.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    ConnectOptions, Connection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::time::{Instant, sleep, timeout};

use super::{DatabaseError, MIGRATIONS};

/// How long a request waits for a connection. A caller is owed its 503 within 5 s.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a start waits for a database that is itself starting.
const PATIENCE: Duration = Duration::from_secs(30);
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// A server that hangs in the middle of a transaction must not hold its rows against the other replicas; and a
/// statement that nobody waits for any more ends.
const SESSION: &str = "SET idle_in_transaction_session_timeout = '10s'; SET statement_timeout = '10s'";

pub(super) fn parse(url: &SecretString) -> Result<PgConnectOptions, DatabaseError> {
    url.expose_secret().parse().map_err(DatabaseError::Url)
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
pub(super) async fn migrate(options: &PgConnectOptions) -> Result<(), DatabaseError> {
    // Else each start logs that the table of migrations exists already.
    let options = options.clone().options([("client_min_messages", "warning")]);
    let mut connection = options.connect().await.map_err(DatabaseError::Connect)?;
    MIGRATIONS.run(&mut connection).await?;
    Ok(())
}

pub(super) async fn check_schema(pool: &PgPool) -> Result<(), DatabaseError> {
    let needed = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
    let found = sqlx::query_scalar::<_, Option<i64>>("SELECT max(version) FROM _sqlx_migrations WHERE success")
        .fetch_one(pool)
        .await;
    match found {
        // A newer schema is fine: migrations only add, and replicas are replaced one after the other.
        Ok(Some(found)) if found >= needed => Ok(()),
        Ok(found) => Err(DatabaseError::Outdated {
            found: found.unwrap_or(0),
            needed,
        }),
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => {
            Err(DatabaseError::Outdated { found: 0, needed })
        }
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
