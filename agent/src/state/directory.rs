//! The state directory. Each file is either the old version or the new one, even after a crash.
//!
//! Each write goes to a temporary file, which is flushed to disk and then renamed. A lock serializes the writes of
//! several agents. Readers need no lock.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Record, StateError, VERSION, backups};

const RECORD: &str = "state.json";
const LOCK: &str = "lock";
/// The directory of the daemon's sockets.
const RUN: &str = "run";
/// Prefix of temporary files. A crash may leave one behind.
const TEMPORARY: &str = ".writing-";

/// A state directory.
#[derive(Debug, Clone)]
pub(crate) struct StateDirectory {
    path: Arc<Path>,
}

/// The exclusive lock of a state directory, until it is dropped.
#[derive(Debug)]
pub(crate) struct StateLock {
    directory: StateDirectory,
    _file: File,
}

impl StateDirectory {
    /// Names a directory, which need not exist.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path: path.into() }
    }

    /// Creates the directory, with mode 0700, and excludes it from backups.
    pub(crate) fn create(path: PathBuf) -> Result<Self, StateError> {
        if !path.is_dir() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(failed(&path, "made"))?;
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                flush_directory(parent)?;
            }
        }
        close_to_others(&path)?;
        backups::exclude(&path);
        Ok(Self::at(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Locks the directory. Waits while another agent has locked it.
    pub(crate) fn lock(&self) -> Result<StateLock, StateError> {
        let path = self.path.join(LOCK);
        let open = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path);
        let file = open.map_err(failed(&path, "opened"))?;
        file.lock().map_err(failed(&path, "locked"))?;
        let lock = StateLock {
            directory: self.clone(),
            _file: file,
        };
        lock.remove_unfinished_writes()?;
        Ok(lock)
    }

    /// Reads the record. An empty record if there is no file.
    pub(crate) fn record(&self) -> Result<Record, StateError> {
        let path = self.path.join(RECORD);
        let Some(text) = self.read_file(&path)? else {
            return Ok(Record::default());
        };
        let record: Record = serde_json::from_slice(&text).map_err(|source| StateError::Damaged {
            path: path.clone(),
            source,
        })?;
        match record.version {
            version if version > VERSION => Err(StateError::Newer { path, version }),
            _ => Ok(Record {
                version: VERSION,
                ..record
            }),
        }
    }

    /// Creates the directory of the sockets. If other users may use them, they get search permission on the state
    /// directory. They can neither list it nor read its files.
    pub(crate) fn open_run(&self, is_for_others: bool) -> Result<PathBuf, StateError> {
        let path = self.path.join(RUN);
        let (passage, folder) = if is_for_others { (0o711, 0o755) } else { (0o700, 0o700) };
        if !path.is_dir() {
            let made = DirBuilder::new().mode(0o700).create(&path);
            made.map_err(failed(&path, "made"))?;
        }
        for (path, mode) in [(&path, folder), (&self.path.to_path_buf(), passage)] {
            fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed(path, "opened to other users"))?;
        }
        Ok(path)
    }

    /// The content of a file. `None` if it does not exist.
    pub(crate) fn read_file(&self, path: &Path) -> Result<Option<Vec<u8>>, StateError> {
        match fs::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(path, "read")(error)),
        }
    }
}

impl StateLock {
    /// Reads the record.
    pub(crate) fn record(&self) -> Result<Record, StateError> {
        self.directory.record()
    }

    /// Replaces the record.
    pub(crate) fn write(&self, record: &Record) -> Result<(), StateError> {
        let path = self.directory.path.join(RECORD);
        let text = serde_json::to_vec_pretty(record).map_err(|error| failed(&path, "written")(error.into()))?;
        let temporary = self.temporary_file(&text)?;
        temporary
            .persist(&path)
            .map_err(|error| failed(&path, "replaced")(error.error))?;
        flush_directory(&self.directory.path)
    }

    /// Creates a file. Fails if it exists.
    pub(crate) fn create_file(&self, path: &Path, bytes: &[u8]) -> Result<(), StateError> {
        let temporary = self.temporary_file(bytes)?;
        temporary
            .persist_noclobber(path)
            .map_err(|error| failed(path, "made")(error.error))?;
        flush_directory(&self.directory.path)
    }

