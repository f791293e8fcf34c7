//! Where a machine's private key lives, and how it signs.
//!
//! A [`KeyStore`] is stateless: it makes a key and hands out a [`SealedKey`], which is all there is of that key; each
//! later call brings the sealed key along. So the Secure Enclave fits, whose channels are few and must not stay open,
//! and whose keys, as a daemon has them, are sealed bytes in a file. Deleting a key is deleting its sealed bytes.

mod calls;
mod machine_key;
#[cfg(any(target_os = "macos", feature = "enclave-stand-in", test))]
mod secure_enclave;
mod software;
mod trouble;

use std::{fmt, sync::Arc};

use assay_protocol::{
    PublicKey,
    machine::{KeyAccessibility, KeyStoreKind},
};
use secrecy::{ExposeSecret, SecretSlice};

pub(crate) use calls::Calls;
pub use machine_key::KeyFault;
pub(crate) use machine_key::{MachineKey, files, remove_left_over};
#[cfg(any(target_os = "macos", feature = "enclave-stand-in", test))]
pub use secure_enclave::SecureEnclave;
pub use software::SoftwareKeyStore;

/// What a key store hands out for a key. Secret: with the software store it is the private key itself.
#[derive(Debug)]
pub struct SealedKey(SecretSlice<u8>);

/// Makes P-256 keys and signs with them.
///
/// Calls may block, and may hang in the worst case: the agent makes them on a thread of their own, with a timeout.
pub trait KeyStore: Send + Sync + fmt::Debug {
    /// Which store this is; the agent claims it in its evidence.
    fn kind(&self) -> KeyStoreKind;

    /// When a key can be used; `None` where the store knows no such thing.
    fn accessibility(&self, key: &SealedKey) -> Option<KeyAccessibility>;

    /// Makes a new key.
    fn create(&self) -> Result<SealedKey, KeyStoreError>;

    /// The public half of a key.
    fn public_key(&self, key: &SealedKey) -> Result<PublicKey, KeyStoreError>;

    /// Signs a message with ECDSA and SHA-256 (the store hashes it), and answers in DER.
    fn sign(&self, key: &SealedKey, message: &[u8]) -> Result<Vec<u8>, KeyStoreError>;
}

/// Why a key store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum KeyStoreError {
    /// The key cannot be used yet: nobody has logged in since the machine started. Waiting helps.
    #[error("waiting for first unlock: the key is locked until someone logs in")]
    Locked,
    /// The sealed key's bytes are no key of this store. Repeating the call does not help.
    #[error("the key is damaged: {reason}")]
    Corrupt {
        /// What is wrong with it.
        reason: String,
    },
    /// The hardware says that the sealed key is damaged, or was made on another machine: of no more use, here and now
    /// and after a restart. The only error that a new key answers.
    #[error("the key is damaged or belongs to another machine: {reason}")]
    Foreign {
        /// What the system said.
        reason: String,
    },
    /// The key that was loaded is not the one that was kept.
    #[error("the key store loads another key than the one that was kept")]
    Changed,
    /// The hardware has no channel left, or serves no one in this context. Repeating the call later may help.
    #[error("the key store has no channel left, or serves no one in this context: {reason}")]
    Exhausted {
        /// What the system said.
        reason: String,
    },
    /// The agent asked for what it may not have: a defect of the agent.
    #[error("the agent asked the key store for what it may not have, which is a defect of the agent: {reason}")]
    Misused {
        /// What the system said.
        reason: String,
    },
    /// The machine has no such hardware.
    #[error(
        "this machine has no Secure Enclave; a key in a file, which can be copied, has to be asked for with --key-store software"
    )]
    Absent,
    /// The store cannot be reached now. Repeating the call later may help.
    #[error("the key store cannot be used: {reason}")]
    Unavailable {
        /// What the system said.
        reason: String,
    },
    /// This build, or this system, has no such store.
    #[error("{}", not_built(.0))]
    NotBuilt(KeyStoreKind),
}

impl SealedKey {
    /// Wraps what a store made, or what was read back from the disk.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }

    /// The bytes, to store them or to hand them to the store that made them.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        self.0.expose_secret()
    }
}

/// Opens the store of this kind, or says that this build has none. New keys in the enclave get this accessibility.
pub fn open(kind: KeyStoreKind, accessibility: KeyAccessibility) -> Result<Arc<dyn KeyStore>, KeyStoreError> {
    match kind {
        KeyStoreKind::Software => Ok(Arc::new(SoftwareKeyStore)),
        KeyStoreKind::SecureEnclave => secure_enclave(accessibility),
    }
}

#[cfg(any(target_os = "macos", feature = "enclave-stand-in"))]
#[allow(clippy::unnecessary_wraps, reason = "other systems have none")]
fn secure_enclave(accessibility: KeyAccessibility) -> Result<Arc<dyn KeyStore>, KeyStoreError> {
    Ok(Arc::new(SecureEnclave::new(accessibility)))
}

#[cfg(not(any(target_os = "macos", feature = "enclave-stand-in")))]
fn secure_enclave(_accessibility: KeyAccessibility) -> Result<Arc<dyn KeyStore>, KeyStoreError> {
    Err(KeyStoreError::NotBuilt(KeyStoreKind::SecureEnclave))
}

/// The name of a kind, as the command line and the file names have it.
pub(crate) fn name(kind: KeyStoreKind) -> &'static str {
    match kind {
        KeyStoreKind::Software => "software",
        KeyStoreKind::SecureEnclave => "secure-enclave",
    }
}

fn not_built(kind: &KeyStoreKind) -> String {
    let asked_for = name(*kind);
    match kind {
        KeyStoreKind::SecureEnclave => format!(
            "this build has no {asked_for} key store; a key in a file, which can be copied, has to be asked for with --key-store software"
        ),
        KeyStoreKind::Software => format!("this build has no {asked_for} key store"),
    }
}
