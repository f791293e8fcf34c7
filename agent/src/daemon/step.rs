//! The daemon's decisions: [`step`] is pure, and the loop in [`super::run`] carries them out.

use std::time::Duration;

use time::OffsetDateTime;

use super::{
    attempt::Attempt,
    delay::Jitter,
    plan::{Plan, Validity},
};
use crate::exchanges::Failure;

/// How long an exchange in progress may take after the daemon is told to stop.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// One exchange with the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exchange {
    Enroll,
    CheckIn,
    Renew,
    RotateKey,
}

/// The state of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// No exchange is in progress. The plan says what is due when.
    Waiting(Plan),
    /// One exchange is in progress.
    Exchanging(Plan, Exchange),
    /// The last exchange is in progress.
    Stopping,
    /// The daemon has stopped.
    Stopped,
}

/// An event, with what a decision depends on beside it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Input {
    pub(crate) now: OffsetDateTime,
    pub(crate) jitter: Jitter,
    pub(crate) event: Event,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The wait is over.
    Due,
    /// The exchange ended: the machine is enrolled.
    Enrolled { interval: Duration, validity: Validity },
    /// The exchange ended: the enrollment waits for approval.
    Pending { retry_after: Duration },
    /// The exchange ended: the machine has checked in.
    CheckedIn {
        interval: Duration,
        must_renew: bool,
        must_rotate: bool,
    },
    /// The exchange ended: the certificate is renewed.
    Renewed { validity: Validity },
    /// The exchange ended: the next key has its certificate and signs the next check-in.
    NextKeyCertified { validity: Validity },
    /// The exchange ended: the next key waits for approval.
    NextKeyPending { retry_after: Duration },
    /// The exchange ended: the server refused the next key, which is deleted.
    NextKeyAbandoned,
    /// The exchange failed.
    Failed(Failure),
    /// The configuration has changed.
    Reconfigured,
    /// The process was told to stop.
    Terminate,
    /// The exchange did not end within the grace period after `Terminate`.
    GraceOver,
}

/// An action for the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Wait, then send `Due`.
    Wait { until: OffsetDateTime },
    /// Begin an exchange, and send its result.
    Begin(Exchange),
    /// Send `GraceOver` after this time.
    AllowGrace(Duration),
    /// Stop, and drop the exchange in progress.
    Stop,
}

/// The next state, and the actions for it.
pub(crate) fn step(state: State, input: Input) -> (State, Vec<Action>) {
    match (state, input.event) {
        (State::Stopped, _) => (State::Stopped, Vec::new()),
        (State::Waiting(_), Event::Terminate) => (State::Stopped, vec![Action::Stop]),
        (State::Exchanging(..), Event::Terminate) => (State::Stopping, vec![Action::AllowGrace(GRACE)]),
        (State::Waiting(Plan::Enroll(_)), Event::Reconfigured) => wait(Plan::Enroll(Attempt {
            due: input.now,
            failures: 0,
        })),
        // The exchange in progress uses the old settings. If it fails, the next attempt counts as the first.
        (State::Exchanging(Plan::Enroll(attempt), exchange), Event::Reconfigured) => {
            let plan = Plan::Enroll(Attempt { failures: 0, ..attempt });
            (State::Exchanging(plan, exchange), Vec::new())
        }
        (State::Stopping, Event::Terminate | Event::Due | Event::Reconfigured) => (State::Stopping, Vec::new()),
        (State::Stopping, _) => (State::Stopped, vec![Action::Stop]),
        (State::Waiting(plan), Event::Due) => {
            let (exchange, _) = plan.next();
            (State::Exchanging(plan, exchange), vec![Action::Begin(exchange)])
        }
        (State::Exchanging(plan, exchange), event) if event.ends_exchange() => wait(plan.after(exchange, input)),
        // A late event of something that was dropped.
        (state, _) => (state, Vec::new()),
    }
}

/// Waits for the plan's next exchange.
pub(crate) fn wait(plan: Plan) -> (State, Vec<Action>) {
    let (_, until) = plan.next();
    (State::Waiting(plan), vec![Action::Wait { until }])
}

