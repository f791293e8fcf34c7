//! How much stands behind a machine's serial number: what let its current key in, and what of that still holds. The one
//! place where the level is computed and put into words.

use assay_authority::attestation::apple::BoundAttestation;
use assay_protocol::{admin_api::enrollment_tokens::EnrollmentToken, machine::Assurance, text::rfc3339};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

/// What stands behind the serial number of a machine's current key. A key that enrolls in its place has other grounds; one
/// that it lets in itself, by rotation, inherits them, but for Apple's attestation, which is of one key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Grounds {
    /// The enrollment token that named the serial number when the key came with it. That it named it stays true when
    /// the token is used up, expires or is revoked.
    pub(crate) token: Option<Uuid>,
    /// What the inventory said when the key was let in, and whether it still does.
    pub(crate) inventory: Option<InventoryGround>,
    /// The enrollment of this key that an administrator approved.
    pub(crate) approval: Option<Uuid>,
    /// What Apple vouches for, of this key and this serial number.
    pub(crate) attestation: Option<AttestationGround>,
}

/// That Apple vouches for the serial number, to this key. There are two ways to one: a [`BoundAttestation`], and a record
/// that holds one, which the database lets refer to no other than its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttestationGround {
    id: Uuid,
    attested_at: OffsetDateTime,
    standing: AttestationStanding,
}

/// Whether an attestation still stands for its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AttestationStanding {
    /// It does, until it is too old.
    Bound,
    /// It was found to be too old. A longer `apple.attestation_max_age` does not bring it back: assurance never rises by
    /// itself.
    Lapsed,
}

/// Whether an inventory match still holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum InventoryGround {
    /// The serial number was there, and has not gone since.
    Matched,
    /// It was there and has gone. Coming back does not count: assurance never rises by itself.
    Removed,
}

/// What an explanation needs beside the grounds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Circumstances {
    /// The level on record.
    pub(crate) on_record: Assurance,
    pub(crate) has_serial_number: bool,
    /// Whether the inventory names it now.
    pub(crate) is_in_inventory: bool,
    /// An attestation that Apple signed then or earlier is too old.
    pub(crate) attested_since: OffsetDateTime,
}

impl AttestationGround {
    /// As it is on record.
    pub(crate) fn on_record(id: Uuid, attested_at: OffsetDateTime, standing: AttestationStanding) -> Self {
        Self {
            id,
            attested_at,
            standing,
        }
    }

    /// Which attestation it is.
    pub(crate) fn id(self) -> Uuid {
        self.id
    }

    /// When Apple signed it.
    pub(crate) fn attested_at(self) -> OffsetDateTime {
        self.attested_at
    }

    /// Whether it still stands.
    pub(crate) fn standing(self) -> AttestationStanding {
        self.standing
    }

    fn as_of(self, attested_since: OffsetDateTime) -> Self {
        if self.attested_at <= attested_since {
            Self {
                standing: AttestationStanding::Lapsed,
                ..self
            }
        } else {
            self
        }
    }
}

impl Grounds {
    /// The grounds of a key that comes with this token, if with any, and is or is not in the inventory.
    pub(crate) fn of(token: Option<&EnrollmentToken>, serial_number: Option<&str>, is_in_inventory: bool) -> Self {
        Self {
            token: token.filter(|token| names(token, serial_number)).map(|token| token.id),
            inventory: is_in_inventory.then_some(InventoryGround::Matched),
            ..Self::default()
        }
    }

    /// The same, with an attestation that was bound to this very key and serial number.
    pub(crate) fn attested(self, id: Uuid, bound: &BoundAttestation) -> Self {
        let attested_at = bound.attestation().attested_at();
        Self {
            attestation: Some(AttestationGround::on_record(
                id,
                attested_at,
                AttestationStanding::Bound,
            )),
            ..self
        }
    }

    /// What is left of them for another key that the machine's own let in.
    pub(crate) fn without_attestation(self) -> Self {
        Self {
            attestation: None,
            ..self
        }
    }

