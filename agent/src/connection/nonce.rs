//! The stored nonce. Each response of the server brings the next one, so most exchanges need one round trip.

use time::{Duration, OffsetDateTime};

/// The server accepts a nonce for 300 s. The margin is for transmission and clock drift.
const LIFETIME: Duration = Duration::seconds(240);

/// At most one nonce, with its time of arrival.
#[derive(Debug, Default)]
pub(crate) struct StoredNonce(Option<(String, OffsetDateTime)>);

impl StoredNonce {
    /// Stores a nonce in place of the previous one, because the server rejects nonces older than the last one used.
    pub(crate) fn keep(&mut self, nonce: String, now: OffsetDateTime) {
        self.0 = Some((nonce, now));
    }

    pub(crate) fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// Takes the nonce, unless it is too old or the clock was set back.
    pub(crate) fn take(&mut self, now: OffsetDateTime) -> Option<String> {
        let (nonce, came_at) = self.0.take()?;
        (now >= came_at && now - came_at <= LIFETIME).then_some(nonce)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const CAME_AT: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    #[test]
    fn a_nonce_is_used_once() {
        let mut at_hand = StoredNonce::default();
        assert_eq!(at_hand.take(CAME_AT), None);
        at_hand.keep("first".into(), CAME_AT);
        at_hand.keep("second".into(), CAME_AT);
        assert_eq!(at_hand.take(CAME_AT).as_deref(), Some("second"));
        assert_eq!(at_hand.take(CAME_AT), None);
    }

    #[rstest]
    #[case::young(240, true)]
    #[case::old(241, false)]
    #[case::clock_set_back(-1, false)]
    fn an_old_nonce_is_dropped(#[case] age: i64, #[case] serves: bool) {
        let mut at_hand = StoredNonce::default();
        at_hand.keep("nonce".into(), CAME_AT);
        assert_eq!(at_hand.take(CAME_AT + Duration::seconds(age)).is_some(), serves);
    }
}
