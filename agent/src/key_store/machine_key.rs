//! A key of a machine: its sealed bytes in the state directory, and the store that they belong to.
//!
//! There is one, and a second beside it while the machine replaces the first: each in a file of its own, so that the two
//! change places by one write of the record. A key is made only where there is no file, or where the hardware refuses the one in it for good. A file that cannot
//! be read or a key that does not work now is an error: a second key beside a first one that was only locked would look
//! like a copied machine.

use std::{path::PathBuf, sync::Arc, time::Duration};

use assay_protocol::{PublicKey, machine::KeyStoreKind};

use super::{Calls, KeyStore, KeyStoreError, SealedKey, calls::unavailable, name};
use crate::state::{KeyPlace, StateDirectory, StateError, StateLock};

/// What a key signs to show that it does. It is no JWS, no CSR and no handshake: whoever has the signature has nothing.
const PROBE: &[u8] = b"assay-agent probe";
const KINDS: &[KeyStoreKind] = &[KeyStoreKind::SecureEnclave, KeyStoreKind::Software];
const PLACES: &[KeyPlace] = &[KeyPlace::First, KeyPlace::Second];

/// The machine's key in one of the two places.
#[derive(Debug, Clone)]
pub(crate) struct MachineKey {
    store: Arc<dyn KeyStore>,
    directory: StateDirectory,
    place: KeyPlace,
    calls: Calls,
}

/// A key that was made and is not kept yet.
#[derive(Debug)]
pub(crate) struct NewKey {
    sealed: SealedKey,
    pub(crate) public_key: PublicKey,
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
            place: KeyPlace::First,
            calls: Calls::default(),
        }
    }

    /// The key in this place.
    pub(crate) fn at(&self, place: KeyPlace) -> Self {
        Self { place, ..self.clone() }
    }

    /// Where its sealed bytes are.
    pub(crate) fn file(&self) -> PathBuf {
        file(&self.directory, self.store.kind(), self.place)
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

    /// The public half of a key that signs, or `None` where no key was ever made. A damaged key may load all the same.
    pub(crate) async fn signing(&self) -> Result<Option<PublicKey>, KeyFault> {
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

    /// Makes a key. It is nobody's until it is kept.
    pub(crate) async fn make(&self) -> Result<NewKey, KeyFault> {
        let store = Arc::clone(&self.store);
        self.calls
            .call(move || {
                let sealed = store.create()?;
                let public_key = store.public_key(&sealed)?;
                Ok(NewKey { sealed, public_key })
            })
            .await
    }

    /// Keeps a key where there is none. The lock, and a write that never replaces a file, keep two from being kept.
    pub(crate) async fn keep(&self, lock: Arc<StateLock>, new: NewKey) -> Result<PublicKey, KeyFault> {
        let file = self.file();
        on_the_disk(move || {
            lock.create_file(&file, new.sealed.expose())?;
            Ok(new.public_key)
        })
        .await
    }

    /// Keeps a key in place of one that the store has refused for good, whose bytes are set aside: to be looked at, and
    /// never read by the agent again.
    pub(crate) async fn keep_in_place_of_refused(
        &self,
        lock: Arc<StateLock>,
        new: NewKey,
    ) -> Result<PublicKey, KeyFault> {
        let (file, aside) = (self.file(), refused(&self.directory, self.store.kind(), self.place));
        on_the_disk(move || {
            lock.replace_file(&file, new.sealed.expose(), &aside)?;
            Ok(new.public_key)
        })
        .await
    }

    /// The key itself, sealed, and its public half.
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

    /// Signs on this very thread, which may hang: never one that serves others.
    pub(crate) fn sign_here(&self, key: &SealedKey, message: &[u8]) -> Result<Vec<u8>, KeyFault> {
        let _permit = self.calls.permit()?;
        Ok(self.store.sign(key, message)?)
    }

    /// Does something with the key, away from the threads that serve the network.
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

/// The files that hold keys, of whatever store: what a reset removes.
pub(crate) fn files(directory: &StateDirectory) -> Vec<PathBuf> {
    let files = PLACES.iter().flat_map(|place| {
        let kept = KINDS.iter().map(|kind| file(directory, *kind, *place));
        kept.chain(KINDS.iter().map(|kind| refused(directory, *kind, *place)))
    });
    files.collect()
}

/// Removes the key that is neither the machine's nor to become it: one that was replaced, or that was made and never
/// shown to anybody. Only where the record names the machine's key, and that key's file is there.
pub(crate) fn remove_left_over(lock: &StateLock) -> Result<(), StateError> {
    let (record, directory) = (lock.record()?, lock.directory());
    let kept = files_at(directory, record.key_place);
    if record.key.is_none() || record.rotation.is_some() || !kept.iter().any(|path| path.exists()) {
        return Ok(());
    }
    let left_over = files_at(directory, record.key_place.other());
    left_over.iter().try_for_each(|path| lock.remove_file(path))
}

/// The files that hold a key in this place, of whatever store.
fn files_at(directory: &StateDirectory, place: KeyPlace) -> Vec<PathBuf> {
    KINDS.iter().map(|kind| file(directory, *kind, place)).collect()
}

fn file(directory: &StateDirectory, kind: KeyStoreKind, place: KeyPlace) -> PathBuf {
    let suffix = match place {
        KeyPlace::First => "",
        KeyPlace::Second => "-2",
    };
    directory.path().join(format!("{}{suffix}.key", name(kind)))
}

/// Where a key's bytes are set aside when the store has refused them.
fn refused(directory: &StateDirectory, kind: KeyStoreKind, place: KeyPlace) -> PathBuf {
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
    for other in KINDS.iter().filter(|other| **other != kind) {
        let elsewhere = file(directory, *other, place);
        if directory.read_file(&elsewhere).map_err(KeyFault::File)?.is_some() {
            return Err(KeyFault::OtherStore {
                found: name(*other),
                asked_for: name(kind),
            });
        }
    }
    Err(KeyFault::Missing(path))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::key_store::{SoftwareKeyStore, calls::MOST_CALLS};

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
        let made = key.keep(Arc::clone(&lock), key.make().await.unwrap()).await.unwrap();
        assert_eq!(key.public_key().await.unwrap(), Some(made.clone()));
        let second = key.make().await.unwrap();
        assert!(matches!(key.keep(lock, second).await, Err(KeyFault::File(_))));
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
