//! `ca`: the server's keys and their rotation.

use std::{fmt::Write, path::PathBuf, sync::Arc};

use assay_protocol::text::rfc3339;
use clap::Subcommand;

use super::{CommandError, print};
use crate::{
    changes::Origin,
    clock::Clock,
    config::Config,
    database::Database,
    keyring::Keyring,
    rotation::{self, AuthorityStatus, KeyStatus, Prepared, RotationError, RotationPolicy, Rotator, Wanted, bootstrap},
    store::Store,
    telemetry::Metrics,
};

#[derive(Debug, Subcommand)]
pub(super) enum CaCommand {
    /// Show roots, issuing CAs and grant keys: which sign now, which come next, and which are past but still in use.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Prepare the next issuing CA. It is published at once, and issues after certificates.ca_overlap. If one is
    /// already prepared, nothing changes.
    Rotate {
        /// Also create a new root. Nothing is issued under it before certificates.root_overlap has passed.
        #[arg(long, conflicts_with = "grant_key")]
        root: bool,
        /// Prepare the next grant key instead. It signs after grants.key_overlap.
        #[arg(long)]
        grant_key: bool,
    },
    /// Print a CSR for an issuing CA that your own root will sign. Repeating it prints a CSR for the same key.
    Csr,
    /// Install the certificate that was issued for the CSR. It is used after the overlap, like any other.
    Install {
        /// A PEM file with the issuing CA's certificate, the intermediates, and the root, in this order.
        #[arg(long, value_name = "FILE")]
        chain: PathBuf,
    },
}

/// Runs a `ca` command.
pub(super) async fn run(config: &Config, clock: Arc<dyn Clock>, command: &CaCommand) -> Result<(), CommandError> {
    let chain = match command {
        CaCommand::Install { chain } => std::fs::read(chain).map_err(|source| CommandError::File {
            path: chain.clone(),
            source,
        })?,
        _ => Vec::new(),
    };
    let database = Database::open(config).await?;
    let done = run_in(&database, config, clock, command, &chain).await;
    database.close().await?;
    print::text(&done?)
}

async fn run_in(
    database: &Database,
    config: &Config,
    clock: Arc<dyn Clock>,
    command: &CaCommand,
    chain: &[u8],
) -> Result<String, CommandError> {
    database.check_schema().await?;
    let store = Store::new(database.pool().clone(), clock, Arc::new(Metrics::new()));
    if !bootstrap::is_bootstrapped(&store).await? {
        return Err(RotationError::NotBootstrapped.into());
    }
    let (keyring, policy) = (bootstrap::keyring(config)?, RotationPolicy::of(config));
    let rotator = Rotator {
        keyring: &keyring,
        policy: &policy,
    };
    let origin = Origin::command_line();
    match command {
        CaCommand::Status { json } => show(&store, &keyring, *json).await,
        CaCommand::Rotate { root, grant_key } => {
            let wanted = match (root, grant_key) {
                (_, true) => Wanted::GrantKey,
                (true, false) => Wanted::RootCa,
                (false, false) => Wanted::IssuingCa,
            };
            let prepared = rotation::rotate(&store, &rotator, &origin, wanted).await?;
            Ok(describe(&prepared, &keyring)?)
        }
        CaCommand::Csr => Ok(rotation::request(&store, &rotator, &origin).await?),
        CaCommand::Install { .. } => Ok(describe(
            &rotation::install(&store, &rotator, &origin, chain).await?,
            &keyring,
        )?),
    }
}

async fn show(store: &Store, keyring: &Keyring, as_json: bool) -> Result<String, CommandError> {
    let status = rotation::status(store, keyring, store.now()).await?;
    Ok(match as_json {
        true => serde_json::to_string_pretty(&status)?,
        false => as_text(&status),
    })
}

fn describe(prepared: &Prepared, keyring: &Keyring) -> Result<String, RotationError> {
    let identifier = rotation::identifier(&prepared.key, keyring)?.unwrap_or_default();
    let state = match prepared.is_new {
        true => "is prepared",
        false => "was already prepared",
    };
    let signs_from = prepared.key.signs_from.map(rfc3339).unwrap_or_default();
    Ok(format!("{identifier} {state}; it signs from {signs_from}"))
}

fn as_text(status: &AuthorityStatus) -> String {
    let mut words = String::new();
    for (heading, keys) in [
        ("Roots", &status.roots),
        ("Issuing CAs", &status.issuing_cas),
        ("Grant keys", &status.grant_keys),
    ] {
        // Writing to memory does not fail.
        let _ = writeln!(words, "{heading}");
        for key in keys {
            let _ = writeln!(words, "  {}", line(key));
        }
    }
    words
}

fn line(key: &KeyStatus) -> String {
    let mut parts = vec![key.state.to_string()];
    if key.is_external {
        parts.push("external".to_owned());
    }
    let signs = match key.signs_from {
        Some(from) => format!("signs from {}", rfc3339(from)),
        None => "waits for its certificate".to_owned(),
    };
    parts.push(signs);
    if let (Some(from), Some(end)) = (key.not_before, key.not_after) {
        parts.push(format!("valid {} to {}", rfc3339(from), rfc3339(end)));
    }
    if let Some(fingerprint) = &key.fingerprint {
        parts.push(format!("SHA-256 {fingerprint}"));
    }
    if let Some(valid) = key.valid_certificates {
        parts.push(format!("{valid} valid certificates"));
    }
    if let Some(at) = key.retires_at {
        parts.push(format!("retires at {}", rfc3339(at)));
    }
    let identifier = key.key_identifier.as_deref().unwrap_or("-");
    format!("{identifier}  {}", parts.join(", "))
}
