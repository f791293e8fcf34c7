//! The file of the master key: read at start, and created at the first start.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use tempfile::Builder;
use zeroize::Zeroizing;

use super::{
    sealing::{MasterKey, SealingError},
    secret_file,
};

/// Longer files are not master keys. At most this many bytes are read.
const LONGEST_FILE: u64 = 1024;

/// Why the master key cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    /// The file exists but cannot be read.
    #[error("cannot read the master key {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
    /// The file contains something else. It is never overwritten, because secrets may be sealed under its contents.
    #[error("{} does not contain a master key", path.display())]
    Contents {
        /// The file.
        path: PathBuf,
        /// What is wrong with the contents.
        #[source]
        source: SealingError,
    },
    /// The file cannot be created.
    #[error("cannot create the master key {}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
}

/// Reads the master key, or creates the file if it does not exist. The folder must exist.
///
/// Only the owner can read the new file. The file gets its name only after all of it is on disk, so a crash leaves
/// either no file or a complete one. If two processes start at once, one creates the file and the other reads it.
pub fn load_or_create(path: &Path) -> Result<MasterKey, MasterKeyError> {
    match load(path) {
        Err(MasterKeyError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        loaded => return loaded,
    }
    let key = MasterKey::generate();
    match create(path, &key) {
        Ok(()) => Ok(key),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => load(path),
        Err(source) => Err(MasterKeyError::Create {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Reads the master key from a file that must exist.
pub fn load(path: &Path) -> Result<MasterKey, MasterKeyError> {
    let text = read(path).map_err(|source| MasterKeyError::Read {
        path: path.to_owned(),
        source,
    })?;
    MasterKey::from_base64url(&text).map_err(|source| MasterKeyError::Contents {
        path: path.to_owned(),
        source,
    })
}

fn read(path: &Path) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    secret_file::open(path)?.take(LONGEST_FILE).read_to_string(&mut text)?;
    Ok(text)
}

fn create(path: &Path, key: &MasterKey) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // tempfile makes it with mode 0600.
    let mut file = Builder::new().prefix(".master-key-").tempfile_in(folder)?;
    file.write_all(key.to_base64url().as_bytes())?;
    file.write_all(b"\n")?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, fs, os::unix::fs::PermissionsExt, sync::Barrier, thread};

    use super::*;

    #[test]
    fn the_file_is_created_once_readable_only_by_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        let made = load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let read = load_or_create(&path).unwrap();
        assert_eq!(*made.to_base64url(), *read.to_base64url());
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            1,
            "no temporary file is left"
        );
    }

    #[test]
    fn concurrent_starts_agree_on_one_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        let barrier = Barrier::new(8);
        let keys: HashSet<String> = thread::scope(|scope| {
            let start = || {
                barrier.wait();
                load_or_create(&path).unwrap().to_base64url().to_string()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(keys.len(), 1);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn bad_contents_are_an_error_and_are_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        for contents in ["", "not a key", &"A".repeat(5000)] {
            fs::write(&path, contents).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let error = load_or_create(&path).unwrap_err();
            assert!(matches!(error, MasterKeyError::Contents { .. }), "{error}");
            assert!(error.to_string().contains("master.key"));
            assert_eq!(fs::read_to_string(&path).unwrap(), contents);
        }
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing").join("master.key");
        let error = load_or_create(&path).unwrap_err();
        assert!(matches!(error, MasterKeyError::Create { .. }), "{error}");
        assert!(error.to_string().contains("missing/master.key"));
    }
}
