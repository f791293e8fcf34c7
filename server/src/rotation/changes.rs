//! The steps of rotation. Each runs in a transaction that has the duty.

use assay_authority::{PrivateKey, issuing, key_identifier, validity};
use assay_protocol::text::rfc3339;
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    RotationError, Rotator,
    cross_certificates::{self, Given},
    keys,
    steps::{GRANT_KEY_RETENTION, Keys, RETENTION, Step},
};
use crate::{
    changes::{Action, Change},
    keyring::{KeyringError, certificate},
    store::{
        StoreError, Transaction,
        duties::{self, Duty},
        revocation_lists,
        sealed_keys::{self, KeyPurpose, KeyState, SealedKey},
        settings,
    },
};

/// The root of the next issuing CA.
#[derive(Debug, Clone, Copy)]
pub(super) enum NextRoot<'a> {
    /// The present one, unless it would shorten the CA's validity.
    Present,
    /// A new one. If the present one is external, its owner has issued this cross-certificate.
    New(Option<&'a [u8]>),
}

/// Takes the first due step; `false` if no step is due.
pub(super) async fn take_step(tx: &mut Transaction, rotator: &Rotator<'_>) -> Result<bool, RotationError> {
    let keys = lock(tx).await?;
    let Some(step) = keys.next_step(rotator.policy, tx.now()) else {
        return Ok(false);
    };
    match step {
        Step::Prepare(KeyPurpose::GrantSigning) => prepare_grant_key(tx, rotator).await.map(drop)?,
        Step::Prepare(_) => prepare_issuing(tx, rotator, &keys, NextRoot::Present).await.map(drop)?,
        Step::Activate(id) => activate(tx, rotator, &keys, id).await?,
        Step::Retire(id) => retire(tx, &keys, id).await?,
        Step::RemoveCrossCertificate(id) => cross_certificates::remove(tx, &keys, id).await?,
    }
    tracing::info!(?step, "changed a key of the authority");
    Ok(true)
}

/// Locks the keys against other changes until the end of the transaction, and reads them.
pub(super) async fn lock(tx: &mut Transaction) -> Result<Keys, RotationError> {
    duties::wait_for(tx, Duty::RotateKeys).await?;
    let keys = keys::read(tx).await?;
    match keys.keys.is_empty() {
        true => Err(RotationError::NotBootstrapped),
        false => Ok(keys),
    }
}

/// Creates the next issuing CA. Also creates a new root if one is requested, or if the current root would shorten the
/// CA's validity.
pub(super) async fn prepare_issuing(
    tx: &mut Transaction,
    rotator: &Rotator<'_>,
    keys: &Keys,
    next_root: NextRoot<'_>,
) -> Result<SealedKey, RotationError> {
    let (now, policy) = (tx.now(), rotator.policy);
    let current = keys.find(KeyPurpose::IssuingCa, KeyState::Current);
    let current = current.ok_or(RotationError::NotBootstrapped)?;
    let current_root = keys.root_of(current).ok_or(RotationError::NotBootstrapped)?;
    let is_cut_short = validity(certificate(current_root)?)?.1 < issuing::full_life_end(now + policy.overlap(true));
    let next_root = match next_root {
        NextRoot::Present if is_cut_short => NextRoot::New(None),
        chosen => chosen,
    };
    let signs_from = signs_from(current, now, policy.overlap(matches!(next_root, NextRoot::New(_))))?;
    let (root_id, root) = match next_root {
        NextRoot::Present => (current_root.id, rotator.keyring.certified_key(current_root)?),
        NextRoot::New(pem) => {
            let root = new_root(tx, rotator, keys, signs_from).await?;
            let given = Given { pem, cas_below: 1 };
            cross_certificates::certify(tx, rotator, keys, (current_root, &root), given).await?;
            (root.id, rotator.keyring.certified_key(&root)?)
        }
    };
    let made = issuing::generate_issuing(&root, &policy.installation, now)?;
    let secret = made.key.pkcs8_der();
    let keyring = rotator.keyring;
    let mut key = keyring.seal(tx.clock(), KeyPurpose::IssuingCa, secret, Some(&made.certificate))?;
    key.root_id = Some(root_id);
    insert_next(tx, key, signs_from).await
}

/// Creates the next grant key.
pub(super) async fn prepare_grant_key(tx: &mut Transaction, rotator: &Rotator<'_>) -> Result<SealedKey, RotationError> {
    let secret = PrivateKey::generate()?;
    let key = (rotator.keyring).seal(tx.clock(), KeyPurpose::GrantSigning, secret.pkcs8_der(), None)?;
    let signs_from = tx.now() + rotator.policy.grant_key_overlap;
    insert_next(tx, key, signs_from).await
}

/// When the next issuing CA starts to sign. It cannot wait for the overlap if the current one expires before that.
pub(super) fn signs_from(
    current: &SealedKey,
    now: OffsetDateTime,
    overlap: time::Duration,
) -> Result<OffsetDateTime, KeyringError> {
    let end = validity(certificate(current)?)?.1;
    Ok((now + overlap).min(end.max(now)))
}

