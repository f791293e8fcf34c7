//! Errors of exchanges, and the kind of failure that each one is.

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
    /// The machine has no identity.
    #[error("this machine is not enrolled: run `assay-agent enroll --server URL`")]
    NotEnrolled,
    /// The machine belongs to another server.
    #[error(
        "this machine is enrolled with {on_record}, not with {requested}: to change servers, run `assay-agent reset` first"
    )]
    OtherServer {
        /// The server on record.
        on_record: ServerUrl,
        /// The requested server.
        requested: ServerUrl,
    },
    /// The current key's file is missing.
    #[error("the machine's key file {} is missing: run `assay-agent reset`, then enroll again", .0.display())]
    KeyLost(PathBuf),
    /// The key file contains a key other than the one on record.
    #[error("the key in {} is not the one on record", .0.display())]
    KeyReplaced(PathBuf),
    /// The state directory belongs to another machine.
    #[error(
        "this state directory was copied from another machine: it belongs to the hardware UUID {recorded}, and this machine has \
         {present}. Its keys are not used here; an enrollment makes this machine's own"
    )]
    ForeignState {
        /// The hardware UUID on record.
        recorded: String,
        /// This machine's hardware UUID.
        present: String,
    },
    /// The state directory failed.
    #[error("the state directory cannot be used")]
    State(#[from] StateError),
    /// The facts cannot be read.
    #[error("the facts about this machine cannot be read")]
    Facts(#[from] FactsError),
    /// The evidence or the certificate request cannot be signed.
    #[error("the evidence cannot be made")]
    Proof(#[from] ProofError),
    /// The server did not respond, or refused the request.
    #[error(transparent)]
    Server(#[from] ClientError),
    /// The process is stopping.
    #[error("the agent is stopping")]
    Interrupted,
}

impl AgentError {
    /// The server's refusal, if it refused the request.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Server(ClientError::Refused(refusal) | ClientError::NoCertificate(refusal)) => Some(refusal),
            _ => None,
        }
    }

    /// The problem with the key, if the key caused the failure.
    #[must_use]
    pub fn key_trouble(&self) -> Option<KeyTrouble> {
        match self {
            Self::Proof(ProofError::Key(fault)) => Some(KeyTrouble::from(fault)),
            Self::KeyLost(_) => Some(KeyTrouble::Missing),
            Self::KeyReplaced(_) => Some(KeyTrouble::Changed),
            _ => None,
        }
    }

    /// The kind of failure.
    #[must_use]
    pub fn failure(&self) -> Failure {
        match self {
            Self::Server(ClientError::Refused(refusal)) => Failure::of(refusal),
            Self::Server(ClientError::NoCertificate(_)) => Failure::Unknown,
            Self::Server(
                ClientError::Unreachable { .. }
                | ClientError::CaCertificate { .. }
                | ClientError::InvalidResponse { .. },
            ) => Failure::Unreachable { retry_after: None },
            Self::Proof(ProofError::Key(fault)) | Self::Server(ClientError::Key { fault, .. }) => match fault {
                KeyFault::Store(KeyStoreError::Locked) => Failure::KeyLocked,
                KeyFault::Store(KeyStoreError::Foreign { .. }) => Failure::KeyRefused,
                _ => Failure::KeyStore,
            },
            Self::Proof(_) | Self::KeyLost(_) | Self::KeyReplaced(_) => Failure::KeyStore,
            Self::ForeignState { .. } => Failure::ForeignState,
            Self::Server(ClientError::Trust(_) | ClientError::SetUp(_) | ClientError::Encode(_))
            | Self::NotEnrolled
            | Self::OtherServer { .. }
            | Self::State(_)
            | Self::Facts(_)
            | Self::Interrupted => Failure::Local,
        }
    }
}
