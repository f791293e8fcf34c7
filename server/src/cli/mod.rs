//! The command line.

mod api_key;
mod apple_attestation;
mod audit;
mod ca;
mod demo;
mod print;
mod serve;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use assay_authority::attestation::apple::RootsError;
use assay_protocol::Chain;
use clap::{Args, Parser, Subcommand};

use crate::{
    changes::chain::EntryHash,
    clock::{Clock, SystemClock},
    config::{self, Config, ConfigError},
    database::{Database, DatabaseError},
    http, memory,
    running::RunError,
    telemetry::logging::LoggingError,
};

/// Machine identity for fleets of Macs: certificate authority, registry, verifier and grant issuer.
#[derive(Debug, Parser)]
#[command(name = "assay-server", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// The configuration file (TOML). Each key can also be given as an environment variable.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server until SIGTERM. Running requests are completed before it stops.
    Serve,
    /// Migrate the database's schema.
    Migrate,
    /// Create, list, end and revoke API keys.
    #[command(subcommand)]
    ApiKey(api_key::ApiKeyCommand),
    /// Verify Managed Device Attestations.
    #[command(subcommand)]
    AppleAttestation(AppleAttestationCommand),
    /// Verify the audit log.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Manage the certificate authority: roots, issuing CAs, grant keys, and their rotation.
    #[command(subcommand)]
    Ca(ca::CaCommand),
    /// Print an example configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the OpenAPI document.
    Openapi,
    /// Run a demo: server, Postgres, simulated machines, granted and denied permissions. Needs no configuration.
    Demo(DemoArguments),
}

#[derive(Debug, Args)]
struct DemoArguments {
    /// How many machines to simulate.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    machines: u32,
    /// Stop when every machine has checked in, and leave nothing running.
    #[arg(long)]
    once: bool,
    /// The server's port on 127.0.0.1.
    #[arg(long, default_value_t = 8443)]
    port: u16,
}

#[derive(Debug, Subcommand)]
enum AppleAttestationCommand {
    /// Verify a chain offline: whether Apple signed it, what it claims, and for which key. Needs no configuration.
    Verify(apple_attestation::Verify),
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Check that no entry was changed or removed, and name the first that was. Prints the last hash, to be recorded
    /// elsewhere.
    Verify {
        /// A hash recorded earlier. The command also fails if the chain does not contain it, for example because its
        /// end was removed.
        #[arg(long, value_name = "HASH", value_parser = audit::parse_hash)]
        last_hash: Option<EntryHash>,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print a configuration with every key, its default and its meaning.
    Example,
}

/// Why a command failed. It is printed on one line.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot start logging")]
    Logging(#[from] LoggingError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(transparent)]
    ApiKey(#[from] crate::administration::api_keys::ApiKeyError),
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    #[error(transparent)]
    Audit(#[from] crate::audit::verification::VerificationError),
    #[error(transparent)]
    Bootstrap(#[from] crate::rotation::bootstrap::BootstrapError),
    #[error(transparent)]
    Rotation(#[from] crate::rotation::RotationError),
    #[error("the audit log is broken")]
    AuditBroken,
    #[error("cannot read {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot use the roots in {}", path.display())]
    Roots {
        path: PathBuf,
        #[source]
        source: RootsError,
    },
    #[error("the attestation is not valid")]
    AttestationInvalid,
    #[error("cannot serialize the document")]
    Document(#[from] serde_json::Error),
    #[error("cannot write to standard output")]
    Output(#[source] std::io::Error),
    #[error(transparent)]
    Demo(#[from] crate::demo::DemoError),
    #[error("cannot protect this process's memory")]
    Memory(#[source] std::io::Error),
    #[error("cannot start the runtime")]
    Runtime(#[source] std::io::Error),
}

/// Runs the command of this process.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let protected = memory::protect().map_err(CommandError::Memory);
    let runtime = protected.and_then(|()| tokio::runtime::Runtime::new().map_err(CommandError::Runtime));
    let done = runtime.and_then(|runtime| runtime.block_on(execute(&arguments)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print::error_line(&Chain(&error).to_string());
            ExitCode::FAILURE
        }
    }
}

async fn execute(arguments: &Arguments) -> Result<(), CommandError> {
    let load = || Config::load(arguments.config.as_deref(), config::process_environment());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    match &arguments.command {
        Command::Serve => serve::serve(&load()?, clock).await,
        Command::Migrate => migrate(&load()?).await,
        Command::ApiKey(command) => api_key::run(&load()?, clock, command).await,
        Command::AppleAttestation(AppleAttestationCommand::Verify(arguments)) => {
            apple_attestation::verify(arguments, clock.as_ref())
        }
        Command::Audit(AuditCommand::Verify { last_hash }) => audit::verify(&load()?, clock, *last_hash).await,
        Command::Ca(command) => ca::run(&load()?, clock, command).await,
        Command::Config(ConfigCommand::Example) => print::text(config::EXAMPLE),
        Command::Openapi => print::text(&http::openapi()?),
        Command::Demo(arguments) => demo::run(arguments, clock).await,
    }
}

async fn migrate(config: &Config) -> Result<(), CommandError> {
    let database = Database::open(config).await?;
    let migrated = database.migrate().await;
    database.close().await?;
    Ok(migrated?)
}
