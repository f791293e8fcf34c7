//! What goes wrong with the state directory.

use std::{io, path::PathBuf};

/// Why the state directory did not serve.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The system refused.
    #[error("{} cannot be {attempt}", path.display())]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What was tried: `read`, `written`, …
        attempt: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The record is damaged.
    #[error("{} is damaged; `assay-agent reset` gives this machine's identity up", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// The record was written by a newer agent.
    #[error("{} was written by a newer agent (version {version} of the record)", path.display())]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// Others may look into the directory, and it holds something else.
    #[error("{} is open to others and holds files that are not the agent's: give it mode 0700, or name another state directory", .0.display())]
    Shared(PathBuf),
}
