//! The files of a private Postgres under `data_dir`, and the locks with which processes share it.
//!
//! Postgres' own directories (`cluster`, `socket`) belong to its account. Everything else stays with the owner of
//! `data_dir`. Otherwise a compromised Postgres could replace a file with a link, and a server running as root would
//! follow it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown};
use std::path::{Path, PathBuf};

use super::PrivatePostgresError;
use super::account::{self, Account};

/// The length of `sockaddr_un` on macOS. Linux allows four more bytes.
const MAX_SOCKET_PATH: usize = 103;

/// How many bytes at the end of the log are read to find its last line.
const LOG_TAIL: u64 = 4096;

/// The directory `data_dir/postgres`.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    data_dir: PathBuf,
}

impl Directory {
    /// Determines the paths under `data_dir`, without accessing files.
    ///
    /// # Errors
    /// `SocketPathTooLong`, and `Io` if a relative path cannot be resolved.
    pub(super) fn new(data_dir: &Path) -> Result<Self, PrivatePostgresError> {
        let data_dir = std::path::absolute(data_dir).map_err(PrivatePostgresError::io("resolve", data_dir))?;
        let directory = Self { data_dir };
        let path = directory.socket();
        let length = path.as_os_str().as_bytes().len();
        if length > MAX_SOCKET_PATH {
            return Err(PrivatePostgresError::SocketPathTooLong { path, length });
        }
        Ok(directory)
    }

    pub(super) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub(super) fn cluster(&self) -> PathBuf {
        self.path("cluster")
    }

    /// Where `initdb` works. It is renamed to `cluster` when it is complete.
    pub(super) fn new_cluster(&self) -> PathBuf {
        self.path("cluster.new")
    }

    pub(super) fn socket_directory(&self) -> PathBuf {
        self.path("socket")
    }

    /// The socket. Postgres names it after the port, which has no other meaning here.
    pub(super) fn socket(&self) -> PathBuf {
        self.socket_directory().join(".s.PGSQL.5432")
    }

    pub(super) fn postmaster_pid(&self) -> PathBuf {
        self.cluster().join("postmaster.pid")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path("log")
    }

    /// Creates `data_dir/postgres` if it is missing, but not Postgres' own directories. Needs no lock.
    ///
    /// # Errors
    /// `NotTraversable` if `account` cannot reach the files, and `Io`.
    pub(super) fn create(&self, account: Option<&Account>) -> Result<(), PrivatePostgresError> {
        // Postgres' account may pass through these two directories, but not list or change them.
        let mode = if account.is_some() { 0o711 } else { 0o700 };
        create_directory(&self.data_dir, mode)?;
        if create_directory(&self.root(), mode)? {
            self.give_to_owner_of_data_dir(&self.root())?;
        }
        if let Some(account) = account {
            account.check_way_to(&self.root())?;
        }
        Ok(())
    }

