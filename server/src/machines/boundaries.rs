//! The times that separate fresh from stale, computed once, so that one record is judged as of a single moment.

use time::{Duration, OffsetDateTime};

use super::liveness::LivenessBoundaries;

/// The boundaries at one time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Boundaries {
    pub(crate) liveness: LivenessBoundaries,
    /// An attestation that Apple signed at or before this time is too old.
    pub(crate) attested_since: OffsetDateTime,
}

impl Boundaries {
    /// The boundaries at `now`.
    pub(crate) fn at(now: OffsetDateTime, check_in_interval: Duration, attestation_max_age: Duration) -> Self {
        Self {
            liveness: LivenessBoundaries::at(now, check_in_interval),
            attested_since: now.saturating_sub(attestation_max_age),
        }
    }
}