    /// Replaces a file, and keeps its old content under another name. Crash-safe: either the old or the new file exists
    /// at every point.
    pub(crate) fn replace_file(&self, path: &Path, bytes: &[u8], aside: &Path) -> Result<(), StateError> {
        let temporary = self.temporary_file(bytes)?;
        remove_file(aside)?;
        fs::hard_link(path, aside).map_err(failed(aside, "made"))?;
        temporary
            .persist(path)
            .map_err(|error| failed(path, "replaced")(error.error))?;
        flush_directory(&self.directory.path)
    }

    /// Gives a file another name, if it exists. A file that had that name before is gone.
    pub(crate) fn set_aside(&self, path: &Path, aside: &Path) -> Result<(), StateError> {
        match fs::rename(path, aside) {
            Ok(()) => flush_directory(&self.directory.path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed(path, "renamed")(error)),
        }
    }

    /// The locked directory.
    pub(crate) fn directory(&self) -> &StateDirectory {
        &self.directory
    }

    /// Removes a file if it exists.
    pub(crate) fn remove_file(&self, path: &Path) -> Result<(), StateError> {
        if remove_file(path)? {
            flush_directory(&self.directory.path)?;
        }
        Ok(())
    }

    /// Removes the record and the given files, and returns those that existed. The lock file stays: without it, two
    /// agents could lock the directory at once.
    pub(crate) fn reset(&self, files: Vec<PathBuf>) -> Result<Vec<PathBuf>, StateError> {
        let mut removed = Vec::new();
        // The record is removed last. After an interrupted reset, the record without a key shows what happened.
        for path in files.into_iter().chain([self.directory.path.join(RECORD)]) {
            if remove_file(&path)? {
                removed.push(path);
            }
        }
        flush_directory(&self.directory.path)?;
        Ok(removed)
    }

    fn temporary_file(&self, bytes: &[u8]) -> Result<tempfile::NamedTempFile, StateError> {
        let attempt = || failed(&self.directory.path, "written to");
        let mut builder = tempfile::Builder::new();
        let builder = builder.prefix(TEMPORARY).permissions(Permissions::from_mode(0o600));
        let mut file = builder.tempfile_in(&self.directory.path).map_err(attempt())?;
        file.write_all(bytes).map_err(attempt())?;
        file.as_file().sync_all().map_err(attempt())?;
        Ok(file)
    }

    fn remove_unfinished_writes(&self) -> Result<(), StateError> {
        let path = &self.directory.path;
        for entry in fs::read_dir(path).map_err(failed(path, "listed"))? {
            let entry = entry.map_err(failed(path, "listed"))?;
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                fs::remove_file(entry.path()).map_err(failed(&entry.path(), "removed"))?;
            }
        }
        Ok(())
    }
}

/// Removes other users' permissions, but only from an agent's own directory: the path may be wrong.
fn close_to_others(path: &Path) -> Result<(), StateError> {
    let mode = fs::metadata(path).map_err(failed(path, "read"))?.permissions().mode();
    // Search permission is allowed, because users of the grant socket need it.
    if mode & 0o066 == 0 {
        return Ok(());
    }
    let mut entries = fs::read_dir(path).map_err(failed(path, "listed"))?;
    if entries.next().is_some() && !path.join(LOCK).exists() {
        return Err(StateError::Shared(path.to_owned()));
    }
    fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(failed(path, "closed to other users"))
}

/// Returns whether the file existed.
fn remove_file(path: &Path) -> Result<bool, StateError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed(path, "removed")(error)),
    }
}

/// Makes a rename durable: a file's name is part of the directory, not of the file.
fn flush_directory(path: &Path) -> Result<(), StateError> {
    let flush = File::open(path).and_then(|directory| directory.sync_all());
    flush.map_err(failed(path, "flushed to disk"))
}

