//! Postgres: the configured one or a private one, with its connections and its schema.

mod pool;
pub mod private_postgres;
pub mod privileges;

use secrecy::SecretString;
use sqlx::{PgPool, migrate::Migrator, postgres::PgConnectOptions};

use self::private_postgres::{Options, PrivatePostgres, PrivatePostgresError, binary_places};
use crate::{
    config::{self, Config},
    store::StoreError,
};

/// The migrations. They are only ever added to.
pub static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");

/// A server's database: the connection pool, and the private Postgres if no other is configured.
#[derive(Debug)]
pub struct Database {
    pool: PgPool,
    /// The role that owns the schema.
    owner: PgConnectOptions,
    private: Option<PrivatePostgres>,
}

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The private Postgres does not start or stop.
    #[error("the private Postgres cannot be used")]
    Private(#[from] PrivatePostgresError),
    /// The URL is invalid.
    #[error("{key} is not a valid Postgres URL")]
    Url {
        /// The configuration key.
        key: &'static str,
        /// What is wrong with it.
        #[source]
        source: sqlx::Error,
    },
    /// The database is unreachable, or refuses the connection.
    #[error("cannot connect to the database")]
    Connect(#[source] sqlx::Error),
    /// A migration failed.
    #[error("cannot migrate the database's schema")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The privileges of the server's role could not be granted.
    #[error("the database's owner cannot grant the privileges of the server's role")]
    Privileges(#[source] StoreError),
    /// The server's role cannot read or migrate the schema.
    #[error(
        "the server's role in the database lacks privileges: run `assay-server migrate`, with database.url and \
         the owner's database.migration_url"
    )]
    NoPrivileges(#[source] sqlx::Error),
    /// The schema is older than this server.
    #[error("the database's schema lacks this server's migration {missing}: run `assay-server migrate`")]
    Outdated {
        /// The first missing migration.
        missing: i64,
    },
    /// Another program made the schema.
    #[error(
        "the migration {version} in the database differs from this server's: the schema was not made by a release of \
         assay-server"
    )]
    Foreign {
        /// The first migration that differs.
        version: i64,
    },
}

impl Database {
    /// Connects, and starts or joins the private Postgres if no URL is configured. Waits for a database that is
    /// starting.
    pub async fn open(config: &Config) -> Result<Self, DatabaseError> {
        let private = match &config.database.url {
            Some(_) => None,
            None => Some(PrivatePostgres::start(&private_options(config)).await?),
        };
        let (options, owner) = match (&config.database.url, &private) {
            (Some(url), _) => external_options(url, config.database.migration_url.as_ref())?,
            (None, Some(private)) => (private.server_options(), private.connect_options()),
            (None, None) => (PgConnectOptions::new(), PgConnectOptions::new()),
        };
        let pool = pool::connect(options, config.database.max_connections).await?;
        Ok(Self { pool, owner, private })
    }

    /// The pool of the server's role.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Migrates the schema, one replica at a time, and grants the server's role its privileges.
    pub async fn migrate(&self) -> Result<(), DatabaseError> {
        let role: String = sqlx::query_scalar("SELECT current_user::text")
            .fetch_one(&self.pool)
            .await
            .map_err(DatabaseError::Connect)?;
        pool::migrate(&self.owner, &role).await
    }

    /// Returns an error if this server cannot use the schema.
    pub async fn check_schema(&self) -> Result<(), DatabaseError> {
        pool::check_schema(&self.pool).await
    }

    /// Whether the server's role could alter the audit log.
    pub async fn could_alter_audit(&self) -> Result<bool, DatabaseError> {
        let mut connection = self.pool.acquire().await.map_err(DatabaseError::Connect)?;
        let could = privileges::could_alter_audit(&mut connection).await;
        could.map_err(DatabaseError::Connect)
    }

    /// Closes the connections and leaves the private Postgres. The last process that leaves stops it.
    pub async fn close(self) -> Result<(), DatabaseError> {
        self.pool.close().await;
        match self.private {
            Some(private) => Ok(private.stop().await?),
            None => Ok(()),
        }
    }
}

/// The options for the server's role, and for the owner if it is another role.
fn external_options(
    url: &SecretString,
    migration_url: Option<&SecretString>,
) -> Result<(PgConnectOptions, PgConnectOptions), DatabaseError> {
    let options = pool::parse("database.url", url)?;
    let owner = match migration_url {
        Some(url) => pool::parse("database.migration_url", url)?,
        None => options.clone(),
    };
    if let Some(host) = pool::unverified_host(&options).or_else(|| pool::unverified_host(&owner)) {
        tracing::warn!(
            host,
            "the connection to the database does not verify the TLS certificate of its host: set sslmode=verify-full in \
             database.url and database.migration_url"
        );
    }
    Ok((options, owner))
}

fn private_options(config: &Config) -> Options {
    Options {
        data_dir: config.data_dir.clone(),
        max_connections: config.database.max_connections,
        binary_places: binary_places(&config::search_path()),
    }
}
