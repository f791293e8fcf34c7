//! Why a private Postgres cannot run. Each error is one line that an operator can act on.

use std::io;
use std::path::PathBuf;

/// Why a private Postgres could not be started, joined or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrivatePostgresError {
    /// No usable version of Postgres is installed.
    #[error(
        "no Postgres 15 or later is installed{}: set database.url, or install one with \
         `apt-get install postgresql`, `dnf install postgresql-server` or `brew install postgresql@17`",
        found.as_ref().map(|found| format!(" (found {found})")).unwrap_or_default()
    )]
    NotInstalled {
        /// The older version that is installed, if any.
        found: Option<String>,
    },
    /// The version that made the database is no longer installed.
    #[error(
        "the database in {} was made by Postgres {major}, which is no longer installed: install Postgres {major} \
         again, or move the database with pg_upgrade", directory.display()
    )]
    VersionNotInstalled {
        /// The major version of the database.
        major: u16,
        /// The database's directory.
        directory: PathBuf,
    },
    /// The socket's path is too long for `sockaddr_un`.
    #[error(
        "the path of data_dir is too long: Postgres' socket {} has {length} bytes, and the system allows 103",
        path.display()
    )]
    SocketPathTooLong {
        /// The socket's path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// Root started the server, and there is no account that could run Postgres.
    #[error("Postgres cannot run as root, and none of the accounts postgres, _postgres and nobody exists")]
    NoUnprivilegedAccount,
    /// Root started the server, and the account of Postgres cannot reach its files.
    #[error(
        "Postgres runs as {account}, which may not enter {}: allow it with `chmod o+x {}`, or choose another data_dir",
        directory.display(), directory.display()
    )]
    NotTraversable {
        /// The directory that the account may not enter.
        directory: PathBuf,
        /// The account's name or id.
        account: String,
    },
    /// `initdb` failed.
    #[error("initdb failed: {message}")]
    Initialization {
        /// The last line of its output.
        message: String,
    },
    /// Postgres exited while it was starting.
    #[error("Postgres exited while it was starting: {message} (see {})", log.display())]
    Ended {
        /// The last line of its log.
        message: String,
        /// The whole log.
        log: PathBuf,
    },
    /// Postgres runs but does not accept connections.
    #[error("Postgres runs but accepts no connections")]
    NotAccepting(#[source] sqlx::Error),
    /// Postgres did not stop when told to.
    #[error("Postgres did not stop")]
    StillRunning,
    /// The database `assay` could not be created.
    #[error("cannot create the database in the private Postgres")]
    Database(#[from] sqlx::Error),
    /// A file, directory or process operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The attempted operation, as a verb.
        action: &'static str,
        /// The file, directory or program.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl PrivatePostgresError {
    /// Builds the error of an operation on a path: `.map_err(PrivatePostgresError::io("open", path))`.
    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
