//! How long the daemon waits: the server's `Retry-After`, otherwise exponential back-off. Jitter on both keeps a fleet
//! from returning at once after an outage of its server.

use std::time::Duration;

use crate::exchanges::Failure;

/// Lower limit for `Retry-After`: a value of 0 for a whole fleet would cause a flood.
const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);

/// A random number in [0, 1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Jitter(f64);

/// The first and the longest delay.
struct BackOff {
    first: Duration,
    longest: Duration,
}

impl Jitter {
    /// From uniformly random bits.
    pub(crate) fn from_bits(bits: u32) -> Self {
        Self(f64::from(bits) / (f64::from(u32::MAX) + 1.0))
    }
}

/// The delay before the next check-in: the server's interval, ±10 %.
pub(crate) fn until_next_check_in(interval: Duration, jitter: Jitter) -> Duration {
    interval.mul_f64(0.9 + 0.2 * jitter.0)
}

/// The server's `Retry-After` plus up to 25 %, so that the machines do not return at once.
pub(crate) fn after(retry_after: Duration, jitter: Jitter) -> Duration {
    retry_after.max(MIN_RETRY_AFTER).mul_f64(1.0 + 0.25 * jitter.0)
}

/// The delay after this many failures in a row. `failure` is the last of them.
pub(crate) fn after_failure(failure: Failure, failures: u32, jitter: Jitter) -> Duration {
    match failure.retry_after() {
        Some(retry_after) => after(retry_after, jitter),
        None => back_off(failure).wait(failures, jitter),
    }
}

fn back_off(failure: Failure) -> BackOff {
    let (first, longest) = match failure {
        Failure::Unreachable { .. } => (2, 5 * 60),
        Failure::Local => (5, 5 * 60),
        Failure::Unknown | Failure::KeyRefused | Failure::ForeignState => (2, 60 * 60),
        // A user may log in at any time, and then needs grants soon.
        Failure::KeyLocked => (15, 5 * 60),
        Failure::KeyStore => (30, 15 * 60),
        // An administrator must act first, and should see the effect soon after.
        Failure::Suspended { .. } => (60, 15 * 60),
        Failure::Refused => (60, 60 * 60),
    };
    BackOff {
        first: Duration::from_secs(first),
        longest: Duration::from_secs(longest),
    }
}

impl BackOff {
    /// Doubles with each failure. Half of the delay is random.
    fn wait(&self, failures: u32, jitter: Jitter) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        let full = self.first.saturating_mul(1 << doublings).min(self.longest);
        full.mul_f64(0.5 + 0.5 * jitter.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const UNREACHABLE: Failure = Failure::Unreachable { retry_after: None };
    const QUARANTINED: Failure = Failure::Suspended {
        retry_after: None,
        is_pending: false,
    };

    #[rstest]
    #[case(UNREACHABLE, 1, 1.0, 2.0)]
    #[case(UNREACHABLE, 4, 8.0, 16.0)]
    #[case(UNREACHABLE, 100, 150.0, 300.0)]
    #[case(Failure::KeyLocked, 1, 7.5, 15.0)]
    #[case(Failure::KeyLocked, 9, 150.0, 300.0)]
    #[case(QUARANTINED, 1, 30.0, 60.0)]
    #[case(QUARANTINED, 9, 450.0, 900.0)]
    #[case(Failure::Refused, u32::MAX, 1800.0, 3600.0)]
    fn back_off_doubles_up_to_its_longest(
        #[case] failure: Failure,
        #[case] failures: u32,
        #[case] least: f64,
        #[case] most: f64,
    ) {
        assert_eq!(
            after_failure(failure, failures, Jitter::from_bits(0)).as_secs_f64(),
            least
        );
        let longest = after_failure(failure, failures, Jitter::from_bits(u32::MAX)).as_secs_f64();
        assert!(longest <= most && longest > most * 0.999, "{longest}");
    }

    proptest! {
        #[test]
        fn no_retry_comes_before_retry_after(seconds in 0..=86_400_u64, failures in 1..100_u32, bits: u32) {
            let retry_after = Duration::from_secs(seconds);
            for failure in [
                Failure::Unreachable { retry_after: Some(retry_after) },
                Failure::Suspended { retry_after: Some(retry_after), is_pending: true },
            ] {
                let wait = after_failure(failure, failures, Jitter::from_bits(bits));
                prop_assert!(wait >= retry_after.max(MIN_RETRY_AFTER));
                prop_assert!(wait <= retry_after.max(MIN_RETRY_AFTER) * 5 / 4);
            }
        }

        #[test]
        fn the_interval_is_the_servers_with_ten_percent_of_jitter(seconds in 1..=86_400_u64, bits: u32) {
            let wait = until_next_check_in(Duration::from_secs(seconds), Jitter::from_bits(bits));
            prop_assert!(wait >= Duration::from_secs(seconds).mul_f64(0.899));
            prop_assert!(wait <= Duration::from_secs(seconds).mul_f64(1.101));
        }
    }
}