/// Stores a change of a key, with its audit entry.
pub(super) async fn update(
    tx: &mut Transaction,
    action: Action,
    before: &SealedKey,
    after: &SealedKey,
) -> Result<(), RotationError> {
    sealed_keys::update(tx, after).await?;
    let change = Change::new(action, after.id).before(shown(before)).after(shown(after));
    Ok(written(tx, change).await?)
}

/// Stores a new key, with its audit entry.
pub(super) async fn insert(tx: &mut Transaction, action: Action, key: &SealedKey) -> Result<(), RotationError> {
    let now = tx.now();
    sealed_keys::insert(tx, key, now).await?;
    let change = Change::new(action, key.id).after(shown(key));
    Ok(written(tx, change).await?)
}

/// A key as the audit entry shows it.
fn shown(key: &SealedKey) -> Value {
    // An external root may have none.
    let identifier = key
        .certificate
        .as_deref()
        .and_then(|certificate| key_identifier(certificate).ok());
    let identifier = identifier.map(hex::encode);
    let [signs_from, withdrawn_at] = [key.signs_from, key.withdrawn_at].map(|time| time.map(rfc3339));
    json!({
        "purpose": key.purpose, "state": key.state, "key_identifier": identifier, "root_id": key.root_id,
        "signs_from": signs_from, "withdrawn_at": withdrawn_at,
    })
}

/// The root whose CSR was printed, if there is one: the owner of the present root has certified it.
async fn new_root(
    tx: &mut Transaction,
    rotator: &Rotator<'_>,
    keys: &Keys,
    signs_from: OffsetDateTime,
) -> Result<SealedKey, RotationError> {
    if let Some(requested) = keys.find(KeyPurpose::RootCa, KeyState::Requested) {
        let next = SealedKey {
            state: KeyState::Next,
            signs_from: Some(signs_from),
            ..requested.clone()
        };
        update(tx, Action::KeyPrepare, requested, &next).await?;
        return Ok(next);
    }
    let key = generated_root(tx, rotator)?;
    insert_next(tx, key, signs_from).await
}

/// A new root of this server's own.
pub(super) fn generated_root(tx: &Transaction, rotator: &Rotator<'_>) -> Result<SealedKey, RotationError> {
    let root = issuing::generate_root(&rotator.policy.installation.trust_domain, tx.now())?;
    let (keyring, secret) = (rotator.keyring, root.key.pkcs8_der());
    Ok(keyring.seal(tx.clock(), KeyPurpose::RootCa, secret, Some(&root.certificate))?)
}

async fn insert_next(
    tx: &mut Transaction,
    key: SealedKey,
    signs_from: OffsetDateTime,
) -> Result<SealedKey, RotationError> {
    let key = SealedKey {
        state: KeyState::Next,
        signs_from: Some(signs_from),
        ..key
    };
    insert(tx, Action::KeyPrepare, &key).await?;
    Ok(key)
}

/// Makes a next key the current one.
async fn activate(tx: &mut Transaction, rotator: &Rotator<'_>, keys: &Keys, id: Uuid) -> Result<(), RotationError> {
    let Some(next) = keys.get(id) else { return Ok(()) };
    if let Some(root) = keys.root_of(next).filter(|root| root.state != KeyState::Current) {
        replace(tx, rotator, keys, root).await?;
    }
    replace(tx, rotator, keys, next).await
}

/// The order matters: a purpose never has two current keys.
async fn replace(
    tx: &mut Transaction,
    rotator: &Rotator<'_>,
    keys: &Keys,
    by: &SealedKey,
) -> Result<(), RotationError> {
    let now = tx.now();
    if let Some(current) = keys.find(by.purpose, KeyState::Current) {
        let lingers = match by.purpose {
            KeyPurpose::GrantSigning => rotator.policy.longest_token_lifetime() + GRANT_KEY_RETENTION,
            KeyPurpose::IssuingCa | KeyPurpose::RootCa | KeyPurpose::Nonce => RETENTION,
        };
        let previous = SealedKey {
            state: KeyState::Previous,
            retires_at: Some(now + lingers),
            ..current.clone()
        };
        update(tx, Action::KeySupersede, current, &previous).await?;
    }
    let current = SealedKey {
        state: KeyState::Current,
        signs_from: Some(now),
        retires_at: None,
        ..by.clone()
    };
    update(tx, Action::KeyActivate, by, &current).await
}

/// Retires a key, and erases its private key so that it cannot leak later.
async fn retire(tx: &mut Transaction, keys: &Keys, id: Uuid) -> Result<(), RotationError> {
    let Some(previous) = keys.get(id) else { return Ok(()) };
    let retired = SealedKey {
        state: KeyState::Retired,
        sealed: None,
        retired_at: Some(tx.now()),
        ..previous.clone()
    };
    revocation_lists::remove(tx, id).await?;
    update(tx, Action::KeyRetire, previous, &retired).await
}

/// Records a change of the authority, which every replica then reads.
pub(super) async fn written(tx: &mut Transaction, change: Change) -> Result<(), StoreError> {
    settings::bump_authority_version(tx).await?;
    tx.record(change).await
}
