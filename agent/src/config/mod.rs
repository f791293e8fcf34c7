//! The configuration: managed settings override the environment, and the environment overrides the file. The command
//! line overrides all. No other module reads the environment.

pub(crate) mod managed;

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use ::config::{Config, Environment, File, FileFormat};
use assay_protocol::machine::{KeyAccessibility, KeyStoreKind};
use secrecy::SecretString;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::{
    exchanges::EnrollOptions,
    trust::{Fingerprint, ServerUrl, TrustAnchor},
};

const PREFIX: &str = "ASSAY_AGENT_";
const CONFIG_VARIABLE: &str = "ASSAY_AGENT_CONFIG";
const DEFAULT_STATE_DIR: &str = "/var/db/assay";
const KEYS: &[&str] = &[
    "server",
    "token_file",
    "ca_fingerprint",
    "ca_file",
    "state_dir",
    "key_store",
    "accessibility",
    "facts",
    "log_level",
    "grant_socket__users",
    "grant_socket__groups",
    "log_to",
];
/// The additional key that only a configuration profile can set.
const MANAGED_TOKEN: &str = "token";

/// The settings, from a TOML file or from environment variables: `ASSAY_AGENT_` and the key in capitals.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The public URL of the server.
    pub(crate) server: Option<ServerUrl>,
    /// An enrollment token. Only a configuration profile can set it. Users can read the profile, so the token should be
    /// bound to the machine's serial number and usable once.
    #[serde(skip)]
    pub(crate) token: Option<SecretString>,
    /// A file with an enrollment token.
    pub(crate) token_file: Option<PathBuf>,
    /// The SHA-256 fingerprint of the server's root.
    pub(crate) ca_fingerprint: Option<Fingerprint>,
    /// A PEM file with the trusted roots for the server's certificate.
    pub(crate) ca_file: Option<PathBuf>,
    /// The directory of the key and the record.
    pub(crate) state_dir: Option<PathBuf>,
    /// The key store.
    pub(crate) key_store: Option<KeyStoreKind>,
    /// When a new key in the enclave is usable.
    pub(crate) accessibility: Option<KeyAccessibility>,
    /// A file with facts, instead of the system's.
    pub(crate) facts: Option<PathBuf>,
    /// The log level.
    pub(crate) log_level: Option<LogLevel>,
    /// The users and groups that may read grants from the daemon's socket.
    #[serde(default)]
    pub(crate) grant_socket: GrantSocketSettings,
    /// The destination of the daemon's log.
    #[cfg_attr(
        not(any(target_os = "macos", feature = "enclave-stand-in", test)),
        allow(dead_code, reason = "only a Mac has a system log; all systems accept the key")
    )]
    pub(crate) log_to: Option<LogTarget>,
}

/// The users and groups that may use the agent's sockets, by name or number. Root and the agent's own user always may.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GrantSocketSettings {
    /// Users.
    #[serde(default, deserialize_with = "names")]
    pub(crate) users: Vec<String>,
    /// Groups: their direct members.
    #[serde(default, deserialize_with = "names")]
    pub(crate) groups: Vec<String>,
}

/// Reads the settings again, because a configuration profile may have changed them.
pub(crate) type ReadSettings<'a> = &'a (dyn Fn() -> Result<Settings, ConfigurationError> + Send + Sync);

/// The destination of the daemon's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogTarget {
    /// Standard error: under systemd, the journal.
    Stderr,
    /// The system log: macOS' unified log.
    System,
}

/// The log level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogLevel {
    /// Failures.
    Error,
    /// Failures and warnings.
    Warn,
    /// Also what the agent did.
    Info,
    /// Also why.
    Debug,
    /// Everything.
    Trace,
}

/// Why the configuration is not valid.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigurationError {
    /// An unknown key, an invalid value, or invalid TOML.
    #[error("{place}: {reason}")]
    Bad {
        /// The file, the environment or the managed settings.
        place: String,
        /// The key, and what is wrong with it.
        reason: String,
    },
    /// A file that the configuration names cannot be read.
    #[error("the {what} {} cannot be read", path.display())]
    File {
        /// The purpose of the file.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The token file is empty.
    #[error("the token file {} is empty", .0.display())]
    NoToken(PathBuf),
    /// Two keys are set that exclude each other.
    #[error("ca_fingerprint and ca_file exclude each other: set only one of them")]
    TwoTrusts,
}

