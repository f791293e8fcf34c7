//! How long rows are kept.

use std::time::Duration;

use super::{DAY, settings::Settings};

/// How long rows are kept after they have ended.
#[derive(Clone, Debug)]
pub struct Retention {
    /// Events, after they happened.
    pub events: Duration,
    /// Certificates, after they expired; revoked ones too.
    pub certificates: Duration,
    /// Enrollments, after they were decided.
    pub enrollments: Duration,
    /// Enrollment tokens, after they expired or were revoked.
    pub enrollment_tokens: Duration,
    /// API keys, after they expired or were revoked.
    pub api_keys: Duration,
    /// Deliveries to webhooks, after they were delivered or given up.
    pub webhook_deliveries: Duration,
}

impl Retention {
    pub(super) fn read(settings: &mut Settings) -> Self {
        let mut kept = |key, shortest, default| settings.duration(key, shortest..=36_600 * DAY).unwrap_or(default);
        Self {
            // A webhook is told of an event for four days, while its receiver fails.
            events: kept("retention.events", 7 * DAY, 400 * DAY),
            // A revoked certificate has to be on one more revocation list after its end (RFC 5280, section 3.3).
            certificates: kept("retention.certificates", DAY, 90 * DAY),
            enrollments: kept("retention.enrollments", DAY, 400 * DAY),
            enrollment_tokens: kept("retention.enrollment_tokens", DAY, 90 * DAY),
            api_keys: kept("retention.api_keys", DAY, 400 * DAY),
            webhook_deliveries: kept("retention.webhook_deliveries", DAY, 30 * DAY),
        }
    }
}
