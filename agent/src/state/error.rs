//! Errors of the state directory.

use std::{io, path::PathBuf};

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A system call failed.
    #[error("{} cannot be {attempt}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What failed: `read`, `written`, …
        attempt: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The record is damaged.
    #[error("{} is damaged; `assay-agent reset` deletes this machine's identity", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A newer agent wrote the record.
    #[error("a newer agent wrote {} (version {version} of the record)", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// The version of the record.
        version: u32,
    },
    /// Other users can access the directory, and it contains files that are not the agent's.
    #[error("other users can access {}, and it contains files that are not the agent's: give it mode 0700, or use another state directory", .0.display())]
    Shared(PathBuf),
}
