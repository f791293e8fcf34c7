//! What goes wrong in an exchange, and what that means for whoever wanted it.

use std::path::PathBuf;

use super::{evidence::ProofError, failure::Failure};
use crate::{
    connection::{ClientError, Refusal},
    facts::FactsError,
    key_store::{KeyFault, KeyStoreError},
    state::{KeyTrouble, StateError},
    trust::ServerUrl,
};

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// There is no identity to use.
    #[error("this machine is not enrolled: `assay-agent enroll --server URL` does that")]
    NotEnrolled,
    /// The machine belongs to another server.
    #[error("this machine belongs to {on_record}, not to {asked_for}: `assay-agent reset` gives that identity up")]
    OtherServer {
        /// Whose it is.
        on_record: ServerUrl,
        /// Whose it was to become.
        asked_for: ServerUrl,
    },
    /// The key that the server knows is gone.
    #[error("the key of this machine is gone from {}: `assay-agent reset`, then enroll again", .0.display())]
    KeyLost(PathBuf),
    /// There is a key, and it is not the one that the server knows.
    #[error("the key in {} is not the one that this machine enrolled with", .0.display())]
    KeyReplaced(PathBuf),
    /// The state directory did not serve.
    #[error("the agent's state cannot be kept")]
    State(#[from] StateError),
    /// The facts could not be read.
    #[error("the facts about this machine cannot be read")]
    Facts(#[from] FactsError),
    /// Nothing could be signed.
    #[error("nothing can be proved to the server")]
    Proof(#[from] ProofError),
    /// The server did not answer, or said no.
    #[error(transparent)]
    Server(#[from] ClientError),
    /// The process is ending.
    #[error("the agent is being stopped")]
    Interrupted,
}

impl AgentError {
    /// What the server said, if it was the server that said no.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Server(ClientError::Refused(refusal) | ClientError::NoCertificate(refusal)) => Some(refusal),
            _ => None,
        }
    }

    /// What is the matter with the key, if it is that.
    #[must_use]
    pub fn key_trouble(&self) -> Option<KeyTrouble> {
        match self {
            Self::Proof(ProofError::Key(fault)) => Some(KeyTrouble::from(fault)),
            Self::KeyLost(_) => Some(KeyTrouble::Missing),
            Self::KeyReplaced(_) => Some(KeyTrouble::Changed),
            _ => None,
        }
    }

    /// What kind of failure it is.
    #[must_use]
    pub fn failure(&self) -> Failure {
        match self {
            Self::Server(ClientError::Refused(refusal)) => Failure::of(refusal),
            Self::Server(ClientError::NoCertificate(_)) => Failure::Unknown,
            Self::Server(ClientError::Unreachable { .. } | ClientError::NotAnAnswer { .. }) => {
                Failure::Unreachable { retry_after: None }
            }
            Self::Proof(ProofError::Key(fault)) | Self::Server(ClientError::Key { fault, .. }) => match fault {
                KeyFault::Store(KeyStoreError::Locked) => Failure::KeyLocked,
                KeyFault::Store(KeyStoreError::Foreign { .. }) => Failure::KeyRefused,
                _ => Failure::KeyStore,
            },
            Self::Proof(_) | Self::KeyLost(_) | Self::KeyReplaced(_) => Failure::KeyStore,
            Self::Server(ClientError::Trust(_) | ClientError::SetUp(_) | ClientError::Encode(_))
            | Self::NotEnrolled
            | Self::OtherServer { .. }
            | Self::State(_)
            | Self::Facts(_)
            | Self::Interrupted => Failure::Local,
        }
    }
}
