//! The files of a private Postgres under `data_dir`, and the locks by which several processes share it.
//!
//! What belongs to Postgres itself (`cluster`, `socket`) is its account's; the rest stays with the owner of `data_dir`,
//! so that a Postgres that was taken over cannot make a server that runs as root open a link to another file.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown};
use std::path::{Path, PathBuf};

use super::PrivatePostgresError;
use super::account::Account;

/// What `sockaddr_un` holds on macOS; Linux allows four more.
const LONGEST_SOCKET_PATH: usize = 103;

/// The end of the log that is read for its last line, in bytes.
const LOG_TAIL: u64 = 4096;

/// `data_dir/postgres` and what is in it.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    data_dir: PathBuf,
}

impl Directory {
    /// Names the files under `data_dir`; touches none.
    ///
    /// # Errors
    /// `SocketPathTooLong`, and `Io` when a relative path cannot be resolved.
    pub(super) fn new(data_dir: &Path) -> Result<Self, PrivatePostgresError> {
        let data_dir = std::path::absolute(data_dir).map_err(PrivatePostgresError::io("resolve", data_dir))?;
        let directory = Self { data_dir };
        let path = directory.socket();
        let length = path.as_os_str().as_bytes().len();
        if length > LONGEST_SOCKET_PATH {
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

    /// Where `initdb` works; renamed to `cluster` once it is whole.
    pub(super) fn new_cluster(&self) -> PathBuf {
        self.path("cluster.new")
    }

    pub(super) fn socket_directory(&self) -> PathBuf {
        self.path("socket")
    }

    /// The socket itself: Postgres names it after the port, which means nothing else here.
    pub(super) fn socket(&self) -> PathBuf {
        self.socket_directory().join(".s.PGSQL.5432")
    }

    pub(super) fn postmaster_pid(&self) -> PathBuf {
        self.cluster().join("postmaster.pid")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path("log")
    }

    /// Makes what is missing of `data_dir/postgres`, without what is Postgres' own. Needs no lock.
    ///
    /// # Errors
    /// `NotTraversable` when `account` cannot reach the files, and `Io`.
    pub(super) fn create(&self, account: Option<&Account>) -> Result<(), PrivatePostgresError> {
        // Another account passes through these two; it can neither list nor change them.
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

    /// Makes a directory that is Postgres' alone.
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

    /// The major version that made the database, if there is one.
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

    /// Waits until no other process starts or stops this Postgres; held until the file is dropped.
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

    /// Counts this process among the users, until the file is dropped. Call it under the startup lock.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn join_users(&self) -> Result<File, PrivatePostgresError> {
        let (path, file) = self.open_lock("users.lock")?;
        file.lock_shared().map_err(PrivatePostgresError::io("lock", path))?;
        Ok(file)
    }

    /// Leaves the users; true when nobody else is left. Call it under the startup lock, so that nobody joins meanwhile.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn leave_users(&self, users: &File) -> Result<bool, PrivatePostgresError> {
        let path = self.path("users.lock");
        users.unlock().map_err(PrivatePostgresError::io("unlock", &path))?;
        try_lock(users).map_err(PrivatePostgresError::io("lock", path))
    }

    /// The lock that Postgres and each of its processes inherit: none when one of them is alive. Whether Postgres runs
    /// is known from it alone. A process id, as in `postmaster.pid`, proves nothing: in a container the next start
    /// often finds another program under the same number.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn try_lock_running(&self) -> Result<Option<File>, PrivatePostgresError> {
        let (path, file) = self.open_lock("running.lock")?;
        let locked = try_lock(&file).map_err(PrivatePostgresError::io("lock", path))?;
        Ok(locked.then_some(file))
    }

    /// Opens the log for Postgres to write, without what an earlier run wrote.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn new_log(&self) -> Result<File, PrivatePostgresError> {
        let path = self.log();
        let file = self.open(&path, OpenOptions::new().append(true))?;
        file.set_len(0).map_err(PrivatePostgresError::io("truncate", path))?;
        Ok(file)
    }

    /// Empties the log when it is longer than `bytes`. Postgres appends to it, so that it goes on at its new end.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn bound_log(&self, bytes: u64) -> Result<(), PrivatePostgresError> {
        let path = self.log();
        let file = self.open(&path, OpenOptions::new().append(true))?;
        let length = file
            .metadata()
            .map_err(PrivatePostgresError::io("look at", &path))?
            .len();
        if length > bytes {
            file.set_len(0).map_err(PrivatePostgresError::io("truncate", path))?;
        }
        Ok(())
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

    /// Opens a file that belongs to the owner of `data_dir`, and makes it when it is missing. Never through a link.
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
            let owner = fs::metadata(&self.data_dir).map_err(PrivatePostgresError::io("look at", &self.data_dir))?;
            fchown(&file, Some(owner.uid()), Some(owner.gid()))
                .map_err(PrivatePostgresError::io("change the owner of", path))?;
        }
        Ok(file)
    }

    fn give_to_owner_of_data_dir(&self, path: &Path) -> Result<(), PrivatePostgresError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let owner = fs::metadata(&self.data_dir).map_err(PrivatePostgresError::io("look at", &self.data_dir))?;
        chown(path, Some(owner.uid()), Some(owner.gid())).map_err(PrivatePostgresError::io("change the owner of", path))
    }
}

/// The last line of a program's output that says something.
pub(super) fn last_line(output: &[u8]) -> String {
    let output = String::from_utf8_lossy(output);
    let line = output.lines().rev().map(str::trim).find(|line| !line.is_empty());
    line.unwrap_or("it said nothing").to_owned()
}

/// True when it was made by this call.
fn create_directory(path: &Path, mode: u32) -> Result<bool, PrivatePostgresError> {
    if path.is_dir() {
        return Ok(false);
    }
    let create = || {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        match DirBuilder::new().mode(mode).create(path) {
            // Another process, which starts at the same time.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(false),
            created => created?,
        }
        // A umask that is stricter than the mode would close the way that the mode opens.
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
