//! Reads the keys of the file and the environment, one by one.
//!
//! All errors are collected, so an operator can correct them at once. The value of a variable is text, and is parsed by
//! the type of its key: a name that consists of digits stays a name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::fs::File;
use std::io;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use assay_authority::secret_file;
use secrecy::SecretString;
use toml::{Table, Value};

use super::{ConfigError, KeyError};

const PREFIX: &str = "ASSAY_";
/// The prefix of the variables for an agent on the same host.
const AGENT_PREFIX: &str = "ASSAY_AGENT_";

struct Setting {
    value: Value,
    origin: String,
}

/// Whether the value of a key is secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Secrecy {
    Secret,
    /// Such as a database URL without a password.
    Public,
}

/// The settings that have not been read, and the errors of those that have.
pub(super) struct Settings {
    given: BTreeMap<String, Setting>,
    known: BTreeSet<&'static str>,
    errors: Vec<KeyError>,
    /// Whether other accounts may read the file.
    is_file_open: bool,
}

impl Settings {
    /// Collects the keys of the file, and then those of the environment, which take precedence.
    ///
    /// # Errors
    /// `Read` and `Syntax`.
    pub(super) fn collect(
        path: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut given = BTreeMap::new();
        let mut is_file_open = false;
        if let Some(path) = path {
            let origin = path.display().to_string();
            let (table, is_open) = read_toml(path)?;
            is_file_open = is_open;
            flatten("", table, &origin, &mut given);
        }
        for (name, value) in environment {
            let others = name.starts_with(AGENT_PREFIX) || is_service_link(&name, &value);
            let Some(key) = name.strip_prefix(PREFIX).filter(|_| !others) else {
                continue;
            };
            let key = key.to_ascii_lowercase().replace("__", ".");
            given.insert(
                key,
                Setting {
                    value: Value::String(value),
                    origin: name,
                },
            );
        }
        Ok(Self {
            given,
            known: BTreeSet::new(),
            errors: Vec::new(),
            is_file_open,
        })
    }

    /// The text of a key.
    pub(super) fn text(&mut self, key: &'static str) -> Option<String> {
        let Setting { value, origin } = self.take(key)?;
        match value {
            Value::String(text) if text.is_empty() => self.refuse(key, origin, "is empty"),
            Value::String(text) => Some(text),
            _ => self.refuse(key, origin, "must be a string"),
        }
    }

    /// The text of a secret key. No error shows it: `check` describes what is wrong without the value, and returns
    /// whether the value is secret.
    pub(super) fn secret(
        &mut self,
        key: &'static str,
        check: impl FnOnce(&str) -> Result<Secrecy, &'static str>,
    ) -> Option<SecretString> {
        let origin = self.origin(key);
        let is_exposed = self.is_file_open && self.is_given(key) && !is_variable(&origin);
        let text = self.text(key)?;
        match check(&text) {
            Ok(Secrecy::Secret) if is_exposed => self.refuse(
                key,
                origin,
                "is a secret, but other accounts may read or change the file: run chmod o-rw on it",
            ),
            Ok(_) => Some(SecretString::from(text)),
            Err(problem) => self.refuse(key, origin, problem),
        }
    }

