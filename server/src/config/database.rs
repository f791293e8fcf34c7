//! The database, and the key that seals the secrets in it.

use std::path::{Path, PathBuf};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::SecretString;
use url::Url;
use zeroize::Zeroizing;

use super::settings::{Secrecy, Settings};

/// The length of a master key in bytes.
const MASTER_KEY_LENGTH: usize = 32;

/// The configuration of the database.
#[derive(Clone, Debug)]
pub struct Database {
    /// `None`: a private Postgres under `data_dir`.
    pub url: Option<SecretString>,
    /// The same database for its owner, which migrates it. `None` if the role of `url` is the owner.
    pub migration_url: Option<SecretString>,
    /// The maximum number of connections of one server.
    pub max_connections: u32,
    /// Whether `serve` migrates the schema.
    pub migrate: bool,
}

/// Where the master key comes from. It has 32 bytes and seals the private keys.
#[derive(Clone, Debug)]
pub enum MasterKey {
    /// A file with the key in base64url. It is created at the first start if it is missing.
    File(PathBuf),
    /// The key in base64url.
    Value(SecretString),
}

impl Database {
    pub(super) fn read(settings: &mut Settings) -> Self {
        let check = |text: &str| match text.parse::<Url>() {
            Ok(url) if matches!(url.scheme(), "postgres" | "postgresql") => Ok(secrecy(&url)),
            _ => Err("must be a Postgres URL, such as postgres://user:password@host:5432/database"),
        };
        if !settings.is_given("database.url") {
            settings.refuse_given("database.migration_url", "can only be used with database.url");
        }
        Self {
            url: settings.secret("database.url", check),
            migration_url: settings.secret("database.migration_url", check),
            // The replica that does the periodic work needs one connection for that.
            max_connections: settings.number("database.max_connections", 2..=10_000).unwrap_or(16),
            migrate: settings.boolean("database.migrate").unwrap_or(true),
        }
    }
}

/// A URL without a password is for a database that knows the server in another way.
fn secrecy(url: &Url) -> Secrecy {
    let has_password = url.password().is_some() || url.query_pairs().any(|(name, _)| name == "password");
    match has_password {
        true => Secrecy::Secret,
        false => Secrecy::Public,
    }
}

impl MasterKey {
    pub(super) fn read(settings: &mut Settings, data_dir: &Path) -> Self {
        let check = |text: &str| match URL_SAFE_NO_PAD.decode(text).map(Zeroizing::new) {
            Ok(bytes) if bytes.len() == MASTER_KEY_LENGTH => Ok(Secrecy::Secret),
            _ => Err("must be 32 bytes in base64url without padding (43 characters)"),
        };
        if settings.is_given("master_key") {
            settings.refuse_given("master_key_file", "cannot be used together with master_key");
        }
        let file = settings.path("master_key_file");
        match settings.secret("master_key", check) {
            Some(value) => Self::Value(value),
            None => Self::File(file.unwrap_or_else(|| data_dir.join("master.key"))),
        }
    }
}