impl Settings {
    /// Reads managed settings, environment and file. The command line names the file; otherwise `ASSAY_AGENT_CONFIG`
    /// does, if set.
    pub(crate) fn load(file: Option<&Path>) -> Result<Self, ConfigurationError> {
        let mut environment = environment();
        let named = environment.remove(CONFIG_VARIABLE).map(PathBuf::from);
        Self::from_sources(file.or(named.as_deref()), environment, managed_settings()?)
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| DEFAULT_STATE_DIR.into())
    }

    /// The key store. A software key requires explicit configuration, because it can be copied.
    pub(crate) fn key_store(&self) -> KeyStoreKind {
        self.key_store.unwrap_or(KeyStoreKind::SecureEnclave)
    }

    /// When a new key in the enclave is usable. The default is from boot, because the daemon runs before any login.
    pub(crate) fn accessibility(&self) -> KeyAccessibility {
        self.accessibility.unwrap_or(KeyAccessibility::Always)
    }

    /// The options of an enrollment, including the content of the token file and the CA file. `None` if no server is
    /// set.
    pub(crate) fn enroll_options(&self) -> Result<Option<EnrollOptions>, ConfigurationError> {
        let Some(server) = self.server.clone() else {
            return Ok(None);
        };
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => Some(token.clone()),
            (None, file) => file.as_deref().map(read_token).transpose()?,
        };
        let trust = match (self.ca_fingerprint, &self.ca_file) {
            (Some(_), Some(_)) => return Err(ConfigurationError::TwoTrusts),
            (Some(fingerprint), None) => Some(TrustAnchor::Fingerprint(fingerprint)),
            (None, Some(path)) => Some(TrustAnchor::Certificates(read_file("CA file", path)?)),
            (None, None) => None,
        };
        Ok(Some(EnrollOptions { server, token, trust }))
    }

    fn from_sources(
        file: Option<&Path>,
        environment: HashMap<String, String>,
        managed: Map<String, Value>,
    ) -> Result<Self, ConfigurationError> {
        let mut place = "the environment".to_owned();
        if let Some(variable) = environment.keys().find(|variable| !is_known(variable)) {
            return Err(ConfigurationError::Bad {
                place,
                reason: format!("{variable} is not a variable of the agent"),
            });
        }
        let mut sources = Config::builder();
        if let Some(path) = file {
            place = path.display().to_string();
            let text = read_file("configuration file", path)?;
            // Parse the file alone first. An error in it must name the file, not the environment.
            parse(
                &place,
                Config::builder().add_source(File::from_str(&text, FileFormat::Toml)),
            )?;
            sources = sources.add_source(File::from_str(&text, FileFormat::Toml));
            "the environment".clone_into(&mut place);
        }
        let variables = Environment::with_prefix("ASSAY_AGENT")
            .prefix_separator("_")
            .separator("__");
        let sources = sources.add_source(variables.source(Some(environment)));
        parse(&place, sources.clone())?;
        managed_over(sources, managed)
    }
}

/// The managed settings that are forced now. The daemon compares them with earlier ones.
pub(crate) fn managed_settings() -> Result<Map<String, Value>, ConfigurationError> {
    let keys: Vec<_> = KEYS.iter().copied().chain([MANAGED_TOKEN]).collect();
    managed::settings(&keys).map_err(|error| ConfigurationError::Bad {
        place: managed::place(),
        reason: error.to_string(),
    })
}

/// Managed settings override file and environment: a local file must not undo what an administrator forces on a fleet.
fn managed_over(sources: Sources, managed: Map<String, Value>) -> Result<Settings, ConfigurationError> {
    let bad = |reason: String| ConfigurationError::Bad {
        place: managed::place(),
        reason,
    };
    let (mut sources, mut token) = (sources, None);
    let is_managed = |key: &str| managed.contains_key(key);
    let (has_fingerprint, has_ca_file) = (is_managed("ca_fingerprint"), is_managed("ca_file"));
    for (key, value) in managed {
        let Value::String(text) = value else {
            return Err(bad(format!("the value of {key} is not a string")));
        };
        match key.as_str() {
            MANAGED_TOKEN if text.trim().is_empty() => return Err(bad("token is empty".to_owned())),
            MANAGED_TOKEN => token = Some(SecretString::from(text.trim())),
            key => {
                let set = sources.set_override(key, text);
                sources = set.map_err(|error| bad(error.to_string()))?;
            }
        }
    }
    let mut settings = parse(&managed::place(), sources)?;
    settings.token = token;
    // `ca_fingerprint` and `ca_file` exclude each other, so a managed one replaces an unmanaged other one.
    match (has_fingerprint, has_ca_file) {
        (true, false) => settings.ca_file = None,
        (false, true) => settings.ca_fingerprint = None,
        _ => {}
    }
    Ok(settings)
}

