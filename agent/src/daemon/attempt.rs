//! When the daemon tries what it has to do, and how often that has come to nothing.

use time::OffsetDateTime;

use super::delay::{Jitter, after_failure};
use crate::exchanges::Failure;

/// When something is tried, and how often it has failed in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) due: OffsetDateTime,
    pub(crate) failures: u32,
}

/// When the machine begins to replace its key, if it is to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rotation {
    pub(crate) due: Option<OffsetDateTime>,
    /// How often in a row it was begun, or failed to begin, and no check-in has ended it: of a server that certifies a
    /// next key and does not take it, the machine must not make keys in a tight circle.
    pub(crate) begun: u32,
}

impl Attempt {
    /// Now, unless it is put off as it has failed.
    pub(crate) fn at_once(self, now: OffsetDateTime) -> Self {
        match self.failures {
            0 => Self { due: now, failures: 0 },
            _ => self,
        }
    }
}

impl Rotation {
    /// The next key is certified; whether the server takes it shows at the next check-in.
    pub(crate) fn certified(self) -> Self {
        Self {
            due: None,
            begun: self.begun.saturating_add(1),
        }
    }

    /// Not before this, if at all.
    pub(crate) fn put_off(self, until: Option<OffsetDateTime>) -> Self {
        Self {
            due: self.due.max(self.due.and(until)),
            ..self
        }
    }

    /// At once, unless it was begun before and has come to nothing: then after a back-off, which goes on if it runs.
    pub(crate) fn asked_for(self, now: OffsetDateTime, jitter: Jitter) -> Self {
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
