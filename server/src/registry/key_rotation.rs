//! A machine replaces its key. The next key is let in by the current one and serves beside it; its first check-in
//! supersedes the other. So a crash of either side, at any step, leaves the machine with a key that serves.

use assay_protocol::{KeyThumbprint, PublicKey, admin_api::certificates::RevocationReason, machine::Assurance};
use serde_json::{Value, json};

use super::admission::Admitted;
use crate::{
    changes::{Change, Origin},
    clock::Clock,
    store::{
        StoreError, Transaction, audit_entries,
        certificates::{self, Revoked},
        events,
        machines::{self, keys::KeyStatus, record::Identity},
    },
};

/// The reason of RFC 5280 for the certificates of a key that another one replaces.
const SUPERSEDED: RevocationReason = RevocationReason::Superseded;

/// Why a key does not become a machine's next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RotationRefusal {
    #[error("the CSR's key is another machine's")]
    OtherMachinesKey,
    #[error("the CSR's key was this machine's before; a rotation needs a new one")]
    UsedBefore,
    #[error("the evidence is signed by a next key, which has to check in before another one can follow it")]
    Unfinished,
}

/// Lets a key in beside the one that signed, with the machine's rows held. Repeated, it changes nothing; begun anew with
/// another key, the one that never checked in goes.
pub(crate) async fn begin(
    tx: &mut Transaction,
    clock: &dyn Clock,
    origin: &Origin,
    admitted: &Admitted,
    next: &PublicKey,
) -> Result<Result<(), RotationRefusal>, StoreError> {
    let (machine, key, now) = (&admitted.identity, next.thumbprint(), clock.now());
    if let Some(known) = machines::keys::find(tx, key).await? {
        return Ok(if known.machine_id != machine.id {
            Err(RotationRefusal::OtherMachinesKey)
        } else if known.status == KeyStatus::Next {
            Ok(())
        } else {
            Err(RotationRefusal::UsedBefore)
        });
    }
    if admitted.key == KeyStatus::Next {
        return Ok(Err(RotationRefusal::Unfinished));
    }
    if let Some(abandoned) = machines::keys::supersede_next(tx, machine.id, now).await? {
        certificates::revoke(tx, machine.id, Revoked::OfKey(abandoned), SUPERSEDED, now).await?;
    }
    machines::keys::insert(tx, next, machine.id, KeyStatus::Next, now).await?;
    let what = ("machine.begin-key-rotation", "machine.key-rotation-begun");
    let (before, after) = (json!({"key": machine.current_key}), json!({"key": key}));
    announce(tx, clock, origin, machine, what, (before, after)).await?;
    Ok(Ok(()))
}

/// Supersedes the current key by the next one, which has just signed a check-in, with the machine's rows held.
pub(crate) async fn complete(
    tx: &mut Transaction,
    clock: &dyn Clock,
    origin: &Origin,
    machine: &Identity,
    next: KeyThumbprint,
) -> Result<(), StoreError> {
    let now = clock.now();
    machines::keys::rotate(tx, machine.id, next, now).await?;
    certificates::revoke(tx, machine.id, Revoked::OfKey(machine.current_key), SUPERSEDED, now).await?;
    let assurance = drop_attestation(tx, machine).await?;
    machines::record::rotate_key(tx, machine.id, next).await?;
    machines::presence::rotate_key(tx, machine.id, next).await?;
    let what = ("machine.rotate-key", "machine.key-rotated");
    let before = json!({"key": machine.current_key, "assurance": machine.assurance});
    let after = json!({"key": next, "assurance": assurance});
    announce(tx, clock, origin, machine, what, (before, after)).await
}

/// Apple vouched for the old key alone. What else stands behind the serial number stays; the level that follows.
async fn drop_attestation(tx: &mut Transaction, machine: &Identity) -> Result<Assurance, StoreError> {
    if machine.grounds.attestation.is_none() {
        return Ok(machine.assurance);
    }
    let rest = machine.grounds.without_attestation();
    machines::grounds::set(tx, machine.id, rest).await?;
    Ok(rest.assurance())
}

async fn announce(
    tx: &mut Transaction,
    clock: &dyn Clock,
    origin: &Origin,
    machine: &Identity,
    (action, event): (&'static str, &str),
    (before, after): (Value, Value),
) -> Result<(), StoreError> {
    let detail = json!({"before": before, "after": after});
    events::insert(tx, clock, machine.id, event, detail).await?;
    let change = Change::new(action, "machine", machine.id).before(before).after(after);
    audit_entries::insert(tx, clock, origin, change).await
}