    /// What is left of them when an attestation that Apple signed then or earlier is too old.
    pub(crate) fn as_of(self, attested_since: OffsetDateTime) -> Self {
        Self {
            attestation: self.attestation.map(|attestation| attestation.as_of(attested_since)),
            ..self
        }
    }

    /// The same, after an administrator approved this enrollment.
    pub(crate) fn approved(self, enrollment: Uuid, is_in_inventory: bool) -> Self {
        let rest = if is_in_inventory {
            self
        } else {
            self.without_inventory()
        };
        Self {
            inventory: is_in_inventory.then_some(InventoryGround::Matched).or(rest.inventory),
            approval: Some(enrollment),
            ..rest
        }
    }

    /// The level that follows.
    pub(crate) fn assurance(self) -> Assurance {
        let attestation = self.attestation.map(AttestationGround::standing);
        if attestation == Some(AttestationStanding::Bound) {
            Assurance::Attested
        } else if self.token.is_some() || self.approval.is_some() || self.inventory == Some(InventoryGround::Matched) {
            Assurance::Verified
        } else {
            Assurance::Asserted
        }
    }

    /// The level that a record with these grounds has, when an attestation that Apple signed then or earlier is too old.
    /// Where replicas of an older version kept no grounds, what they wrote down counts.
    pub(crate) fn assurance_at(self, on_record: Assurance, attested_since: OffsetDateTime) -> Assurance {
        match on_record {
            Assurance::Attested => self.as_of(attested_since).assurance(),
            level => level,
        }
    }

    /// What is left when the serial number goes from the inventory.
    pub(crate) fn without_inventory(self) -> Self {
        Self {
            inventory: self.inventory.map(|_| InventoryGround::Removed),
            ..self
        }
    }

    /// Why the machine has the level that it has, for an administrator to read.
    pub(crate) fn reason(self, circumstances: Circumstances) -> String {
        if self.assurance() != circumstances.on_record {
            // A replica of an older version wrote the record, and kept no grounds.
            let on_record = word(circumstances.on_record);
            return format!("{on_record}: what it rests on was not recorded when the key was enrolled");
        }
        let now = self.as_of(circumstances.attested_since);
        let reason = match now.assurance() {
            Assurance::Asserted => format!("asserted: {}", now.why_no_more(circumstances)),
            level => format!("{}: {}", word(level), now.all_that_hold().join(", and ")),
        };
        match now
            .attestation
            .filter(|attestation| attestation.standing == AttestationStanding::Lapsed)
        {
            None => reason,
            Some(lapsed) => {
                let at = rfc3339(lapsed.attested_at);
                format!("{reason}; the Apple attestation of {at} is too old")
            }
        }
    }

    fn all_that_hold(self) -> Vec<String> {
        let attestation = self
            .attestation
            .filter(|attestation| attestation.standing == AttestationStanding::Bound)
            .map(|bound| {
                let at = rfc3339(bound.attested_at);
                format!("Apple attested this serial number to this key at {at}")
            });
        let token = self
            .token
            .map(|id| format!("the enrollment token {id} names this serial number"));
        let inventory = (self.inventory == Some(InventoryGround::Matched))
            .then(|| "the serial number is in the inventory, and was when the key was let in".to_owned());
        let approval = self
            .approval
            .map(|id| format!("an administrator approved the enrollment {id}"));
        [attestation, token, inventory, approval]
            .into_iter()
            .flatten()
            .collect()
    }

    fn why_no_more(self, circumstances: Circumstances) -> &'static str {
        match (self.inventory, circumstances) {
            (
                _,
                Circumstances {
                    has_serial_number: false,
                    ..
                },
            ) => "the machine says no serial number, and nobody approved it",
            (
                Some(InventoryGround::Removed),
                Circumstances {
                    is_in_inventory: true, ..
                },
            ) => {
                "the serial number is the machine's own word; it was taken out of the inventory after the key was let in, \
                 and its return does not raise the assurance, which never rises by itself"
            }
            (Some(InventoryGround::Removed), _) => {
                "the serial number is the machine's own word; it was in the inventory when the key was let in, and was \
                 taken out since"
            }
            (
                _,
                Circumstances {
                    is_in_inventory: true, ..
                },
            ) => {
                "the serial number is the machine's own word; it is in the inventory now, but was not when the key was let \
                 in, and assurance never rises by itself"
            }
            _ => "the serial number is the machine's own word: no token names it, and it is not in the inventory",
        }
    }
}

