//! The database, and the key that seals what is secret in it.

use std::path::{Path, PathBuf};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::SecretString;
use url::Url;
use zeroize::Zeroizing;

use super::settings::Settings;

/// Bytes of a master key.
const MASTER_KEY_LENGTH: usize = 32;

/// The database.
#[derive(Clone, Debug)]
pub struct Database {
    /// None: a private Postgres under `data_dir`.
    pub url: Option<SecretString>,
    /// The same database as its owner: who migrates, where that is another than the role of `url`.
    pub migration_url: Option<SecretString>,
    /// The connections of one server.
    pub max_connections: u32,
    /// Whether `serve` brings the schema up to date.
    pub migrate: bool,
}

/// Where the 32 bytes that seal the private keys come from.
#[derive(Clone, Debug)]
pub enum MasterKey {
    /// A file that holds them in base64url, made at the first start when it is missing.
    File(PathBuf),
    /// The bytes in base64url.
    Value(SecretString),
}

impl Database {
    pub(super) fn read(settings: &mut Settings) -> Self {
        let check = |text: &str| match text.parse::<Url>() {
            Ok(url) if matches!(url.scheme(), "postgres" | "postgresql") => Ok(()),
            _ => Err("must be a Postgres URL, as in postgres://user:password@host:5432/database"),
        };
        if !settings.is_given("database.url") {
            settings.refuse_given("database.migration_url", "has a meaning only beside database.url");
        }
        Self {
            url: settings.secret("database.url", check),
            migration_url: settings.secret("database.migration_url", check),
            // One connection is held by the replica that has the leader's tasks.
            max_connections: settings.number("database.max_connections", 2..=10_000).unwrap_or(16),
            migrate: settings.boolean("database.migrate").unwrap_or(true),
        }
    }
}

impl MasterKey {
    pub(super) fn read(settings: &mut Settings, data_dir: &Path) -> Self {
        let check = |text: &str| match URL_SAFE_NO_PAD.decode(text).map(Zeroizing::new) {
            Ok(bytes) if bytes.len() == MASTER_KEY_LENGTH => Ok(()),
            _ => Err("must be 32 bytes in base64url without padding (43 characters)"),
        };
        if settings.is_given("master_key") {
            settings.refuse_given("master_key_file", "cannot be given together with master_key");
        }
        let file = settings.path("master_key_file");
        match settings.secret("master_key", check) {
            Some(value) => Self::Value(value),
            None => Self::File(file.unwrap_or_else(|| data_dir.join("master.key"))),
        }
    }
}
