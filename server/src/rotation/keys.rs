//! Reads the keys that are not retired, and builds the authority from them.

use assay_authority::{Authority, AuthorityParts, Installation, IssuingParts, Root, key_identifier};
use uuid::Uuid;

use super::steps::Keys;
use crate::{
    keyring::{Keyring, KeyringError, certificate},
    store::{
        Connection, StoreError, cross_certificates,
        sealed_keys::{self, KeyPurpose, KeyState, SealedKey},
        settings,
    },
};

impl Keyring {
    /// Builds the authority from the keys of this version.
    pub(super) fn authority(
        &self,
        version: i64,
        keys: &Keys,
        installation: &Installation,
    ) -> Result<Authority, KeyringError> {
        let of = |purpose, state| {
            keys.keys
                .iter()
                .filter(move |key| key.purpose == purpose && key.state == state)
        };
        let published = |purpose| {
            let states = [KeyState::Current, KeyState::Next, KeyState::Previous].into_iter();
            states.flat_map(move |state| of(purpose, state))
        };
        let grant_key = of(KeyPurpose::GrantSigning, KeyState::Current).next();
        let grant_key = grant_key.ok_or_else(|| KeyringError::Missing(KeyPurpose::GrantSigning.as_str()))?;
        let parts = AuthorityParts {
            version,
            issuing: published(KeyPurpose::IssuingCa)
                .map(|ca| self.issuing_parts(ca))
                .collect::<Result<_, _>>()?,
            roots: published(KeyPurpose::RootCa).map(root).collect::<Result<_, _>>()?,
            cross_certificates: (keys.cross_certificates.iter())
                .map(|cross| cross.certificate.clone())
                .collect(),
            withdrawn: keys.withdrawn.clone(),
            grant_key: self.private_key(grant_key)?,
            other_grant_keys: published(KeyPurpose::GrantSigning)
                .map(|key| Ok(self.private_key(key)?.public_key().clone()))
                .collect::<Result<_, KeyringError>>()?,
        };
        // `published` starts with the current key, so a missing current key would let another take its place.
        if of(KeyPurpose::IssuingCa, KeyState::Current).next().is_none() {
            return Err(KeyringError::Missing(KeyPurpose::IssuingCa.as_str()));
        }
        Ok(Authority::from_parts(&parts, installation)?)
    }

    fn issuing_parts(&self, ca: &SealedKey) -> Result<IssuingParts, KeyringError> {
        Ok(IssuingParts {
            id: ca.id,
            ca: self.certified_key(ca)?,
            intermediates: ca.intermediates.clone(),
        })
    }
}

/// Reads the keys that are not retired.
pub(super) async fn read(connection: &mut Connection) -> Result<Keys, StoreError> {
    let mut keys = sealed_keys::list(connection).await?;
    // A retired one can still be abused: its certificate may be valid for a year.
    let withdrawn = keys.iter().filter(|key| key.withdrawn_at.is_some());
    let withdrawn = withdrawn.filter_map(|key| key_identifier(key.certificate.as_deref()?).ok());
    let withdrawn = withdrawn.collect();
    keys.retain(|key| key.state != KeyState::Retired);
    let mut last_expiries = std::collections::BTreeMap::<Uuid, _>::new();
    for key in &keys {
        if key.purpose == KeyPurpose::IssuingCa
            && key.state == KeyState::Previous
            && let Some(end) = sealed_keys::last_expiry(connection, key.id).await?
        {
            last_expiries.insert(key.id, end);
        }
    }
    Ok(Keys {
        keys,
        last_expiries,
        cross_certificates: cross_certificates::list(connection).await?,
        withdrawn,
    })
}

/// Also reads their version, in the same snapshot.
pub(super) async fn read_with_version(connection: &mut Connection) -> Result<(i64, Keys), StoreError> {
    let version = settings::authority_version(connection).await?;
    Ok((version, read(connection).await?))
}

fn root(key: &SealedKey) -> Result<Root, KeyringError> {
    Ok(Root {
        id: key.id,
        certificate: certificate(key)?.to_vec(),
        is_ours: key.sealed.is_some(),
    })
}
