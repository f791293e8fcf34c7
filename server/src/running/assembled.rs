//! A server without listeners and background work. Its caller hands requests to its router.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    sync::Arc,
};

use assay_authority::attestation::apple::AttestationRoots;
use assay_protocol::admin_api::api_keys::{CreateApiKey, Role};
use axum::Router;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use super::{RunError, assembly};
use crate::{
    administration::api_keys::{self, ApiKeyError},
    changes::Origin,
    clock::Clock,
    config::Config,
    database::Database,
    http::{self, Scope, TrustedProxies},
    revocation::lists,
    services::Services,
    telemetry::Metrics,
};

/// All parts of a server that answer requests, on an open database. Dropping it loses only caches.
pub struct Assembled {
    pub(super) services: Arc<Services>,
    pub(super) shutdown: CancellationToken,
    database: Database,
}

impl Assembled {
    /// Opens the database and brings it up to date, and publishes the first revocation lists.
    pub async fn new(config: &Config, clock: Arc<dyn Clock>) -> Result<Self, RunError> {
        let roots = AttestationRoots::from_file(config.apple.attestation_roots.as_deref())?;
        make_data_dir(config)?;
        let database = Database::open(config).await?;
        let shutdown = CancellationToken::new();
        match assembly::prepare(config, clock, &database, roots, &shutdown).await {
            Ok(services) => {
                lists::publish_first(&services).await;
                Ok(Self {
                    services,
                    shutdown,
                    database,
                })
            }
            Err(error) => {
                // Report the first error. Closing matters anyway: the private Postgres must not outlive the server.
                let _ = database.close().await;
                Err(error)
            }
        }
    }

    /// Answers requests. Its peers are the callers themselves.
    pub fn router(&self) -> Router {
        http::router(Arc::clone(&self.services), TrustedProxies::new(&[]), Scope::Everything)
    }

    /// The metrics of this server.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.services.metrics
    }

    /// The roots in PEM, for agents that do not trust this server yet.
    #[must_use]
    pub fn roots_pem(&self) -> String {
        self.services.authority.load().roots_pem().to_owned()
    }

    /// Creates an API key, like `api-key create`, with the longest life.
    pub async fn create_api_key(&self, name: &str, role: Role) -> Result<SecretString, ApiKeyError> {
        let request = CreateApiKey {
            name: name.to_owned(),
            role,
            expires_in_seconds: Some(api_keys::LONGEST_LIFE_SECONDS),
            networks: None,
        };
        let (_key, secret) = api_keys::create(&self.services.store, &Origin::command_line(), &request).await?;
        Ok(secret)
    }

    /// Closes the connections to the database.
    pub async fn close(self) -> Result<(), RunError> {
        self.shutdown.cancel();
        Ok(self.database.close().await?)
    }
}

/// Makes the folder for this account alone. A private Postgres makes it by itself, because its account may need to
/// pass through.
fn make_data_dir(config: &Config) -> Result<(), RunError> {
    let path = &config.data_dir;
    if config.database.url.is_none() || path.is_dir() {
        return Ok(());
    }
    let parents = path.parent().map_or(Ok(()), fs::create_dir_all);
    let made = parents.and_then(|()| match DirBuilder::new().mode(0o700).create(path) {
        // Another process that starts at the same time made it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    });
    made.map_err(|source| RunError::DataDir {
        path: path.clone(),
        source,
    })
}
