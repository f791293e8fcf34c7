//! How recently a machine checked in. Computed from stored times alone, so a restart of the server changes nothing.

use assay_protocol::machine::Liveness;
use time::{Duration, OffsetDateTime};

/// A machine that is silent for longer is `unreachable`, not just `late`.
const UNREACHABLE_AFTER: Duration = Duration::hours(24);

/// The times that separate one liveness from the next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LivenessBoundaries {
    late_before: OffsetDateTime,
    unreachable_before: OffsetDateTime,
}

/// The last check-ins that one liveness covers, for a database search.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LastCheckIns {
    /// The machine never checked in.
    pub(crate) never: bool,
    /// At or after this time.
    pub(crate) from: Option<OffsetDateTime>,
    /// Before this time.
    pub(crate) before: Option<OffsetDateTime>,
}

impl LivenessBoundaries {
    /// The boundaries at `now`, for machines that check in once per interval.
    ///
    /// With intervals over 12 hours no machine is `late`: one that misses its second check-in is unreachable at once,
    /// and one that keeps to its interval never is.
    pub(crate) fn at(now: OffsetDateTime, check_in_interval: Duration) -> Self {
        let late_after = check_in_interval.saturating_mul(2);
        Self {
            late_before: now.saturating_sub(late_after),
            unreachable_before: now.saturating_sub(late_after.max(UNREACHABLE_AFTER)),
        }
    }

    /// A machine that checked in at or after this time is live.
    pub(crate) fn live_since(&self) -> OffsetDateTime {
        self.late_before
    }

    /// A machine that checked in at or after this time is not unreachable.
    pub(crate) fn reachable_since(&self) -> OffsetDateTime {
        self.unreachable_before
    }

    /// The liveness of a machine with this last check-in.
    pub(crate) fn liveness(&self, last_check_in_at: Option<OffsetDateTime>) -> Liveness {
        match last_check_in_at {
            None => Liveness::Never,
            Some(at) if at < self.unreachable_before => Liveness::Unreachable,
            Some(at) if at < self.late_before => Liveness::Late,
            Some(_) => Liveness::Live,
        }
    }

    /// The last check-ins with this liveness. Uses the same boundaries as [`Self::liveness`].
    pub(crate) fn last_check_ins(&self, liveness: Liveness) -> LastCheckIns {
        let between = |from, before| LastCheckIns {
            never: false,
            from,
            before,
        };
        match liveness {
            Liveness::Never => LastCheckIns {
                never: true,
                ..LastCheckIns::default()
            },
            Liveness::Live => between(Some(self.late_before), None),
            Liveness::Late => between(Some(self.unreachable_before), Some(self.late_before)),
            Liveness::Unreachable => between(None, Some(self.unreachable_before)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-22 10:00 UTC);

    #[rstest]
    #[case(Duration::ZERO, Liveness::Live)]
    #[case(Duration::minutes(10), Liveness::Live)]
    #[case(Duration::minutes(10) + Duration::MICROSECOND, Liveness::Late)]
    #[case(Duration::hours(24), Liveness::Late)]
    #[case(Duration::hours(24) + Duration::MICROSECOND, Liveness::Unreachable)]
    #[case(Duration::minutes(-3), Liveness::Live)]
    fn it_is_late_over_two_intervals_and_unreachable_over_a_day(#[case] ago: Duration, #[case] expected: Liveness) {
        let boundaries = LivenessBoundaries::at(NOW, Duration::minutes(5));
        assert_eq!(boundaries.liveness(Some(NOW - ago)), expected);
    }

    #[test]
    fn a_machine_that_never_checked_in_is_never() {
        assert_eq!(
            LivenessBoundaries::at(NOW, Duration::minutes(5)).liveness(None),
            Liveness::Never
        );
    }

    #[test]
    fn a_machine_that_keeps_to_an_interval_of_two_days_is_live() {
        let boundaries = LivenessBoundaries::at(NOW, Duration::days(2));
        assert_eq!(boundaries.liveness(Some(NOW - Duration::days(3))), Liveness::Live);
        assert_eq!(
            boundaries.liveness(Some(NOW - Duration::days(5))),
            Liveness::Unreachable
        );
    }

    proptest! {
        #[test]
        fn a_search_and_a_record_agree(interval_seconds in 1_i64..500_000, ago_seconds in prop::option::of(-100_i64..1_000_000)) {
            let boundaries = LivenessBoundaries::at(NOW, Duration::seconds(interval_seconds));
            let last = ago_seconds.map(|seconds| NOW - Duration::seconds(seconds));
            let found: Vec<_> = [Liveness::Never, Liveness::Live, Liveness::Late, Liveness::Unreachable]
                .into_iter()
                .filter(|&liveness| {
                    let range = boundaries.last_check_ins(liveness);
                    match last {
                        None => range.never,
                        Some(at) => {
                            !range.never
                                && range.from.is_none_or(|from| at >= from)
                                && range.before.is_none_or(|before| at < before)
                        }
                    }
                })
                .collect();
            prop_assert_eq!(found, [boundaries.liveness(last)]);
        }
    }
}
