//! When each exchange is due, and how the result of one moves the others.

use std::time::Duration;

use assay_protocol::agent_api::IssuedCertificate;
use time::OffsetDateTime;

use super::{
    attempt::{Attempt, Rotation},
    delay::{Jitter, after, after_failure, until_next_check_in},
    step::{Event, Exchange, Input},
};
use crate::{exchanges::Failure, state::Record};

/// The longest delay of all exchanges for which a refused renewal or rotation may ask.
const MAX_SHARED_DELAY: Duration = Duration::from_mins(5);
/// Upper limit for a wait that comes from the record: a clock that was set back must not silence the machine.
const MAX_WAIT: Duration = Duration::from_hours(24);
/// Lower limit for the time between renewals, even if certificates expire at once.
const MIN_RENEWAL_INTERVAL: time::Duration = time::Duration::SECOND;

/// The exchanges to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// The machine has no identity, or the server no longer knows it.
    Enroll(Attempt),
    /// The machine is enrolled.
    Enrolled {
        check_in: Attempt,
        renewal: Attempt,
        rotation: Rotation,
    },
}

/// The validity of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(super) not_before: OffsetDateTime,
    pub(super) not_after: OffsetDateTime,
}

impl Plan {
    /// The first plan, from the record.
    pub(super) fn from_record(record: &Record, now: OffsetDateTime) -> Self {
        let at_once = Attempt { due: now, failures: 0 };
        let Some(machine) = record.machine.as_ref().filter(|_| !record.must_enroll()) else {
            return Self::Enroll(at_once);
        };
        let rotation = record.rotation.as_ref();
        let completes_rotation = rotation.is_some_and(|rotation| rotation.certificate.is_some());
        let due = match (&record.last_check_in, record.next_check_in_at) {
            (Some(_), Some(due)) if !completes_rotation => due.min(now + MAX_WAIT),
            _ => now,
        };
        Self::Enrolled {
            check_in: Attempt { due, failures: 0 },
            renewal: Attempt {
                due: Validity::of(&machine.certificate).renewal_due(now),
                failures: 0,
            },
            rotation: Rotation {
                due: (rotation.is_some() && !completes_rotation).then_some(now),
                begun: 0,
            },
        }
    }

    /// The next exchange, and when it is due.
    pub(super) fn next(&self) -> (Exchange, OffsetDateTime) {
        match self {
            Self::Enroll(attempt) => (Exchange::Enroll, attempt.due),
            Self::Enrolled {
                check_in,
                renewal,
                rotation,
            } => {
                let rotation = rotation.due.map(|due| (Exchange::RotateKey, due));
                let others = [(Exchange::Renew, renewal.due)].into_iter().chain(rotation);
                others
                    .filter(|(_, due)| *due < check_in.due)
                    .min_by_key(|(_, due)| *due)
                    .unwrap_or((Exchange::CheckIn, check_in.due))
            }
        }
    }

    /// The plan after an exchange has ended.
    pub(super) fn after(self, exchange: Exchange, Input { now, jitter, event }: Input) -> Self {
        match (self, event) {
            (_, Event::Enrolled { interval, validity }) => Self::Enrolled {
                check_in: Attempt {
                    due: now + until_next_check_in(interval, jitter),
                    // Kept until a check-in succeeds. Otherwise, a server that enrolls the machine but rejects its
                    // check-ins would receive requests without pause.
                    failures: self.failures(),
                },
                renewal: Attempt {
                    due: validity.renewal_due(now),
                    failures: 0,
                },
                rotation: Rotation::default(),
            },
            (Self::Enroll(_), Event::Pending { retry_after }) => Self::Enroll(Attempt {
                due: now + after(retry_after, jitter),
                failures: 0,
            }),
            (
                Self::Enrolled { renewal, rotation, .. },
                Event::CheckedIn {
                    interval,
                    must_renew,
                    must_rotate,
                },
            ) => Self::Enrolled {
                check_in: Attempt {
                    due: now + until_next_check_in(interval, jitter),
                    failures: 0,
                },
                // A failed renewal keeps its back-off, even if the server requests a renewal again.
                renewal: match must_renew && renewal.failures == 0 {
                    true => Attempt { due: now, failures: 0 },
                    false => renewal,
                },
                rotation: match must_rotate {
                    true => rotation.requested(now, jitter),
                    false => Rotation::default(),
                },
            },
            (Self::Enrolled { check_in, rotation, .. }, Event::Renewed { validity }) => {
                Self::with_new_certificate(check_in, rotation, validity, now)
            }
            (Self::Enrolled { check_in, rotation, .. }, Event::NextKeyCertified { validity }) => {
                Self::with_new_certificate(check_in, rotation.attempted(), validity, now)
            }
            (plan, Event::NextKeyPending { retry_after }) => {
                plan.with_rotation(|rotation| rotation.waits_until(now + after(retry_after, jitter)))
            }
            (plan, Event::NextKeyAbandoned) => plan.with_rotation(Rotation::attempted),
            (plan, Event::Failed(failure)) => {
                // A limit on renewals must not stop check-ins. The renewal itself waits for as long as it was told.
                let is_for_all = |wait: &Duration| {
                    matches!(exchange, Exchange::Enroll | Exchange::CheckIn) || *wait <= MAX_SHARED_DELAY
                };
                let delay_until = failure
                    .retry_after()
                    .filter(is_for_all)
                    .map(|retry_after| now + after(retry_after, jitter));
                plan.after_failure(exchange, failure, now, jitter)
                    .delay_until(delay_until)
            }
            (plan, _) => plan,
        }
    }

