//! Whether evidence continues from the last response to its machine, and what follows if it does not.

use assay_protocol::text::rfc3339;
use serde_json::json;

use super::admission::{Attempt, Mismatch};
use crate::{
    changes::EventKind,
    config::Continuity as ContinuityPolicy,
    machines::continuity::{Carried, Judgement},
    store::{
        StoreError, Transaction,
        machines::{self, keys::KeyRecord, presence::Presence},
    },
};

/// Judges the evidence, records its value, and writes an event if it does not continue. An error means that the caller
/// must quarantine the machine.
///
/// The value is recorded also while continuity is off. Otherwise an answer that is lost meanwhile would look like a copied
/// key once it is on again.
///
/// For a key in the Secure Enclave, a break is only an event. Such a key cannot be copied, so the agent's state was
/// restored.
pub(super) async fn judge(
    tx: &mut Transaction,
    presence: &Presence,
    key: &KeyRecord,
    attempt: &Attempt<'_>,
) -> Result<Result<Judgement, Mismatch>, StoreError> {
    let (judgement, after) = presence.continuity.judge(presence.last_nonce_at, attempt.carried);
    let judgement = match attempt.continuity {
        ContinuityPolicy::Off => Judgement::Continues,
        _ => judgement,
    };
    // A next key has no store on record before its first evidence, which is this one.
    let store = key.store.unwrap_or(attempt.claims.key.store);
    let event = match judgement {
        Judgement::Continues => None,
        Judgement::DatabaseBehind => Some(EventKind::MachineDatabaseBehind),
        Judgement::Broken if attempt.continuity.quarantines(store) => return Ok(Err(Mismatch::Continuity)),
        Judgement::Broken => Some(EventKind::MachineContinuityBroken),
    };
    if let Some(kind) = event {
        let issued_at = match attempt.carried {
            Carried::Genuine(order) => Some(rfc3339(order)),
            Carried::Nothing | Carried::Foreign => None,
        };
        let detail = json!({
            "key": attempt.key,
            "is_missing": attempt.carried == Carried::Nothing,
            "carried_value_issued_at": issued_at,
            "last_value_issued_at": rfc3339(presence.last_nonce_at),
        });
        tx.announce(presence.machine.id(), kind, detail).await?;
    }
    if after != presence.continuity {
        machines::presence::set_continuity(tx, &presence.machine, after).await?;
    }
    Ok(Ok(judgement))
}
