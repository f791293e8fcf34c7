//! When a delivery is attempted again. The delays are the example in the specification.

use assay_authority::random_bytes;
use time::{Duration, OffsetDateTime};

/// The delays after the first attempt, the second, and so on.
const DELAYS: [Duration; 9] = [
    Duration::seconds(5),
    Duration::minutes(5),
    Duration::minutes(30),
    Duration::hours(2),
    Duration::hours(5),
    Duration::hours(10),
    Duration::hours(14),
    Duration::hours(20),
    Duration::hours(24),
];
/// The largest relative extension of a delay. Deliveries that failed together are thus not repeated together.
const JITTER: f64 = 0.2;

/// When to try again after so many attempts. `None` means to give up.
pub(super) fn next_attempt(attempts: i64, now: OffsetDateTime) -> Option<OffsetDateTime> {
    let [random] = random_bytes();
    after(attempts, f64::from(random) / 255.0).map(|delay| now.saturating_add(delay))
}

fn after(attempts: i64, random: f64) -> Option<Duration> {
    let place = usize::try_from(attempts.checked_sub(1)?).ok()?;
    DELAYS.get(place).map(|delay| *delay * (1.0 + random * JITTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delays_grow_and_end_and_jitter_only_makes_them_longer() {
        let mut attempts = 0;
        let mut whole = Duration::ZERO;
        let mut last = Duration::ZERO;
        while let Some(delay) = after(attempts + 1, 0.0) {
            attempts += 1;
            let longest = after(attempts, 1.0).unwrap();
            assert!(
                delay >= last && longest > delay && longest <= delay * 1.2,
                "{attempts}: {delay}"
            );
            (last, whole) = (longest, whole + delay);
        }
        assert_eq!(attempts, 9);
        assert_eq!(whole, Duration::new(75 * 3600 + 35 * 60 + 5, 0));
        assert_eq!(after(0, 0.0), None);
        assert_eq!(after(i64::MAX, 0.0), None);
    }
}
