//! The system's clock. Nothing else in this crate reads it.

use time::OffsetDateTime;

#[allow(
    clippy::disallowed_methods,
    reason = "everything else takes the time as a value, which tests can choose"
)]
pub(crate) fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}
