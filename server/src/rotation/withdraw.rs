//! An administrator withdraws an issuing CA whose key may be stolen. Agents refuse it from their next call on, and the
//! root's revocation list names it.

use assay_authority::{key_identifier, serial_number};
use serde_json::json;
use uuid::Uuid;

use super::{RotationError, changes};
use crate::{
    changes::{Action, EventKind, Origin},
    keyring::certificate,
    store::{
        Store, Transaction, revocation_lists,
        sealed_keys::{self, KeyPurpose, KeyState, SealedKey},
        tx,
    },
};

/// A withdrawn issuing CA.
#[derive(Debug)]
pub(crate) struct Withdrawn {
    pub(crate) key: SealedKey,
    /// Whether this call withdrew it.
    pub(crate) is_new: bool,
}

/// Withdraws the issuing CA with this subject key identifier in hex. It must have been replaced, because a withdrawn CA
/// signs nothing. Repeating the call changes nothing.
pub(crate) async fn withdraw(store: &Store, origin: &Origin, identifier: &str) -> Result<Withdrawn, RotationError> {
    tx!(store, WithdrawCa, origin => withdraw_in(identifier)).await
}

async fn withdraw_in(tx: &mut Transaction, identifier: &str) -> Result<Withdrawn, RotationError> {
    let _locked = changes::lock(tx).await?;
    let keys = sealed_keys::list(tx).await?;
    let key = find(&keys, identifier).ok_or_else(|| RotationError::UnknownIssuer(identifier.to_owned()))?;
    if key.withdrawn_at.is_some() {
        return Ok(Withdrawn {
            key: key.clone(),
            is_new: false,
        });
    }
    if !matches!(key.state, KeyState::Previous | KeyState::Retired) {
        return Err(RotationError::NotReplaced(identifier.to_owned()));
    }
    let withdrawn = SealedKey {
        withdrawn_at: Some(tx.now()),
        ..key.clone()
    };
    changes::update(tx, Action::KeyWithdraw, key, &withdrawn).await?;
    let detail = json!({"key_identifier": hex::encode(key_identifier(certificate(key)?)?)});
    tx.announce_apart(EventKind::IssuingCaWithdrawn, detail).await?;
    if let Some(root_id) = root_with_list(&keys, key) {
        let serial_number = hex::encode(serial_number(certificate(key)?)?);
        revocation_lists::wait_for(tx, root_id, &serial_number).await?;
    }
    Ok(Withdrawn {
        key: withdrawn,
        is_new: true,
    })
}

fn find<'a>(keys: &'a [SealedKey], identifier: &str) -> Option<&'a SealedKey> {
    let identifier = hex::decode(identifier).ok()?;
    let mut cas = keys.iter().filter(|key| key.purpose == KeyPurpose::IssuingCa);
    cas.find(|ca| {
        let certificate = ca.certificate.as_deref();
        certificate.is_some_and(|certificate| key_identifier(certificate).is_ok_and(|own| own == identifier))
    })
}

/// The CA's root, if this server signs its list.
fn root_with_list(keys: &[SealedKey], ca: &SealedKey) -> Option<Uuid> {
    let root = keys.iter().find(|key| Some(key.id) == ca.root_id)?;
    root.sealed.is_some().then_some(root.id)
}
