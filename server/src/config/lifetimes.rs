//! The validity of certificates and grant tokens, and the rotation of the keys that sign them.

use std::time::Duration;

use super::{DAY, HOUR, MINUTE, SECOND, settings::Settings};

/// Certificates of machines.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// How long one is valid.
    pub ttl: Duration,
    /// How long an expired certificate can still be renewed.
    pub renewal_grace: Duration,
    /// The age at which a machine must replace its key. `None` means never.
    pub rotate_key_after: Option<Duration>,
    /// How long an issuing CA is published before it issues.
    pub ca_overlap: Duration,
    /// How long a root is published before a CA under it issues.
    pub root_overlap: Duration,
}

/// Grant tokens.
#[derive(Clone, Debug)]
pub struct Grants {
    /// How long one is valid.
    pub ttl: Duration,
    /// How long a key signs tokens.
    pub rotate_key_after: Duration,
    /// How long a key is published before it signs.
    pub key_overlap: Duration,
}

impl Certificates {
    pub(super) fn read(settings: &mut Settings) -> Self {
        Self {
            // With a minute, a machine still has time to renew at two thirds of the validity. Revocation lists name
            // every revoked certificate until it expires, and are designed for at most a year.
            ttl: settings
                .duration("certificates.ttl", MINUTE..=366 * DAY)
                .unwrap_or(7 * DAY),
            renewal_grace: settings
                .duration("certificates.renewal_grace", Duration::ZERO..=3660 * DAY)
                .unwrap_or(90 * DAY),
            rotate_key_after: settings.duration("certificates.rotate_key_after", HOUR..=3660 * DAY),
            // An issuing CA is valid for two years. With the longest values allowed here, there is still time between
            // two rotations.
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
            // Relying parties verify tokens offline. A token is therefore accepted for this long after its grant was
            // deleted.
            ttl: settings
                .duration("grants.ttl", SECOND..=24 * HOUR)
                .unwrap_or(10 * MINUTE),
            rotate_key_after: settings
                .duration("grants.rotate_key_after", HOUR..=3660 * DAY)
                .unwrap_or(90 * DAY),
            // Some relying parties fetch the keys once a day or less often.
            key_overlap: settings
                .duration("grants.key_overlap", SECOND..=30 * DAY)
                .unwrap_or(HOUR),
        }
    }
}
