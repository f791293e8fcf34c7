//! Evidence of a superseded key. The machine has a new key, so another party may have the old one.

use assay_protocol::machine::{KeyStoreKind, MachineStatus};
use serde_json::json;

use super::admission::{self, Attempt};
use crate::{
    changes::EventKind,
    machines::continuity::ContinuityState,
    store::{
        StoreError, Transaction,
        machines::{self, keys::KeyRecord, presence::Presence, record::Identity},
    },
};

const REASON: &str = "a software key of this machine signed evidence after the next key had replaced it";

/// Writes an event, once for each key, if the key's successor has checked in. Quarantines the machine if the key is in
/// software and the machine sends continuity values. Its agent would have used the new key.
pub(super) async fn note_use(
    tx: &mut Transaction,
    presence: &Presence,
    identity: &Identity,
    key: &KeyRecord,
    attempt: &Attempt<'_>,
) -> Result<(), StoreError> {
    let is_active = identity.status == MachineStatus::Active;
    if !is_active || !machines::keys::successor_has_checked_in(tx, attempt.key).await? {
        return Ok(());
    }
    let detail = json!({"key": attempt.key, "current_key": presence.current_key, "key_store": key.store});
    if !key.superseded_use_noted {
        machines::keys::note_superseded_use(tx, attempt.key).await?;
        tx.announce(identity.id, EventKind::MachineSupersededKeyUsed, detail.clone())
            .await?;
    }
    let is_software = key.store == Some(KeyStoreKind::Software);
    let quarantines = is_software && attempt.continuity.quarantines(KeyStoreKind::Software);
    if quarantines && presence.continuity.state == ContinuityState::Bound {
        machines::presence::use_nonce(tx, &presence.machine, attempt.nonce).await?;
        admission::suspend(tx, &presence.machine, identity, REASON, detail).await?;
    }
    Ok(())
}
