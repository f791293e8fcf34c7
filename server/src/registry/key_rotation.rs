//! A machine replaces its key. The next key is valid beside the current one, and its first check-in supersedes the
//! current one. A crash of either side, at any step, leaves the machine with a valid key.

use assay_protocol::{KeyThumbprint, PublicKey, admin_api::certificates::RevocationReason, machine::KeyStoreKind};
use serde_json::{Value, json};
use uuid::Uuid;

use super::admission::Admitted;
use crate::{
    changes::{Action, Change, EventKind},
    machines::assurance::Grounds,
    store::{
        StoreError, Transaction,
        certificates::{self, Revoked},
        machines::{
            self,
            keys::{GroundOfNext, KeyStatus},
            presence::LockedMachine,
        },
    },
};

/// The reason of RFC 5280 for the certificates of a key that another one replaces.
const SUPERSEDED: RevocationReason = RevocationReason::Superseded;
/// Why a next key that never checked in is denied.
const REPLACED: &str = "another next key took its place";

/// Why a key does not become a machine's next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RotationRefusal {
    #[error("the CSR's key is another machine's")]
    OtherMachinesKey,
    #[error("the CSR's key was this machine's before; a rotation needs a new one")]
    UsedBefore,
    #[error("the CSR's key already waits for this machine's record as a re-enrollment")]
    Reenrolls,
    #[error("the evidence is signed by a next key, which must check in before another key can follow it")]
    Unfinished,
}

/// The key that becomes the next one.
#[derive(Debug, Clone, Copy)]
pub(crate) enum NextKey<'a> {
    New(&'a PublicKey),
    /// It is on record, and was pending until now.
    Waited(KeyThumbprint),
}

/// Admits a next key beside the current one. An earlier next key that never checked in is denied.
///
/// It is not superseded, because it was never the machine's key. Its agent then goes back to the current key, and its
/// evidence is not taken for a copy's.
///
/// Without a ground of its own, the next key inherits the grounds of the current key.
pub(crate) async fn begin(
    tx: &mut Transaction,
    (machine, current_key): (&LockedMachine, KeyThumbprint),
    next: NextKey<'_>,
    ground: Option<GroundOfNext>,
) -> Result<(), StoreError> {
    let now = tx.now();
    if let Some(abandoned) = machines::keys::deny_next(tx, machine, REPLACED, now).await? {
        certificates::revoke(tx, machine, Revoked::OfKey(abandoned), SUPERSEDED, now).await?;
    }
    let key = match next {
        NextKey::New(public_key) => {
            machines::keys::insert(tx, public_key, machine.id(), (KeyStatus::Next, None), now).await?;
            public_key.thumbprint()
        }
        NextKey::Waited(key) => {
            machines::keys::make_next(tx, key).await?;
            key
        }
    };
    if let Some(ground) = ground {
        machines::keys::set_ground_of_next(tx, key, ground).await?;
    }
    let (before, after) = (json!({"key": current_key}), json!({"key": key}));
    let what = (Action::MachineBeginKeyRotation, EventKind::MachineKeyRotationBegun);
    tx.record(change(machine.id(), what, before, after)).await
}

/// Supersedes the current key by the next one, which has just signed a check-in.
pub(crate) async fn complete(tx: &mut Transaction, admitted: &Admitted, next: KeyThumbprint) -> Result<(), StoreError> {
    let (machine, locked) = (&admitted.identity, &admitted.presence.machine);
    let now = tx.now();
    let own = machines::keys::ground_of_next(tx, next).await?;
    let replaced = machines::keys::find(tx, machine.current_key).await?;
    let inherits = replaced.is_some_and(|key| key.store == Some(KeyStoreKind::Software));
    machines::keys::rotate(tx, locked, next, now).await?;
    certificates::revoke(tx, locked, Revoked::OfKey(machine.current_key), SUPERSEDED, now).await?;
    if machine.grounds.attestation.is_some() {
        // Before the key: the database rejects `attested` for a key without an attestation.
        machines::grounds::set(tx, locked, machine.grounds.inherited()).await?;
    }
    machines::record::rotate_key(tx, locked, next).await?;
    machines::presence::rotate_key(tx, locked, next).await?;
    // After the key: a trigger removes from the record what belonged only to the old key.
    let grounds = grounds_of(machine.grounds, own, inherits);
    machines::grounds::set(tx, locked, grounds).await?;
    let before = json!({"key": machine.current_key, "assurance": machine.assurance});
    let after = json!({"key": next, "assurance": grounds.assurance()});
    let what = (Action::MachineRotateKey, EventKind::MachineKeyRotated);
    tx.record(change(machine.id, what, before, after)).await
}

/// The grounds of the next key when it becomes the current one. Apple attested only the old key.
///
/// An earlier version let a key follow one of the Secure Enclave without a ground of its own. Such a key gets none here.
fn grounds_of(current: Grounds, own: Option<GroundOfNext>, inherits: bool) -> Grounds {
    let inherited = current.inherited();
    match own {
        None if inherits => inherited,
        None => Grounds::default(),
        Some(own) => Grounds {
            token: own.token,
            approval: own.approval,
            of_key: own.of_key,
            ..inherited
        },
    }
}

fn change(machine_id: Uuid, (action, event): (Action, EventKind), before: Value, after: Value) -> Change {
    let detail = json!({"before": before, "after": after});
    Change::new(action, machine_id)
        .before(before)
        .after(after)
        .event(machine_id, event, detail)
}
