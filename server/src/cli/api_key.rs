//! `api-key create`

use std::sync::Arc;

use assay_protocol::admin_api::api_keys::{CreateApiKey, Role};
use secrecy::ExposeSecret;

use super::{CommandError, print};
use crate::{
    administration::api_keys, changes::Origin, clock::Clock, config::Config, database::Database, store::Store,
    telemetry::Metrics,
};

/// Creates a key and prints only the key, for use in scripts.
pub(super) async fn create(config: &Config, clock: Arc<dyn Clock>, name: &str, role: Role) -> Result<(), CommandError> {
    let request = CreateApiKey {
        name: name.to_owned(),
        role,
        expires_in_seconds: None,
    };
    let database = Database::open(config).await?;
    let created = create_in(&database, config, clock, &request).await;
    database.close().await?;
    print::text(&created?)
}

async fn create_in(
    database: &Database,
    config: &Config,
    clock: Arc<dyn Clock>,
    request: &CreateApiKey,
) -> Result<String, CommandError> {
    if config.database.migrate {
        database.migrate().await?;
    }
    database.check_schema().await?;
    let store = Store::new(database.pool().clone(), clock, Arc::new(Metrics::new()));
    let (_key, secret) = api_keys::create(&store, &Origin::command_line(), request).await?;
    Ok(secret.expose_secret().to_owned())
}
