//! `api-key`: creates, lists, ends and revokes keys.

use std::{fmt::Write, sync::Arc, time::Duration};

use assay_protocol::{
    admin_api::api_keys::{ApiKey, CreateApiKey, Role},
    text::rfc3339,
};
use clap::{
    Subcommand,
    builder::{PossibleValuesParser, TypedValueParser},
};
use secrecy::ExposeSecret;
use uuid::Uuid;

use super::{CommandError, print};
use crate::{
    administration::api_keys, changes::Origin, clock::Clock, config::Config, database::Database, networks, secrets,
    store::Store, telemetry::Metrics,
};

/// How many keys are read at once.
const PAGE: i64 = 500;

#[derive(Debug, Subcommand)]
pub(super) enum ApiKeyCommand {
    /// Create an API key and print only the key.
    Create {
        /// The person or program that will use the key. Valid keys have different names.
        #[arg(long)]
        name: String,
        /// The role of the key.
        #[arg(long, value_parser = PossibleValuesParser::new(Role::ALL.map(Role::as_str)).try_map(|role| role.parse::<Role>()))]
        role: Role,
        /// How long the key is valid, such as 90d. Default: 365d.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        expires_in: Option<Duration>,
        /// A network from which the key may be used, such as 10.0.0.0/8. May be repeated. Default: all.
        #[arg(long = "network", value_name = "CIDR", value_parser = parse_network)]
        networks: Vec<String>,
    },
    /// List the API keys, including expired and revoked ones.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// End an API key earlier than it would end by itself, such as when its successor is in use.
    End {
        /// The key's id, as `api-key list` shows it.
        id: Uuid,
        /// In how long it ends.
        #[arg(long = "in", value_name = "TIME", value_parser = humantime::parse_duration)]
        after: Duration,
    },
    /// Revoke an API key at once.
    Revoke {
        /// The key's id, as `api-key list` shows it.
        id: Uuid,
    },
}

/// Runs an `api-key` command.
pub(super) async fn run(config: &Config, clock: Arc<dyn Clock>, command: &ApiKeyCommand) -> Result<(), CommandError> {
    let database = Database::open(config).await?;
    let done = run_in(&database, config, clock, command).await;
    database.close().await?;
    print::text(&done?)
}

async fn run_in(
    database: &Database,
    config: &Config,
    clock: Arc<dyn Clock>,
    command: &ApiKeyCommand,
) -> Result<String, CommandError> {
    // A key may be created before the server's first start.
    if config.database.migrate {
        database.migrate().await?;
    }
    database.check_schema().await?;
    let store = Store::new(database.pool().clone(), clock, Arc::new(Metrics::new()));
    let origin = Origin::command_line();
    match command {
        ApiKeyCommand::Create {
            name,
            role,
            expires_in,
            networks,
        } => {
            let request = CreateApiKey {
                name: name.clone(),
                role: *role,
                expires_in_seconds: expires_in.map(|life| life.as_secs()),
                networks: (!networks.is_empty()).then(|| networks.clone()),
            };
            let (_key, secret) = api_keys::create(&store, &origin, &request).await?;
            Ok(secret.expose_secret().to_owned())
        }
        ApiKeyCommand::List { json } => {
            let keys = all(&store).await?;
            Ok(match json {
                true => serde_json::to_string_pretty(&keys)?,
                false => as_text(&keys, &store),
            })
        }
        ApiKeyCommand::End { id, after } => {
            let after = time::Duration::try_from(*after).unwrap_or(time::Duration::MAX);
            let end = store.now().saturating_add(after);
            let ended = api_keys::end(&store, &origin, *id, end).await?;
            let end = ended.expires_at.map(rfc3339).unwrap_or_default();
            Ok(format!("{id} ends at {end}"))
        }
        ApiKeyCommand::Revoke { id } => {
            api_keys::revoke(&store, &origin, *id).await?;
            Ok(format!("{id} is revoked"))
        }
    }
}

async fn all(store: &Store) -> Result<Vec<ApiKey>, CommandError> {
    let mut keys: Vec<ApiKey> = Vec::new();
    loop {
        let page = api_keys::list(store, keys.last().map(|key| key.id), PAGE).await?;
        if page.is_empty() {
            return Ok(keys);
        }
        keys.extend(page);
    }
}

/// One line for each key. Names of earlier versions may contain characters that change a terminal's lines.
fn as_text(keys: &[ApiKey], store: &Store) -> String {
    let mut lines = String::new();
    for key in keys {
        let state = match secrets::is_valid(key.expires_at, key.revoked_at, store.now()) {
            true => "valid",
            false if key.revoked_at.is_some() => "revoked",
            false => "expired",
        };
        let prefix = key.prefix.as_deref().unwrap_or("-");
        let end = key.expires_at.map_or_else(|| "never".to_owned(), rfc3339);
        let used = key.last_used_at.map_or_else(|| "never".to_owned(), rfc3339);
        let name = key.name.escape_debug();
        // Writing to memory does not fail.
        let _ = writeln!(
            lines,
            "{}  {prefix:<16}  {:<13}  {state:<7}  ends {end}  used {used}  {name}",
            key.id, key.role
        );
    }
    lines
}

fn parse_network(text: &str) -> Result<String, networks::NotANetwork> {
    networks::parse(text).map(|network| network.to_string())
}
