//! All SQL, in one file per noun. Functions take a connection, so the caller decides what belongs to one transaction.

pub(crate) mod acme_accounts;
pub(crate) mod acme_nonces;
pub(crate) mod acme_orders;
pub(crate) mod api_keys;
pub(crate) mod apple_attestations;
pub(crate) mod audiences;
pub(crate) mod audit_entries;
pub(crate) mod audit_seals;
pub(crate) mod batcher;
pub(crate) mod certificates;
pub(crate) mod changes;
pub(crate) mod cross_certificates;
pub(crate) mod device_certificates;
pub(crate) mod duties;
pub(crate) mod enrollment_tokens;
pub(crate) mod enrollments;
pub(crate) mod events;
pub(crate) mod grants;
pub(crate) mod inventory;
pub(crate) mod machines;
pub(crate) mod mdm_devices;
pub(crate) mod permissions;
pub(crate) mod revocation_lists;
pub(crate) mod revocations;
pub(crate) mod sealed_keys;
pub(crate) mod server_certificates;
pub(crate) mod settings;
pub(crate) mod transaction;
pub(crate) mod webhook_deliveries;
pub(crate) mod webhooks;

use std::{str::FromStr, sync::Arc, time::Instant};

use assay_protocol::KeyThumbprint;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use sqlx::{
    Connection as _, PgPool,
    pool::PoolConnection,
    postgres::{PgConnection, Postgres},
};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    clock::{self, Clock},
    telemetry::Metrics,
};

pub use transaction::{AsStoreError, Transaction};
pub(crate) use transaction::{has_store_error, tx};

/// After five runs, Postgres plans a prepared statement once for all values. The filters of a list may select one
/// machine or half of a fleet, so lists are planned for their values each time.
const BEGIN_SNAPSHOT: &str =
    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL plan_cache_mode = force_custom_plan";

/// A transaction for many callers. All of them wait if one does, so it never waits long for a lock. Its statements are
/// planned once, possibly while a table is still empty. A plan that scans such a table would be kept when the table
/// grows, so scans are disabled.
const BEGIN_GROUP: &str = "BEGIN; SET LOCAL lock_timeout = '500ms'; SET LOCAL enable_seqscan = off; \
                           SET LOCAL plan_cache_mode = force_generic_plan";

/// The only access to the database.
#[derive(Clone)]
pub struct Store {
    pool: PgPool,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

/// Why a database operation failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database is unreachable, starting, stopping, full or read-only. A later attempt may succeed.
    #[error("the database is not available")]
    Unavailable(#[source] sqlx::Error),
    /// Repeating the statement would give the same error.
    #[error("the database refused a statement")]
    Refused(#[source] sqlx::Error),
    /// A row contains a value that this program never writes.
    #[error("a stored value cannot be read: {0}")]
    Corrupt(String),
}

impl Store {
    /// Uses this pool and this clock, and records metrics of connections and transactions.
    #[must_use]
    pub fn new(pool: PgPool, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        Self { pool, clock, metrics }
    }

    /// The pool, for its metrics.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// The present time.
    pub(crate) fn now(&self) -> OffsetDateTime {
        self.clock.now()
    }

    /// A new id of the present time.
    pub(crate) fn new_id(&self) -> Uuid {
        clock::new_id(self.clock.as_ref())
    }

    /// Whether the database takes writes: a standby, or a database that is set read-only, does not.
    pub async fn takes_writes(&self) -> Result<bool, StoreError> {
        let mut connection = self.connection().await?;
        // A standby reports that its transactions are read-only.
        let setting = sqlx::query_scalar!(r#"SELECT current_setting('transaction_read_only') AS "read_only!""#)
            .fetch_one(&mut *connection)
            .await?;
        let takes_writes = setting == "off";
        if !takes_writes {
            // After a failover, a new connection may lead to the new primary.
            connection.close().await?;
        }
        Ok(takes_writes)
    }

    /// Whether another caller would get a connection at once.
    pub(crate) fn has_spare_connections(&self) -> bool {
        self.pool.num_idle() > 0 || self.pool.size() < self.pool.options().get_max_connections()
    }

    /// A connection for reading, each statement in a transaction of its own.
    pub async fn connection(&self) -> Result<PoolConnection<Postgres>, StoreError> {
        self.wait_for(self.pool.acquire()).await
    }

    /// A read-only transaction for lists. All of its statements see the same snapshot, and each is planned for its
    /// values.
    pub async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.wait_for(self.pool.begin_with(BEGIN_SNAPSHOT)).await
    }

    /// Measures the wait for a connection.
    async fn wait_for<T>(&self, acquire: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
        let started = Instant::now();
        let acquired = acquire.await;
        match &acquired {
            Ok(_) => self.metrics.pool.acquired(started.elapsed()),
            Err(sqlx::Error::PoolTimedOut) => self.metrics.pool.acquire_timed_out(),
            Err(_) => {}
        }
        Ok(acquired?)
    }
}

impl StoreError {
    /// Whether this violates the unique constraint or index of this name.
    #[must_use]
    pub fn violates(&self, constraint: &str) -> bool {
        let Self::Refused(sqlx::Error::Database(error)) = self else {
            return false;
        };
        error.constraint() == Some(constraint)
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        if is_unavailability(&error) {
            Self::Unavailable(error)
        } else {
            Self::Refused(error)
        }
    }
}

fn is_unavailability(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| is_unavailable_state(&code)),
        _ => false,
    }
}

