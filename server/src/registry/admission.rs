//! Whether a key that has signed evidence may act for its machine now. Check-in, renewal and repeated enrollment share
//! this decision. It locks the rows that it reads.

use assay_protocol::{
    KeyThumbprint,
    machine::{KeyStoreKind, MachineStatus},
};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{continuity, opening, superseded_keys};

use crate::{
    changes::{Action, Change, EventKind},
    config::Continuity as ContinuityPolicy,
    machines::{
        claims::{Claims, is_same_hardware_uuid},
        continuity::{Carried, Judgement},
    },
    store::{
        StoreError, Transaction,
        machines::{
            self,
            keys::{KeyRecord, KeyStatus},
            presence::{LockedMachine, Presence},
            record::Identity,
        },
    },
};

/// Why a key may not act for a machine.
///
/// A refusal says that a machine is quarantined or revoked, and not why: a thief would read the administrator's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("no machine with this id or key is known; it must enroll again")]
    Unknown,
    #[error("the nonce was used, or is older than the last one that this machine used")]
    NonceUsed {
        /// The order of the last one used. The next one must be later.
        last: OffsetDateTime,
    },
    #[error("an administrator has not approved this machine yet")]
    Pending,
    #[error("the machine is quarantined until an administrator releases it")]
    Quarantined,
    #[error("the machine is revoked for good")]
    Revoked,
    #[error("a newer key has replaced this one; the machine checks in with that")]
    KeySuperseded,
    #[error("this key was denied: {reason}")]
    Denied { reason: String },
    #[error("{0}; the machine is quarantined until an administrator releases it")]
    IdentityMismatch(Mismatch),
}

impl Refusal {
    /// Whether the key is not, or no longer, a key of the machine.
    pub(crate) fn ends_key(&self) -> bool {
        matches!(
            self,
            Self::Unknown | Self::Revoked | Self::KeySuperseded | Self::Denied { .. }
        )
    }
}

/// A claim that contradicts the record, with the claimed value. Only administrators see the recorded value, because
/// a thief would learn from it what to claim.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Mismatch {
    #[error("the serial number {0:?} is not the one on record")]
    SerialNumber(String),
    #[error("the hardware UUID {0:?} is not the one on record")]
    HardwareUuid(String),
    #[error("the key's store is not the one that its first evidence named")]
    KeyStore,
    #[error("the evidence does not continue from the last answer: two parties use this key, or its state was restored")]
    Continuity,
}

impl Mismatch {
    /// The reason of the quarantine. It has no recorded value: those are in the event and in the audit log.
    fn reason(&self) -> &'static str {
        match self {
            Self::SerialNumber(_) => "identity mismatch: another serial number than the one on record",
            Self::HardwareUuid(_) => "identity mismatch: another hardware UUID than the one on record",
            Self::KeyStore => "identity mismatch: another key store than the one on record",
            Self::Continuity => {
                "identity mismatch: evidence does not continue from the last answer, so two parties use this key, or its \
                 state was restored"
            }
        }
    }
}

/// The rows of one machine that a decision depends on.
pub(crate) struct Admitted {
    pub(crate) presence: Presence,
    pub(crate) identity: Identity,
    /// Current or next.
    pub(crate) key: KeyStatus,
    pub(crate) continuity: Judgement,
    /// Where the key is, by its evidence before this one; `None` if this is its first.
    pub(crate) store: Option<KeyStoreKind>,
}

/// A key that signed evidence, with its nonce and its claims.
pub(crate) struct Attempt<'a> {
    pub(crate) key: KeyThumbprint,
    pub(crate) nonce: OffsetDateTime,
    pub(crate) claims: &'a Claims,
    pub(crate) carried: Carried,
    pub(crate) continuity: ContinuityPolicy,
}

