//! Stateless nonces: the time, randomness, and a MAC under a key that all replicas share. The machine's row records which
//! nonces were used: the order of the last one must rise.

use assay_authority::random_bytes;
use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use time::{Duration, OffsetDateTime};

/// How long a nonce lives.
pub(crate) const LIFETIME: Duration = Duration::seconds(300);
/// How far ahead of this replica's clock a nonce's time may be. Beyond it, the machine needs a nonce of this replica. A
/// nonce of a replica whose clock is ahead lives longer here by the difference of the two clocks.
pub(crate) const GREATEST_REPLICA_SKEW: Duration = Duration::minutes(1);

const TIME_BYTES: usize = 8;
const RANDOM_BYTES: usize = 8;
const MAC_BYTES: usize = 16;
const BODY_BYTES: usize = 2 * TIME_BYTES + RANDOM_BYTES;
/// 40 bytes in base64url.
const TEXT_LENGTH: usize = 54;

/// Makes nonces and recognizes them.
pub(crate) struct Nonces {
    key: hmac::Key,
}

/// A nonce that a replica made and that is still fresh. The machine's row tells whether it was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FreshNonce {
    order: OffsetDateTime,
}

/// Why a nonce is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NonceError {
    #[error("the nonce is not one of this server's")]
    Foreign,
    #[error("the nonce is older than {} seconds", LIFETIME.whole_seconds())]
    Expired,
    #[error("the nonce is of a replica whose clock is ahead")]
    Ahead {
        /// Its order. A fresh nonce must have a later one, because the machine may have used nonces of that replica.
        order: OffsetDateTime,
    },
}

impl FreshNonce {
    /// Its place in the order in which one machine must use its nonces.
    pub(crate) fn order(self) -> OffsetDateTime {
        self.order
    }
}

impl Nonces {
    /// Works with the key that all replicas share.
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, key),
        }
    }

    /// Makes a nonce. Its order is later than `last_used`, even where that came from a replica whose clock is ahead:
    /// otherwise the machine could not check in here until this clock has caught up.
    pub(crate) fn issue(&self, now: OffsetDateTime, last_used: Option<OffsetDateTime>) -> String {
        let next = last_used.map_or(now, |last| last.saturating_add(Duration::MICROSECOND));
        let mut nonce = [0; BODY_BYTES + MAC_BYTES];
        let parts = microseconds(now)
            .to_be_bytes()
            .into_iter()
            .chain(microseconds(now.max(next)).to_be_bytes())
            .chain(random_bytes::<RANDOM_BYTES>());
        for (to, from) in nonce.iter_mut().zip(parts) {
            *to = from;
        }
        let (body, mac) = nonce.split_at_mut(BODY_BYTES);
        for (to, from) in mac.iter_mut().zip(hmac::sign(&self.key, body).as_ref()) {
            *to = *from;
        }
        URL_SAFE_NO_PAD.encode(nonce)
    }

    /// Recognizes a nonce that is still fresh.
    pub(crate) fn recognize(&self, nonce: &str, now: OffsetDateTime) -> Result<FreshNonce, NonceError> {
        if nonce.len() != TEXT_LENGTH {
            return Err(NonceError::Foreign);
        }
        let nonce = URL_SAFE_NO_PAD.decode(nonce).map_err(|_| NonceError::Foreign)?;
        let (body, mac) = nonce.split_at_checked(BODY_BYTES).ok_or(NonceError::Foreign)?;
        let expected = hmac::sign(&self.key, body);
        let expected = expected
            .as_ref()
            .split_at_checked(MAC_BYTES)
            .ok_or(NonceError::Foreign)?
            .0;
        aws_lc_rs::constant_time::verify_slices_are_equal(expected, mac).map_err(|_| NonceError::Foreign)?;
        let (issued_at, body) = read_time(body)?;
        let (order, _random) = read_time(body)?;
        let age = now - issued_at;
        if age > LIFETIME {
            return Err(NonceError::Expired);
        }
        if age < -GREATEST_REPLICA_SKEW {
            return Err(NonceError::Ahead { order });
        }
        Ok(FreshNonce { order })
    }
}

fn microseconds(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
}

fn read_time(bytes: &[u8]) -> Result<(OffsetDateTime, &[u8]), NonceError> {
    let (time, rest) = bytes.split_first_chunk::<TIME_BYTES>().ok_or(NonceError::Foreign)?;
    let nanoseconds = i128::from(i64::from_be_bytes(*time)) * 1000;
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).map_err(|_| NonceError::Foreign)?;
    Ok((time, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-22 10:00 UTC);

    fn nonces() -> Nonces {
        Nonces::new(&[7; 32])
    }

    #[test]
    fn a_nonce_of_one_replica_serves_on_another_with_the_same_key_and_no_other() {
        let nonce = nonces().issue(NOW, None);
        assert_eq!(nonces().recognize(&nonce, NOW).unwrap().order(), NOW);
        assert_eq!(Nonces::new(&[8; 32]).recognize(&nonce, NOW), Err(NonceError::Foreign));
    }

    #[test]
    fn a_nonce_lives_300_seconds() {
        let nonce = nonces().issue(NOW, None);
        assert!(nonces().recognize(&nonce, NOW + LIFETIME).is_ok());
        assert_eq!(
            nonces().recognize(&nonce, NOW + LIFETIME + Duration::MICROSECOND),
            Err(NonceError::Expired)
        );
    }

    #[test]
    fn a_replica_whose_clock_is_hours_ahead_costs_a_machine_one_more_call_and_does_not_lock_it_out() {
        let ahead = NOW + Duration::hours(5);
        let nonce = nonces().issue(ahead, None);
        assert_eq!(nonces().recognize(&nonce, NOW), Err(NonceError::Ahead { order: ahead }));
        let next = nonces().issue(NOW, Some(ahead));
        assert!(nonces().recognize(&next, NOW).unwrap().order() > ahead);
    }

    #[test]
    fn a_nonce_of_a_replica_whose_clock_is_ahead_lives_longer_by_at_most_the_skew() {
        let ahead = NOW + GREATEST_REPLICA_SKEW;
        let nonce = nonces().issue(ahead, None);
        assert!(nonces().recognize(&nonce, NOW).is_ok());
        let end = NOW + GREATEST_REPLICA_SKEW + LIFETIME;
        assert!(nonces().recognize(&nonce, end).is_ok());
        let later = end + Duration::MICROSECOND;
        assert_eq!(nonces().recognize(&nonce, later), Err(NonceError::Expired));
    }

    #[test]
    fn a_nonce_after_the_last_moment_of_the_calendar_is_issued() {
        let last = time::PrimitiveDateTime::MAX.assume_utc();
        assert!(nonces().recognize(&nonces().issue(NOW, Some(last)), NOW).is_ok());
    }

    #[test]
    fn two_nonces_of_one_moment_differ() {
        assert_ne!(nonces().issue(NOW, None), nonces().issue(NOW, None));
    }

    proptest! {
        #[test]
        fn a_nonce_with_any_bit_flipped_is_foreign(bit in 0_usize..320) {
            let mut nonce = URL_SAFE_NO_PAD.decode(nonces().issue(NOW, None)).unwrap();
            nonce[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(nonces().recognize(&URL_SAFE_NO_PAD.encode(nonce), NOW), Err(NonceError::Foreign));
        }

        #[test]
        fn text_from_outside_never_panics(text in ".*") {
            prop_assert!(nonces().recognize(&text, NOW).is_err());
        }
    }
}
