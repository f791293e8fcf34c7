//! When an exchange is due, and how often it has failed.

use time::OffsetDateTime;

use super::delay::{Jitter, after_failure};
use crate::exchanges::Failure;

/// When an exchange is due, and how many times in a row it has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) due: OffsetDateTime,
    pub(crate) failures: u32,
}

/// When the next step of a key rotation is due, if any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rotation {
    pub(crate) due: Option<OffsetDateTime>,
    /// The number of rotations in a row that were begun, or failed to begin, and were not completed by a check-in. It
    /// limits the rate of new keys if a server certifies the next key but never accepts it.
    pub(crate) begun: u32,
}

impl Attempt {
    /// Due now, unless failures have delayed it.
    pub(crate) fn at_once(self, now: OffsetDateTime) -> Self {
        match self.failures {
            0 => Self { due: now, failures: 0 },
            _ => self,
        }
    }
}

impl Rotation {
    /// The server has decided on the next key. Whether there is another step follows from the next check-in.
    pub(crate) fn attempted(self) -> Self {
        Self {
            due: None,
            begun: self.begun.saturating_add(1),
        }
    }

    /// The next key waits for approval, and the agent asks again at this time.
    pub(crate) fn waits_until(self, due: OffsetDateTime) -> Self {
        Self { due: Some(due), ..self }
    }

    /// Delays the rotation until this time, if it is due.
    pub(crate) fn delay_until(self, until: Option<OffsetDateTime>) -> Self {
        Self {
            due: self.due.max(self.due.and(until)),
            ..self
        }
    }

    /// The server requested a rotation. It is due now, or after a back-off if earlier rotations were not completed. A
    /// running back-off continues.
    pub(crate) fn requested(self, now: OffsetDateTime, jitter: Jitter) -> Self {
        let due = match (self.due, self.begun) {
            (Some(due), _) => due,
            (None, 0) => now,
            (None, begun) => now + after_failure(Failure::Refused, begun, jitter),
        };
        Self { due: Some(due), ..self }
    }

    pub(crate) fn failed(self, now: OffsetDateTime, failure: Failure, jitter: Jitter) -> Self {
        let begun = self.begun.saturating_add(1);
        Self {
            due: Some(now + after_failure(failure, begun, jitter)),
            begun,
        }
    }
}
