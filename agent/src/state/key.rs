//! The machine's keys in the record: their places, the rotation in progress, and problems.

use assay_protocol::{KeyThumbprint, agent_api::IssuedCertificate};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

/// The two places of a machine's keys. Each has its own file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyPlace {
    /// The place of the machine's first key.
    #[default]
    First,
    /// The place of a key that replaces one in the first place.
    Second,
}

/// A key rotation in progress.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyRotation {
    /// The thumbprint of the next key.
    pub key: KeyThumbprint,
    /// When the next key was created, by this machine's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub begun_at: OffsetDateTime,
    /// An enrollment token for the next key, until the server has answered.
    #[serde(serialize_with = "super::expose_token", default)]
    pub token: Option<SecretString>,
    /// The server's id of the rotation, if the next key waits for approval.
    #[serde(default)]
    pub enrollment_id: Option<Uuid>,
    /// The certificate of the next key, once the server has issued it. From then on, the next key signs check-ins.
    pub certificate: Option<IssuedCertificate>,
    /// Whether the next key may have signed evidence. The server may then have superseded the current key, and reports a
    /// superseded key that signs.
    #[serde(default = "unless_recorded")]
    pub is_used: bool,
}

/// A next key that an administrator denied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeniedKey {
    /// Its thumbprint.
    pub key: KeyThumbprint,
    /// When the agent learned of it, by this machine's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// The server's message, with the administrator's reason.
    pub message: String,
}

/// Earlier versions did not record whether the next key had signed evidence.
fn unless_recorded() -> bool {
    true
}

/// A problem with a machine's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyTrouble {
    /// No user has logged in since boot, and the key requires it.
    WaitingForFirstUnlock,
    /// The enclave says that the key is damaged or belongs to another machine.
    RefusedByEnclave,
    /// The enclave has no free channel, or does not work in this context.
    EnclaveExhausted,
    /// The store is unavailable now.
    Unavailable,
    /// A call into the store did not return in time.
    NoAnswer,
    /// The key file is damaged.
    DamagedFile,
    /// The key file cannot be read or written.
    UnreadableFile,
    /// The store loads a key other than the one in the file or on record.
    Changed,
    /// The key is in a store other than the configured one.
    InAnotherStore,
    /// The key on record has no file.
    Missing,
    /// The machine has no Secure Enclave.
    NoEnclave,
    /// This build does not contain this store.
    NotBuilt,
    /// The agent made an invalid call.
    Defect,
}

impl KeyTrouble {
    /// The problem, in words.
    #[must_use]
    pub fn matter(self) -> &'static str {
        match self {
            Self::WaitingForFirstUnlock => "waiting for first unlock",
            Self::RefusedByEnclave => "the Secure Enclave rejects the key: it is damaged or belongs to another machine",
            Self::EnclaveExhausted => "the Secure Enclave has no free channel, or does not work in this context",
            Self::Unavailable => "the key store is unavailable",
            Self::NoAnswer => "the key store does not respond",
            Self::DamagedFile => "the key file is damaged",
            Self::UnreadableFile => "the key file cannot be read or written",
            Self::Changed => "the key is not the one on record",
            Self::InAnotherStore => "the key is not in the configured key store",
            Self::Missing => "the key file is missing",
            Self::NoEnclave => "this machine has no Secure Enclave",
            Self::NotBuilt => "this build has no such key store",
            Self::Defect => "the agent made an invalid call to the Secure Enclave, which is a bug in the agent",
        }
    }

    /// The remedy, in words.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::WaitingForFirstUnlock => {
                "log in once; the agent then continues. A key with `accessibility = \"always\"` does not need a login"
            }
            Self::RefusedByEnclave => {
                "nothing if the machine has a token that allows it to enroll again: the agent creates a new key. Otherwise configure \
                 such a token, or approve the machine on the server"
            }
            Self::EnclaveExhausted => {
                "wait: the agent retries. If the problem persists, restart the Mac, and look for another program that keeps many keys open"
            }
            Self::Unavailable => "wait: the agent retries. If the problem persists, restart the Mac",
            Self::NoAnswer => "wait: the agent retries. If the problem persists, restart the agent, then the Mac",
            Self::DamagedFile | Self::Missing | Self::Changed => {
                "restore the key file, or run `assay-agent reset` and enroll again"
            }
            Self::UnreadableFile => {
                "check that the disk has free space, and that the agent's account owns the state directory"
            }
            Self::InAnotherStore => {
                "configure the key store that contains the key, or run `assay-agent reset` and enroll again"
            }
            Self::NoEnclave => "configure a key in a file: `key_store = \"software\"`",
            Self::NotBuilt => {
                "install the build for this system, or configure a key in a file: `key_store = \"software\"`"
            }
            Self::Defect => "report it as a bug, with the error's domain and code",
        }
    }
}

impl KeyPlace {
    /// The other place.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}
