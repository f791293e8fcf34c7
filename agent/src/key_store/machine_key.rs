//! A machine's key: its sealed bytes in the state directory, and its store.
//!
//! There is one key, and a second one during a rotation. Each has its own file, so one write of the record exchanges
//! them. A key is created only if there is no file, or if the hardware permanently rejects the key in it. An unreadable
//! file and a failing key are errors: if a locked key were replaced by a second one, the machine would look like a
//! copied one.

use std::{path::PathBuf, sync::Arc, time::Duration};

use assay_protocol::{PublicKey, machine::KeyStoreKind};

use super::{Calls, KeyStore, KeyStoreError, SealedKey, calls::unavailable};
use crate::state::{KeyPlace, StateDirectory, StateError, StateLock};

/// The message that a key signs as a test. It is no JWS, CSR or TLS handshake, so the signature is useless to an
/// attacker.
const PROBE: &[u8] = b"assay-agent probe";
const PLACES: &[KeyPlace] = &[KeyPlace::First, KeyPlace::Second];

/// The machine's key in one of its two places.
#[derive(Debug, Clone)]
pub(crate) struct MachineKey {
    store: Arc<dyn KeyStore>,
    directory: StateDirectory,
    place: KeyPlace,
    calls: Calls,
}

/// A new key that is not stored yet.
#[derive(Debug)]
pub(crate) struct NewKey {
    sealed: SealedKey,
    pub(crate) public_key: PublicKey,
}

/// Why the machine's key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFault {
    /// The key store failed.
    #[error("the key store failed")]
    Store(#[from] KeyStoreError),
    /// The key file cannot be read or written.
    #[error("the key file cannot be used")]
    File(#[source] StateError),
    /// The machine's key is in a store other than the configured one.
    #[error(
        "the machine's key is in the {found} key store, but {configured} is configured; `assay-agent reset` deletes the key"
    )]
    OtherStore {
        /// The store of the key.
        found: &'static str,
        /// The configured store.
        configured: &'static str,
    },
    /// There is no key file.
    #[error("the key file {} does not exist", .0.display())]
    Missing(PathBuf),
    /// The store did not return in time.
    #[error("the key store did not answer within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
}

impl MachineKey {
    pub(crate) fn new(store: Arc<dyn KeyStore>, directory: StateDirectory) -> Self {
        Self {
            store,
            directory,
            place: KeyPlace::First,
            calls: Calls::default(),
        }
    }

    /// The key in this place.
    pub(crate) fn at(&self, place: KeyPlace) -> Self {
        Self { place, ..self.clone() }
    }

    /// The key file.
    pub(crate) fn file(&self) -> PathBuf {
        file(&self.directory, self.store.kind(), self.place)
    }

