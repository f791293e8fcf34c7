//! Whether a key that proved itself may act for its machine now. Decided in one place, on rows that are locked, for
//! check-in, renewal and repeated enrollment alike.

use assay_protocol::{KeyThumbprint, machine::MachineStatus};
use serde_json::json;
use time::OffsetDateTime;

use super::devices;
use crate::{
    changes::{Action, Change, EventKind},
    machines::claims::Claims,
    store::{
        self, StoreError, Transaction,
        machines::{
            self,
            keys::{KeyRecord, KeyStatus},
            presence::{LockedMachine, Presence},
            record::Identity,
        },
    },
};

/// Why a key may not act for a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("no machine with this id or key is known; it must enroll again")]
    Unknown,
    #[error("the nonce was used, or is older than the last one that this machine used")]
    NonceUsed {
        /// The order of the last one used: the next has to be later.
        last: OffsetDateTime,
    },
    #[error("an administrator has not approved this machine yet")]
    Pending,
    #[error("the machine is quarantined: {reason}")]
    Quarantined { reason: String },
    #[error("the machine is revoked: {reason}")]
    Revoked { reason: String },
    #[error("a newer key has replaced this one; the machine checks in with that")]
    KeySuperseded,
    #[error("an administrator denied this key: {reason}")]
    Denied { reason: String },
    #[error("{difference}; the machine is quarantined until an administrator releases it")]
    IdentityMismatch {
        /// Which value is another, with both.
        difference: String,
    },
}

/// The rows that a decision rests on, all of one machine.
pub(crate) struct Admitted {
    pub(crate) presence: Presence,
    pub(crate) identity: Identity,
    /// Current or next.
    pub(crate) key: KeyStatus,
}

/// What asks: a key that signed evidence, with the nonce it spends and what it claims.
pub(crate) struct Attempt<'a> {
    pub(crate) key: KeyThumbprint,
    pub(crate) nonce: OffsetDateTime,
    pub(crate) claims: &'a Claims,
}

/// Decides on rows that it locks. A mismatch of identity quarantines the machine in this very transaction, which
/// therefore has to be committed although the answer is a refusal.
pub(crate) async fn admit(
    tx: &mut Transaction,
    record: &KeyRecord,
    attempt: &Attempt<'_>,
) -> Result<Result<Admitted, Refusal>, StoreError> {
    let Some(presence) = machines::presence::lock(tx, record.machine_id).await? else {
        // A denial removes the record and keeps its word.
        let denied = machines::keys::find(tx, attempt.key)
            .await?
            .filter(|key| key.status == KeyStatus::Denied);
        return Ok(Err(denied.as_ref().and_then(key_refusal).unwrap_or(Refusal::Unknown)));
    };
    // Read again now that the row is locked: what was read before may have changed while we waited.
    let (Some(record), Some(identity)) = (
        machines::keys::find(tx, attempt.key).await?,
        machines::record::find_identity(tx, presence.machine.id()).await?,
    ) else {
        return Ok(Err(Refusal::Unknown));
    };
    if let Some(refusal) = key_refusal(&record).or_else(|| status_refusal(&identity)) {
        return Ok(Err(refusal));
    }
    let is_current = presence.current_key == attempt.key;
    if !presence.admitted || is_current != (record.status == KeyStatus::Current) {
        return Err(StoreError::Corrupt(format!(
            "the rows of machine {} disagree",
            identity.id
        )));
    }
    if attempt.nonce <= presence.last_nonce_at {
        return Ok(Err(Refusal::NonceUsed {
            last: presence.last_nonce_at,
        }));
    }
    if let Some(difference) = identity_difference(&identity, attempt.claims) {
        quarantine(tx, &presence.machine, &identity, attempt, &difference).await?;
        return Ok(Err(Refusal::IdentityMismatch { difference }));
    }
    Ok(Ok(Admitted {
        presence,
        identity,
        key: record.status,
    }))
}

/// Why a key does not serve, by what was decided on the key itself.
pub(crate) fn key_refusal(record: &KeyRecord) -> Option<Refusal> {
    let reason = || {
        record
            .status_reason
            .clone()
            .unwrap_or_else(|| "no reason was given".to_owned())
    };
    match record.status {
        KeyStatus::Current | KeyStatus::Next => None,
        KeyStatus::Pending => Some(Refusal::Pending),
        KeyStatus::Superseded => Some(Refusal::KeySuperseded),
        KeyStatus::Revoked => Some(Refusal::Revoked { reason: reason() }),
        KeyStatus::Denied => Some(Refusal::Denied { reason: reason() }),
    }
}

