//! The configuration: command line over environment over file. The environment is read here and nowhere else.

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
/// What a configuration profile can set beside these.
const MANAGED_TOKEN: &str = "token";

/// What an operator can set, in a TOML file or as `ASSAY_AGENT_` and the key in capitals.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The server's public URL.
    pub(crate) server: Option<ServerUrl>,
    /// An enrollment token, which a configuration profile alone can set: it is readable there, and so should be one that
    /// names the machine's serial number and serves once.
    #[serde(skip)]
    pub(crate) token: Option<SecretString>,
    /// A file with an enrollment token in it.
    pub(crate) token_file: Option<PathBuf>,
    /// The SHA-256 fingerprint of the server's root.
    pub(crate) ca_fingerprint: Option<Fingerprint>,
    /// A PEM file with the roots that the server's certificate may lead to.
    pub(crate) ca_file: Option<PathBuf>,
    /// Where the agent keeps its key and its record.
    pub(crate) state_dir: Option<PathBuf>,
    /// Where the key lives.
    pub(crate) key_store: Option<KeyStoreKind>,
    /// When a key that is made in the enclave can be used.
    pub(crate) accessibility: Option<KeyAccessibility>,
    /// A file with facts, in place of the system's.
    pub(crate) facts: Option<PathBuf>,
    /// How much is logged.
    pub(crate) log_level: Option<LogLevel>,
    /// Who may take grants from the daemon's socket.
    #[serde(default)]
    pub(crate) grant_socket: GrantSocketSettings,
    /// Where the daemon logs.
    #[cfg_attr(
        not(any(target_os = "macos", feature = "enclave-stand-in", test)),
        allow(
            dead_code,
            reason = "only a Mac has a log beside standard error; the key is accepted everywhere"
        )
    )]
    pub(crate) log_to: Option<LogTarget>,
}

/// The users of this machine, beside root and the agent's own, that sockets of the agent are for: names or numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GrantSocketSettings {
    /// Users.
    #[serde(default, deserialize_with = "names")]
    pub(crate) users: Vec<String>,
    /// Groups, by their direct members.
    #[serde(default, deserialize_with = "names")]
    pub(crate) groups: Vec<String>,
}

/// Reads the settings again: a configuration profile may have changed them.
pub(crate) type ReadSettings<'a> = &'a (dyn Fn() -> Result<Settings, ConfigurationError> + Send + Sync);

/// Where the daemon logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogTarget {
    /// To standard error: under systemd that is the journal.
    Stderr,
    /// To the system's own log: macOS' unified log.
    System,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogLevel {
    /// What failed.
    Error,
    /// And what may fail.
    Warn,
    /// And what was done.
    Info,
    /// And why.
    Debug,
    /// Everything.
    Trace,
}

/// Why the configuration does not serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigurationError {
    /// An unknown key, a bad value, or no TOML.
    #[error("{place}: {reason}")]
    Bad {
        /// The file or the variable.
        place: String,
        /// Which key, and what is wrong with it.
        reason: String,
    },
    /// A file that the configuration names cannot be read.
    #[error("the {what} {} cannot be read", path.display())]
    File {
        /// What the file is for.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The token file is empty.
    #[error("the token file {} holds no token", .0.display())]
    NoToken(PathBuf),
    /// Two keys that exclude each other.
    #[error("ca_fingerprint and ca_file are two answers to one question: set one of them")]
    TwoTrusts,
}

impl Settings {
    /// Reads the file (the one named on the command line, else by `ASSAY_AGENT_CONFIG`, else none) and the environment.
    pub(crate) fn load(file: Option<&Path>) -> Result<Self, ConfigurationError> {
        let mut environment = environment();
        let named = environment.remove(CONFIG_VARIABLE).map(PathBuf::from);
        Self::from_sources(file.or(named.as_deref()), environment, managed_settings()?)
    }

    /// The state directory.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| DEFAULT_STATE_DIR.into())
    }

    /// The key store; a software key has to be asked for.
    pub(crate) fn key_store(&self) -> KeyStoreKind {
        self.key_store.unwrap_or(KeyStoreKind::SecureEnclave)
    }

    /// When a new key in the enclave can be used: for a daemon, from boot on.
    pub(crate) fn accessibility(&self) -> KeyAccessibility {
        self.accessibility.unwrap_or(KeyAccessibility::Always)
    }

    /// What an enrollment takes, with the token and the CA file read; `None` where no server is set.
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
                reason: format!("{variable} is no variable of the agent"),
            });
        }
        let mut sources = Config::builder();
        if let Some(path) = file {
            place = path.display().to_string();
            let text = read_file("configuration file", path)?;
            // Read by itself first, so that what is wrong in it is said of it and not of the environment.
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

/// What a configuration profile sets now: to find out whether that has changed.
pub(crate) fn managed_settings() -> Result<Map<String, Value>, ConfigurationError> {
    let keys: Vec<_> = KEYS.iter().copied().chain([MANAGED_TOKEN]).collect();
    managed::settings(&keys).map_err(|error| ConfigurationError::Bad {
        place: managed::place(),
        reason: error.to_string(),
    })
}

/// Managed settings go over all but the command line: what an administrator forces on a fleet, a file does not undo.
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
            return Err(bad(format!("{key} is not a string")));
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
    // One answer to the question how the server is recognized replaces the other.
    match (has_fingerprint, has_ca_file) {
        (true, false) => settings.ca_file = None,
        (false, true) => settings.ca_fingerprint = None,
        _ => {}
    }
    Ok(settings)
}

/// Reads a file with an enrollment token; white space around it does not count.
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

/// A list of names or, as a variable has it, a text with commas between them.
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

/// The variables that are meant for the agent; one that is not Unicode is none of its.
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

    /// What a configuration profile forces.
    fn forced(settings: Value) -> Map<String, Value> {
        settings.as_object().unwrap().clone()
    }

    #[test]
    fn managed_settings_go_over_file_and_environment() {
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
    fn what_is_wrong_in_managed_settings_is_said_of_them(#[case] managed: Value, #[case] named: &str) {
        let error = Settings::from_sources(None, HashMap::new(), forced(managed))
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("the managed settings (dev.assay.agent): "), "{error}");
        assert!(error.contains(named), "{error}");
    }

    #[test]
    fn the_environment_goes_over_the_file() {
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
    fn who_may_use_the_socket_is_a_list_in_the_file_and_names_with_commas_in_a_variable() {
        let toml = "[grant_socket]\nusers = ['alice', 'bob']\ngroups = ['staff']";
        let settings = load(toml, &[("ASSAY_AGENT_GRANT_SOCKET__USERS", "carol, 501")]).unwrap();
        assert_eq!(settings.grant_socket.users, ["carol", "501"]);
        assert_eq!(settings.grant_socket.groups, ["staff"]);
        assert_eq!(load("", &[]).unwrap().grant_socket, GrantSocketSettings::default());
    }

    #[test]
    fn without_a_word_the_key_belongs_into_the_enclave() {
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
    fn two_ways_to_recognize_the_server_are_one_too_many() {
        let settings = Settings {
            server: Some("https://assay.example.com".parse().unwrap()),
            ca_fingerprint: Some("ab".repeat(32).parse().unwrap()),
            ca_file: Some("/ca.pem".into()),
            ..Settings::default()
        };
        assert!(matches!(settings.enroll_options(), Err(ConfigurationError::TwoTrusts)));
    }
}
