//! An opening of a machine's record, and what it allows at a time.

use assay_protocol::admin_api::{audit::Actor, machines};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

/// How long a record stays open, unless the administrator says otherwise.
pub(crate) const DEFAULT_HOURS: u32 = 24;
/// The longest opening: a week.
pub(crate) const MAX_HOURS: u32 = 168;

/// An opening that was not ended. Its time may be over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) id: Uuid,
    pub(crate) machine_id: Uuid,
    pub(crate) hours: u32,
    pub(crate) reason: Option<String>,
    pub(crate) opened_by: Actor,
    pub(crate) opened_at: OffsetDateTime,
    pub(crate) ends_at: OffsetDateTime,
    /// Until when another key contests the takeover; `None` before a takeover.
    pub(crate) watched_until: Option<OffsetDateTime>,
    pub(crate) contested_at: Option<OffsetDateTime>,
}

/// What an opening allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpeningState {
    /// A key may take the record over.
    Open,
    /// A key took it over. Another one waits, and contests that.
    Watched,
    /// Another key asked after the takeover. An administrator must approve one of them. This does not end by time.
    Contested,
    /// Its time is over.
    Over,
}

impl Opening {
    /// Its state at a time.
    pub(crate) fn state(&self, now: OffsetDateTime) -> OpeningState {
        match (self.contested_at, self.watched_until) {
            (Some(_), _) => OpeningState::Contested,
            (None, Some(until)) if now < until => OpeningState::Watched,
            (None, None) if now < self.ends_at => OpeningState::Open,
            _ => OpeningState::Over,
        }
    }

    /// How long it lasts, and how long a takeover is watched.
    pub(crate) fn length(&self) -> Duration {
        Duration::hours(i64::from(self.hours))
    }

    /// As administrators see it.
    pub(crate) fn to_api(&self) -> machines::Opening {
        machines::Opening {
            id: self.id,
            machine_id: self.machine_id,
            opened_at: self.opened_at,
            opened_by: self.opened_by.clone(),
            reason: self.reason.clone(),
            ends_at: self.ends_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use assay_protocol::admin_api::audit::ActorKind;
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-22 10:00 UTC);

    fn opening() -> Opening {
        Opening {
            id: Uuid::nil(),
            machine_id: Uuid::nil(),
            hours: 24,
            reason: None,
            opened_by: Actor {
                kind: ActorKind::System,
                id: None,
                name: None,
            },
            opened_at: NOW,
            ends_at: NOW + Duration::hours(24),
            watched_until: None,
            contested_at: None,
        }
    }

    #[test]
    fn an_opening_ends_by_time_unless_it_is_contested() {
        let (last, end) = (NOW + Duration::hours(24) - Duration::SECOND, NOW + Duration::hours(24));
        assert_eq!(
            [last, end].map(|now| opening().state(now)),
            [OpeningState::Open, OpeningState::Over]
        );
        let taken = Opening {
            watched_until: Some(end + Duration::hours(20)),
            ..opening()
        };
        let watched_until = end + Duration::hours(20);
        assert_eq!(
            [end, watched_until].map(|now| taken.state(now)),
            [OpeningState::Watched, OpeningState::Over]
        );
        let contested = Opening {
            contested_at: Some(end),
            ..taken
        };
        assert_eq!(contested.state(watched_until), OpeningState::Contested);
    }
}
