//! An issuing CA under an external root: its CSR, and the chain that the root's owner returns. Also the CSR of this
//! server's next root, for the owner of an external present one.

use assay_authority::{
    ExternalChain, PrivateKey,
    external_chain::{self, Terms},
    issuing, key_identifier,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use time::OffsetDateTime;

use super::{
    RotationError, Rotator,
    changes::{self, lock},
    cross_certificates::{Given, certify},
    rotate::{Prepared, already_prepared},
    steps::Keys,
};
use crate::{
    changes::{Action, Origin},
    keyring::certificate,
    store::{
        Store, Transaction,
        sealed_keys::{KeyPurpose, KeyState, SealedKey},
        tx,
    },
};

/// Returns the CSR of the pending key, and creates the key if there is none. Repeating the call returns a CSR for the
/// same key.
pub(crate) async fn request(store: &Store, rotator: &Rotator<'_>, origin: &Origin) -> Result<String, RotationError> {
    let key = tx!(store, RequestCa, origin => requested(rotator)).await?;
    let private_key = rotator.keyring.private_key(&key)?;
    Ok(issuing::issuing_request(
        &private_key,
        &rotator.policy.installation.trust_domain,
    )?)
}

/// Returns the CSR of this server's next root, and creates the root if none is pending. `ca rotate --root` then takes
/// this root. Repeating the call returns a CSR for the same key.
pub(crate) async fn request_root(
    store: &Store,
    rotator: &Rotator<'_>,
    origin: &Origin,
) -> Result<String, RotationError> {
    let key = tx!(store, RequestCa, origin => requested_root(rotator)).await?;
    let root = rotator.keyring.certified_key(&key)?;
    Ok(issuing::root_request(&root, &rotator.policy.installation.trust_domain)?)
}

/// Installs the chain that an external root issued for the CSR. The CA issues after the overlap. Repeating the call
/// changes nothing.
///
/// If the chain ends at another root than the present one, and the present one is external too, its owner must have
/// issued the cross-certificate.
pub(crate) async fn install(
    store: &Store,
    rotator: &Rotator<'_>,
    origin: &Origin,
    (chain, cross_certificate): (&[u8], Option<&[u8]>),
) -> Result<Prepared, RotationError> {
    tx!(store, InstallCa, origin => install_in(rotator, chain, cross_certificate)).await
}

async fn requested(tx: &mut Transaction, rotator: &Rotator<'_>) -> Result<SealedKey, RotationError> {
    let keys = lock(tx).await?;
    if let Some(key) = keys.find(KeyPurpose::IssuingCa, KeyState::Requested) {
        return Ok(key.clone());
    }
    let secret = PrivateKey::generate()?;
    let key = (rotator.keyring).seal(tx.clock(), KeyPurpose::IssuingCa, secret.pkcs8_der(), None)?;
    let key = SealedKey {
        state: KeyState::Requested,
        signs_from: None,
        ..key
    };
    changes::insert(tx, Action::KeyRequest, &key).await?;
    Ok(key)
}

async fn requested_root(tx: &mut Transaction, rotator: &Rotator<'_>) -> Result<SealedKey, RotationError> {
    let keys = lock(tx).await?;
    if let Some(key) = keys.find(KeyPurpose::RootCa, KeyState::Requested) {
        return Ok(key.clone());
    }
    let key = SealedKey {
        state: KeyState::Requested,
        signs_from: None,
        ..changes::generated_root(tx, rotator)?
    };
    changes::insert(tx, Action::KeyRequest, &key).await?;
    Ok(key)
}

async fn install_in(
    tx: &mut Transaction,
    rotator: &Rotator<'_>,
    chain: &[u8],
    cross_certificate: Option<&[u8]>,
) -> Result<Prepared, RotationError> {
    let keys = lock(tx).await?;
    let Some(requested) = keys.find(KeyPurpose::IssuingCa, KeyState::Requested) else {
        let installed = installed_before(&keys, chain).ok_or(RotationError::NothingRequested)?;
        return Ok(Prepared {
            key: installed.clone(),
            is_new: false,
        });
    };
    if let Some(next) = keys.find(KeyPurpose::IssuingCa, KeyState::Next) {
        return Err(already_prepared(next)?);
    }
    let now = tx.now();
    let terms = Terms {
        key: &rotator.keyring.private_key(requested)?,
        now,
        until: now + rotator.policy.overlap(true) + rotator.policy.certificate_ttl,
        installation: &rotator.policy.installation,
    };
    let chain = external_chain::verify(chain, &terms)?;
    require_own_key_identifier(&keys, &chain)?;
    let known_root = known_root(&keys, &chain.root);
    let current = keys.find(KeyPurpose::IssuingCa, KeyState::Current);
    let current = current.ok_or(RotationError::NotBootstrapped)?;
    let present_root = keys.root_of(current).ok_or(RotationError::NotBootstrapped)?;
    let signs_from = changes::signs_from(current, now, rotator.policy.overlap(known_root.is_none()))?;
    let root = match known_root {
        Some(root) => root.clone(),
        None => insert_root(tx, requested, chain.root, signs_from).await?,
    };
    let given = Given {
        pem: cross_certificate,
        cas_below: 1 + chain.intermediates.len(),
    };
    certify(tx, rotator, &keys, (present_root, &root), given).await?;
    let next = SealedKey {
        state: KeyState::Next,
        certificate: Some(chain.certificate),
        intermediates: chain.intermediates,
        root_id: Some(root.id),
        signs_from: Some(signs_from),
        ..requested.clone()
    };
    changes::update(tx, Action::KeyInstall, requested, &next).await?;
    Ok(Prepared {
        key: next,
        is_new: true,
    })
}

/// Records a root elsewhere, whose private key this server does not have.
async fn insert_root(
    tx: &mut Transaction,
    requested: &SealedKey,
    certificate: Vec<u8>,
    signs_from: OffsetDateTime,
) -> Result<SealedKey, RotationError> {
    let root = SealedKey {
        id: tx.new_id(),
        purpose: KeyPurpose::RootCa,
        state: KeyState::Next,
        sealed: None,
        certificate: Some(certificate),
        signs_from: Some(signs_from),
        ..requested.clone()
    };
    changes::insert(tx, Action::KeyInstall, &root).await?;
    Ok(root)
}

/// The CA that an earlier call installed from this chain. The response to that call may have been lost.
fn installed_before<'a>(keys: &'a Keys, chain: &[u8]) -> Option<&'a SealedKey> {
    let first = CertificateDer::from_pem_slice(chain).ok()?;
    let mut cas = keys.keys.iter().filter(|key| key.purpose == KeyPurpose::IssuingCa);
    cas.find(|ca| ca.certificate.as_deref() == Some(first.as_ref()))
}

fn known_root<'a>(keys: &'a Keys, certificate: &[u8]) -> Option<&'a SealedKey> {
    let mut roots = keys.keys.iter().filter(|key| key.purpose == KeyPurpose::RootCa);
    roots.find(|root| root.certificate.as_deref() == Some(certificate))
}

/// Revocation lists and CA certificates are found by the key identifier, so two CAs must not share one.
fn require_own_key_identifier(keys: &Keys, chain: &ExternalChain) -> Result<(), RotationError> {
    let own = key_identifier(&chain.certificate)?;
    for key in keys.keys.iter().filter(|key| key.certificate.is_some()) {
        if key_identifier(certificate(key)?).is_ok_and(|other| other == own) {
            return Err(RotationError::KeyIdentifierTaken(hex::encode(own)));
        }
    }
    Ok(())
}
