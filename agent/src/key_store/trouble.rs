//! The problem behind each error of a key.

use super::{KeyFault, KeyStoreError};
use crate::state::KeyTrouble;

impl From<&KeyFault> for KeyTrouble {
    fn from(fault: &KeyFault) -> Self {
        match fault {
            KeyFault::Store(KeyStoreError::Locked) => Self::WaitingForFirstUnlock,
            KeyFault::Store(KeyStoreError::Foreign { .. }) => Self::RefusedByEnclave,
            KeyFault::Store(KeyStoreError::Exhausted { .. }) => Self::EnclaveExhausted,
            KeyFault::Store(KeyStoreError::Unavailable { .. }) => Self::Unavailable,
            KeyFault::Store(KeyStoreError::Corrupt { .. }) => Self::DamagedFile,
            KeyFault::Store(KeyStoreError::Changed) => Self::Changed,
            KeyFault::Store(KeyStoreError::Absent) => Self::NoEnclave,
            KeyFault::Store(KeyStoreError::NotBuilt(_)) => Self::NotBuilt,
            KeyFault::Store(KeyStoreError::Misused { .. }) => Self::Defect,
            KeyFault::File(_) => Self::UnreadableFile,
            KeyFault::OtherStore { .. } => Self::InAnotherStore,
            KeyFault::Missing(_) => Self::Missing,
            KeyFault::TimedOut(_) => Self::NoAnswer,
        }
    }
}
