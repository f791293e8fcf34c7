//! `ca`: the server's keys and their rotation.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use assay_protocol::text::rfc3339;
use clap::Subcommand;
use time::{Duration, OffsetDateTime};

use super::{CommandError, print};
use crate::{
    changes::Origin,
    clock::Clock,
    config::Config,
    database::Database,
    keyring::Keyring,
    rotation::{
        self, AuthorityStatus, CachesHaveIt, InstalledList, KeyStatus, Prepared, RotationError, RotationPolicy,
        Rotator, Wanted, Withdrawn, bootstrap,
    },
    store::Store,
    telemetry::Metrics,
};

/// An installed list that is valid for longer gets a warning.
const LONG_LIST: Duration = Duration::days(90);

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
        /// A PEM file with a certificate of the new root's subject and key, signed by the present root. Needed if the
        /// present root is external.
        #[arg(long, value_name = "FILE", requires = "root")]
        cross_certificate: Option<PathBuf>,
        /// Prepare the next grant key instead. It signs after grants.key_overlap.
        #[arg(long)]
        grant_key: bool,
    },
    /// Print a CSR for an issuing CA that your own root will sign. Repeating it prints a CSR for the same key.
    Csr {
        /// Print a CSR for the next root of the server, which your own present root must certify before `ca rotate
        /// --root`.
        #[arg(long)]
        root: bool,
    },
    /// Install the certificate that was issued for the CSR. It is used after the overlap, like any other.
    Install {
        /// A PEM file with the issuing CA's certificate, the intermediates, and the root, in this order.
        #[arg(long, value_name = "FILE")]
        chain: PathBuf,
        /// A PEM file with a certificate of the new root's subject and key, signed by the present root. Needed if the
        /// present root is external and another one than in the chain.
        #[arg(long, value_name = "FILE")]
        cross_certificate: Option<PathBuf>,
    },
    /// Install the revocation list that an external root has signed, so that it is served where verifiers look for it.
    InstallList {
        /// A file with the list, in PEM or DER.
        #[arg(long, value_name = "FILE")]
        list: PathBuf,
    },
    /// Withdraw an issuing CA that was replaced and whose key may be stolen. Agents refuse it from then on, and the
    /// root's revocation list names it.
    Withdraw {
        /// Its key identifier, as `ca status` shows it.
        key: String,
    },
}

/// The files that a command names.
#[derive(Default)]
struct Read {
    /// The chain, or the list.
    installed: Vec<u8>,
    cross_certificate: Option<Vec<u8>>,
}

impl Read {
    fn of(command: &CaCommand) -> Result<Self, CommandError> {
        let (installed, cross_certificate) = match command {
            CaCommand::Install {
                chain,
                cross_certificate,
            } => (Some(chain), cross_certificate.as_ref()),
            CaCommand::InstallList { list } => (Some(list), None),
            CaCommand::Rotate { cross_certificate, .. } => (None, cross_certificate.as_ref()),
            _ => (None, None),
        };
        Ok(Self {
            installed: installed.map(|path| read(path)).transpose()?.unwrap_or_default(),
            cross_certificate: cross_certificate.map(|path| read(path)).transpose()?,
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CommandError> {
    std::fs::read(path).map_err(|source| CommandError::File {
        path: path.to_owned(),
        source,
    })
}

/// Runs a `ca` command.
pub(super) async fn run(config: &Config, clock: Arc<dyn Clock>, command: &CaCommand) -> Result<(), CommandError> {
    let files = Read::of(command)?;
    let database = Database::open(config).await?;
    let done = run_in(&database, config, clock, command, &files).await;
    database.close().await?;
    print::text(&done?)
}

async fn run_in(
    database: &Database,
    config: &Config,
    clock: Arc<dyn Clock>,
    command: &CaCommand,
    files: &Read,
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
        CaCommand::Rotate { root, grant_key, .. } => {
            let wanted = match (root, grant_key) {
                (_, true) => Wanted::GrantKey,
                (true, false) => Wanted::RootCa(files.cross_certificate.as_deref()),
                (false, false) => Wanted::IssuingCa,
            };
            let prepared = rotation::rotate(&store, &rotator, &origin, wanted).await?;
            Ok(describe(&prepared, &keyring)?)
        }
        CaCommand::Csr { root: false } => Ok(rotation::request(&store, &rotator, &origin).await?),
        CaCommand::Csr { root: true } => Ok(rotation::request_root(&store, &rotator, &origin).await?),
        CaCommand::Install { .. } => {
            let given = (files.installed.as_slice(), files.cross_certificate.as_deref());
            Ok(describe(
                &rotation::install(&store, &rotator, &origin, given).await?,
                &keyring,
            )?)
        }
        CaCommand::InstallList { .. } => {
            let installed = rotation::install_list(&store, &origin, &files.installed).await?;
            Ok(describe_list(&installed, &keyring, store.now())?)
        }
        CaCommand::Withdraw { key } => {
            let withdrawn = rotation::withdraw(&store, &origin, key).await?;
            Ok(describe_withdrawn(&withdrawn, &keyring)?)
        }
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

fn describe_list(installed: &InstalledList, keyring: &Keyring, now: OffsetDateTime) -> Result<String, RotationError> {
    let identifier = rotation::identifier(&installed.root, keyring)?.unwrap_or_default();
    let state = match installed.is_new {
        true => "is installed",
        false => "was already installed",
    };
    let (end, days) = (
        rfc3339(installed.next_update),
        (installed.next_update - now).whole_days(),
    );
    let mut said = format!("the list of {identifier} {state}; install the next one before {end}");
    if installed.next_update - now > LONG_LIST {
        // Writing to memory does not fail.
        let _ = write!(
            said,
            "\nwarning: the list is valid for {days} days; until then, an attacker on the path can hide a later revocation"
        );
    }
    Ok(said)
}

fn describe_withdrawn(withdrawn: &Withdrawn, keyring: &Keyring) -> Result<String, RotationError> {
    let identifier = rotation::identifier(&withdrawn.key, keyring)?.unwrap_or_default();
    let at = withdrawn.key.withdrawn_at.map(rfc3339).unwrap_or_default();
    Ok(match withdrawn.is_new {
        true => format!("{identifier} is withdrawn"),
        false => format!("{identifier} was already withdrawn, at {at}"),
    })
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
            for cache in &key.caches {
                let _ = writeln!(words, "    {}", cache_line(cache));
            }
        }
    }
    words
}

fn cache_line(cache: &CachesHaveIt) -> String {
    let age = match cache.max_age_seconds {
        seconds if seconds % 86_400 == 0 => format!("{} d", seconds / 86_400),
        seconds if seconds % 3_600 == 0 => format!("{} h", seconds / 3_600),
        seconds => format!("{} min", seconds / 60),
    };
    let from = rfc3339(cache.from);
    let late = if cache.in_time { "" } else { ", after it signs" };
    format!("caches of at most {age} have it from {from}{late}")
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
    if let Some(at) = key.withdrawn_at {
        parts.push(format!("withdrawn at {}", rfc3339(at)));
    }
    if let Some(at) = key.retires_at {
        parts.push(format!("retires at {}", rfc3339(at)));
    }
    let identifier = key.key_identifier.as_deref().unwrap_or("-");
    format!("{identifier}  {}", parts.join(", "))
}
