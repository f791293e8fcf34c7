//! The one key of a machine: its sealed bytes in the state directory, and the store that they belong to.
//!
//! A key is made only where there is no file. A file that cannot be read or a key that does not work is an error:
//! a second key beside a first one that was only locked would look like a copied machine.

use std::{path::PathBuf, sync::Arc, time::Duration};

use assay_protocol::{
    PublicKey,
    machine::{KeyClaim, KeyStoreKind},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{KeyStore, KeyStoreError, SealedKey, name};
use crate::state::{StateDirectory, StateError, StateLock};

/// Calls into the Secure Enclave have been seen to hang; an honest one takes milliseconds.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How many calls may be under way or hang at a time. Past it the store counts as unavailable, and no more threads are spent.
const MOST_CALLS: usize = 4;
const KINDS: &[KeyStoreKind] = &[KeyStoreKind::SecureEnclave, KeyStoreKind::Software];

/// The machine's key.
#[derive(Debug, Clone)]
pub(crate) struct MachineKey {
    store: Arc<dyn KeyStore>,
    directory: StateDirectory,
    calls: Arc<Semaphore>,
}

/// Why the machine's key could not be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFault {
    /// The key store refused.
    #[error("the key store failed")]
    Store(#[from] KeyStoreError),
    /// The file with the sealed key cannot be read or written.
    #[error("the key's file failed")]
    File(#[source] StateError),
    /// The machine has a key in another store than the one asked for.
    #[error("this machine's key is in the {found} key store, not in {asked_for}; `assay-agent reset` gives it up")]
    OtherStore {
        /// Where the key is.
        found: &'static str,
        /// Where it was looked for.
        asked_for: &'static str,
    },
    /// There is no key.
    #[error("there is no key at {}", .0.display())]
    Missing(PathBuf),
    /// The store did not answer.
    #[error("the key store did not answer within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
}

impl MachineKey {
    pub(crate) fn new(store: Arc<dyn KeyStore>, directory: StateDirectory) -> Self {
        Self {
            store,
            directory,
            calls: Arc::new(Semaphore::new(MOST_CALLS)),
        }
    }

    /// What evidence says of this key.
    pub(crate) fn claim(&self) -> KeyClaim {
        KeyClaim {
            store: self.store.kind(),
            accessibility: self.store.accessibility(),
        }
    }

    /// Where its sealed bytes are.
    pub(crate) fn file(&self) -> PathBuf {
        file(&self.directory, self.store.kind())
    }

    /// The public half, or `None` where no key was ever made.
    pub(crate) async fn public_key(&self) -> Result<Option<PublicKey>, KeyFault> {
        let read = self.use_key(|store, key| store.public_key(key).map_err(KeyFault::Store));
        match read.await {
            Ok(public_key) => Ok(Some(public_key)),
            Err(KeyFault::Missing(_)) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Makes the key. The lock, and a write that never replaces a file, keep two from being made.
    pub(crate) async fn create(&self, lock: Arc<StateLock>) -> Result<PublicKey, KeyFault> {
        let (store, file) = (Arc::clone(&self.store), self.file());
        self.call(move || {
            let key = store.create()?;
            let public_key = store.public_key(&key)?;
            lock.create_file(&file, key.expose()).map_err(KeyFault::File)?;
            Ok(public_key)
        })
        .await
    }

    /// The key itself, sealed, and its public half.
    pub(crate) async fn load(&self) -> Result<(SealedKey, PublicKey), KeyFault> {
        let (store, directory) = (Arc::clone(&self.store), self.directory.clone());
        self.call(move || {
            let key = load(&directory, store.kind())?;
            let public_key = store.public_key(&key)?;
            Ok((key, public_key))
        })
        .await
    }

    /// Signs on this very thread, which may hang: never one that serves others.
    pub(crate) fn sign_here(&self, key: &SealedKey, message: &[u8]) -> Result<Vec<u8>, KeyFault> {
        let _permit = self.permit()?;
        Ok(self.store.sign(key, message)?)
    }

    /// Does something with the key, away from the threads that serve the network.
    pub(crate) async fn use_key<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<KeyFault> + Send + 'static,
        F: FnOnce(&dyn KeyStore, &SealedKey) -> Result<T, E> + Send + 'static,
    {
        let (store, directory) = (Arc::clone(&self.store), self.directory.clone());
        self.call(move || {
            let key = load(&directory, store.kind())?;
            work(store.as_ref(), &key)
        })
        .await
    }

    /// A place among the calls that are under way.
    fn permit(&self) -> Result<OwnedSemaphorePermit, KeyFault> {
        let permit = Arc::clone(&self.calls).try_acquire_owned();
        permit.map_err(|_| unavailable(format!("{MOST_CALLS} calls into it have not returned")))
    }

    /// Runs on a thread of its own, not one of the runtime's: a call that hangs must not keep the process from ending.
    async fn call<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<KeyFault> + Send + 'static,
        F: FnOnce() -> Result<T, E> + Send + 'static,
    {
        let permit = self.permit()?;
        let (answer, answered) = oneshot::channel();
        std::thread::Builder::new()
            .name("key-store".to_owned())
            .spawn(move || {
                // Nobody listens any more when the call took too long.
                let _ = answer.send(work());
                drop(permit);
            })
            .map_err(|error| unavailable(error.to_string()))?;
        match tokio::time::timeout(TIMEOUT, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(unavailable("the call ended without an answer".to_owned()).into()),
            Err(_) => Err(KeyFault::TimedOut(TIMEOUT).into()),
        }
    }
}

/// The files that hold keys, of whatever store: what a reset removes.
pub(crate) fn files(directory: &StateDirectory) -> Vec<PathBuf> {
    KINDS.iter().map(|kind| file(directory, *kind)).collect()
}

fn file(directory: &StateDirectory, kind: KeyStoreKind) -> PathBuf {
    directory.path().join(format!("{}.key", name(kind)))
}

fn load(directory: &StateDirectory, kind: KeyStoreKind) -> Result<SealedKey, KeyFault> {
    let path = file(directory, kind);
    if let Some(bytes) = directory.read_file(&path).map_err(KeyFault::File)? {
        return Ok(SealedKey::new(bytes));
    }
    for other in KINDS.iter().filter(|other| **other != kind) {
        if directory
            .read_file(&file(directory, *other))
            .map_err(KeyFault::File)?
            .is_some()
        {
            return Err(KeyFault::OtherStore {
                found: name(*other),
                asked_for: name(kind),
            });
        }
    }
    Err(KeyFault::Missing(path))
}

fn unavailable(reason: String) -> KeyFault {
    KeyFault::Store(KeyStoreError::Unavailable { reason })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::key_store::SoftwareKeyStore;

    fn machine_key() -> (tempfile::TempDir, StateDirectory, MachineKey) {
        let folder = tempfile::tempdir().unwrap();
        let directory = StateDirectory::create(folder.path().to_owned()).unwrap();
        let key = MachineKey::new(Arc::new(SoftwareKeyStore), directory.clone());
        (folder, directory, key)
    }

    #[tokio::test]
    async fn a_key_is_made_once_and_read_back() {
        let (_folder, directory, key) = machine_key();
        assert!(key.public_key().await.unwrap().is_none());
        let lock = Arc::new(directory.lock().unwrap());
        let made = key.create(Arc::clone(&lock)).await.unwrap();
        assert_eq!(key.public_key().await.unwrap(), Some(made.clone()));
        assert!(matches!(key.create(lock).await, Err(KeyFault::File(_))));
        assert_eq!(key.public_key().await.unwrap(), Some(made));
        let mode = fs::metadata(key.file()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_damaged_key_is_an_error_and_not_replaced() {
        let (_folder, _directory, key) = machine_key();
        fs::write(key.file(), "damaged").unwrap();
        let fault = key.public_key().await.unwrap_err();
        assert!(
            matches!(fault, KeyFault::Store(KeyStoreError::Corrupt { .. })),
            "{fault}"
        );
        assert_eq!(fs::read(key.file()).unwrap(), b"damaged");
    }

    #[tokio::test]
    async fn a_key_in_another_store_is_not_passed_over() {
        let (_folder, directory, key) = machine_key();
        fs::write(file(&directory, KeyStoreKind::SecureEnclave), "sealed").unwrap();
        let fault = key.public_key().await.unwrap_err();
        assert!(matches!(fault, KeyFault::OtherStore { .. }), "{fault}");
    }

    /// A store whose calls return when the test says so.
    #[derive(Debug)]
    struct HangingStore(std::sync::Mutex<std::sync::mpsc::Receiver<()>>);

    impl KeyStore for HangingStore {
        fn kind(&self) -> KeyStoreKind {
            KeyStoreKind::Software
        }

        fn accessibility(&self) -> Option<assay_protocol::machine::KeyAccessibility> {
            None
        }

        fn create(&self) -> Result<SealedKey, KeyStoreError> {
            Err(KeyStoreError::Locked)
        }

        fn public_key(&self, _key: &SealedKey) -> Result<PublicKey, KeyStoreError> {
            let _ = self.0.lock().unwrap().recv();
            Err(KeyStoreError::Locked)
        }

        fn sign(&self, _key: &SealedKey, _message: &[u8]) -> Result<Vec<u8>, KeyStoreError> {
            Err(KeyStoreError::Locked)
        }
    }

    #[tokio::test]
    async fn calls_that_hang_do_not_pile_up() {
        let folder = tempfile::tempdir().unwrap();
        let directory = StateDirectory::create(folder.path().to_owned()).unwrap();
        let (release, hang) = std::sync::mpsc::channel();
        let key = MachineKey::new(Arc::new(HangingStore(std::sync::Mutex::new(hang))), directory);
        fs::write(key.file(), "sealed").unwrap();
        let hanging: Vec<_> = (0..MOST_CALLS)
            .map(|_| {
                let key = key.clone();
                tokio::spawn(async move { key.public_key().await })
            })
            .collect();
        while key.calls.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let fault = key.public_key().await.unwrap_err();
        assert!(
            matches!(fault, KeyFault::Store(KeyStoreError::Unavailable { .. })),
            "{fault}"
        );
        drop(release);
        for call in hanging {
            assert!(matches!(
                call.await.unwrap(),
                Err(KeyFault::Store(KeyStoreError::Locked))
            ));
        }
    }
}
