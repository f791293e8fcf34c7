//! Continuity: each answer to a machine carries a value that its next evidence must carry. Two holders of one key
//! cannot both do that, so a copied key or a restored state shows at the second call of either.
//!
//! A value is bound to the machine, and ordered by the nonce of the call that it answers. The last nonce is on record
//! in any case, so the record knows the value that was issued last.

use assay_protocol::words;
use aws_lc_rs::{constant_time, hmac};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use time::OffsetDateTime;
use uuid::Uuid;

const LABEL: &[u8; 19] = b"assay continuity 1\x01";
const ORDER_BYTES: usize = 8;
const MAC_BYTES: usize = 16;
const VALUE_BYTES: usize = ORDER_BYTES + MAC_BYTES;
/// `VALUE_BYTES` in base64url.
const TEXT_LENGTH: usize = 32;

/// Makes values and recognizes them, with a key that all replicas share.
pub(crate) struct ContinuityValues {
    key: hmac::Key,
}

/// The value in a piece of evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carried {
    Nothing,
    /// One that this server issued to this machine, with its order.
    Genuine(OffsetDateTime),
    /// Any other text.
    Foreign,
}

words! {
    /// Whether a machine's evidence must carry a value.
    pub(crate) enum ContinuityState {
        /// The machine has not sent one: its agent may be an older one.
        Unsent = "unsent",
        /// It has sent one, and must send one from now on.
        Bound = "bound",
        /// The next evidence is accepted with any value, or without one.
        Open = "open",
    }
}

/// What is on record of a machine's continuity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Continuity {
    pub(crate) state: ContinuityState,
    /// The order of the value in the evidence that was recorded last.
    pub(crate) carried: Option<OffsetDateTime>,
}

/// Whether evidence continues from the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judgement {
    Continues,
    /// The value is genuine and later than the record: the database was restored from a backup.
    DatabaseBehind,
    /// Two parties use the key, or the machine's state was restored.
    Broken,
}

impl Carried {
    /// The order of a genuine value.
    pub(crate) fn order(self) -> Option<OffsetDateTime> {
        match self {
            Self::Genuine(order) => Some(order),
            Self::Nothing | Self::Foreign => None,
        }
    }
}

impl ContinuityValues {
    /// Derives its key from the key of the nonces by HKDF-Expand (RFC 5869, section 2.3). That key is uniformly random,
    /// so the extraction can be left out (section 3.3).
    pub(crate) fn new(nonce_key: &[u8; 32]) -> Self {
        let nonce_key = hmac::Key::new(hmac::HMAC_SHA256, nonce_key);
        let derived = hmac::sign(&nonce_key, LABEL);
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()),
        }
    }

    /// The value of the answer to a call that used the nonce of this order.
    pub(crate) fn issue(&self, machine_id: Uuid, order: OffsetDateTime) -> String {
        let order = microseconds(order).to_be_bytes();
        let mac = self.mac(machine_id, order);
        let mut value = [0; VALUE_BYTES];
        for (to, from) in value.iter_mut().zip(order.iter().chain(mac.as_ref())) {
            *to = *from;
        }
        URL_SAFE_NO_PAD.encode(value)
    }

    /// Recognizes the value in a machine's evidence.
    pub(crate) fn recognize(&self, machine_id: Uuid, text: Option<&str>) -> Carried {
        match text {
            None => Carried::Nothing,
            Some(text) => (self.order_of(machine_id, text)).map_or(Carried::Foreign, Carried::Genuine),
        }
    }

    fn order_of(&self, machine_id: Uuid, text: &str) -> Option<OffsetDateTime> {
        if text.len() != TEXT_LENGTH {
            return None;
        }
        let mut value = [0; VALUE_BYTES];
        URL_SAFE_NO_PAD.decode_slice(text, &mut value).ok()?;
        let (order, mac) = value.split_first_chunk::<ORDER_BYTES>()?;
        let expected = self.mac(machine_id, *order);
        let expected = expected.as_ref().first_chunk::<MAC_BYTES>()?;
        constant_time::verify_slices_are_equal(expected, mac).ok()?;
        let nanoseconds = i128::from(i64::from_be_bytes(*order)).checked_mul(1000)?;
        OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).ok()
    }

    fn mac(&self, machine_id: Uuid, order: [u8; ORDER_BYTES]) -> hmac::Tag {
        let mut message = [0; 16 + ORDER_BYTES];
        for (to, from) in message.iter_mut().zip(machine_id.as_bytes().iter().chain(&order)) {
            *to = *from;
        }
        hmac::sign(&self.key, &message)
    }
}

