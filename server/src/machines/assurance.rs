//! The assurance of a machine's serial number: the grounds on which its current key was admitted, and which of them
//! still count. The level is computed and explained only here.

use assay_authority::attestation::apple::BoundAttestation;
use assay_protocol::{admin_api::enrollment_tokens::EnrollmentToken, machine::Assurance, text::rfc3339, words};
use time::OffsetDateTime;
use uuid::Uuid;

/// What supports the claim that the current key belongs to the Mac with the record's serial number. Grounds belong to a key.
/// A key in software hands them on by rotation, except the attestation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Grounds {
    /// The enrollment token of this key, if it was bound to the serial number. It still counts after the token is used
    /// up, expires or is revoked.
    pub(crate) token: Option<Uuid>,
    /// The inventory's entry when the key was admitted, and whether it is still there.
    pub(crate) inventory: Option<InventoryGround>,
    /// The enrollment that an administrator approved: of this key, or of one whose grounds it inherited.
    pub(crate) approval: Option<Uuid>,
    /// Whether an administrator approved this very key, or it is the first key that its token admitted. Without that, an
    /// attestation proves only that the Mac exists, and not that the key is that Mac's.
    pub(crate) of_key: bool,
    /// Apple's attestation of this key and this serial number.
    pub(crate) attestation: Option<AttestationGround>,
}

/// An attestation of the serial number for this key. It is built only from a [`BoundAttestation`], or from a record
/// that refers to one. The database allows a record to refer only to its own attestations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttestationGround {
    id: Uuid,
    attested_at: OffsetDateTime,
    state: AttestationState,
}

words! {
    /// Whether an attestation still counts.
    pub(crate) enum AttestationState {
        /// It counts until it is too old.
        Bound = "bound",
        /// It was too old once. Raising `apple.attestation_max_age` does not restore it, because assurance never rises
        /// by itself.
        Lapsed = "lapsed",
    }
}

words! {
    /// Whether an inventory match still counts.
    pub(crate) enum InventoryGround {
        /// The serial number is in the inventory, and has been since the key was admitted.
        Matched = "matched",
        /// It was removed from the inventory. Adding it again does not count, because assurance never rises by itself.
        Removed = "removed",
    }
}

/// What an explanation needs besides the grounds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Circumstances {
    /// The level on record.
    pub(crate) on_record: Assurance,
    pub(crate) has_serial_number: bool,
    /// Whether the inventory contains it now.
    pub(crate) is_in_inventory: bool,
    /// An attestation that Apple signed at or before this time is too old.
    pub(crate) attested_since: OffsetDateTime,
}

impl AttestationGround {
    /// Builds it from a record.
    pub(crate) fn on_record(id: Uuid, attested_at: OffsetDateTime, state: AttestationState) -> Self {
        Self { id, attested_at, state }
    }

    /// The id of the attestation.
    pub(crate) fn id(self) -> Uuid {
        self.id
    }

    /// When Apple signed it.
    pub(crate) fn attested_at(self) -> OffsetDateTime {
        self.attested_at
    }

    /// Whether it still counts.
    pub(crate) fn state(self) -> AttestationState {
        self.state
    }

    fn as_of(self, attested_since: OffsetDateTime) -> Self {
        if self.attested_at <= attested_since {
            Self {
                state: AttestationState::Lapsed,
                ..self
            }
        } else {
            self
        }
    }
}

impl Grounds {
    /// The grounds of a key that comes with this token, before this use is counted.
    pub(crate) fn of(token: Option<&EnrollmentToken>, serial_number: Option<&str>, is_in_inventory: bool) -> Self {
        let bound = token.filter(|token| names(token, serial_number));
        Self {
            token: bound.map(|token| token.id),
            inventory: is_in_inventory.then_some(InventoryGround::Matched),
            of_key: bound.is_some_and(|token| token.uses == 0),
            ..Self::default()
        }
    }

    /// Adds an attestation that was bound to this key and serial number.
    pub(crate) fn attested(self, id: Uuid, bound: &BoundAttestation) -> Self {
        let attested_at = bound.attestation().attested_at();
        Self {
            attestation: Some(AttestationGround::on_record(id, attested_at, AttestationState::Bound)),
            ..self
        }
    }

