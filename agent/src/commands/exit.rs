//! How a command ends: its errors, and the exit code that tells the caller's shell.

use std::{io, process::ExitCode};

use assay_protocol::Retry;

use crate::{
    config::ConfigurationError,
    daemon::DaemonError,
    exchanges::{AgentError, Failure},
    key_store::KeyStoreError,
    proxy::ProxyError,
    state::{GrantError, StateError},
};

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    #[error(transparent)]
    KeyStore(#[from] KeyStoreError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Grant(#[from] GrantError),
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error("{0}")]
    Usage(&'static str),
    #[error("the new key does not serve yet; the old one does, and the rotation goes on with the next check-in")]
    NotRotated,
    #[error("nothing was removed")]
    NotConfirmed,
    #[error("the answer cannot be written")]
    Output(#[from] io::Error),
}

/// How a command ended, as the caller's shell sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Done,
    Failed,
    WrongUsage,
    WaitingForApproval,
    Refused,
    ServerUnreachable,
    KeyStoreUnavailable,
}

impl From<DaemonError> for CommandError {
    fn from(error: DaemonError) -> Self {
        match error {
            DaemonError::Agent(error) => Self::Agent(error),
            DaemonError::Configuration(error) => Self::Configuration(error),
        }
    }
}

impl CommandError {
    pub(super) fn ended(&self) -> Ended {
        match self {
            Self::Agent(error) => agent_failed(error),
            Self::Configuration(_) | Self::Usage(_) => Ended::WrongUsage,
            Self::KeyStore(_) => Ended::KeyStoreUnavailable,
            Self::State(_)
            | Self::Grant(_)
            | Self::Proxy(_)
            | Self::NotRotated
            | Self::NotConfirmed
            | Self::Output(_) => Ended::Failed,
        }
    }
}

fn agent_failed(error: &AgentError) -> Ended {
    match error.failure() {
        // It answered, and again and again took no nonce of its own.
        Failure::Unreachable { .. }
            if error
                .refusal()
                .is_some_and(|refusal| refusal.problem.retry() == Retry::Now) =>
        {
            Ended::Refused
        }
        Failure::Unreachable { .. } => Ended::ServerUnreachable,
        Failure::HeldBack { is_pending: true, .. } => Ended::WaitingForApproval,
        Failure::HeldBack { is_pending: false, .. } | Failure::Refused | Failure::Unknown => Ended::Refused,
        Failure::KeyLocked | Failure::KeyRefused | Failure::KeyStore => Ended::KeyStoreUnavailable,
        Failure::Local => Ended::Failed,
    }
}

impl From<Ended> for ExitCode {
    fn from(ended: Ended) -> Self {
        Self::from(match ended {
            Ended::Done => 0,
            Ended::Failed => 1,
            Ended::WrongUsage => 2,
            Ended::WaitingForApproval => 3,
            Ended::Refused => 4,
            Ended::ServerUnreachable => 5,
            Ended::KeyStoreUnavailable => 6,
        })
    }
}

#[cfg(test)]
mod tests {
    use assay_protocol::{Problem, ProblemKind};
    use rstest::rstest;

    use super::*;
    use crate::connection::{ClientError, Refusal};

    #[rstest]
    #[case(ProblemKind::MachinePending, Ended::WaitingForApproval)]
    #[case(ProblemKind::MachineQuarantined, Ended::Refused)]
    #[case(ProblemKind::MachineRevoked, Ended::Refused)]
    #[case(ProblemKind::EnrollmentTokenInvalid, Ended::Refused)]
    #[case(ProblemKind::MachineUnknown, Ended::Refused)]
    #[case(ProblemKind::BadNonce, Ended::Refused)]
    #[case(ProblemKind::Unavailable, Ended::ServerUnreachable)]
    #[case(ProblemKind::RateLimited, Ended::ServerUnreachable)]
    fn the_exit_code_says_what_the_server_said(#[case] kind: ProblemKind, #[case] ended: Ended) {
        let refusal = Refusal {
            problem: Problem::new(kind, String::new(), String::new()),
            retry_after: None,
        };
        let error = AgentError::Server(ClientError::Refused(Box::new(refusal)));
        assert_eq!(CommandError::Agent(error).ended(), ended);
    }
}