impl State {
    /// Whether the machine is not enrolled yet.
    pub(crate) fn is_enrolling(self) -> bool {
        matches!(
            self,
            Self::Waiting(Plan::Enroll(_)) | Self::Exchanging(Plan::Enroll(_), _)
        )
    }
}

impl Event {
    fn ends_exchange(self) -> bool {
        !matches!(self, Self::Due | Self::Reconfigured | Self::Terminate | Self::GraceOver)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use rstest::rstest;
    use time::macros::datetime;

    use super::*;
    use crate::daemon::attempt::Rotation;

    const NOW: OffsetDateTime = datetime!(2026-11-22 10:00 UTC);
    const INTERVAL: Duration = Duration::from_secs(300);
    const UNREACHABLE: Failure = Failure::Unreachable { retry_after: None };
    const QUARANTINED: Failure = Failure::Suspended {
        retry_after: None,
        is_pending: false,
    };

    fn at(now: OffsetDateTime, event: Event) -> Input {
        let jitter = Jitter::from_bits(0);
        Input { now, jitter, event }
    }

    fn validity(days: i64) -> Validity {
        Validity {
            not_before: NOW,
            not_after: NOW + time::Duration::days(days),
        }
    }

    fn serving() -> Plan {
        Plan::Enrolled {
            check_in: Attempt { due: NOW, failures: 0 },
            renewal: Attempt {
                due: validity(6).renewal_due(NOW),
                failures: 0,
            },
            rotation: Rotation::default(),
        }
    }

    /// The next check-in is one interval away.
    fn serving_later() -> Plan {
        let Plan::Enrolled { renewal, rotation, .. } = serving() else {
            panic!("an enrolled machine serves")
        };
        let due = NOW + INTERVAL;
        Plan::Enrolled {
            check_in: Attempt { due, failures: 0 },
            renewal,
            rotation,
        }
    }

    fn enrolling() -> Plan {
        Plan::Enroll(Attempt { due: NOW, failures: 0 })
    }

    /// The next exchange, and in how many seconds from `NOW`.
    fn next(state: State) -> (Exchange, f64) {
        let State::Waiting(plan) = state else {
            panic!("{state:?} waits for nothing");
        };
        let (exchange, due) = plan.next();
        (exchange, (due - NOW).as_seconds_f64())
    }

    #[rstest]
    #[case::enrolled(enrolling(), Exchange::Enroll, Event::Enrolled { interval: INTERVAL, validity: validity(6) }, Exchange::CheckIn, 270.0)]
    #[case::pending(enrolling(), Exchange::Enroll, Event::Pending { retry_after: INTERVAL }, Exchange::Enroll, 300.0)]
    #[case::no_server(enrolling(), Exchange::Enroll, Event::Failed(UNREACHABLE), Exchange::Enroll, 1.0)]
    #[case::denied(
        enrolling(),
        Exchange::Enroll,
        Event::Failed(Failure::Refused),
        Exchange::Enroll,
        30.0
    )]
    #[case::checked_in(serving(), Exchange::CheckIn, Event::CheckedIn { interval: INTERVAL, must_renew: false, must_rotate: false }, Exchange::CheckIn, 270.0)]
    #[case::asked_to_renew(serving(), Exchange::CheckIn, Event::CheckedIn { interval: INTERVAL, must_renew: true, must_rotate: false }, Exchange::Renew, 0.0)]
    #[case::asked_to_rotate(serving(), Exchange::CheckIn, Event::CheckedIn { interval: INTERVAL, must_renew: false, must_rotate: true }, Exchange::RotateKey, 0.0)]
    #[case::next_key_certified(serving_later(), Exchange::RotateKey, Event::NextKeyCertified { validity: validity(6) }, Exchange::CheckIn, 0.0)]
    #[case::next_key_pending(serving_later(), Exchange::RotateKey, Event::NextKeyPending { retry_after: Duration::from_secs(60) }, Exchange::RotateKey, 60.0)]
    #[case::next_key_abandoned(
        serving_later(),
        Exchange::RotateKey,
        Event::NextKeyAbandoned,
        Exchange::CheckIn,
        300.0
    )]
    #[case::rotation_failed(
        serving_later(),
        Exchange::RotateKey,
        Event::Failed(UNREACHABLE),
        Exchange::RotateKey,
        1.0
    )]
    #[case::renewed(serving_later(), Exchange::Renew, Event::Renewed { validity: validity(6) }, Exchange::CheckIn, 0.0)]
    #[case::check_in_failed(serving(), Exchange::CheckIn, Event::Failed(UNREACHABLE), Exchange::CheckIn, 1.0)]
    #[case::delay_until(serving(), Exchange::CheckIn, Event::Failed(Failure::Unreachable { retry_after: Some(Duration::from_secs(90)) }), Exchange::CheckIn, 90.0)]
    #[case::quarantined(serving(), Exchange::CheckIn, Event::Failed(QUARANTINED), Exchange::CheckIn, 30.0)]
    #[case::locked(
        serving(),
        Exchange::CheckIn,
        Event::Failed(Failure::KeyLocked),
        Exchange::CheckIn,
        7.5
    )]
    #[case::refused_by_the_enclave(
        serving(),
        Exchange::CheckIn,
        Event::Failed(Failure::KeyRefused),
        Exchange::Enroll,
        1.0
    )]
    #[case::unknown(serving(), Exchange::CheckIn, Event::Failed(Failure::Unknown), Exchange::Enroll, 1.0)]
    #[case::renewal_expired(serving(), Exchange::Renew, Event::Failed(Failure::Unknown), Exchange::Enroll, 1.0)]
    #[case::renewal_failed(serving(), Exchange::Renew, Event::Failed(UNREACHABLE), Exchange::CheckIn, 0.0)]
    fn the_result_of_an_exchange_decides_the_next_one(
        #[case] plan: Plan,
        #[case] exchange: Exchange,
        #[case] ended: Event,
        #[case] then: Exchange,
        #[case] seconds: f64,
    ) {
        let (state, actions) = step(State::Exchanging(plan, exchange), at(NOW, ended));
        assert_eq!(next(state), (then, seconds));
        let until = NOW + time::Duration::seconds_f64(seconds);
        assert_eq!(actions, [Action::Wait { until }]);
    }

    #[test]
    fn the_certificate_is_renewed_at_two_thirds_of_its_life() {
        let ended = Event::CheckedIn {
            interval: Duration::from_hours(24),
            must_renew: false,
            must_rotate: false,
        };
        let day_4 = NOW + time::Duration::days(4);
        let evening_before = day_4 - time::Duration::hours(1);
        let (state, _) = step(
            State::Exchanging(serving(), Exchange::CheckIn),
            at(evening_before, ended),
        );
        assert_eq!(next(state), (Exchange::Renew, (day_4 - NOW).as_seconds_f64()));
        let (state, actions) = step(state, at(day_4, Event::Due));
        assert_eq!(actions, [Action::Begin(Exchange::Renew)]);
        let renewed = Event::Renewed {
            validity: Validity {
                not_before: day_4,
                not_after: day_4 + time::Duration::days(6),
            },
        };
        let (state, _) = step(state, at(day_4, renewed));
        let State::Waiting(Plan::Enrolled { renewal, .. }) = state else {
            panic!("{state:?}");
        };
        assert_eq!(renewal.due, NOW + time::Duration::days(8));
    }

    #[rstest]
    #[case::years_ahead(NOW + time::Duration::days(3650), 2)]
    #[case::years_behind(NOW - time::Duration::days(3650), 4)]
    fn a_wrong_clock_renews_neither_too_often_nor_never(#[case] now: OffsetDateTime, #[case] days: i64) {
        let due = validity(6).renewal_due_after_renewal(now);
        assert_eq!(due - now, time::Duration::days(days));
    }

    #[test]
    fn a_validity_without_end_does_not_overflow() {
        let forever = Validity {
            not_before: datetime!(-9999-01-01 00:00 UTC),
            not_after: datetime!(9999-12-31 23:59:59 UTC),
        };
        assert!(forever.renewal_due(NOW) <= datetime!(9999-12-31 23:59:59.999_999_999 UTC));
        assert!(forever.renewal_due_after_renewal(NOW) > NOW);
    }

    #[test]
    fn retry_after_delays_the_renewal_too() {
        let due_at_once = Plan::Enrolled {
            check_in: Attempt { due: NOW, failures: 0 },
            renewal: Attempt { due: NOW, failures: 0 },
            rotation: Rotation {
                due: Some(NOW),
                begun: 0,
            },
        };
        let retry_after = Some(Duration::from_secs(90));
        let delay_until = Event::Failed(Failure::Unreachable { retry_after });
        let (_, actions) = step(State::Exchanging(due_at_once, Exchange::CheckIn), at(NOW, delay_until));
        let until = NOW + time::Duration::seconds(90);
        assert_eq!(actions, [Action::Wait { until }]);
    }

    #[rstest]
    #[case::short(300, 300)]
    #[case::long(301, 0)]
    fn a_long_retry_after_of_a_renewal_or_rotation_does_not_delay_check_ins(
        #[case] retry_after: u64,
        #[case] until_check_in: i64,
        #[values(Exchange::Renew, Exchange::RotateKey)] refused: Exchange,
    ) {
        let retry_after = Duration::from_secs(retry_after);
        let failure = Failure::Unreachable {
            retry_after: Some(retry_after),
        };
        let (state, _) = step(State::Exchanging(serving(), refused), at(NOW, Event::Failed(failure)));
        let State::Waiting(Plan::Enrolled {
            check_in,
            renewal,
            rotation,
        }) = state
        else {
            panic!("{state:?}");
        };
        assert_eq!(check_in.due, NOW + time::Duration::seconds(until_check_in));
        let own = if refused == Exchange::Renew {
            Some(renewal.due)
        } else {
            rotation.due
        };
        assert_eq!(own, Some(NOW + retry_after));
    }

    #[test]
    fn a_failing_renewal_keeps_its_back_off_when_the_server_requests_it() {
        let (state, _) = step(
            State::Exchanging(serving(), Exchange::Renew),
            at(NOW, Event::Failed(Failure::Refused)),
        );
        let State::Waiting(plan) = state else {
            panic!("{state:?}");
        };
        let asked = Event::CheckedIn {
            interval: INTERVAL,
            must_renew: true,
            must_rotate: false,
        };
        let (state, _) = step(State::Exchanging(plan, Exchange::CheckIn), at(NOW, asked));
        assert_eq!(next(state), (Exchange::Renew, 30.0));
    }

    #[test]
    fn the_back_off_grows_if_a_server_enrolls_the_machine_and_rejects_its_check_ins() {
        let mut state = State::Exchanging(serving(), Exchange::CheckIn);
        let mut waits = Vec::new();
        for _ in 0..5 {
            (state, _) = step(state, at(NOW, Event::Failed(Failure::Unknown)));
            waits.push(next(state).1);
            (state, _) = step(state, at(NOW, Event::Due));
            let enrolled = Event::Enrolled {
                interval: INTERVAL,
                validity: validity(6),
            };
            (state, _) = step(state, at(NOW, enrolled));
            (state, _) = step(state, at(NOW, Event::Due));
        }
        assert_eq!(waits, [1.0, 2.0, 4.0, 8.0, 16.0]);
    }

    #[test]
    fn rotations_back_off_if_the_server_never_accepts_the_next_key() {
        let asked = Event::CheckedIn {
            interval: INTERVAL,
            must_renew: false,
            must_rotate: true,
        };
        let mut plan = serving();
        let mut waits = Vec::new();
        for _ in 0..3 {
            plan = plan.after(Exchange::CheckIn, at(NOW, asked));
            let Plan::Enrolled { rotation, .. } = plan else {
                panic!("{plan:?}")
            };
            waits.push((rotation.due.unwrap() - NOW).whole_seconds());
            let certified = Event::NextKeyCertified { validity: validity(6) };
            plan = plan.after(Exchange::RotateKey, at(NOW, certified));
        }
        assert_eq!(waits, [0, 30, 60]);
        // A success resets the back-off.
        let content = Event::CheckedIn {
            interval: INTERVAL,
            must_renew: false,
            must_rotate: false,
        };
        let plan = plan.after(Exchange::CheckIn, at(NOW, content));
        assert_eq!(
            next(State::Waiting(plan.after(Exchange::CheckIn, at(NOW, asked)))),
            (Exchange::RotateKey, 0.0)
        );
    }

    #[test]
    fn termination_lets_the_exchange_finish_and_begins_none() {
        let (state, actions) = step(State::Waiting(serving()), at(NOW, Event::Terminate));
        assert_eq!((state, actions), (State::Stopped, vec![Action::Stop]));
        let exchanging = State::Exchanging(serving(), Exchange::CheckIn);
        let (stopping, actions) = step(exchanging, at(NOW, Event::Terminate));
        assert_eq!((stopping, actions), (State::Stopping, vec![Action::AllowGrace(GRACE)]));
        for last in [Event::GraceOver, Event::Failed(UNREACHABLE)] {
            assert_eq!(step(stopping, at(NOW, last)), (State::Stopped, vec![Action::Stop]));
        }
    }

    fn happening() -> impl Strategy<Value = Event> {
        let seconds = || (0..100_000_u64).prop_map(Duration::from_secs);
        let failure = prop_oneof![
            proptest::option::of(seconds()).prop_map(|retry_after| Failure::Unreachable { retry_after }),
            proptest::option::of(seconds()).prop_map(|retry_after| Failure::Suspended {
                retry_after,
                is_pending: true
            }),
            Just(Failure::Refused),
            Just(Failure::Unknown),
            Just(Failure::KeyLocked),
            Just(Failure::KeyStore),
            Just(Failure::Local),
        ];
        let validity = || {
            (-1_000_000..1_000_000_i64, 0..1_000_000_i64).prop_map(|(begin, life)| Validity {
                not_before: NOW + time::Duration::seconds(begin),
                not_after: NOW + time::Duration::seconds(begin + life),
            })
        };
        prop_oneof![
            4 => Just(Event::Due),
            2 => (seconds(), validity()).prop_map(|(interval, validity)| Event::Enrolled {
                interval: interval.max(Duration::from_secs(1)),
                validity
            }),
            1 => seconds().prop_map(|retry_after| Event::Pending { retry_after }),
            2 => (seconds(), any::<bool>(), any::<bool>()).prop_map(|(interval, must_renew, must_rotate)| Event::CheckedIn {
                interval: interval.max(Duration::from_secs(1)),
                must_renew,
                must_rotate
            }),
            1 => validity().prop_map(|validity| Event::Renewed { validity }),
            1 => validity().prop_map(|validity| Event::NextKeyCertified { validity }),
            1 => seconds().prop_map(|retry_after| Event::NextKeyPending { retry_after }),
            1 => Just(Event::NextKeyAbandoned),
            4 => failure.prop_map(Event::Failed),
            1 => Just(Event::Terminate),
            1 => Just(Event::GraceOver),
        ]
    }

    proptest! {
        #[test]
        fn one_exchange_runs_at_a_time_and_none_after_the_end(
            events in vec((happening(), 0..100_000_i64, any::<u32>()), 0..60),
            is_enrolled: bool,
        ) {
            let plan = if is_enrolled { serving() } else { enrolling() };
            let (mut state, _) = wait(plan);
            let mut now = NOW;
            let (mut is_running, mut was_told) = (false, false);
            for (event, seconds, bits) in events {
                now += time::Duration::seconds(seconds);
                let (before, input) = (state, Input { now, jitter: Jitter::from_bits(bits), event });
                let (after, actions) = step(state, input);
                state = after;
                was_told |= event == Event::Terminate;
                is_running &= !event.ends_exchange();
                for action in actions {
                    match action {
                        Action::Begin(_) => {
                            prop_assert!(!is_running && !was_told, "{before:?} {event:?}");
                            is_running = true;
                        }
                        // After each failure there is a delay before the same exchange.
                        Action::Wait { until } => if let (State::Exchanging(_, exchange), Event::Failed(_), State::Waiting(plan)) = (before, event, state) {
                            let (next, _) = plan.next();
                            prop_assert!(next != exchange || until >= now + Duration::from_millis(500), "{before:?} {event:?}");
                        },
                        Action::AllowGrace(_) => prop_assert!(was_told),
                        Action::Stop => prop_assert_eq!(state, State::Stopped),
                    }
                }
            }
            let (state, _) = step(state, at(now, Event::Terminate));
            let (state, _) = step(state, at(now, Event::GraceOver));
            prop_assert_eq!(state, State::Stopped);
        }
    }
}
