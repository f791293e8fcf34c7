//! What kind a failure is.

use std::time::Duration;

use assay_protocol::{ProblemKind, Retry};

use crate::connection::Refusal;

/// What kind of failure it is: what a daemon waits by, and a command's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The server could not be reached, or cannot do it now.
    Unreachable {
        /// How long the server wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// An administrator holds the machine back, and can let it go.
    HeldBack {
        /// How long the server wants to be left alone.
        retry_after: Option<Duration>,
        /// Whether it waits for its first approval.
        is_pending: bool,
    },
    /// The server said no; somebody has to change something.
    Refused,
    /// The server does not know this machine any more.
    Unknown,
    /// The key cannot be used until someone logs in.
    KeyLocked,
    /// The hardware has refused the key for good: enrolling makes another.
    KeyRefused,
    /// The key store failed otherwise.
    KeyStore,
    /// Something on this machine is wrong.
    Local,
}

impl Failure {
    /// Whether enrolling is what helps.
    pub(crate) fn asks_for_enrollment(self) -> bool {
        matches!(self, Self::Unknown | Self::KeyRefused)
    }

    /// How long the server wants to be left alone, if it said so.
    pub(crate) fn retry_after(self) -> Option<Duration> {
        match self {
            Self::Unreachable { retry_after } | Self::HeldBack { retry_after, .. } => retry_after,
            Self::Refused | Self::Unknown | Self::KeyLocked | Self::KeyRefused | Self::KeyStore | Self::Local => None,
        }
    }

    /// What kind a refusal is.
    pub(crate) fn of(refusal: &Refusal) -> Self {
        let retry_after = refusal.retry_after;
        match refusal.kind() {
            Some(ProblemKind::MachinePending) => Self::HeldBack {
                retry_after,
                is_pending: true,
            },
            Some(ProblemKind::MachineQuarantined | ProblemKind::IdentityMismatch) => Self::HeldBack {
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