impl Continuity {
    /// Before the call that admits a key: whatever that call carries is accepted.
    pub(crate) const OPEN: Self = Self {
        state: ContinuityState::Open,
        carried: None,
    };

    /// After the call that admits a key.
    ///
    /// A foreign value is one of another record. If the answer is lost, the call is repeated with the same value, and must
    /// not look like a copy's. So continuity stays open until the machine has a value of this record.
    pub(crate) fn starting_with(carried: Carried) -> Self {
        match carried {
            Carried::Foreign => Self::OPEN,
            Carried::Nothing | Carried::Genuine(_) => Self::after(carried),
        }
    }

    /// After any other evidence.
    fn after(carried: Carried) -> Self {
        match carried {
            Carried::Nothing => Self {
                state: ContinuityState::Unsent,
                carried: None,
            },
            Carried::Genuine(_) | Carried::Foreign => Self {
                state: ContinuityState::Bound,
                carried: carried.order(),
            },
        }
    }

    /// Judges evidence of a machine whose last nonce was of this order, and returns what is on record after it is
    /// accepted.
    pub(crate) fn judge(self, last_nonce: OffsetDateTime, carried: Carried) -> (Judgement, Self) {
        let after = match self.state {
            ContinuityState::Open => Self::starting_with(carried),
            ContinuityState::Unsent | ContinuityState::Bound => Self::after(carried),
        };
        let judgement = match (self.state, carried) {
            (ContinuityState::Open, _) | (ContinuityState::Unsent, Carried::Nothing) => Judgement::Continues,
            (_, Carried::Genuine(order)) if order > last_nonce => Judgement::DatabaseBehind,
            (_, Carried::Genuine(order)) if order == last_nonce || Some(order) == self.carried => Judgement::Continues,
            _ => Judgement::Broken,
        };
        (judgement, after)
    }
}

