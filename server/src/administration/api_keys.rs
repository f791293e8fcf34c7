//! Creating, listing and revoking API keys.

use assay_protocol::admin_api::api_keys::{ApiKey, CreateApiKey};
use secrecy::{ExposeSecret, SecretString};
use time::Duration;
use uuid::Uuid;

use crate::{
    changes::{Action, Change, Origin},
    secrets::{self, API_KEY_PREFIX, SecretHash},
    store::{self, Store, StoreError, Transaction, tx},
};

const LONGEST_NAME: usize = 200;
/// Ten years. A key that never expires leaves the member out.
const LONGEST_LIFE_SECONDS: u64 = 10 * 365 * 24 * 60 * 60;

/// Why nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum ApiKeyError {
    /// The audit log could not show this name.
    #[error("name must have 1 to {LONGEST_NAME} characters, without control characters")]
    Name,
    /// The lifetime is zero or too long.
    #[error("expires_in_seconds must be from 1 to {LONGEST_LIFE_SECONDS}")]
    Life,
    /// No key has this id, or it was revoked before.
    #[error("there is no such API key, or it is already revoked")]
    Unknown,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

crate::store::has_store_error!(ApiKeyError);

/// Creates a key, and returns it with its secret. The server stores only the secret's hash.
pub(crate) async fn create(
    store: &Store,
    origin: &Origin,
    request: &CreateApiKey,
) -> Result<(ApiKey, SecretString), ApiKeyError> {
    let now = store.now();
    let key = ApiKey {
        id: store.new_id(),
        name: checked_name(&request.name)?,
        role: request.role,
        created_at: now,
        expires_at: request
            .expires_in_seconds
            .map(checked_life)
            .transpose()?
            .map(|life| now + life),
        revoked_at: None,
    };
    let secret = secrets::generate(API_KEY_PREFIX);
    let hash = SecretHash::of(secret.expose_secret());
    tx!(store, CreateApiKey, origin => insert(&key, hash)).await?;
    Ok((key, secret))
}

/// A page of keys, oldest first.
pub(crate) async fn list(store: &Store, after: Option<Uuid>, rows: i64) -> Result<Vec<ApiKey>, ApiKeyError> {
    Ok(store::api_keys::list(&mut *store.connection().await?, after, rows).await?)
}

/// Revokes a key. A key can be revoked once.
pub(crate) async fn revoke(store: &Store, origin: &Origin, id: Uuid) -> Result<(), ApiKeyError> {
    tx!(store, RevokeApiKey, origin => revoke_once(id)).await
}

async fn insert(tx: &mut Transaction, key: &ApiKey, secret: SecretHash) -> Result<(), ApiKeyError> {
    store::api_keys::insert(tx, key, secret).await?;
    let change = Change::new(Action::ApiKeyCreate, key.id).after(store::json(key)?);
    Ok(tx.record(change).await?)
}

async fn revoke_once(tx: &mut Transaction, id: Uuid) -> Result<(), ApiKeyError> {
    let before = store::api_keys::lock(tx, id).await?.ok_or(ApiKeyError::Unknown)?;
    // A second `DELETE` of the same resource is `not-found`, although lists still show the record.
    if before.revoked_at.is_some() {
        return Err(ApiKeyError::Unknown);
    }
    let now = tx.now();
    let after = ApiKey {
        revoked_at: Some(now),
        ..before.clone()
    };
    store::api_keys::revoke(tx, id, now).await?;
    let change = Change::new(Action::ApiKeyRevoke, id)
        .before(store::json(&before)?)
        .after(store::json(&after)?);
    Ok(tx.record(change).await?)
}

fn checked_name(name: &str) -> Result<String, ApiKeyError> {
    let name = name.trim();
    if name.is_empty() || name.chars().count() > LONGEST_NAME || name.chars().any(char::is_control) {
        return Err(ApiKeyError::Name);
    }
    Ok(name.to_owned())
}

fn checked_life(seconds: u64) -> Result<Duration, ApiKeyError> {
    if !(1..=LONGEST_LIFE_SECONDS).contains(&seconds) {
        return Err(ApiKeyError::Life);
    }
    i64::try_from(seconds)
        .map(Duration::seconds)
        .map_err(|_| ApiKeyError::Life)
}