/// Whether a token is bound to this serial number, and so speaks for it.
pub(crate) fn names(token: &EnrollmentToken, serial_number: Option<&str>) -> bool {
    let bound = token.serial_numbers.iter().flatten();
    serial_number.is_some_and(|claimed| bound.into_iter().any(|serial_number| serial_number == claimed))
}

fn word(level: Assurance) -> &'static str {
    match level {
        Assurance::Asserted => "asserted",
        Assurance::Verified => "verified",
        Assurance::Attested => "attested",
    }
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

    /// With an attestation on record beside.
    fn with_attestation(grounds: Grounds, standing: AttestationStanding) -> Grounds {
        let attestation = AttestationGround::on_record(Uuid::from_u128(3), ATTESTED_AT, standing);
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
            attestation: None,
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
        let attested = with_attestation(rest, AttestationStanding::Bound);
        assert_eq!(attested.assurance(), Assurance::Attested);
        let at = |since| attested.assurance_at(Assurance::Attested, since);
        assert_eq!(at(ATTESTED_AT - Duration::microseconds(1)), Assurance::Attested);
        assert_eq!(at(ATTESTED_AT), rest.assurance());
        assert_eq!(
            attested.as_of(ATTESTED_AT),
            with_attestation(rest, AttestationStanding::Lapsed)
        );
        assert_eq!(attested.without_inventory().assurance(), Assurance::Attested);
    }

    #[test]
    fn what_has_lapsed_does_not_come_back() {
        let lapsed = with_attestation(grounds(TOKEN, None, None), AttestationStanding::Lapsed);
        assert_eq!(lapsed.assurance(), Assurance::Verified);
        let long_ago = ATTESTED_AT - Duration::days(1000);
        assert_eq!(lapsed.as_of(long_ago), lapsed);
        for on_record in [Assurance::Attested, Assurance::Verified, Assurance::Asserted] {
            assert!(lapsed.assurance_at(on_record, long_ago) <= Assurance::Verified);
        }
    }

    #[test]
    fn the_reason_tells_of_an_attestation_that_holds_and_of_one_that_is_too_old() {
        let bound = reason(
            with_attestation(grounds(TOKEN, None, None), AttestationStanding::Bound),
            false,
        );
        assert!(
            bound.starts_with(
                "attested: Apple attested this serial number to this key at 2026-11-20T10:00:00Z, and the "
            ),
            "{bound}"
        );
        let lapsed = reason(
            with_attestation(grounds(None, None, None), AttestationStanding::Lapsed),
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
    fn the_reason_names_every_ground_that_holds() {
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
    fn the_reason_of_the_lowest_level_tells_what_became_of_the_inventory() {
        let never = reason(grounds(None, None, None), false);
        let later = reason(grounds(None, None, None), true);
        let gone = reason(grounds(None, REMOVED, None), false);
        let back = reason(grounds(None, REMOVED, None), true);
        assert!(never.contains("not in the inventory"), "{never}");
        assert!(later.contains("in the inventory now"), "{later}");
        assert!(gone.contains("taken out"), "{gone}");
        assert!(back.contains("return does not raise"), "{back}");
    }

    #[test]
    fn a_level_without_grounds_is_not_explained_away() {
        let reason = Grounds::default().reason(Circumstances {
            on_record: Assurance::Verified,
            has_serial_number: true,
            is_in_inventory: false,
            attested_since: TOO_OLD,
        });
        assert_eq!(
            reason,
            "verified: what it rests on was not recorded when the key was enrolled"
        );
    }
}
