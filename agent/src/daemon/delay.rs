//! How long the daemon waits, and why: the server's word first, else exponential back-off, and jitter on all of it,
//! so that a fleet that lost its server does not come back all at once.

use std::time::Duration;

use crate::exchanges::Failure;

/// The least that a server can ask for: a `Retry-After: 0` to a whole fleet must not become a flood.
const SHORTEST_RETRY_AFTER: Duration = Duration::from_secs(1);

/// A random number from 0 (included) to 1 (excluded).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Jitter(f64);

/// First wait and longest wait.
struct BackOff {
    first: Duration,
    longest: Duration,
}

impl Jitter {
    /// From random bits, all of which count the same.
    pub(crate) fn from_bits(bits: u32) -> Self {
        Self(f64::from(bits) / (f64::from(u32::MAX) + 1.0))
    }
}

/// The wait for the next check-in: the interval that the server set, a tenth more or less.
pub(crate) fn until_next_check_in(interval: Duration, jitter: Jitter) -> Duration {
    interval.mul_f64(0.9 + 0.2 * jitter.0)
}

/// What the server asked for, and up to a quarter more, so that those that it put off do not come back together.
pub(crate) fn after(retry_after: Duration, jitter: Jitter) -> Duration {
    retry_after.max(SHORTEST_RETRY_AFTER).mul_f64(1.0 + 0.25 * jitter.0)
}

/// The wait after so many failures in a row, the last of which was this one.
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
        Failure::Unknown | Failure::KeyRefused => (2, 60 * 60),
        // Someone is going to log in, in minutes or tomorrow morning, and then wants to work.
        Failure::KeyLocked => (15, 5 * 60),
        Failure::KeyStore => (30, 15 * 60),
        // A person has to act first; what they did should still show while they look.
        Failure::HeldBack { .. } => (60, 15 * 60),
        Failure::Refused => (60, 60 * 60),
    };
    BackOff {
        first: Duration::from_secs(first),
        longest: Duration::from_secs(longest),
    }
}

impl BackOff {
    /// Doubles with each failure; of the result, half is certain and half is chance.
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
    const QUARANTINED: Failure = Failure::HeldBack {
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
        fn a_server_is_never_asked_sooner_than_it_wants(seconds in 0..=86_400_u64, failures in 1..100_u32, bits: u32) {
            let retry_after = Duration::from_secs(seconds);
            for failure in [
                Failure::Unreachable { retry_after: Some(retry_after) },
                Failure::HeldBack { retry_after: Some(retry_after), is_pending: true },
            ] {
                let wait = after_failure(failure, failures, Jitter::from_bits(bits));
                prop_assert!(wait >= retry_after.max(SHORTEST_RETRY_AFTER));
                prop_assert!(wait <= retry_after.max(SHORTEST_RETRY_AFTER) * 5 / 4);
            }
        }

        #[test]
        fn the_interval_is_the_servers_with_a_tenth_of_jitter(seconds in 1..=86_400_u64, bits: u32) {
            let wait = until_next_check_in(Duration::from_secs(seconds), Jitter::from_bits(bits));
            prop_assert!(wait >= Duration::from_secs(seconds).mul_f64(0.899));
            prop_assert!(wait <= Duration::from_secs(seconds).mul_f64(1.101));
        }
    }
}
