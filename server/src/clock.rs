//! The clock, and the ids that contain its time. Nothing else in the server reads the system's time.

use std::sync::{Arc, Mutex, PoisonError};

use assay_authority::random_bytes;
use time::{Duration, OffsetDateTime};
use uuid::{Builder, Uuid};

/// A source of the current time.
pub trait Clock: Send + Sync + 'static {
    /// The current time in UTC, in whole microseconds. Postgres stores no finer times, and a time compared in memory
    /// must equal the one read back.
    fn now(&self) -> OffsetDateTime;
}

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(
        clippy::disallowed_methods,
        reason = "everything else takes the time from a `Clock`, which tests can set"
    )]
    fn now(&self) -> OffsetDateTime {
        truncate_to_microseconds(OffsetDateTime::now_utc())
    }
}

/// A clock for tests. Its time changes only when a test sets it. Clones share one time.
#[derive(Debug, Clone)]
pub struct MockClock(Arc<Mutex<OffsetDateTime>>);

impl MockClock {
    /// A clock that shows `now`.
    #[must_use]
    pub fn new(now: OffsetDateTime) -> Self {
        Self(Arc::new(Mutex::new(truncate_to_microseconds(now))))
    }

    /// Sets the time, forwards or backwards.
    pub fn set(&self, now: OffsetDateTime) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = truncate_to_microseconds(now);
    }

    /// Moves the time by `step`. A negative step moves it back.
    pub fn advance(&self, step: Duration) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *now = truncate_to_microseconds(now.saturating_add(step));
    }
}

impl Clock for MockClock {
    fn now(&self) -> OffsetDateTime {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drops the fraction of a microsecond.
#[must_use]
pub fn truncate_to_microseconds(time: OffsetDateTime) -> OffsetDateTime {
    time - Duration::nanoseconds(i64::from(time.nanosecond() % 1000))
}

/// A new id, a UUIDv7 of the clock's time.
///
/// The 12 bits after the milliseconds contain the fraction of the millisecond (RFC 9562, section 6.2, method 3). Ids
/// made within one millisecond therefore sort by time. 62 bits are random.
#[must_use]
pub fn new_id(clock: &dyn Clock) -> Uuid {
    id_at(clock.now())
}

/// The smallest id of this time. Every id of an earlier time is smaller. Ids can therefore be searched by time.
#[must_use]
pub(crate) fn first_id_at(time: OffsetDateTime) -> Uuid {
    id_with(time, [0; 8])
}

fn id_at(now: OffsetDateTime) -> Uuid {
    id_with(now, random_bytes())
}

fn id_with(now: OffsetDateTime, random: [u8; 8]) -> Uuid {
    // UUIDv7 has no times before 1970. A clock that is so wrong gets the smallest time.
    let microseconds = u64::try_from(now.unix_timestamp_nanos() / 1000).unwrap_or(0);
    let fraction = (microseconds % 1000) * 4096 / 1000;
    let [.., high, low] = fraction.to_be_bytes();
    let mut tail = [high, low, 0, 0, 0, 0, 0, 0, 0, 0];
    for (to, from) in tail.iter_mut().skip(2).zip(random) {
        *to = from;
    }
    Builder::from_unix_timestamp_millis(microseconds / 1000, &tail).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn a_mock_clock_stands_still_and_its_clones_follow() {
        let clock = MockClock::new(datetime!(2026-11-22 10:00:00.123456789 UTC));
        let clone = clock.clone();
        assert_eq!(clone.now(), datetime!(2026-11-22 10:00:00.123456 UTC));
        clock.advance(Duration::seconds(5));
        assert_eq!(clone.now(), datetime!(2026-11-22 10:00:05.123456 UTC));
        clock.advance(Duration::hours(-1));
        assert_eq!(clone.now(), datetime!(2026-11-22 09:00:05.123456 UTC));
        clock.set(datetime!(2020-01-01 00:00 UTC));
        assert_eq!(clone.now(), datetime!(2020-01-01 00:00 UTC));
    }

    #[test]
    fn times_before_the_epoch_are_truncated_downwards_too() {
        let time = datetime!(1969-12-31 23:59:59.000001999 UTC);
        assert_eq!(
            truncate_to_microseconds(time),
            datetime!(1969-12-31 23:59:59.000001 UTC)
        );
    }

    #[test]
    fn ids_carry_the_time_and_sort_by_it_to_the_microsecond() {
        let clock = MockClock::new(datetime!(2026-11-22 10:00:00.123 UTC));
        let mut previous = new_id(&clock);
        assert_eq!(previous.get_version_num(), 7);
        let (seconds, nanoseconds) = previous.get_timestamp().unwrap().to_unix();
        assert_eq!((seconds, nanoseconds / 1_000_000), (1_795_341_600, 123));
        for _ in 0..2_000 {
            clock.advance(Duration::microseconds(1));
            let next = new_id(&clock);
            assert!(next > previous, "{next} after {previous}");
            previous = next;
        }
    }

    #[test]
    fn the_first_id_of_a_time_is_above_all_earlier_ids_and_below_all_later_ones() {
        let clock = MockClock::new(datetime!(2026-11-22 10:00:00.999999 UTC));
        for _ in 0..2_000 {
            let before = new_id(&clock);
            clock.advance(Duration::microseconds(1));
            let first = first_id_at(clock.now());
            assert!(before < first && first <= new_id(&clock), "{first}");
        }
    }

    #[test]
    fn ids_of_one_time_differ() {
        let clock = MockClock::new(datetime!(2026-11-22 10:00 UTC));
        assert_ne!(new_id(&clock), new_id(&clock));
    }
}