    /// Creates a directory that only Postgres may access.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn create_for_postgres(
        &self,
        path: &Path,
        account: Option<&Account>,
    ) -> Result<(), PrivatePostgresError> {
        if create_directory(path, 0o700)?
            && let Some(account) = account
        {
            chown(path, Some(account.uid), Some(account.gid))
                .map_err(PrivatePostgresError::io("change the owner of", path))?;
        }
        Ok(())
    }

    /// The major version of the Postgres that made the database, if there is one.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn cluster_version(&self) -> Result<Option<u16>, PrivatePostgresError> {
        let path = self.cluster().join("PG_VERSION");
        match fs::read_to_string(&path) {
            Ok(version) => version.trim().parse().map(Some).map_err(|source| {
                let source = std::io::Error::new(std::io::ErrorKind::InvalidData, source);
                PrivatePostgresError::Io {
                    action: "read the version in",
                    path,
                    source,
                }
            }),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(PrivatePostgresError::io("read", path)(source)),
        }
    }

    /// Waits until no other process starts or stops this Postgres. The lock is released when the file is dropped.
    ///
    /// # Errors
    /// `Io`.
    pub(super) async fn lock_startup(&self) -> Result<File, PrivatePostgresError> {
        let (path, file) = self.open_lock("startup.lock")?;
        let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
        locked
            .map_err(std::io::Error::other)
            .flatten()
            .map_err(PrivatePostgresError::io("lock", path))
    }

    /// Adds this process to the users until the file is dropped. Call it with the startup lock.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn join_users(&self) -> Result<File, PrivatePostgresError> {
        let (path, file) = self.open_lock("users.lock")?;
        file.lock_shared().map_err(PrivatePostgresError::io("lock", path))?;
        Ok(file)
    }

    /// Removes this process from the users. Returns whether it was the last. Call it with the startup lock, which keeps
    /// other processes from joining meanwhile.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn leave_users(&self, users: &File) -> Result<bool, PrivatePostgresError> {
        let path = self.path("users.lock");
        users.unlock().map_err(PrivatePostgresError::io("unlock", &path))?;
        try_lock(users).map_err(PrivatePostgresError::io("lock", path))
    }

    /// The lock that Postgres and its processes inherit. `None` if one of them is alive. Only this lock shows whether
    /// Postgres runs. A process id, as in `postmaster.pid`, does not: in a container another program often has the same
    /// id after a restart.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn try_lock_running(&self) -> Result<Option<File>, PrivatePostgresError> {
        let (path, file) = self.open_lock("running.lock")?;
        let locked = try_lock(&file).map_err(PrivatePostgresError::io("lock", path))?;
        Ok(locked.then_some(file))
    }

    /// Opens the log for Postgres and empties it.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn new_log(&self) -> Result<File, PrivatePostgresError> {
        let path = self.log();
        let file = self.open(&path, OpenOptions::new().append(true))?;
        file.set_len(0).map_err(PrivatePostgresError::io("truncate", path))?;
        Ok(file)
    }

    /// Empties the log if it is longer than `bytes`. Postgres appends, and therefore continues at the new end.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn bound_log(&self, bytes: u64) -> Result<(), PrivatePostgresError> {
        let path = self.log();
        let file = self.open(&path, OpenOptions::new().append(true))?;
        let length = file.metadata().map_err(PrivatePostgresError::io("read", &path))?.len();
        if length > bytes {
            file.set_len(0).map_err(PrivatePostgresError::io("truncate", path))?;
        }
        Ok(())
    }

    /// The names of root and of the account that owns `data_dir`: those that may run the server.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn owners(&self) -> Result<Vec<String>, PrivatePostgresError> {
        let owner = fs::metadata(&self.data_dir).map_err(PrivatePostgresError::io("read", &self.data_dir))?;
        let mut uids = vec![0, owner.uid()];
        uids.dedup();
        account::names_of(&uids)
    }

    /// Writes a file that Postgres' account can read and not change. Returns its path.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn publish(&self, name: &str, contents: &str) -> Result<PathBuf, PrivatePostgresError> {
        let path = self.path(name);
        let mut file = self.open(&path, OpenOptions::new().write(true))?;
        let written = file
            .set_len(0)
            .and_then(|()| file.write_all(contents.as_bytes()))
            .and_then(|()| file.set_permissions(fs::Permissions::from_mode(0o644)));
        written.map_err(PrivatePostgresError::io("write", &path))?;
        Ok(path)
    }

    /// The last line of the log, for an error message.
    pub(super) fn last_log_line(&self) -> String {
        let tail = || {
            let mut file = File::open(self.log())?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
            let mut tail = Vec::new();
            file.take(LOG_TAIL).read_to_end(&mut tail)?;
            std::io::Result::Ok(tail)
        };
        last_line(&tail().unwrap_or_default())
    }

    fn root(&self) -> PathBuf {
        self.data_dir.join("postgres")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    fn open_lock(&self, name: &str) -> Result<(PathBuf, File), PrivatePostgresError> {
        let path = self.path(name);
        let file = self.open(&path, OpenOptions::new().read(true).write(true))?;
        Ok((path, file))
    }

    /// Opens a file that belongs to the owner of `data_dir`, and creates it if it is missing. It never follows a link.
    fn open(&self, path: &Path, options: &mut OpenOptions) -> Result<File, PrivatePostgresError> {
        let no_follow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let file = options
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(no_follow)
            .open(path)
            .map_err(PrivatePostgresError::io("open", path))?;
        if rustix::process::geteuid().is_root() {
            let owner = fs::metadata(&self.data_dir).map_err(PrivatePostgresError::io("read", &self.data_dir))?;
            fchown(&file, Some(owner.uid()), Some(owner.gid()))
                .map_err(PrivatePostgresError::io("change the owner of", path))?;
        }
        Ok(file)
    }

    fn give_to_owner_of_data_dir(&self, path: &Path) -> Result<(), PrivatePostgresError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let owner = fs::metadata(&self.data_dir).map_err(PrivatePostgresError::io("read", &self.data_dir))?;
        chown(path, Some(owner.uid()), Some(owner.gid())).map_err(PrivatePostgresError::io("change the owner of", path))
    }
}

/// The last line of a program's output that is not empty.
pub(super) fn last_line(output: &[u8]) -> String {
    let output = String::from_utf8_lossy(output);
    let line = output.lines().rev().map(str::trim).find(|line| !line.is_empty());
    line.unwrap_or("no output").to_owned()
}

/// Creates a directory. Returns whether this call created it.
fn create_directory(path: &Path, mode: u32) -> Result<bool, PrivatePostgresError> {
    if path.is_dir() {
        return Ok(false);
    }
    let create = || {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        match DirBuilder::new().mode(mode).create(path) {
            // Another process that starts at the same time created it.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(false),
            created => created?,
        }
        // A stricter umask would remove permissions that the mode grants.
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map(|()| true)
    };
    create().map_err(PrivatePostgresError::io("create", path))
}

fn try_lock(file: &File) -> std::io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}