/// Locks the machine and decides. An identity mismatch quarantines the machine in this transaction, which must be
/// committed although the answer is a refusal.
pub(crate) async fn admit(
    tx: &mut Transaction,
    record: &KeyRecord,
    attempt: &Attempt<'_>,
) -> Result<Result<Admitted, Refusal>, StoreError> {
    let Some(presence) = machines::presence::lock(tx, record.machine_id).await? else {
        // A denial deletes the machine's record and keeps the key.
        let denied = machines::keys::find(tx, attempt.key)
            .await?
            .filter(|key| key.status == KeyStatus::Denied);
        return Ok(Err(denied.as_ref().and_then(key_refusal).unwrap_or(Refusal::Unknown)));
    };
    // The rows may have changed while this transaction waited for the lock.
    let (Some(record), Some(identity)) = (
        machines::keys::find(tx, attempt.key).await?,
        machines::record::find_identity(tx, presence.machine.id()).await?,
    ) else {
        return Ok(Err(Refusal::Unknown));
    };
    if let Some(refusal) = key_refusal(&record).or_else(|| status_refusal(identity.status)) {
        if record.status == KeyStatus::Superseded && attempt.nonce > presence.last_nonce_at {
            superseded_keys::note_use(tx, &presence, &identity, &record, attempt).await?;
        }
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
    let judgement = match find_mismatch(&identity, &record, attempt.claims) {
        None => continuity::judge(tx, &presence, &record, attempt).await?,
        Some(mismatch) => Err(mismatch),
    };
    let continuity = match judgement {
        Ok(judgement) => judgement,
        Err(mismatch) => {
            quarantine(tx, &presence.machine, &identity, attempt, &mismatch).await?;
            return Ok(Err(Refusal::IdentityMismatch(mismatch)));
        }
    };
    if record.store.is_none() {
        machines::keys::note_store(tx, attempt.key, attempt.claims.key.store).await?;
    }
    Ok(Ok(Admitted {
        presence,
        identity,
        key: record.status,
        continuity,
        store: record.store,
    }))
}

/// Why a key may not act, by its own status.
pub(crate) fn key_refusal(record: &KeyRecord) -> Option<Refusal> {
    match record.status {
        KeyStatus::Current | KeyStatus::Next => None,
        KeyStatus::Pending => Some(Refusal::Pending),
        KeyStatus::Superseded => Some(Refusal::KeySuperseded),
        KeyStatus::Revoked => Some(Refusal::Revoked),
        KeyStatus::Denied => Some(Refusal::Denied {
            reason: reason_text(record.status_reason.as_deref()),
        }),
    }
}

/// Why a machine of this status may not act.
pub(crate) fn status_refusal(status: MachineStatus) -> Option<Refusal> {
    match status {
        MachineStatus::Active => None,
        MachineStatus::Pending => Some(Refusal::Pending),
        MachineStatus::Quarantined => Some(Refusal::Quarantined),
        MachineStatus::Revoked => Some(Refusal::Revoked),
    }
}

/// An administrator's reason, for a message.
pub(crate) fn reason_text(reason: Option<&str>) -> String {
    reason.unwrap_or("no reason was given").to_owned()
}

/// A value that the agent could not read this time is no mismatch.
fn find_mismatch(identity: &Identity, record: &KeyRecord, claims: &Claims) -> Option<Mismatch> {
    let claimed = &claims.machine;
    if let (Some(recorded), Some(claimed)) = (&identity.serial_number, &claimed.serial_number)
        && recorded != claimed
    {
        return Some(Mismatch::SerialNumber(claimed.clone()));
    }
    if let (Some(recorded), Some(claimed)) = (&identity.hardware_uuid, &claimed.hardware_uuid)
        && !is_same_hardware_uuid(recorded, claimed)
    {
        return Some(Mismatch::HardwareUuid(claimed.clone()));
    }
    let is_other_store = record.store.is_some_and(|store| store != claims.key.store);
    is_other_store.then_some(Mismatch::KeyStore)
}

async fn quarantine(
    tx: &mut Transaction,
    machine: &LockedMachine,
    identity: &Identity,
    attempt: &Attempt<'_>,
    mismatch: &Mismatch,
) -> Result<(), StoreError> {
    let reason = mismatch.reason();
    machines::presence::use_nonce(tx, machine, attempt.nonce).await?;
    let detail = json!({
        "on_record": {"serial_number": identity.serial_number, "hardware_uuid": identity.hardware_uuid},
        "claimed": {
            "serial_number": attempt.claims.machine.serial_number,
            "hardware_uuid": attempt.claims.machine.hardware_uuid,
        },
        "key": attempt.key,
        "key_store": attempt.claims.key.store,
        "reason": reason,
    });
    tx.announce(identity.id, EventKind::MachineIdentityMismatch, detail.clone())
        .await?;
    suspend(tx, machine, identity, reason, detail).await
}

/// Quarantines the machine without an administrator.
pub(super) async fn suspend(
    tx: &mut Transaction,
    machine: &LockedMachine,
    identity: &Identity,
    reason: &str,
    detail: Value,
) -> Result<(), StoreError> {
    machines::presence::set_admitted(tx, machine, false).await?;
    machines::record::set_status(tx, machine, MachineStatus::Quarantined, Some(reason)).await?;
    opening::end_unused(tx, machine, reason).await?;
    // Receivers of `machine.quarantined` learn of automatic quarantines, too.
    let quarantined = json!({ "reason": reason });
    let change = Change::new(Action::MachineQuarantine, identity.id)
        .reason(Some(reason))
        .before(json!({"status": identity.status.as_str()}))
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

    fn key() -> KeyRecord {
        KeyRecord {
            machine_id: Uuid::nil(),
            status: KeyStatus::Current,
            status_reason: None,
            store: Some(KeyStoreKind::Software),
            superseded_use_noted: false,
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
    fn another_serial_number_or_hardware_uuid_is_a_mismatch_that_tells_the_claimed_value_alone() {
        let record = identity(Some("C02ONE"), Some("UUID-1"));
        assert_eq!(
            find_mismatch(&record, &key(), &claims(Some("C02ONE"), Some("UUID-1"))),
            None
        );
        let mismatch = find_mismatch(&record, &key(), &claims(Some("C02TWO"), Some("UUID-1"))).unwrap();
        assert_eq!(
            mismatch.to_string(),
            r#"the serial number "C02TWO" is not the one on record"#
        );
        let mismatch = find_mismatch(&record, &key(), &claims(Some("C02ONE"), Some("UUID-2"))).unwrap();
        assert_eq!(
            mismatch.to_string(),
            r#"the hardware UUID "UUID-2" is not the one on record"#
        );
    }

    #[test]
    fn a_value_that_could_not_be_read_is_no_mismatch_and_neither_is_the_case_of_a_hardware_uuid() {
        let record = identity(Some("C02ONE"), None);
        assert_eq!(find_mismatch(&record, &key(), &claims(None, Some("UUID-1"))), None);
        let record = identity(Some("C02ONE"), Some("UUID-A"));
        assert_eq!(
            find_mismatch(&record, &key(), &claims(Some("C02ONE"), Some("uuid-a"))),
            None
        );
        assert_eq!(
            find_mismatch(&record, &key(), &claims(Some("c02one"), None)),
            Some(Mismatch::SerialNumber("c02one".to_owned()))
        );
    }

    #[test]
    fn another_store_than_the_first_evidence_named_is_a_mismatch() {
        let record = identity(Some("C02ONE"), None);
        let enclave = KeyRecord {
            store: Some(KeyStoreKind::SecureEnclave),
            ..key()
        };
        let claims = claims(Some("C02ONE"), None);
        assert_eq!(find_mismatch(&record, &enclave, &claims), Some(Mismatch::KeyStore));
        let unknown = KeyRecord { store: None, ..key() };
        assert_eq!(find_mismatch(&record, &unknown, &claims), None);
    }
}
