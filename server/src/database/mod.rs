//! Postgres: the one that is configured, or a private one; its connections and its schema.

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

/// The schema's history. Only ever added to.
pub static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");

/// The database of one server: connections, and the private Postgres behind them if there is no other.
#[derive(Debug)]
pub struct Database {
    pool: PgPool,
    /// Whom the schema belongs to.
    owner: PgConnectOptions,
    private: Option<PrivatePostgres>,
}

/// Why there is no database.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The private Postgres does not start or stop.
    #[error("the private Postgres cannot be used")]
    Private(#[from] PrivatePostgresError),
    /// The URL is none.
    #[error("{key} is not a Postgres URL")]
    Url {
        /// The configuration's key.
        key: &'static str,
        /// What is wrong with it.
        #[source]
        source: sqlx::Error,
    },
    /// Nobody answers, or not with a welcome.
    #[error("the database cannot be reached")]
    Connect(#[source] sqlx::Error),
    /// The schema cannot be brought up to date.
    #[error("the database's schema cannot be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The server's role cannot be given what serving needs.
    #[error("the database's owner cannot give the server's role its privileges")]
    Privileges(#[source] StoreError),
    /// The server's role may not read the schema, or not bring it up to date.
    #[error(
        "the server's role in the database lacks privileges: run `assay-server migrate`, where database.url is given with \
         the owner's database.migration_url"
    )]
    NoPrivileges(#[source] sqlx::Error),
    /// The schema lacks what this server needs.
    #[error("the database's schema lacks the migration {missing} of this server: run `assay-server migrate`")]
    Outdated {
        /// The first migration that was not applied.
        missing: i64,
    },
    /// The schema is of another program.
    #[error(
        "the migration {version} of the database's schema is another one than this server's: the schema was made by a program \
         that is no release of this one"
    )]
    Foreign {
        /// The first migration that differs.
        version: i64,
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
        let (options, owner) = match (&config.database.url, &private) {
            (Some(url), _) => external_options(url, config.database.migration_url.as_ref())?,
            (None, Some(private)) => (private.server_options(), private.connect_options()),
            (None, None) => (PgConnectOptions::new(), PgConnectOptions::new()),
        };
        let pool = pool::connect(options, config.database.max_connections).await?;
        Ok(Self { pool, owner, private })
    }

    /// The connections.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Brings the schema up to date, one replica at a time, and gives the server's role what serving needs.
    pub async fn migrate(&self) -> Result<(), DatabaseError> {
        let role: String = sqlx::query_scalar("SELECT current_user::text")
            .fetch_one(&self.pool)
            .await
            .map_err(DatabaseError::Connect)?;
        pool::migrate(&self.owner, &role).await
    }

    /// Refuses a schema that this server does not fit.
    pub async fn check_schema(&self) -> Result<(), DatabaseError> {
        pool::check_schema(&self.pool).await
    }

    /// Whether the role that this server works as could alter the audit.
    pub async fn could_alter_audit(&self) -> Result<bool, DatabaseError> {
        let mut connection = self.pool.acquire().await.map_err(DatabaseError::Connect)?;
        let could = privileges::could_alter_audit(&mut connection).await;
        could.map_err(DatabaseError::Connect)
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

/// The server's role, and the owner where that is another.
fn external_options(
    url: &SecretString,
    migration_url: Option<&SecretString>,
) -> Result<(PgConnectOptions, PgConnectOptions), DatabaseError> {
    let options = pool::parse("database.url", url)?;
    let owner = match migration_url {
        Some(url) => pool::parse("database.migration_url", url)?,
        None => options.clone(),
    };
    Ok((options, owner))
}

fn private_options(config: &Config) -> Options {
    Options {
        data_dir: config.data_dir.clone(),
        max_connections: config.database.max_connections,
        binary_places: binary_places(&config::search_path()),
    }
}
