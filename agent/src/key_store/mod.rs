//! Key stores: where a machine's private key is, and how it signs.
//!
//! A [`KeyStore`] is stateless. It creates a key and returns a [`SealedKey`], and each later call passes the sealed key
//! again. This fits the Secure Enclave: it has few channels, so they must not stay open, and a daemon's keys are sealed
//! bytes in a file. Deleting the sealed bytes deletes the key.

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
pub(crate) use machine_key::{MachineKey, files, remove_left_over, set_aside};
#[cfg(any(target_os = "macos", feature = "enclave-stand-in", test))]
pub use secure_enclave::SecureEnclave;
pub use software::SoftwareKeyStore;

/// A key in the form that its store returns. Secret: in the software store, it is the private key itself.
#[derive(Debug)]
pub struct SealedKey(SecretSlice<u8>);

/// Creates P-256 keys and signs with them.
///
/// Calls may block, and may even hang. The agent makes them on separate threads, with a timeout.
pub trait KeyStore: Send + Sync + fmt::Debug {
    /// The kind of store, which evidence claims.
    fn kind(&self) -> KeyStoreKind;

    /// When a key is usable. `None` if the store has no such property.
    fn accessibility(&self, key: &SealedKey) -> Option<KeyAccessibility>;

    /// Creates a key.
    fn create(&self) -> Result<SealedKey, KeyStoreError>;

    /// The public half of a key.
    fn public_key(&self, key: &SealedKey) -> Result<PublicKey, KeyStoreError>;

    /// Signs a message with ECDSA and SHA-256, and returns DER. The store hashes the message.
    fn sign(&self, key: &SealedKey, message: &[u8]) -> Result<Vec<u8>, KeyStoreError>;
}

/// Why a key store failed.
#[derive(Debug, thiserror::Error)]
pub enum KeyStoreError {
    /// The key is locked, because no user has logged in since boot. Temporary.
    #[error("waiting for first unlock: the key is locked until a user logs in")]
    Locked,
    /// The bytes are not a key of this store. Permanent.
    #[error("the key is damaged: {reason}")]
    Corrupt {
        /// What is wrong.
        reason: String,
    },
    /// The hardware says that the key is damaged or belongs to another machine. Permanent, even after a restart. This
    /// is the only error that leads to a new key.
    #[error("the key is damaged or belongs to another machine: {reason}")]
    Foreign {
        /// The system's error.
        reason: String,
    },
    /// The store loaded a key other than the stored one.
    #[error("the key store loaded a key other than the stored one")]
    Changed,
    /// The hardware has no free channel, or does not work in this context. May be temporary.
    #[error("the key store has no free channel, or does not work in this context: {reason}")]
    Exhausted {
        /// The system's error.
        reason: String,
    },
    /// The agent made an invalid call: a bug.
    #[error("the agent made an invalid call to the key store, which is a bug in the agent: {reason}")]
    Misused {
        /// The system's error.
        reason: String,
    },
    /// The machine has no Secure Enclave.
    #[error(
        "this machine has no Secure Enclave; --key-store software uses a key in a file instead, which can be copied"
    )]
    Absent,
    /// The store is unavailable. May be temporary.
    #[error("the key store is unavailable: {reason}")]
    Unavailable {
        /// The cause.
        reason: String,
    },
    /// This build does not contain this store.
    #[error("{}", not_built(.0))]
    NotBuilt(KeyStoreKind),
}

impl SealedKey {
    /// Wraps bytes from a store or from a file.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }

    /// The bytes, for storing them or for a call to their store.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        self.0.expose_secret()
    }
}

/// Opens a key store. New keys in the enclave get this accessibility.
pub fn open(kind: KeyStoreKind, accessibility: KeyAccessibility) -> Result<Arc<dyn KeyStore>, KeyStoreError> {
    match kind {
        KeyStoreKind::Software => Ok(Arc::new(SoftwareKeyStore)),
        KeyStoreKind::SecureEnclave => secure_enclave(accessibility),
    }
}

#[cfg(any(target_os = "macos", feature = "enclave-stand-in"))]
#[allow(clippy::unnecessary_wraps, reason = "on other systems it can fail")]
fn secure_enclave(accessibility: KeyAccessibility) -> Result<Arc<dyn KeyStore>, KeyStoreError> {
    Ok(Arc::new(SecureEnclave::new(accessibility)))
}

#[cfg(not(any(target_os = "macos", feature = "enclave-stand-in")))]
fn secure_enclave(_accessibility: KeyAccessibility) -> Result<Arc<dyn KeyStore>, KeyStoreError> {
    Err(KeyStoreError::NotBuilt(KeyStoreKind::SecureEnclave))
}

fn not_built(kind: &KeyStoreKind) -> String {
    let name = kind.as_str();
    match kind {
        KeyStoreKind::SecureEnclave => format!(
            "this build has no {name} key store; --key-store software uses a key in a file instead, which can be copied"
        ),
        KeyStoreKind::Software => format!("this build has no {name} key store"),
    }
}
