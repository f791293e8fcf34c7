//! Rotation by an administrator.

use assay_authority::key_identifier;

use super::{
    RotationError, Rotator,
    changes::{self, NextRoot},
};
use crate::{
    changes::Origin,
    keyring::certificate,
    store::{
        Store, Transaction,
        sealed_keys::{KeyPurpose, KeyState, SealedKey},
        tx,
    },
};

/// The key to replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted<'a> {
    IssuingCa,
    /// This server's own root, with an issuing CA under it. The owner of an external present root issues its
    /// cross-certificate.
    RootCa(Option<&'a [u8]>),
    GrantKey,
}

/// The key that will sign next.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) key: SealedKey,
    /// Whether this call prepared it. It is `false` for the later of two concurrent calls, and for a repetition after a
    /// lost response.
    pub(crate) is_new: bool,
}

/// Prepares the next key. A key that is already prepared stays.
pub(crate) async fn rotate(
    store: &Store,
    rotator: &Rotator<'_>,
    origin: &Origin,
    wanted: Wanted<'_>,
) -> Result<Prepared, RotationError> {
    tx!(store, PrepareKey, origin => prepare(rotator, wanted)).await
}

async fn prepare(tx: &mut Transaction, rotator: &Rotator<'_>, wanted: Wanted<'_>) -> Result<Prepared, RotationError> {
    let keys = changes::lock(tx).await?;
    let purpose = match wanted {
        Wanted::GrantKey => KeyPurpose::GrantSigning,
        Wanted::IssuingCa | Wanted::RootCa(_) => KeyPurpose::IssuingCa,
    };
    if let Some(next) = keys.find(purpose, KeyState::Next) {
        let has_new_root = keys
            .root_of(next)
            .is_some_and(|root| root.state == KeyState::Next && root.sealed.is_some());
        if matches!(wanted, Wanted::RootCa(_)) && !has_new_root {
            return Err(already_prepared(next)?);
        }
        return Ok(Prepared {
            key: next.clone(),
            is_new: false,
        });
    }
    let key = match wanted {
        Wanted::GrantKey => changes::prepare_grant_key(tx, rotator).await?,
        Wanted::RootCa(pem) => changes::prepare_issuing(tx, rotator, &keys, NextRoot::New(pem)).await?,
        Wanted::IssuingCa => {
            let current = keys.find(KeyPurpose::IssuingCa, KeyState::Current);
            let root = current.and_then(|current| keys.root_of(current));
            if root.is_some_and(|root| root.sealed.is_none()) {
                return Err(RotationError::ExternalRoot);
            }
            changes::prepare_issuing(tx, rotator, &keys, NextRoot::Present).await?
        }
    };
    Ok(Prepared { key, is_new: true })
}

/// The error for a next CA that is already prepared.
pub(super) fn already_prepared(next: &SealedKey) -> Result<RotationError, RotationError> {
    Ok(RotationError::UnderWay {
        key_identifier: hex::encode(key_identifier(certificate(next)?)?),
        signs_from: next.signs_from.ok_or(RotationError::NotBootstrapped)?,
    })
}