fn microseconds(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use time::{Duration, macros::datetime};

    use super::*;

    const LAST: OffsetDateTime = datetime!(2026-11-22 10:00 UTC);
    const CARRIED: OffsetDateTime = datetime!(2026-11-22 09:55 UTC);
    const OLDER: OffsetDateTime = datetime!(2026-11-22 09:50 UTC);
    const LATER: OffsetDateTime = datetime!(2026-11-22 10:05 UTC);
    const MACHINE: Uuid = Uuid::from_u128(7);

    fn values() -> ContinuityValues {
        ContinuityValues::new(&[7; 32])
    }

    #[test]
    fn a_value_is_recognized_for_its_machine_alone_and_by_replicas_with_the_same_key_alone() {
        let value = values().issue(MACHINE, LAST);
        assert_eq!(value.len(), TEXT_LENGTH);
        assert_eq!(values().recognize(MACHINE, Some(&value)), Carried::Genuine(LAST));
        assert_eq!(values().recognize(Uuid::from_u128(8), Some(&value)), Carried::Foreign);
        let other = ContinuityValues::new(&[8; 32]);
        assert_eq!(other.recognize(MACHINE, Some(&value)), Carried::Foreign);
        assert_eq!(values().recognize(MACHINE, None), Carried::Nothing);
    }

    #[test]
    fn the_order_has_microseconds_as_the_database_has() {
        let order = LAST + Duration::microseconds(123_457);
        let value = values().issue(MACHINE, order);
        assert_eq!(values().recognize(MACHINE, Some(&value)), Carried::Genuine(order));
    }

    #[rstest]
    #[case::older_agent(ContinuityState::Unsent, Carried::Nothing, Judgement::Continues)]
    #[case::first_value(ContinuityState::Unsent, Carried::Genuine(LAST), Judgement::Continues)]
    #[case::first_value_is_older(ContinuityState::Unsent, Carried::Genuine(OLDER), Judgement::Broken)]
    #[case::first_value_is_foreign(ContinuityState::Unsent, Carried::Foreign, Judgement::Broken)]
    #[case::first_value_is_later(ContinuityState::Unsent, Carried::Genuine(LATER), Judgement::DatabaseBehind)]
    #[case::next(ContinuityState::Bound, Carried::Genuine(LAST), Judgement::Continues)]
    #[case::lost_answer(ContinuityState::Bound, Carried::Genuine(CARRIED), Judgement::Continues)]
    #[case::older(ContinuityState::Bound, Carried::Genuine(OLDER), Judgement::Broken)]
    #[case::later(ContinuityState::Bound, Carried::Genuine(LATER), Judgement::DatabaseBehind)]
    #[case::missing(ContinuityState::Bound, Carried::Nothing, Judgement::Broken)]
    #[case::foreign(ContinuityState::Bound, Carried::Foreign, Judgement::Broken)]
    #[case::open_without(ContinuityState::Open, Carried::Nothing, Judgement::Continues)]
    #[case::open_with_any(ContinuityState::Open, Carried::Foreign, Judgement::Continues)]
    #[case::open_with_an_older_one(ContinuityState::Open, Carried::Genuine(OLDER), Judgement::Continues)]
    fn evidence_continues_with_the_last_value_or_the_one_carried_last(
        #[case] state: ContinuityState,
        #[case] carried: Carried,
        #[case] expected: Judgement,
    ) {
        let on_record = Continuity {
            state,
            carried: (state == ContinuityState::Bound).then_some(CARRIED),
        };
        let (judgement, after) = on_record.judge(LAST, carried);
        assert_eq!(judgement, expected);
        let is_still_open = state == ContinuityState::Open && carried == Carried::Foreign;
        let expected = match carried {
            Carried::Foreign if is_still_open => ContinuityState::Open,
            Carried::Nothing => ContinuityState::Unsent,
            Carried::Foreign | Carried::Genuine(_) => ContinuityState::Bound,
        };
        assert_eq!((after.state, after.carried), (expected, carried.order()));
    }

    proptest! {
        /// Any number of answers in a row may get lost: the machine goes on with the value that it has.
        #[test]
        fn lost_answers_never_break_continuity_and_two_holders_always_do(
            lost in prop::collection::vec(any::<bool>(), 1..40),
            copied_at in 0_usize..40,
        ) {
            let mut record = Continuity { state: ContinuityState::Bound, carried: Some(CARRIED) };
            let (mut last, mut has) = (LAST, LAST);
            let mut copy = None;
            for (number, is_lost) in lost.into_iter().enumerate() {
                if number == copied_at {
                    copy = Some(has);
                }
                let (judgement, after) = record.judge(last, Carried::Genuine(has));
                prop_assert_eq!(judgement, Judgement::Continues);
                record = after;
                last += Duration::SECOND;
                if !is_lost {
                    has = last;
                }
            }
            // A copy that calls once the original has gone on, and then the original: one of the two calls breaks.
            if let Some(copied) = copy {
                let (of_copy, after) = record.judge(last, Carried::Genuine(copied));
                last += Duration::SECOND;
                let copy_has = last;
                let (of_original, after) = after.judge(last, Carried::Genuine(has));
                last += Duration::SECOND;
                let (of_copy_again, _) = after.judge(last, Carried::Genuine(copy_has));
                prop_assert!([of_copy, of_original, of_copy_again].contains(&Judgement::Broken));
            }
        }

        #[test]
        fn a_value_with_any_bit_flipped_is_foreign(bit in 0_usize..192) {
            let mut value = URL_SAFE_NO_PAD.decode(values().issue(MACHINE, LAST)).unwrap();
            value[bit / 8] ^= 1 << (bit % 8);
            let value = URL_SAFE_NO_PAD.encode(value);
            prop_assert_eq!(values().recognize(MACHINE, Some(&value)), Carried::Foreign);
        }

        #[test]
        fn text_from_outside_never_panics(text in ".*") {
            prop_assert_eq!(values().recognize(MACHINE, Some(&text)), Carried::Foreign);
        }
    }
}