fn failed(path: &Path, attempt: &'static str) -> impl FnOnce(io::Error) -> StateError + use<> {
    let path = path.to_owned();
    move |source| StateError::Io { path, attempt, source }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;
    use time::OffsetDateTime;

    use super::*;
    use crate::state::PendingEnrollment;

    fn directory() -> (tempfile::TempDir, StateDirectory) {
        let folder = tempfile::tempdir().unwrap();
        let directory = StateDirectory::create(folder.path().join("state")).unwrap();
        (folder, directory)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_record_is_read_back_and_only_its_owner_can_access_it() {
        let (_folder, directory) = directory();
        let mut record = directory.record().unwrap();
        assert!(!record.is_known_to_a_server());
        record.pending = Some(PendingEnrollment {
            token: Some("secret".into()),
            enrollment_id: None,
        });
        let lock = directory.lock().unwrap();
        lock.write(&record).unwrap();
        let read = directory.record().unwrap().pending.unwrap();
        assert_eq!(read.token.unwrap().expose_secret(), "secret");
        assert_eq!(mode(directory.path()), 0o700);
        assert_eq!(mode(&directory.path().join(RECORD)), 0o600);
        assert_eq!(mode(&directory.path().join(LOCK)), 0o600);
    }

    #[test]
    fn an_interrupted_write_leaves_the_old_record_and_no_temporary_file() {
        let (_folder, directory) = directory();
        let record = Record {
            next_check_in_at: Some(OffsetDateTime::UNIX_EPOCH),
            ..Record::default()
        };
        directory.lock().unwrap().write(&record).unwrap();
        let unfinished = directory.path().join(format!("{TEMPORARY}abc"));
        fs::write(&unfinished, "{").unwrap();
        let lock = directory.lock().unwrap();
        assert!(!unfinished.exists());
        assert_eq!(
            lock.record().unwrap().next_check_in_at,
            Some(OffsetDateTime::UNIX_EPOCH)
        );
    }

    #[test]
    fn a_second_lock_waits_for_the_first() {
        let (_folder, directory) = directory();
        let first = directory.lock().unwrap();
        let (locked, is_locked) = std::sync::mpsc::channel();
        let second = {
            let directory = directory.clone();
            std::thread::spawn(move || {
                let lock = directory.lock();
                locked.send(()).unwrap();
                lock.map(drop)
            })
        };
        assert!(is_locked.try_recv().is_err());
        drop(first);
        second.join().unwrap().unwrap();
        is_locked.recv().unwrap();
    }

    #[test]
    fn a_damaged_record_and_a_newer_one_are_errors() {
        let (_folder, directory) = directory();
        fs::write(directory.path().join(RECORD), "{").unwrap();
        assert!(matches!(directory.record(), Err(StateError::Damaged { .. })));
        fs::write(directory.path().join(RECORD), r#"{"version": 3}"#).unwrap();
        assert!(matches!(directory.record(), Err(StateError::Newer { version: 3, .. })));
    }

    #[test]
    fn creating_an_existing_file_fails() {
        let (_folder, directory) = directory();
        let lock = directory.lock().unwrap();
        let path = directory.path().join("key");
        lock.create_file(&path, b"first").unwrap();
        assert!(lock.create_file(&path, b"second").is_err());
        assert_eq!(fs::read(&path).unwrap(), b"first");
    }

    #[test]
    fn a_directory_with_foreign_files_is_rejected() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        fs::write(folder.path().join("thesis.txt"), "").unwrap();
        let error = StateDirectory::create(folder.path().to_owned()).unwrap_err();
        assert!(matches!(error, StateError::Shared(_)), "{error}");
        assert_eq!(mode(folder.path()), 0o755);
        fs::remove_file(folder.path().join("thesis.txt")).unwrap();
        StateDirectory::create(folder.path().to_owned()).unwrap();
        assert_eq!(mode(folder.path()), 0o700);
    }

    #[test]
    fn users_of_the_sockets_can_neither_list_nor_read_the_directory() {
        let (folder, directory) = directory();
        directory.lock().unwrap().write(&Record::default()).unwrap();
        let run = directory.open_run(true).unwrap();
        assert_eq!((mode(directory.path()), mode(&run)), (0o711, 0o755));
        // Each command opens the directory, and must not change these permissions.
        StateDirectory::create(folder.path().join("state")).unwrap();
        assert_eq!(mode(directory.path()), 0o711);
        directory.lock().unwrap().write(&Record::default()).unwrap();
        assert_eq!(mode(&directory.path().join(RECORD)), 0o600);
        directory.open_run(false).unwrap();
        assert_eq!((mode(directory.path()), mode(&run)), (0o700, 0o700));
    }

    #[test]
    fn a_reset_returns_the_removed_files() {
        let (_folder, directory) = directory();
        let lock = directory.lock().unwrap();
        let key = directory.path().join("software.key");
        lock.create_file(&key, b"key").unwrap();
        lock.write(&Record::default()).unwrap();
        let absent = directory.path().join("secure-enclave.key");
        let removed = lock.reset(vec![absent, key.clone()]).unwrap();
        assert_eq!(removed, [key, directory.path().join(RECORD)]);
        assert!(lock.reset(Vec::new()).unwrap().is_empty());
    }
}