    /// The grounds that a key in software hands on to the next one.
    pub(crate) fn inherited(self) -> Self {
        Self {
            attestation: None,
            of_key: false,
            ..self
        }
    }

    /// The same with a token that is bound to the serial number, before this use is counted.
    pub(crate) fn with_token(self, token: &EnrollmentToken) -> Self {
        Self {
            token: Some(token.id),
            of_key: self.of_key || token.uses == 0,
            ..self
        }
    }

    /// Drops an attestation that Apple signed at or before this time.
    pub(crate) fn as_of(self, attested_since: OffsetDateTime) -> Self {
        Self {
            attestation: self.attestation.map(|attestation| attestation.as_of(attested_since)),
            ..self
        }
    }

    /// Adds an administrator's approval of this enrollment.
    pub(crate) fn approved(self, enrollment: Uuid, is_in_inventory: bool) -> Self {
        let rest = if is_in_inventory {
            self
        } else {
            self.without_inventory()
        };
        Self {
            inventory: is_in_inventory.then_some(InventoryGround::Matched).or(rest.inventory),
            approval: Some(enrollment),
            of_key: true,
            ..rest
        }
    }

    /// Whether the machine speaks for the device with its serial number. An inventory match does not make it: the inventory
    /// says who owns the serial number, and not that this machine has it.
    pub(crate) fn speak_for_the_device(self) -> bool {
        let attestation = self.attestation.map(AttestationGround::state);
        self.token.is_some() || self.approval.is_some() || attestation == Some(AttestationState::Bound)
    }

    /// The level that these grounds give.
    pub(crate) fn assurance(self) -> Assurance {
        let attestation = self.attestation.map(AttestationGround::state);
        if attestation == Some(AttestationState::Bound) {
            Assurance::Attested
        } else if self.token.is_some() || self.approval.is_some() || self.inventory == Some(InventoryGround::Matched) {
            Assurance::Verified
        } else {
            Assurance::Asserted
        }
    }

    /// The level of a record with these grounds, given that attestations signed at or before this time are too old.
    /// Older versions of the server stored a level without grounds; that level counts.
    pub(crate) fn assurance_at(self, on_record: Assurance, attested_since: OffsetDateTime) -> Assurance {
        match on_record {
            Assurance::Attested => self.as_of(attested_since).assurance(),
            level => level,
        }
    }

    /// The grounds after the serial number is removed from the inventory.
    pub(crate) fn without_inventory(self) -> Self {
        Self {
            inventory: self.inventory.map(|_| InventoryGround::Removed),
            ..self
        }
    }

    /// Explains the level to an administrator.
    pub(crate) fn reason(self, circumstances: Circumstances) -> String {
        if self.assurance() != circumstances.on_record {
            // An older version of the server wrote the record, without grounds.
            let on_record = circumstances.on_record;
            return format!("{on_record}: its grounds were not recorded when the key was enrolled");
        }
        let now = self.as_of(circumstances.attested_since);
        let reason = match now.assurance() {
            Assurance::Asserted => format!("asserted: {}", now.why_only_asserted(circumstances)),
            level => format!("{level}: {}", now.valid_grounds().join(", and ")),
        };
        match now
            .attestation
            .filter(|attestation| attestation.state == AttestationState::Lapsed)
        {
            None => reason,
            Some(lapsed) => {
                let at = rfc3339(lapsed.attested_at);
                format!("{reason}; the Apple attestation of {at} is too old")
            }
        }
    }

    fn valid_grounds(self) -> Vec<String> {
        let attestation = self
            .attestation
            .filter(|attestation| attestation.state == AttestationState::Bound)
            .map(|bound| {
                let at = rfc3339(bound.attested_at);
                format!("Apple attested this serial number to this key at {at}")
            });
        let token = self
            .token
            .map(|id| format!("the enrollment token {id} names this serial number"));
        let inventory = (self.inventory == Some(InventoryGround::Matched))
            .then(|| "the serial number is in the inventory, and was there when the key was admitted".to_owned());
        let approval = self
            .approval
            .map(|id| format!("an administrator approved the enrollment {id}"));
        [attestation, token, inventory, approval]
            .into_iter()
            .flatten()
            .collect()
    }