/// Reads a file with an enrollment token, without surrounding white space.
pub(crate) fn read_token(path: &Path) -> Result<SecretString, ConfigurationError> {
    let text = Zeroizing::new(read_file("token file", path)?);
    match text.trim() {
        "" => Err(ConfigurationError::NoToken(path.to_owned())),
        token => Ok(token.into()),
    }
}

pub(crate) fn read_file(what: &'static str, path: &Path) -> Result<String, ConfigurationError> {
    fs::read_to_string(path).map_err(|source| ConfigurationError::File {
        what,
        path: path.to_owned(),
        source,
    })
}

type Sources = ::config::ConfigBuilder<::config::builder::DefaultState>;

fn parse(place: &str, sources: Sources) -> Result<Settings, ConfigurationError> {
    let settings = sources.build().and_then(Config::try_deserialize);
    settings.map_err(|error| ConfigurationError::Bad {
        place: place.to_owned(),
        reason: error.to_string(),
    })
}

fn is_known(variable: &str) -> bool {
    let key = variable.strip_prefix(PREFIX).map(str::to_lowercase);
    key.is_some_and(|key| KEYS.contains(&key.as_str()))
}

/// A list of names. In an environment variable, the names are separated by commas.
fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a list of names")]
    enum Names {
        List(Vec<String>),
        Text(String),
    }
    let names = match Names::deserialize(deserializer)? {
        Names::List(names) => names,
        Names::Text(text) => text.split(',').map(|name| name.trim().to_owned()).collect(),
    };
    match names.iter().any(String::is_empty) {
        true => Err(serde::de::Error::custom("a name in the list is empty")),
        false => Ok(names),
    }
}

