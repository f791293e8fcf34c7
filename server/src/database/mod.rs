//! Postgres: the one that is configured, or a private one; its connections and its schema.

mod pool;
pub mod private_postgres;

use sqlx::{PgPool, migrate::Migrator, postgres::PgConnectOptions};

use self::private_postgres::{Options, PrivatePostgres, PrivatePostgresError, binary_places};
use crate::config::{self, Config};

/// The schema's history. Only ever added to.
pub static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");

/// The database of one server: connections, and the private Postgres behind them if there is no other.
#[derive(Debug)]
pub struct Database {
    pool: PgPool,
    options: PgConnectOptions,
    private: Option<PrivatePostgres>,
}

/// Why there is no database.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The private Postgres does not start or stop.
    #[error("the private Postgres cannot be used")]
    Private(#[from] PrivatePostgresError),
    /// The URL is none.
    #[error("database.url is not a Postgres URL")]
    Url(#[source] sqlx::Error),
    /// Nobody answers, or not with a welcome.
    #[error("the database cannot be reached")]
    Connect(#[source] sqlx::Error),
    /// The schema cannot be brought up to date.
    #[error("the database's schema cannot be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The schema is of another version.
    #[error("the database's schema is at version {found} and this server needs {needed}: run `assay-server migrate`")]
    Outdated {
        /// The newest migration that was applied.
        found: i64,
        /// The newest that this server knows.
        needed: i64,
    },
}

impl Database {
    /// Connects; starts or joins the private Postgres where no URL is configured. A database that is just starting is
    /// waited for.
    pub async fn open(config: &Config) -> Result<Self, DatabaseError> {
        let private = match &config.database.url {
            Some(_) => None,
            None => Some(PrivatePostgres::start(&private_options(config)).await?),
        };
        let options = match (&config.database.url, &private) {
            (Some(url), _) => pool::parse(url)?,
            (None, Some(private)) => private.connect_options(),
            (None, None) => PgConnectOptions::new(),
        };
        let pool = pool::connect(options.clone(), config.database.max_connections).await?;
        Ok(Self { pool, options, private })
    }

    /// The connections.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Brings the schema up to date, one replica at a time.
    pub async fn migrate(&self) -> Result<(), DatabaseError> {
        pool::migrate(&self.options).await
    }

    /// Refuses a schema that this server does not fit.
    pub async fn check_schema(&self) -> Result<(), DatabaseError> {
        pool::check_schema(&self.pool).await
    }

    /// Closes the connections and leaves the private Postgres, which stops when nobody else uses it.
    pub async fn close(self) -> Result<(), DatabaseError> {
        self.pool.close().await;
        match self.private {
            Some(private) => Ok(private.stop().await?),
            None => Ok(()),
        }
    }
}

fn private_options(config: &Config) -> Options {
    Options {
        data_dir: config.data_dir.clone(),
        max_connections: config.database.max_connections,
        binary_places: binary_places(&config::search_path()),
    }
}
