//! Errors of commands, and their exit codes.

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

/// Why a command failed.
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
    #[error(
        "the server has not accepted the new key yet; the old key stays valid, and the next check-in continues the rotation"
    )]
    NotRotated,
    #[error("not confirmed; nothing was removed")]
    NotConfirmed,
    #[error("the output cannot be written")]
    Output(#[from] io::Error),
}

/// The outcome of a command. Each has an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
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
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Agent(error) => exit_after(error),
            Self::Configuration(_) | Self::Usage(_) => Exit::WrongUsage,
            Self::KeyStore(_) => Exit::KeyStoreUnavailable,
            Self::State(_)
            | Self::Grant(_)
            | Self::Proxy(_)
            | Self::NotRotated
            | Self::NotConfirmed
            | Self::Output(_) => Exit::Failed,
        }
    }
}

fn exit_after(error: &AgentError) -> Exit {
    match error.failure() {
        // The server responded, but rejected a fresh nonce several times.
        Failure::Unreachable { .. }
            if error
                .refusal()
                .is_some_and(|refusal| refusal.problem.retry() == Retry::Now) =>
        {
            Exit::Refused
        }
        Failure::Unreachable { .. } => Exit::ServerUnreachable,
        Failure::Suspended { is_pending: true, .. } => Exit::WaitingForApproval,
        Failure::Suspended { is_pending: false, .. } | Failure::Refused | Failure::Unknown => Exit::Refused,
        Failure::KeyLocked | Failure::KeyRefused | Failure::KeyStore => Exit::KeyStoreUnavailable,
        Failure::ForeignState | Failure::Local => Exit::Failed,
    }
}

impl From<Exit> for ExitCode {
    fn from(ended: Exit) -> Self {
        Self::from(match ended {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::WrongUsage => 2,
            Exit::WaitingForApproval => 3,
            Exit::Refused => 4,
            Exit::ServerUnreachable => 5,
            Exit::KeyStoreUnavailable => 6,
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
    #[case(ProblemKind::MachinePending, Exit::WaitingForApproval)]
    #[case(ProblemKind::MachineQuarantined, Exit::Refused)]
    #[case(ProblemKind::MachineRevoked, Exit::Refused)]
    #[case(ProblemKind::EnrollmentTokenInvalid, Exit::Refused)]
    #[case(ProblemKind::MachineUnknown, Exit::Refused)]
    #[case(ProblemKind::BadNonce, Exit::Refused)]
    #[case(ProblemKind::Unavailable, Exit::ServerUnreachable)]
    #[case(ProblemKind::RateLimited, Exit::ServerUnreachable)]
    fn the_exit_code_follows_from_the_problem(#[case] kind: ProblemKind, #[case] exit: Exit) {
        let refusal = Refusal {
            problem: Problem::new(kind, String::new(), String::new()),
            retry_after: None,
        };
        let error = AgentError::Server(ClientError::Refused(Box::new(refusal)));
        assert_eq!(CommandError::Agent(error).exit(), exit);
    }
}