    fn with_rotation(self, change: impl FnOnce(Rotation) -> Rotation) -> Self {
        match self {
            Self::Enroll(_) => self,
            Self::Enrolled {
                check_in,
                renewal,
                rotation,
            } => Self::Enrolled {
                check_in,
                renewal,
                rotation: change(rotation),
            },
        }
    }

    /// Grant tokens are bound to the certificate, so the machine checks in at once for new ones.
    fn with_new_certificate(check_in: Attempt, rotation: Rotation, validity: Validity, now: OffsetDateTime) -> Self {
        Self::Enrolled {
            check_in: check_in.at_once(now),
            renewal: Attempt {
                due: validity.renewal_due_after_renewal(now),
                failures: 0,
            },
            rotation,
        }
    }

    fn after_failure(self, exchange: Exchange, failure: Failure, now: OffsetDateTime, jitter: Jitter) -> Self {
        let again = |attempt: Attempt| {
            let failures = attempt.failures.saturating_add(1);
            Attempt {
                due: now + after_failure(failure, failures, jitter),
                failures,
            }
        };
        match (self, exchange) {
            (Self::Enroll(attempt), _) => Self::Enroll(again(attempt)),
            (Self::Enrolled { check_in, .. }, Exchange::CheckIn) if failure.asks_for_enrollment() => {
                Self::Enroll(again(check_in))
            }
            (Self::Enrolled { renewal, .. }, _) if failure.asks_for_enrollment() => Self::Enroll(again(renewal)),
            (
                Self::Enrolled {
                    check_in,
                    renewal,
                    rotation,
                },
                exchange,
            ) => match exchange {
                Exchange::Renew => Self::Enrolled {
                    check_in,
                    renewal: again(renewal),
                    rotation,
                },
                Exchange::RotateKey => Self::Enrolled {
                    check_in,
                    renewal,
                    rotation: rotation.failed(now, failure, jitter),
                },
                Exchange::CheckIn | Exchange::Enroll => Self::Enrolled {
                    check_in: again(check_in),
                    renewal,
                    rotation,
                },
            },
        }
    }

    /// `Retry-After` delays all exchanges with the server, not only the one that failed.
    fn delay_until(self, until: Option<OffsetDateTime>) -> Self {
        let later = |attempt: Attempt| Attempt {
            due: until.map_or(attempt.due, |until| attempt.due.max(until)),
            ..attempt
        };
        match self {
            Self::Enroll(attempt) => Self::Enroll(later(attempt)),
            Self::Enrolled {
                check_in,
                renewal,
                rotation,
            } => Self::Enrolled {
                check_in: later(check_in),
                renewal: later(renewal),
                rotation: rotation.delay_until(until),
            },
        }
    }

    fn failures(&self) -> u32 {
        match self {
            Self::Enroll(attempt) => attempt.failures,
            Self::Enrolled { check_in, .. } => check_in.failures,
        }
    }
}

impl Validity {
    pub(crate) fn of(certificate: &IssuedCertificate) -> Self {
        Self {
            not_before: certificate.not_before,
            not_after: certificate.not_after.max(certificate.not_before),
        }
    }

    /// Renewal is due after two thirds of the validity, and at the latest two thirds of a validity from now. The second
    /// limit is for a clock that is far behind.
    pub(crate) fn renewal_due(self, now: OffsetDateTime) -> OffsetDateTime {
        let two_thirds = self.life() * 2 / 3;
        self.not_before
            .saturating_add(two_thirds)
            .min(now.saturating_add(two_thirds))
    }

    /// The same for a new certificate, and at the earliest a third of a validity from now. This limit is for a clock
    /// that is far ahead.
    pub(super) fn renewal_due_after_renewal(self, now: OffsetDateTime) -> OffsetDateTime {
        let third: time::Duration = self.life() / 3;
        let least = third.max(MIN_RENEWAL_INTERVAL);
        self.renewal_due(now).max(now.saturating_add(least))
    }

    fn life(self) -> time::Duration {
        self.not_after - self.not_before
    }
}
