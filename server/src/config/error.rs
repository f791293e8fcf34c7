//! What can be wrong with a configuration.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a configuration was not accepted, in one line. Values of secret keys are never part of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("the configuration {} is not TOML: line {line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1 on.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// Keys that are unknown or missing, or have a bad value: all of them.
    #[error("configuration: {}", Joined(.0))]
    Keys(Vec<KeyError>),
}

/// What is wrong with one key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} ({origin}) {problem}")]
pub struct KeyError {
    /// The path of the key: `database.url`.
    pub key: String,
    /// The file or variable it comes from, or where it could be given.
    pub origin: String,
    /// What is wrong, as the rest of a sentence that begins with the key.
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
