//! Decides which devices may have a certificate. A client's claim is not enough. Its serial number must belong to an
//! active machine, be in the inventory, or be confirmed by an enrollment token.

use assay_authority::device_spiffe_id;
use assay_protocol::{machine::MachineStatus, text::is_displayable};
use uuid::Uuid;

use crate::{
    enrollment::require_valid,
    machines::assurance::names,
    registry::admission::reason_text,
    store::{
        StoreError, Transaction,
        acme_accounts::Account,
        enrollment_tokens, inventory,
        machines::{self, record::Identity},
    },
};

/// Why a serial number gets no certificate.
///
/// Anyone can make an account. The text for the client therefore does not tell an unknown serial number from that of a
/// machine that is quarantined or revoked. [`Self::reason`] does, for the audit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Inadmissible {
    #[error("the serial number {serial_number:?} is not admitted")]
    Unknown { serial_number: String },
    #[error("the serial number {serial_number:?} is not admitted")]
    NotActive {
        serial_number: String,
        status: &'static str,
        reason: String,
        machine_id: Uuid,
    },
    #[error(
        "the ClientIdentifier {0:?} is not a serial number: at most 64 letters, digits, full stops, hyphens and underscores"
    )]
    NotASerialNumber(String),
}

/// The result for a serial number that may have a certificate now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Admitted {
    /// The machine with this serial number, whose row stays locked until the end of the transaction.
    pub(super) machine_id: Option<Uuid>,
    /// Whether only the account's token confirms the serial number.
    pub(super) by_token: bool,
}

impl Inadmissible {
    /// The requested serial number, shortened and without characters that control the display.
    pub(super) fn serial_number(&self) -> &str {
        match self {
            Self::Unknown { serial_number }
            | Self::NotActive { serial_number, .. }
            | Self::NotASerialNumber(serial_number) => serial_number,
        }
    }

    /// The reason, for administrators alone.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Unknown { serial_number } => format!(
                "the serial number {serial_number:?} is neither in the inventory nor that of a machine; the profile's \
                 ClientIdentifier must be the serial number, and the inventory must contain it"
            ),
            Self::NotActive {
                serial_number,
                status,
                reason,
                ..
            } => format!("the machine with the serial number {serial_number:?} is {status}: {reason}"),
            Self::NotASerialNumber(_) => self.to_string(),
        }
    }

    /// The machine concerned.
    pub(super) fn machine_id(&self) -> Option<Uuid> {
        match self {
            Self::NotActive { machine_id, .. } => Some(*machine_id),
            Self::Unknown { .. } | Self::NotASerialNumber(_) => None,
        }
    }
}

/// Parses a client's identifier.
pub(super) fn serial_number(identifier: &str) -> Result<String, Inadmissible> {
    // A certificate must be able to name it, and Apple attests no longer one.
    if identifier.len() <= 64 && device_spiffe_id("", identifier).is_some() {
        return Ok(identifier.to_owned());
    }
    // The identifier is shown and stored, and Postgres cannot store a NUL.
    let shown = identifier
        .chars()
        .filter(|character| is_displayable(*character))
        .take(64);
    Err(Inadmissible::NotASerialNumber(shown.collect()))
}

/// Decides, and locks the rows that the decision depends on: first the inventory's, then the machine's.
pub(super) async fn admit(
    tx: &mut Transaction,
    account: &Account,
    serial_number: &str,
) -> Result<Result<Admitted, Inadmissible>, StoreError> {
    let listed = inventory::lock(tx, serial_number).await?.is_some();
    // The serial number of an asserted machine is its own claim. A stranger with a shared token could otherwise be
    // quarantined under another device's serial number, and keep that device from a certificate.
    if let Some(found) = machines::record::find_by_serial_number(tx, serial_number).await?
        && machines::presence::lock(tx, found.id).await?.is_some()
        && let Some(machine) = machines::record::find_identity(tx, found.id).await?
        && counts(&machine)
    {
        let status = match machine.status {
            MachineStatus::Active => {
                return Ok(Ok(Admitted {
                    machine_id: Some(machine.id),
                    by_token: false,
                }));
            }
            status => status.as_str(),
        };
        return Ok(Err(Inadmissible::NotActive {
            serial_number: serial_number.to_owned(),
            status,
            reason: reason_text(machine.status_reason.as_deref()),
            machine_id: machine.id,
        }));
    }
    let by_token = !listed && token_confirms(tx, account, serial_number).await?;
    if listed || by_token {
        return Ok(Ok(Admitted {
            machine_id: None,
            by_token,
        }));
    }
    Ok(Err(Inadmissible::Unknown {
        serial_number: serial_number.to_owned(),
    }))
}

/// Whether a machine has a say in its serial number's certificates.
pub(super) fn counts(machine: &Identity) -> bool {
    machine.status == MachineStatus::Active || machine.grounds.speak_for_the_device()
}

/// A valid token of the account confirms one device. Otherwise one use of a token could admit any number of devices.
async fn token_confirms(tx: &mut Transaction, account: &Account, serial_number: &str) -> Result<bool, StoreError> {
    let Some(token_id) = account.token_id else {
        return Ok(false);
    };
    let Some(token) = enrollment_tokens::find(tx, token_id).await? else {
        return Ok(false);
    };
    let of_token = token.serial_numbers.is_none() || names(&token, Some(serial_number));
    let of_account = account
        .device_serial_number
        .as_deref()
        .is_none_or(|first| first == serial_number);
    Ok(of_token && of_account && require_valid(&token, tx.now()).is_ok())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("C02TESTVEC01", true)]
    #[case("00006032-001C2D3E4F5A801E", true)]
    #[case("", false)]
    #[case("a b", false)]
    #[case("../machine", false)]
    #[case("$SERIALNUMBER", false)]
    #[case("%SerialNumber%", false)]
    #[case("{{serialnumber}}", false)]
    fn a_variable_that_the_mdm_did_not_replace_is_not_a_serial_number(#[case] identifier: &str, #[case] is_one: bool) {
        assert_eq!(serial_number(identifier).is_ok(), is_one, "{identifier}");
    }

    #[test]
    fn a_long_serial_number_is_refused_and_shortened() {
        assert!(serial_number(&"A".repeat(64)).is_ok());
        assert_eq!(
            serial_number("A\0B"),
            Err(Inadmissible::NotASerialNumber("AB".to_owned()))
        );
        let refusal = serial_number(&"A".repeat(65)).unwrap_err();
        assert_eq!(refusal, Inadmissible::NotASerialNumber("A".repeat(64)));
    }
}
