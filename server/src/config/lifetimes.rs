//! How long what the server signs is valid, and how its keys follow one another.

use std::time::Duration;

use super::{DAY, HOUR, MINUTE, SECOND, settings::Settings};

/// The machines' certificates.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// How long one is valid.
    pub ttl: Duration,
    /// How long after its end it can still be renewed.
    pub renewal_grace: Duration,
    /// How old a machine's key becomes before the machine is told to replace it; none for any age.
    pub rotate_key_after: Option<Duration>,
    /// How long an issuing CA is published before it signs.
    pub ca_overlap: Duration,
    /// How long a root is published before anything is issued under it.
    pub root_overlap: Duration,
}

/// Grant tokens.
#[derive(Clone, Debug)]
pub struct Grants {
    /// How long one is valid.
    pub ttl: Duration,
    /// How long a key signs them.
    pub rotate_key_after: Duration,
    /// How long a key is published before it signs.
    pub key_overlap: Duration,
}

impl Certificates {
    pub(super) fn read(settings: &mut Settings) -> Self {
        Self {
            // The shortest that leaves a machine time to renew it at two thirds of its life; a year is what revocation
            // lists, which name every revoked certificate until it ends, are meant to carry.
            ttl: settings
                .duration("certificates.ttl", MINUTE..=366 * DAY)
                .unwrap_or(7 * DAY),
            renewal_grace: settings
                .duration("certificates.renewal_grace", Duration::ZERO..=3660 * DAY)
                .unwrap_or(90 * DAY),
            rotate_key_after: settings.duration("certificates.rotate_key_after", HOUR..=3660 * DAY),
            // An issuing CA lives for two years: with a certificate's year, and these, there is still time between two.
            ca_overlap: settings
                .duration("certificates.ca_overlap", SECOND..=90 * DAY)
                .unwrap_or(DAY),
            root_overlap: settings
                .duration("certificates.root_overlap", SECOND..=180 * DAY)
                .unwrap_or(30 * DAY),
        }
    }
}

impl Grants {
    pub(super) fn read(settings: &mut Settings) -> Self {
        Self {
            // Relying parties verify a grant offline: it stays good this long after it was taken back.
            ttl: settings
                .duration("grants.ttl", SECOND..=24 * HOUR)
                .unwrap_or(10 * MINUTE),
            rotate_key_after: settings
                .duration("grants.rotate_key_after", HOUR..=3660 * DAY)
                .unwrap_or(90 * DAY),
            key_overlap: settings.duration("grants.key_overlap", SECOND..=DAY).unwrap_or(HOUR),
        }
    }
}