/// SQLSTATE classes 08 (connection), 53 (resources, including a full disk), 57P (shutting down, starting up), 58
/// (system error), and 25006 (read-only, as on a standby). 40 is a conflict that persisted after all retries.
fn is_unavailable_state(code: &str) -> bool {
    ["08", "53", "57P", "58", "25006", "40"]
        .iter()
        .any(|class| code.starts_with(class))
}

/// A borrowed connection.
pub(crate) type Connection = PgConnection;

/// A connection that returns to the pool when it is dropped.
pub(crate) type PooledConnection = PoolConnection<Postgres>;

/// See [`Store::snapshot`].
pub type Snapshot = sqlx::Transaction<'static, Postgres>;

/// Ends a snapshot. A dropped one ends only with the next use of its connection.
pub(crate) async fn end(snapshot: Snapshot) -> Result<(), StoreError> {
    Ok(snapshot.commit().await?)
}

/// A transaction on a borrowed connection. Its owner can drop the connection if the database does not respond.
pub(crate) type Group<'c> = sqlx::Transaction<'c, Postgres>;

/// Begins a transaction for many callers. It is rolled back if it is dropped.
pub(crate) async fn begin_group(connection: &mut Connection) -> Result<Group<'_>, StoreError> {
    Ok(connection.begin_with(BEGIN_GROUP).await?)
}

/// Commits a transaction for many callers.
pub(crate) async fn commit_group(group: Group<'_>) -> Result<(), StoreError> {
    Ok(group.commit().await?)
}

/// Parses the text of an enum value.
pub(crate) fn parse_text<T: FromStr>(text: &str) -> Result<T, StoreError> {
    text.parse()
        .map_err(|_| StoreError::Corrupt(format!("{text:?} is no value of the column")))
}

/// A value as `jsonb`.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<Value, StoreError> {
    serde_json::to_value(value).map_err(|error| StoreError::Corrupt(error.to_string()))
}

/// Parses the value that [`json`] returned.
pub(crate) fn parse_json<T: DeserializeOwned>(value: Value) -> Result<T, StoreError> {
    serde_json::from_value(value).map_err(|error| StoreError::Corrupt(error.to_string()))
}

/// Parses a stored thumbprint.
pub(crate) fn thumbprint(bytes: &[u8]) -> Result<KeyThumbprint, StoreError> {
    KeyThumbprint::from_bytes(bytes).map_err(|error| StoreError::Corrupt(error.to_string()))
}
