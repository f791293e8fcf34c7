//! Kinds of failures.

use std::time::Duration;

use assay_protocol::{ProblemKind, Retry};

use crate::connection::Refusal;

/// The kind of a failure. It determines the daemon's delay and a command's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The server cannot be reached, or cannot process requests now.
    Unreachable {
        /// The server's `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The machine waits for an administrator: it is pending, quarantined, or its identity does not match.
    Suspended {
        /// The server's `Retry-After`.
        retry_after: Option<Duration>,
        /// Whether the machine waits for its first approval.
        is_pending: bool,
    },
    /// The server refused the request. A repetition does not help before something is changed.
    Refused,
    /// The server no longer knows this machine.
    Unknown,
    /// The key is locked until a user logs in.
    KeyLocked,
    /// The hardware permanently rejects the key. An enrollment creates a new one.
    KeyRefused,
    /// The state belongs to another machine. An enrollment replaces it.
    ForeignState,
    /// Another failure of the key store.
    KeyStore,
    /// A failure on this machine.
    Local,
}

impl Failure {
    /// Whether an enrollment can repair this failure.
    pub(crate) fn asks_for_enrollment(self) -> bool {
        matches!(self, Self::Unknown | Self::KeyRefused | Self::ForeignState)
    }

    /// The server's `Retry-After`, if any.
    pub(crate) fn retry_after(self) -> Option<Duration> {
        match self {
            Self::Unreachable { retry_after } | Self::Suspended { retry_after, .. } => retry_after,
            Self::Refused
            | Self::Unknown
            | Self::KeyLocked
            | Self::KeyRefused
            | Self::ForeignState
            | Self::KeyStore
            | Self::Local => None,
        }
    }

    /// The kind of failure that a refusal is.
    pub(crate) fn of(refusal: &Refusal) -> Self {
        let retry_after = refusal.retry_after;
        match refusal.kind() {
            Some(ProblemKind::MachinePending) => Self::Suspended {
                retry_after,
                is_pending: true,
            },
            Some(ProblemKind::MachineQuarantined | ProblemKind::IdentityMismatch) => Self::Suspended {
                retry_after,
                is_pending: false,
            },
            _ => match refusal.problem.retry() {
                Retry::Now | Retry::After => Self::Unreachable { retry_after },
                Retry::ReEnroll => Self::Unknown,
                Retry::Never => Self::Refused,
            },
        }
    }
}