    /// The public half. `None` if there is no key.
    pub(crate) async fn public_key(&self) -> Result<Option<PublicKey>, KeyFault> {
        let read = self.use_key(|store, key| store.public_key(key).map_err(KeyFault::Store));
        match read.await {
            Ok(public_key) => Ok(Some(public_key)),
            Err(KeyFault::Missing(_)) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// The public half, after a test signature. `None` if there is no key. The signature is necessary because a damaged
    /// key may still load.
    pub(crate) async fn test_signing(&self) -> Result<Option<PublicKey>, KeyFault> {
        let signed = self.use_key(|store, key| {
            let public_key = store.public_key(key).map_err(KeyFault::Store)?;
            let _signature = store.sign(key, PROBE).map_err(KeyFault::Store)?;
            Ok(public_key)
        });
        match signed.await {
            Ok(public_key) => Ok(Some(public_key)),
            Err(KeyFault::Missing(_)) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Creates a key, without storing it.
    pub(crate) async fn create(&self) -> Result<NewKey, KeyFault> {
        let store = Arc::clone(&self.store);
        self.calls
            .call(move || {
                let sealed = store.create()?;
                let public_key = store.public_key(&sealed)?;
                Ok(NewKey { sealed, public_key })
            })
            .await
    }

    /// Stores a new key. The lock, and a write that never replaces a file, prevent a second key.
    pub(crate) async fn save(&self, lock: Arc<StateLock>, new: NewKey) -> Result<PublicKey, KeyFault> {
        let file = self.file();
        on_the_disk(move || {
            lock.create_file(&file, new.sealed.expose())?;
            Ok(new.public_key)
        })
        .await
    }

    /// Stores a new key in place of one that the store permanently rejects. The old file is renamed for later analysis.
    /// The agent never reads it again.
    pub(crate) async fn save_in_place_of_rejected(
        &self,
        lock: Arc<StateLock>,
        new: NewKey,
    ) -> Result<PublicKey, KeyFault> {
        let (file, aside) = (
            self.file(),
            rejected_file(&self.directory, self.store.kind(), self.place),
        );
        on_the_disk(move || {
            lock.replace_file(&file, new.sealed.expose(), &aside)?;
            Ok(new.public_key)
        })
        .await
    }

    /// Loads the sealed key and its public half.
    pub(crate) async fn load(&self) -> Result<(SealedKey, PublicKey), KeyFault> {
        let (store, directory, place) = (Arc::clone(&self.store), self.directory.clone(), self.place);
        self.calls
            .call(move || {
                let key = load(&directory, store.kind(), place)?;
                let public_key = store.public_key(&key)?;
                Ok((key, public_key))
            })
            .await
    }

    /// Signs on the current thread, which may hang. Call it only on a thread that no other task uses.
    pub(crate) fn sign_blocking(&self, key: &SealedKey, message: &[u8]) -> Result<Vec<u8>, KeyFault> {
        let _permit = self.calls.permit()?;
        Ok(self.store.sign(key, message)?)
    }

    /// Uses the key on a thread of its own.
    pub(crate) async fn use_key<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<KeyFault> + Send + 'static,
        F: FnOnce(&dyn KeyStore, &SealedKey) -> Result<T, E> + Send + 'static,
    {
        let (store, directory, place) = (Arc::clone(&self.store), self.directory.clone(), self.place);
        self.calls
            .call(move || {
                let key = load(&directory, store.kind(), place)?;
                work(store.as_ref(), &key)
            })
            .await
    }
}

/// All key files, of all stores. A reset removes them.
pub(crate) fn files(directory: &StateDirectory) -> Vec<PathBuf> {
    let files = PLACES.iter().flat_map(|place| {
        let kept = KeyStoreKind::ALL.iter().map(|kind| file(directory, *kind, *place));
        kept.chain(
            KeyStoreKind::ALL
                .iter()
                .map(|kind| rejected_file(directory, *kind, *place)),
        )
    });
    files.collect()
}

/// Removes the key file that is neither the current key nor the next one: a replaced key, or a new one that was never
/// used. It does so only if the record names the current key and its file exists.
pub(crate) fn remove_left_over(lock: &StateLock) -> Result<(), StateError> {
    let (record, directory) = (lock.record()?, lock.directory());
    let kept = files_at(directory, record.key_place);
    if record.key.is_none() || record.rotation.is_some() || !kept.iter().any(|path| path.exists()) {
        return Ok(());
    }
    let left_over = files_at(directory, record.key_place.other());
    left_over.iter().try_for_each(|path| lock.remove_file(path))
}

/// Sets all keys aside as `*.key.refused`: they belong to another machine.
pub(crate) fn set_aside(lock: &StateLock) -> Result<(), StateError> {
    let directory = lock.directory();
    let keys = PLACES
        .iter()
        .flat_map(|place| KeyStoreKind::ALL.iter().map(move |kind| (*kind, *place)));
    keys.into_iter().try_for_each(|(kind, place)| {
        let aside = rejected_file(directory, kind, place);
        lock.set_aside(&file(directory, kind, place), &aside)
    })
}

/// The key files in this place, of all stores.
fn files_at(directory: &StateDirectory, place: KeyPlace) -> Vec<PathBuf> {
    KeyStoreKind::ALL
        .iter()
        .map(|kind| file(directory, *kind, place))
        .collect()
}

fn file(directory: &StateDirectory, kind: KeyStoreKind, place: KeyPlace) -> PathBuf {
    let suffix = match place {
        KeyPlace::First => "",
        KeyPlace::Second => "-2",
    };
    directory.path().join(format!("{}{suffix}.key", kind.as_str()))
}

/// The file name for a rejected key.
fn rejected_file(directory: &StateDirectory, kind: KeyStoreKind, place: KeyPlace) -> PathBuf {
    file(directory, kind, place).with_extension("key.refused")
}

async fn on_the_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StateError> + Send + 'static,
) -> Result<T, KeyFault> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| unavailable(error.to_string()))?
        .map_err(KeyFault::File)
}

fn load(directory: &StateDirectory, kind: KeyStoreKind, place: KeyPlace) -> Result<SealedKey, KeyFault> {
    let path = file(directory, kind, place);
    if let Some(bytes) = directory.read_file(&path).map_err(KeyFault::File)? {
        return Ok(SealedKey::new(bytes));
    }
    for other in KeyStoreKind::ALL.iter().filter(|other| **other != kind) {
        let elsewhere = file(directory, *other, place);
        if directory.read_file(&elsewhere).map_err(KeyFault::File)?.is_some() {
            return Err(KeyFault::OtherStore {
                found: other.as_str(),
                configured: kind.as_str(),
            });
        }
    }
    Err(KeyFault::Missing(path))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::key_store::{SoftwareKeyStore, calls::MAX_CALLS};

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
        let made = key.save(Arc::clone(&lock), key.create().await.unwrap()).await.unwrap();
        assert_eq!(key.public_key().await.unwrap(), Some(made.clone()));
        let second = key.create().await.unwrap();
        assert!(matches!(key.save(lock, second).await, Err(KeyFault::File(_))));
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
    async fn a_key_in_another_store_is_an_error() {
        let (_folder, directory, key) = machine_key();
        fs::write(file(&directory, KeyStoreKind::SecureEnclave, KeyPlace::First), "sealed").unwrap();
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

        fn accessibility(&self, _key: &SealedKey) -> Option<assay_protocol::machine::KeyAccessibility> {
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
    async fn hanging_calls_are_limited() {
        let folder = tempfile::tempdir().unwrap();
        let directory = StateDirectory::create(folder.path().to_owned()).unwrap();
        let (release, hang) = std::sync::mpsc::channel();
        let key = MachineKey::new(Arc::new(HangingStore(std::sync::Mutex::new(hang))), directory);
        fs::write(key.file(), "sealed").unwrap();
        let hanging: Vec<_> = (0..MAX_CALLS)
            .map(|_| {
                let key = key.clone();
                tokio::spawn(async move { key.public_key().await })
            })
            .collect();
        while key.calls.left() > 0 {
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