    fn why_only_asserted(self, circumstances: Circumstances) -> &'static str {
        match (self.inventory, circumstances) {
            (
                _,
                Circumstances {
                    has_serial_number: false,
                    ..
                },
            ) => "the machine claims no serial number, and no administrator approved it",
            (
                Some(InventoryGround::Removed),
                Circumstances {
                    is_in_inventory: true, ..
                },
            ) => {
                "the serial number is only claimed; it was removed from the inventory after the key was admitted, \
                 and its return does not raise the assurance, which never rises by itself"
            }
            (Some(InventoryGround::Removed), _) => {
                "the serial number is only claimed; it was in the inventory when the key was admitted, and was \
                 removed since"
            }
            (
                _,
                Circumstances {
                    is_in_inventory: true, ..
                },
            ) => {
                "the serial number is only claimed; it is in the inventory now, but was not when the key was \
                 admitted, and assurance never rises by itself"
            }
            _ => "the serial number is only claimed: no token names it, and it is not in the inventory",
        }
    }
}

/// Whether a token is bound to this serial number.
pub(crate) fn names(token: &EnrollmentToken, serial_number: Option<&str>) -> bool {
    let bound = token.serial_numbers.iter().flatten();
    serial_number.is_some_and(|claimed| bound.into_iter().any(|serial_number| serial_number == claimed))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use time::{Duration, macros::datetime};

    use super::*;

    const TOKEN: Option<Uuid> = Some(Uuid::from_u128(1));
    const APPROVAL: Option<Uuid> = Some(Uuid::from_u128(2));
    const MATCHED: Option<InventoryGround> = Some(InventoryGround::Matched);
    const REMOVED: Option<InventoryGround> = Some(InventoryGround::Removed);

    const TOO_OLD: OffsetDateTime = datetime!(2026-11-01 10:00 UTC);
    const ATTESTED_AT: OffsetDateTime = datetime!(2026-11-20 10:00 UTC);

    /// Adds an attestation on record.
    fn with_attestation(grounds: Grounds, state: AttestationState) -> Grounds {
        let attestation = AttestationGround::on_record(Uuid::from_u128(3), ATTESTED_AT, state);
        Grounds {
            attestation: Some(attestation),
            ..grounds
        }
    }

    fn grounds(token: Option<Uuid>, inventory: Option<InventoryGround>, approval: Option<Uuid>) -> Grounds {
        Grounds {
            token,
            inventory,
            approval,
            ..Grounds::default()
        }
    }

    #[rstest]
    #[case::nothing(grounds(None, None, None), Assurance::Asserted)]
    #[case::token(grounds(TOKEN, None, None), Assurance::Verified)]
    #[case::inventory(grounds(None, MATCHED, None), Assurance::Verified)]
    #[case::approval(grounds(None, None, APPROVAL), Assurance::Verified)]
    #[case::gone(grounds(None, REMOVED, None), Assurance::Asserted)]
    #[case::gone_beside_a_token(grounds(TOKEN, REMOVED, None), Assurance::Verified)]
    #[case::gone_beside_an_approval(grounds(None, REMOVED, APPROVAL), Assurance::Verified)]
    fn any_ground_that_holds_verifies(#[case] grounds: Grounds, #[case] expected: Assurance) {
        assert_eq!(grounds.assurance(), expected);
    }

    #[rstest]
    fn a_row_that_goes_never_raises_and_lowers_where_it_stood_alone(
        #[values(None, TOKEN)] token: Option<Uuid>,
        #[values(None, MATCHED, REMOVED)] inventory: Option<InventoryGround>,
        #[values(None, APPROVAL)] approval: Option<Uuid>,
    ) {
        let before = grounds(token, inventory, approval);
        let after = before.without_inventory();
        assert!(after.assurance() <= before.assurance());
        assert_eq!(
            after.assurance() == Assurance::Asserted,
            token.is_none() && approval.is_none()
        );
        assert_eq!(after.without_inventory(), after);
        assert_eq!(after.inventory.is_some(), inventory.is_some());
    }

    #[rstest]
    fn an_attestation_attests_until_it_is_too_old_and_then_leaves_the_rest(
        #[values(None, TOKEN)] token: Option<Uuid>,
        #[values(None, REMOVED)] inventory: Option<InventoryGround>,
    ) {
        let rest = grounds(token, inventory, None);
        let attested = with_attestation(rest, AttestationState::Bound);
        assert_eq!(attested.assurance(), Assurance::Attested);
        let at = |since| attested.assurance_at(Assurance::Attested, since);
        assert_eq!(at(ATTESTED_AT - Duration::microseconds(1)), Assurance::Attested);
        assert_eq!(at(ATTESTED_AT), rest.assurance());
        assert_eq!(
            attested.as_of(ATTESTED_AT),
            with_attestation(rest, AttestationState::Lapsed)
        );
        assert_eq!(attested.without_inventory().assurance(), Assurance::Attested);
    }

    #[test]
    fn a_lapsed_attestation_never_counts_again() {
        let lapsed = with_attestation(grounds(TOKEN, None, None), AttestationState::Lapsed);
        assert_eq!(lapsed.assurance(), Assurance::Verified);
        let long_ago = ATTESTED_AT - Duration::days(1000);
        assert_eq!(lapsed.as_of(long_ago), lapsed);
        for on_record in [Assurance::Attested, Assurance::Verified, Assurance::Asserted] {
            assert!(lapsed.assurance_at(on_record, long_ago) <= Assurance::Verified);
        }
    }

    #[test]
    fn the_reason_mentions_a_valid_attestation_and_one_that_is_too_old() {
        let bound = reason(
            with_attestation(grounds(TOKEN, None, None), AttestationState::Bound),
            false,
        );
        assert!(
            bound.starts_with(
                "attested: Apple attested this serial number to this key at 2026-11-20T10:00:00Z, and the "
            ),
            "{bound}"
        );
        let lapsed = reason(
            with_attestation(grounds(None, None, None), AttestationState::Lapsed),
            false,
        );
        assert!(lapsed.starts_with("asserted: "), "{lapsed}");
        assert!(
            lapsed.ends_with("; the Apple attestation of 2026-11-20T10:00:00Z is too old"),
            "{lapsed}"
        );
    }

    fn reason(grounds: Grounds, is_in_inventory: bool) -> String {
        grounds.reason(Circumstances {
            on_record: grounds.assurance(),
            has_serial_number: true,
            is_in_inventory,
            attested_since: TOO_OLD,
        })
    }

    #[test]
    fn the_reason_names_every_valid_ground() {
        let all = reason(grounds(TOKEN, MATCHED, APPROVAL), true);
        assert!(
            all.starts_with("verified: the enrollment token 00000000-0000-0000-0000-000000000001 names"),
            "{all}"
        );
        assert!(
            all.contains("in the inventory") && all.contains("approved the enrollment"),
            "{all}"
        );
        let one = reason(grounds(None, REMOVED, APPROVAL), true);
        assert!(
            one.contains("approved") && !one.contains("inventory") && !one.contains("token"),
            "{one}"
        );
    }

    #[test]
    fn the_reason_of_the_lowest_level_mentions_the_inventory() {
        let never = reason(grounds(None, None, None), false);
        let later = reason(grounds(None, None, None), true);
        let gone = reason(grounds(None, REMOVED, None), false);
        let back = reason(grounds(None, REMOVED, None), true);
        assert!(never.contains("not in the inventory"), "{never}");
        assert!(later.contains("in the inventory now"), "{later}");
        assert!(gone.contains("removed since"), "{gone}");
        assert!(back.contains("return does not raise"), "{back}");
    }

    #[test]
    fn a_level_without_recorded_grounds_says_so() {
        let reason = Grounds::default().reason(Circumstances {
            on_record: Assurance::Verified,
            has_serial_number: true,
            is_in_inventory: false,
            attested_since: TOO_OLD,
        });
        assert_eq!(
            reason,
            "verified: its grounds were not recorded when the key was enrolled"
        );
    }
}
