//! A machine replaces its key. The next key is let in by the current one and serves beside it; its first check-in
//! supersedes the other. So a crash of either side, at any step, leaves the machine with a key that serves.

use assay_protocol::{KeyThumbprint, PublicKey, admin_api::certificates::RevocationReason, machine::Assurance};
use serde_json::{Value, json};

use super::admission::Admitted;
use crate::{
    changes::{Action, Change, EventKind},
    store::{
        StoreError, Transaction,
        certificates::{self, Revoked},
        machines::{self, keys::KeyStatus, presence::LockedMachine, record::Identity},
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

/// Lets a key in beside the one that signed. Repeated, it changes nothing; begun anew with another key, the one that never
/// checked in goes.
pub(crate) async fn begin(
    tx: &mut Transaction,
    admitted: &Admitted,
    next: &PublicKey,
) -> Result<Result<(), RotationRefusal>, StoreError> {
    let (machine, locked) = (&admitted.identity, &admitted.presence.machine);
    let (key, now) = (next.thumbprint(), tx.now());
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
    if let Some(abandoned) = machines::keys::supersede_next(tx, locked, now).await? {
        certificates::revoke(tx, locked, Revoked::OfKey(abandoned), SUPERSEDED, now).await?;
    }
    machines::keys::insert(tx, next, machine.id, (KeyStatus::Next, None), now).await?;
    let (before, after) = (json!({"key": machine.current_key}), json!({"key": key}));
    let what = (Action::MachineBeginKeyRotation, EventKind::MachineKeyRotationBegun);
    tx.record(change(machine, what, before, after)).await?;
    Ok(Ok(()))
}

/// Supersedes the current key by the next one, which has just signed a check-in.
pub(crate) async fn complete(tx: &mut Transaction, admitted: &Admitted, next: KeyThumbprint) -> Result<(), StoreError> {
    let (machine, locked) = (&admitted.identity, &admitted.presence.machine);
    let now = tx.now();
    machines::keys::rotate(tx, locked, next, now).await?;
    certificates::revoke(tx, locked, Revoked::OfKey(machine.current_key), SUPERSEDED, now).await?;
    let assurance = drop_attestation(tx, locked, machine).await?;
    machines::record::rotate_key(tx, locked, next).await?;
    machines::presence::rotate_key(tx, locked, next).await?;
    let before = json!({"key": machine.current_key, "assurance": machine.assurance});
    let after = json!({"key": next, "assurance": assurance});
    let what = (Action::MachineRotateKey, EventKind::MachineKeyRotated);
    tx.record(change(machine, what, before, after)).await
}

/// Apple vouched for the old key alone. What else stands behind the serial number stays; the level that follows.
async fn drop_attestation(
    tx: &mut Transaction,
    locked: &LockedMachine,
    machine: &Identity,
) -> Result<Assurance, StoreError> {
    if machine.grounds.attestation.is_none() {
        return Ok(machine.assurance);
    }
    let rest = machine.grounds.without_attestation();
    machines::grounds::set(tx, locked, rest).await?;
    Ok(rest.assurance())
}

fn change(machine: &Identity, (action, event): (Action, EventKind), before: Value, after: Value) -> Change {
    let detail = json!({"before": before, "after": after});
    Change::new(action, machine.id)
        .before(before)
        .after(after)
        .event(machine.id, event, detail)
}
