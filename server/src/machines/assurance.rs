//! How much stands behind a machine's serial number: what let its current key in, and what of that still holds. The one
//! place where the level is computed and put into words.

use assay_protocol::{admin_api::enrollment_tokens::EnrollmentToken, machine::Assurance};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What stands behind the serial number of a machine's current key. Another key has other grounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Grounds {
    /// The enrollment token that named the serial number when the key came with it. That it named it stays true when
    /// the token is used up, expires or is revoked.
    pub(crate) token: Option<Uuid>,
    /// What the inventory said when the key was let in, and whether it still does.
    pub(crate) inventory: Option<InventoryGround>,
    /// The enrollment of this key that an administrator approved.
    pub(crate) approval: Option<Uuid>,
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
}

impl Grounds {
    /// The grounds of a key that comes with this token, if with any, and is or is not in the inventory.
    pub(crate) fn of(token: Option<&EnrollmentToken>, serial_number: Option<&str>, is_in_inventory: bool) -> Self {
        Self {
            token: token.filter(|token| names(token, serial_number)).map(|token| token.id),
            inventory: is_in_inventory.then_some(InventoryGround::Matched),
            approval: None,
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
        if self.token.is_some() || self.approval.is_some() || self.inventory == Some(InventoryGround::Matched) {
            Assurance::Verified
        } else {
            Assurance::Asserted
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
        match circumstances.on_record {
            Assurance::Asserted => format!("asserted: {}", self.why_no_more(circumstances)),
            level => format!("{}: {}", word(level), self.all_that_hold().join(", and ")),
        }
    }

    fn all_that_hold(self) -> Vec<String> {
        let token = self
            .token
            .map(|id| format!("the enrollment token {id} names this serial number"));
        let inventory = (self.inventory == Some(InventoryGround::Matched))
            .then(|| "the serial number is in the inventory, and was when the key was let in".to_owned());
        let approval = self
            .approval
            .map(|id| format!("an administrator approved the enrollment {id}"));
        [token, inventory, approval].into_iter().flatten().collect()
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

    use super::*;

    const TOKEN: Option<Uuid> = Some(Uuid::from_u128(1));
    const APPROVAL: Option<Uuid> = Some(Uuid::from_u128(2));
    const MATCHED: Option<InventoryGround> = Some(InventoryGround::Matched);
    const REMOVED: Option<InventoryGround> = Some(InventoryGround::Removed);

    fn grounds(token: Option<Uuid>, inventory: Option<InventoryGround>, approval: Option<Uuid>) -> Grounds {
        Grounds {
            token,
            inventory,
            approval,
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

    fn reason(grounds: Grounds, is_in_inventory: bool) -> String {
        grounds.reason(Circumstances {
            on_record: grounds.assurance(),
            has_serial_number: true,
            is_in_inventory,
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
        });
        assert_eq!(
            reason,
            "verified: what it rests on was not recorded when the key was enrolled"
        );
    }
}