fn status_refusal(identity: &Identity) -> Option<Refusal> {
    let reason = || {
        identity
            .status_reason
            .clone()
            .unwrap_or_else(|| "no reason was given".to_owned())
    };
    match identity.status {
        MachineStatus::Active => None,
        MachineStatus::Pending => Some(Refusal::Pending),
        MachineStatus::Quarantined => Some(Refusal::Quarantined { reason: reason() }),
        MachineStatus::Revoked => Some(Refusal::Revoked { reason: reason() }),
    }
}

/// What is claimed differently from what is on record. Something that could not be read this time is no difference.
fn identity_difference(identity: &Identity, claims: &Claims) -> Option<String> {
    let differs = |what: &str, recorded: &Option<String>, claimed: &Option<String>| match (recorded, claimed) {
        (Some(recorded), Some(claimed)) if recorded != claimed => {
            Some(format!("the {what} is {claimed:?} and {recorded:?} is on record"))
        }
        _ => None,
    };
    differs("serial number", &identity.serial_number, &claims.machine.serial_number)
        .or_else(|| differs("hardware UUID", &identity.hardware_uuid, &claims.machine.hardware_uuid))
}

async fn quarantine(
    tx: &mut Transaction,
    machine: &LockedMachine,
    identity: &Identity,
    attempt: &Attempt<'_>,
    difference: &str,
) -> Result<(), StoreError> {
    let reason = format!("identity mismatch: {difference}");
    machines::presence::use_nonce(tx, machine, attempt.nonce).await?;
    machines::presence::set_admitted(tx, machine, false).await?;
    devices::revoke_certificates(tx, machine, &reason).await?;
    machines::record::set_status(tx, machine, MachineStatus::Quarantined, Some(&reason)).await?;
    let detail = json!({
        "on_record": {"serial_number": identity.serial_number, "hardware_uuid": identity.hardware_uuid},
        "claimed": {
            "serial_number": attempt.claims.machine.serial_number,
            "hardware_uuid": attempt.claims.machine.hardware_uuid,
        },
        "key": attempt.key,
    });
    tx.announce(identity.id, EventKind::MachineIdentityMismatch, detail.clone())
        .await?;
    // A receiver of quarantines learns of this one as of those that an administrator decides.
    let quarantined = json!({ "reason": reason });
    let change = Change::new(Action::MachineQuarantine, identity.id)
        .reason(Some(&reason))
        .before(json!({"status": store::text(&identity.status)?}))
        .after(json!({"status": "quarantined", "identity": detail}))
        .event(identity.id, EventKind::MachineQuarantined, quarantined);
    tx.record(change).await
}

#[cfg(test)]
mod tests {
    use assay_protocol::machine::{Assurance, KeyClaim, KeyStoreKind, MachineIdentity, Posture};
    use uuid::Uuid;

    use super::*;
    use crate::machines::assurance::Grounds;

    fn identity(serial_number: Option<&str>, hardware_uuid: Option<&str>) -> Identity {
        Identity {
            id: Uuid::nil(),
            status: MachineStatus::Active,
            status_reason: None,
            assurance: Assurance::Asserted,
            grounds: Grounds::default(),
            serial_number: serial_number.map(Into::into),
            hardware_uuid: hardware_uuid.map(Into::into),
            current_key: KeyThumbprint::from_bytes(&[7; 32]).unwrap(),
        }
    }

    fn claims(serial_number: Option<&str>, hardware_uuid: Option<&str>) -> Claims {
        Claims {
            machine: MachineIdentity {
                serial_number: serial_number.map(Into::into),
                hardware_uuid: hardware_uuid.map(Into::into),
                ..MachineIdentity::default()
            },
            posture: Posture::default(),
            key: KeyClaim {
                store: KeyStoreKind::Software,
                accessibility: None,
            },
        }
    }

    #[test]
    fn another_serial_number_or_hardware_uuid_is_a_difference_and_names_both() {
        let record = identity(Some("C02ONE"), Some("UUID-1"));
        assert_eq!(
            identity_difference(&record, &claims(Some("C02ONE"), Some("UUID-1"))),
            None
        );
        let difference = identity_difference(&record, &claims(Some("C02TWO"), Some("UUID-1"))).unwrap();
        assert!(
            difference.contains("C02ONE") && difference.contains("C02TWO"),
            "{difference}"
        );
        let difference = identity_difference(&record, &claims(Some("C02ONE"), Some("UUID-2"))).unwrap();
        assert!(difference.contains("hardware UUID"), "{difference}");
    }

    #[test]
    fn what_could_not_be_read_is_no_difference() {
        assert_eq!(
            identity_difference(&identity(Some("C02ONE"), None), &claims(None, Some("UUID-1"))),
            None
        );
    }
}
