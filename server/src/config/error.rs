//! Errors of the configuration.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a configuration was rejected, in one line. It never contains the value of a secret key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("the configuration {} is not TOML: line {line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line number, starting at 1.
        line: usize,
        /// The syntax error.
        message: String,
    },
    /// All keys that are unknown, missing, or have an invalid value.
    #[error("configuration: {}", Joined(.0))]
    Keys(Vec<KeyError>),
}

/// An error about one key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} ({origin}) {problem}")]
pub struct KeyError {
    /// The path of the key, such as `database.url`.
    pub key: String,
    /// The file or variable that sets the key, or the variable that could set it.
    pub origin: String,
    /// What is wrong: the rest of a sentence that begins with the key.
    pub problem: String,
}

struct Joined<'a>(&'a [KeyError]);

impl fmt::Display for Joined<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(formatter, "{separator}{error}")?;
        }
        Ok(())
    }
}
