//! What can keep a private Postgres from running, each in one line that an operator can act on.

use std::io;
use std::path::PathBuf;

/// Why a private Postgres could not be started, joined or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrivatePostgresError {
    /// No Postgres of a version that can be used is installed.
    #[error(
        "no Postgres 15 or later is installed{}: set database.url, or install one with \
         `apt-get install postgresql`, `dnf install postgresql-server` or `brew install postgresql@17`",
        found.as_ref().map(|found| format!(" (found {found})")).unwrap_or_default()
    )]
    NotInstalled {
        /// The older versions that are there, if any.
        found: Option<String>,
    },
    /// The database was made by a version that is no longer installed.
    #[error(
        "the database in {} was made by Postgres {major}, which is not installed any more: install Postgres {major} \
         again, or move the database with pg_upgrade", directory.display()
    )]
    VersionNotInstalled {
        /// The major version that made it.
        major: u16,
        /// The directory of the database.
        directory: PathBuf,
    },
    /// The path of the socket does not fit into `sockaddr_un`.
    #[error(
        "data_dir is too deep: the path of Postgres' socket, {}, has {length} bytes, and the system allows 103",
        path.display()
    )]
    SocketPathTooLong {
        /// The path that does not fit.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// Started by root, and there is no account that Postgres could run as.
    #[error("Postgres does not run as root, and there is none of the accounts postgres, _postgres and nobody")]
    NoUnprivilegedAccount,
    /// Started by root, and the account that Postgres runs as has no way to its files.
    #[error(
        "Postgres runs as {account}, who may not enter {}: allow it with `chmod o+x {}`, or choose another data_dir",
        directory.display(), directory.display()
    )]
    NotTraversable {
        /// The directory that is closed to the account.
        directory: PathBuf,
        /// Name or number of the account.
        account: String,
    },
    /// `initdb` failed.
    #[error("initdb could not make a database: {message}")]
    Initialization {
        /// The last line that it said.
        message: String,
    },
    /// Postgres ended while it was starting.
    #[error("Postgres ended while it was starting: {message} (more in {})", log.display())]
    Ended {
        /// The last line of its log.
        message: String,
        /// The whole log.
        log: PathBuf,
    },
    /// Postgres runs and cannot be connected to.
    #[error("Postgres runs but accepts no connections")]
    NotAccepting(#[source] sqlx::Error),
    /// Postgres was told to stop and did not.
    #[error("Postgres did not stop")]
    StillRunning,
    /// The database `assay` could not be made.
    #[error("cannot create the database in the private Postgres")]
    Database(#[from] sqlx::Error),
    /// A file, directory or process operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// With which file, directory or program.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl PrivatePostgresError {
    /// Makes the error of an operation on a path: `.map_err(PrivatePostgresError::io("open", path))`.
    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
