use std::time::Duration;

use super::{DAY, settings::Settings};

/// How long rows are kept after their end.
#[derive(Clone, Debug)]
pub struct Retention {
    /// Events, after they happened.
    pub events: Duration,
    /// Certificates, after they expired. This includes revoked ones.
    pub certificates: Duration,
    /// Enrollments, after they were decided.
    pub enrollments: Duration,
    /// Enrollment tokens, after they expired or were revoked.
    pub enrollment_tokens: Duration,
    /// API keys, after they expired or were revoked.
    pub api_keys: Duration,
    /// Webhook deliveries, after they were delivered or abandoned.
    pub webhook_deliveries: Duration,
    /// Names and addresses of actors in the audit log, and addresses of enrollments.
    pub personal_data: Duration,
}

impl Retention {
    pub(super) fn read(settings: &mut Settings) -> Self {
        let mut kept = |key, shortest, default| settings.duration(key, shortest..=36_600 * DAY).unwrap_or(default);
        Self {
            // A failing webhook is retried for four days, and needs the event for that.
            events: kept("retention.events", 7 * DAY, 400 * DAY),
            // A revoked certificate must be on one more revocation list after it expired (RFC 5280, section 3.3).
            certificates: kept("retention.certificates", DAY, 90 * DAY),
            enrollments: kept("retention.enrollments", DAY, 400 * DAY),
            enrollment_tokens: kept("retention.enrollment_tokens", DAY, 90 * DAY),
            api_keys: kept("retention.api_keys", DAY, 400 * DAY),
            webhook_deliveries: kept("retention.webhook_deliveries", DAY, 30 * DAY),
            personal_data: kept("retention.personal_data", DAY, 400 * DAY),
        }
    }
}