/// The environment variables of the agent. Variables that are not Unicode are ignored.
fn environment() -> HashMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with(PREFIX))
        .collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use secrecy::ExposeSecret;
    use serde_json::json;

    use super::*;

    fn load(toml: &str, environment: &[(&str, &str)]) -> Result<Settings, ConfigurationError> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent.toml");
        fs::write(&file, toml).unwrap();
        let environment = environment
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()));
        Settings::from_sources(Some(&file), environment.collect(), Map::new())
    }

    /// Managed settings, as a configuration profile forces them.
    fn forced(settings: Value) -> Map<String, Value> {
        settings.as_object().unwrap().clone()
    }

    #[test]
    fn managed_settings_override_file_and_environment() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent.toml");
        fs::write(
            &file,
            "server = 'https://one.example.com'\nca_file = '/a'\nlog_level = 'warn'",
        )
        .unwrap();
        let environment = HashMap::from([("ASSAY_AGENT_SERVER".into(), "https://two.example.com".into())]);
        let fingerprint = "ab".repeat(32);
        let managed = forced(json!({
            "server": "https://three.example.com", "ca_fingerprint": fingerprint, "token": " secret ",
        }));
        let settings = Settings::from_sources(Some(&file), environment, managed).unwrap();
        assert_eq!(settings.log_level, Some(LogLevel::Warn));
        assert!(!format!("{settings:?}").contains("secret"));
        let options = settings.enroll_options().unwrap().unwrap();
        assert_eq!(options.server.as_str(), "https://three.example.com");
        assert_eq!(
            options.trust,
            Some(TrustAnchor::Fingerprint(fingerprint.parse().unwrap()))
        );
        assert_eq!(options.token.unwrap().expose_secret(), "secret");
    }

    #[rstest]
    #[case(json!({"server": "http://a.example.com"}), "server")]
    #[case(json!({"server": {}}), "server is not a string")]
    #[case(json!({"log_level": 3}), "log_level is not a string")]
    #[case(json!({"token": " "}), "token is empty")]
    fn an_error_in_managed_settings_names_them(#[case] managed: Value, #[case] named: &str) {
        let error = Settings::from_sources(None, HashMap::new(), forced(managed))
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("the managed settings (dev.assay.agent): "), "{error}");
        assert!(error.contains(named), "{error}");
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let toml = "server = 'https://one.example.com'\nkey_store = 'software'\ntoken_file = '/a'";
        let environment = [
            ("ASSAY_AGENT_SERVER", "https://two.example.com"),
            ("ASSAY_AGENT_TOKEN_FILE", "/b"),
        ];
        let settings = load(toml, &environment).unwrap();
        assert_eq!(settings.server.unwrap().as_str(), "https://two.example.com");
        assert_eq!(settings.token_file.unwrap(), Path::new("/b"));
        assert_eq!(settings.key_store, Some(KeyStoreKind::Software));
    }

    #[test]
    fn users_are_a_list_in_the_file_and_comma_separated_in_a_variable() {
        let toml = "[grant_socket]\nusers = ['alice', 'bob']\ngroups = ['staff']";
        let settings = load(toml, &[("ASSAY_AGENT_GRANT_SOCKET__USERS", "carol, 501")]).unwrap();
        assert_eq!(settings.grant_socket.users, ["carol", "501"]);
        assert_eq!(settings.grant_socket.groups, ["staff"]);
        assert_eq!(load("", &[]).unwrap().grant_socket, GrantSocketSettings::default());
    }

    #[test]
    fn the_default_key_store_is_the_enclave() {
        let settings = Settings::from_sources(None, HashMap::new(), Map::new()).unwrap();
        assert_eq!(settings.key_store(), KeyStoreKind::SecureEnclave);
        assert_eq!(settings.accessibility(), KeyAccessibility::Always);
        assert_eq!(settings.state_dir(), Path::new("/var/db/assay"));
        assert!(settings.enroll_options().unwrap().is_none());
    }

    #[rstest]
    #[case::key("servr = 'https://a'", &[], &["agent.toml", "servr"])]
    #[case::value("key_store = 'tpm'", &[], &["agent.toml", "key_store", "tpm"])]
    #[case::accessibility("accessibility = 'never'", &[], &["agent.toml", "accessibility", "never"])]
    #[case::token("token = 'secret'", &[], &["agent.toml", "token"])]
    #[case::url("server = 'http://a.example.com'", &[], &["agent.toml", "server", "https"])]
    #[case::fingerprint("ca_fingerprint = 'abc'", &[], &["agent.toml", "ca_fingerprint", "SHA-256"])]
    #[case::syntax("server = ", &[], &["agent.toml"])]
    #[case::list("[grant_socket]\nusers = 501", &[], &["agent.toml", "grant_socket.users", "list of names"])]
    #[case::name("[grant_socket]\nusers = ['']", &[], &["agent.toml", "empty"])]
    #[case::nested_key("[grant_socket]\nuser = ['a']", &[], &["agent.toml", "user"])]
    #[case::nested_variable("", &[("ASSAY_AGENT_GRANT_SOCKET__USER", "x")], &["ASSAY_AGENT_GRANT_SOCKET__USER"])]
    #[case::variable("", &[("ASSAY_AGENT_SERVR", "x")], &["ASSAY_AGENT_SERVR"])]
    #[case::variables_value("", &[("ASSAY_AGENT_KEY_STORE", "tpm")], &["environment", "key_store", "tpm"])]
    fn what_is_wrong_is_named(#[case] toml: &str, #[case] environment: &[(&str, &str)], #[case] named: &[&str]) {
        let error = load(toml, environment).unwrap_err().to_string();
        for part in named {
            assert!(error.contains(part), "{part} in: {error}");
        }
    }

    #[test]
    fn the_token_is_read_from_its_file_and_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let token_file = folder.path().join("token");
        let settings = Settings {
            server: Some("https://assay.example.com".parse().unwrap()),
            token_file: Some(token_file.clone()),
            ..Settings::default()
        };
        assert!(matches!(
            settings.enroll_options(),
            Err(ConfigurationError::File { .. })
        ));
        fs::write(&token_file, " \n").unwrap();
        assert!(matches!(settings.enroll_options(), Err(ConfigurationError::NoToken(_))));
        fs::write(&token_file, "secret\n").unwrap();
        let options = settings.enroll_options().unwrap().unwrap();
        assert!(!format!("{options:?}").contains("secret"));
        assert_eq!(options.token.unwrap().expose_secret(), "secret");
    }

    #[test]
    fn fingerprint_and_ca_file_exclude_each_other() {
        let settings = Settings {
            server: Some("https://assay.example.com".parse().unwrap()),
            ca_fingerprint: Some("ab".repeat(32).parse().unwrap()),
            ca_file: Some("/ca.pem".into()),
            ..Settings::default()
        };
        assert!(matches!(settings.enroll_options(), Err(ConfigurationError::TwoTrusts)));
    }
}