    /// A path, relative to the working directory.
    pub(super) fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    /// A value that can be parsed from text.
    pub(super) fn parsed<T: FromStr<Err: Display>>(&mut self, key: &'static str) -> Option<T> {
        let origin = self.origin(key);
        let text = self.text(key)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => self.refuse(key, origin, &format!("is {text:?}: {error}")),
        }
    }

    /// A list of values that can be parsed from text. In a variable they are separated by commas.
    pub(super) fn list<T: FromStr<Err: Display>>(&mut self, key: &'static str) -> Option<Vec<T>> {
        let Setting { value, origin } = self.take(key)?;
        let texts: Option<Vec<String>> = match value {
            Value::Array(values) => values.iter().map(|value| value.as_str().map(str::to_owned)).collect(),
            Value::String(text) if is_variable(&origin) => {
                Some(text.split(',').map(|text| text.trim().to_owned()).collect())
            }
            _ => None,
        };
        let Some(texts) = texts else {
            return self.refuse(key, origin, "must be a list of strings");
        };
        let mut parsed = Vec::with_capacity(texts.len());
        for text in texts {
            match text.parse() {
                Ok(value) => parsed.push(value),
                Err(error) => return self.refuse(key, origin, &format!("contains {text:?}: {error}")),
            }
        }
        Some(parsed)
    }

    /// One of several words.
    pub(super) fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let origin = self.origin(key);
        let text = self.text(key)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        self.refuse(
            key,
            origin,
            &format!("is {text:?}; it must be one of {}", words.join(", ")),
        )
    }

    /// True or false.
    pub(super) fn boolean(&mut self, key: &'static str) -> Option<bool> {
        let Setting { value, origin } = self.take(key)?;
        match value {
            Value::Boolean(value) => Some(value),
            Value::String(text) if text == "true" && is_variable(&origin) => Some(true),
            Value::String(text) if text == "false" && is_variable(&origin) => Some(false),
            _ => self.refuse(key, origin, "must be true or false"),
        }
    }

    /// A whole number.
    pub(super) fn number(&mut self, key: &'static str, bounds: RangeInclusive<u32>) -> Option<u32> {
        let Setting { value, origin } = self.take(key)?;
        let number = match value {
            Value::Integer(number) => Some(number),
            Value::String(text) if is_variable(&origin) => text.parse().ok(),
            _ => None,
        };
        match number
            .and_then(|number| u32::try_from(number).ok())
            .filter(|number| bounds.contains(number))
        {
            Some(number) => Some(number),
            None => {
                let problem = format!("must be a whole number from {} to {}", bounds.start(), bounds.end());
                self.refuse(key, origin, &problem)
            }
        }
    }

    /// A number of calls per minute. `None` means no limit.
    pub(super) fn limit(&mut self, key: &'static str, default: u32) -> Option<NonZeroU32> {
        NonZeroU32::new(self.number(key, 0..=1_000_000_000).unwrap_or(default))
    }

    /// A time with a unit, such as `90s`, `5m`, `12h` or `7d`. It must be whole seconds, because times in certificates
    /// and tokens have no fractions.
    pub(super) fn duration(&mut self, key: &'static str, bounds: RangeInclusive<Duration>) -> Option<Duration> {
        let origin = self.origin(key);
        let text = self.text(key)?;
        let Ok(duration) = humantime::parse_duration(&text) else {
            return self.refuse(
                key,
                origin,
                &format!("is {text:?}; it must be a time with a unit, such as 90s, 5m or 7d"),
            );
        };
        if duration.subsec_nanos() == 0 && bounds.contains(&duration) {
            return Some(duration);
        }
        let [from, to] = [bounds.start(), bounds.end()].map(|bound| humantime::format_duration(*bound).to_string());
        self.refuse(
            key,
            origin,
            &format!("is {text}; it must be whole seconds from {from} to {to}"),
        )
    }

    /// Records an error if a required key is missing.
    pub(super) fn require<T>(&mut self, key: &'static str, value: Option<T>) -> Option<T> {
        if value.is_none() && !self.errors.iter().any(|error| error.key == key) {
            return self.refuse(key, variable(key), "is required");
        }
        value
    }

    /// Whether a key is given and has not been read yet.
    pub(super) fn is_given(&self, key: &str) -> bool {
        self.given.contains_key(key)
    }

    /// Records an error about a key.
    pub(super) fn refuse<T>(&mut self, key: &str, origin: String, problem: &str) -> Option<T> {
        self.errors.push(KeyError {
            key: key.to_owned(),
            origin,
            problem: problem.to_owned(),
        });
        None
    }

    /// Rejects a key that cannot be used with the other settings.
    pub(super) fn refuse_given(&mut self, key: &'static str, problem: &str) {
        if let Some(Setting { origin, .. }) = self.take(key) {
            let _: Option<()> = self.refuse(key, origin, problem);
        }
    }

    /// Where a key comes from, or the variable that could set it.
    pub(super) fn origin(&self, key: &str) -> String {
        self.given
            .get(key)
            .map_or_else(|| variable(key), |setting| setting.origin.clone())
    }

    /// The known keys and all errors, including those about unknown keys.
    pub(super) fn finish(self) -> (BTreeSet<&'static str>, Option<ConfigError>) {
        let unknown = self.given.into_iter().map(|(key, setting)| KeyError {
            key,
            origin: setting.origin,
            problem: "is not a key of the configuration".to_owned(),
        });
        let errors: Vec<KeyError> = unknown.chain(self.errors).collect();
        (self.known, (!errors.is_empty()).then_some(ConfigError::Keys(errors)))
    }

    fn take(&mut self, key: &'static str) -> Option<Setting> {
        self.known.insert(key);
        self.given.remove(key)
    }
}

/// The environment variable of a key.
fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_ascii_uppercase().replace('.', "__"))
}

fn is_variable(origin: &str) -> bool {
    origin.starts_with(PREFIX)
}

/// Kubernetes describes every service to every pod. For a service named `assay` or `assay-server` it sets
/// `ASSAY_SERVICE_HOST`, `ASSAY_PORT=tcp://10.0.0.7:8443`, `ASSAY_SERVER_PORT_8443_TCP_ADDR` and others.
fn is_service_link(name: &str, value: &str) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || (name.ends_with("_PORT") && value.contains("://"))
        || (name.contains("_PORT_") && ["_TCP", "_UDP", "_SCTP"].iter().any(|protocol| name.contains(protocol)))
}

/// The keys, and whether other accounts may read the file.
fn read_toml(path: &Path) -> Result<(Table, bool), ConfigError> {
    let read = || {
        let file = File::open(path)?;
        let is_open = secret_file::is_open_to_others(&file)?;
        Ok((io::read_to_string(file)?, is_open))
    };
    let (text, is_open) = read().map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    let table = text.parse::<Table>().map_err(|error| {
        // The error's own display quotes the line, which may contain a secret.
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        ConfigError::Syntax {
            path: path.to_owned(),
            line: before.matches('\n').count() + 1,
            message,
        }
    })?;
    Ok((table, is_open))
}

fn flatten(parent: &str, table: Table, origin: &str, given: &mut BTreeMap<String, Setting>) {
    for (name, value) in table {
        let key = if parent.is_empty() {
            name
        } else {
            format!("{parent}.{name}")
        };
        match value {
            Value::Table(table) => flatten(&key, table, origin, given),
            value => drop(given.insert(
                key,
                Setting {
                    value,
                    origin: origin.to_owned(),
                },
            )),
        }
    }
}
