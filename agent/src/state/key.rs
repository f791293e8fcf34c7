//! What the record says of the machine's keys: where they are, which one is to come, and what is the matter.

use assay_protocol::{KeyThumbprint, agent_api::IssuedCertificate};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// Which of its two files a key is in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyPlace {
    /// Where the machine's first key is made.
    #[default]
    First,
    /// Where the key is made that replaces one in the first.
    Second,
}

/// A key that is to replace the current one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRotation {
    /// The thumbprint of the next key.
    pub key: KeyThumbprint,
    /// When that key was made, by this machine's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub begun_at: OffsetDateTime,
    /// Its certificate, once the server has answered: from then on the next key checks in.
    pub certificate: Option<IssuedCertificate>,
}

/// What is the matter with a machine's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyTrouble {
    /// Nobody has logged in since the machine started, and the key is one that needs it.
    WaitingForFirstUnlock,
    /// The enclave says that the key is damaged, or another machine's.
    RefusedByEnclave,
    /// The enclave has no channel left, or serves no one in this context.
    EnclaveExhausted,
    /// The store cannot be reached now.
    Unavailable,
    /// A call into the store did not return in time.
    NoAnswer,
    /// The key's file is damaged.
    DamagedFile,
    /// The key's file cannot be read or written.
    UnreadableFile,
    /// The store loads another key than the one that was kept, or that the server knows.
    Changed,
    /// The key is in another store than the one that is configured.
    InAnotherStore,
    /// There is no key where the server knows one.
    Missing,
    /// The machine has no Secure Enclave.
    NoEnclave,
    /// This build has no such store.
    NotBuilt,
    /// The agent has asked for what it may not have.
    Defect,
}

impl KeyTrouble {
    /// What is the matter.
    #[must_use]
    pub fn matter(self) -> &'static str {
        match self {
            Self::WaitingForFirstUnlock => "waiting for first unlock",
            Self::RefusedByEnclave => "the Secure Enclave says that the key is damaged or another machine's",
            Self::EnclaveExhausted => {
                "the Secure Enclave refuses: it has no channel left, or serves no one in this context"
            }
            Self::Unavailable => "the key store cannot be reached",
            Self::NoAnswer => "the key store does not answer",
            Self::DamagedFile => "the key's file is damaged",
            Self::UnreadableFile => "the key's file cannot be read or written",
            Self::Changed => "the key is not the one that this machine enrolled with",
            Self::InAnotherStore => "the key is in another store than the one that is configured",
            Self::Missing => "the key is gone",
            Self::NoEnclave => "this machine has no Secure Enclave",
            Self::NotBuilt => "this build has no such key store",
            Self::Defect => "the agent asked the Secure Enclave for what it may not have: a defect of the agent",
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::WaitingForFirstUnlock => {
                "log in once; the agent goes on by itself. A key with `accessibility = \"always\"` does not wait"
            }
            Self::RefusedByEnclave => {
                "nothing, where a token allows this machine to enroll again: the agent makes a new key by itself. Otherwise give it \
                 such a token, and approve the machine on the server"
            }
            Self::EnclaveExhausted => {
                "wait: the agent tries again. If it stays, restart the Mac, and look for another program that keeps many keys open"
            }
            Self::Unavailable => "wait: the agent tries again. If it stays, restart the Mac",
            Self::NoAnswer => "wait: the agent tries again. If it stays, restart the agent, then the Mac",
            Self::DamagedFile | Self::Missing | Self::Changed => {
                "restore the state directory from before, or give the identity up: `assay-agent reset`, then enroll again"
            }
            Self::UnreadableFile => {
                "see that the disk has room and that the state directory belongs to the account of the agent"
            }
            Self::InAnotherStore => {
                "configure the store that the key is in, or give the identity up: `assay-agent reset`"
            }
            Self::NoEnclave => {
                "on hardware without one a key in a file has to be asked for: `key_store = \"software\"`"
            }
            Self::NotBuilt => {
                "install the agent that is built for this system, or ask for a key in a file: `key_store = \"software\"`"
            }
            Self::Defect => "report it, with the error's domain and code",
        }
    }
}

impl KeyPlace {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}
