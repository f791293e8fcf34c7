//! `audit verify`

use std::sync::Arc;

use assay_protocol::admin_api::audit::AuditVerification;

use super::{CommandError, print};
use crate::{
    audit::verification, changes::chain::EntryHash, clock::Clock, config::Config, database::Database, store::Store,
    telemetry::Metrics,
};

/// Verifies the hash chain and prints the result. The command fails if the chain is broken or does not contain `noted`.
pub(super) async fn verify(
    config: &Config,
    clock: Arc<dyn Clock>,
    noted: Option<EntryHash>,
) -> Result<(), CommandError> {
    let database = Database::open(config).await?;
    let verified = verify_in(&database, clock, noted).await;
    database.close().await?;
    let verification = verified?;
    print::text(&serde_json::to_string_pretty(&verification)?)?;
    if verification.valid {
        Ok(())
    } else {
        Err(CommandError::AuditBroken)
    }
}

async fn verify_in(
    database: &Database,
    clock: Arc<dyn Clock>,
    noted: Option<EntryHash>,
) -> Result<AuditVerification, CommandError> {
    database.check_schema().await?;
    let store = Store::new(database.pool().clone(), clock, Arc::new(Metrics::new()));
    Ok(verification::verify(&store, noted).await?)
}

/// Parses a hash in hex.
pub(super) fn parse_hash(text: &str) -> Result<EntryHash, &'static str> {
    EntryHash::from_hex(text).ok_or("a hash must have 64 hexadecimal digits")
}
