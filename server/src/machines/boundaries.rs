//! Where the time draws a line through what is on record: a record is read as of one moment.

use time::{Duration, OffsetDateTime};

use super::liveness::LivenessBoundaries;

/// The lines at one time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Boundaries {
    pub(crate) liveness: LivenessBoundaries,
    /// An attestation that Apple signed then or earlier is too old to stand for its machine.
    pub(crate) attested_since: OffsetDateTime,
}

impl Boundaries {
    /// The lines now.
    pub(crate) fn at(now: OffsetDateTime, check_in_interval: Duration, attestation_max_age: Duration) -> Self {
        Self {
            liveness: LivenessBoundaries::at(now, check_in_interval),
            attested_since: now.saturating_sub(attestation_max_age),
        }
    }
}
