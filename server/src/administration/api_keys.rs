//! API keys: made, listed, revoked.

use assay_protocol::admin_api::api_keys::{ApiKey, CreateApiKey};
use secrecy::{ExposeSecret, SecretString};
use time::Duration;
use uuid::Uuid;

use crate::{
    changes::{Change, Origin},
    clock::{self, Clock},
    secrets::{self, API_KEY_PREFIX, SecretHash},
    store::{self, AsStoreError, Store, StoreError, Transaction},
};

const LONGEST_NAME: usize = 200;
/// Ten years: longer is meant to be for ever, and is said by leaving the end out.
const LONGEST_LIFE_SECONDS: u64 = 10 * 365 * 24 * 60 * 60;

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum ApiKeyError {
    /// Nothing that an audit could show.
    #[error("name has to have from 1 to {LONGEST_NAME} characters, none of them a control character")]
    Name,
    /// No life, or for ever.
    #[error("expires_in_seconds has to be from 1 to {LONGEST_LIFE_SECONDS}")]
    Life,
    /// None of this id.
    #[error("there is no such API key, or it was revoked before")]
    Unknown,
    /// The database did not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AsStoreError for ApiKeyError {
    fn as_store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) => Some(error),
            _ => None,
        }
    }
}

/// Makes a key and returns it with its secret, which is not kept.
pub(crate) async fn create(
    store: &Store,
    clock: &dyn Clock,
    origin: &Origin,
    request: &CreateApiKey,
) -> Result<(ApiKey, SecretString), ApiKeyError> {
    let key = ApiKey {
        id: clock::new_id(clock),
        name: checked_name(&request.name)?,
        role: request.role,
        created_at: clock.now(),
        expires_at: request
            .expires_in_seconds
            .map(checked_life)
            .transpose()?
            .map(|life| clock.now() + life),
        revoked_at: None,
    };
    let secret = secrets::generate(API_KEY_PREFIX);
    let hash = SecretHash::of(secret.expose_secret());
    store
        .tx(
            "create an API key",
            &(clock, origin, &key, hash),
            |tx, &(clock, origin, key, hash)| Box::pin(insert(tx, clock, origin, key, hash)),
        )
        .await?;
    Ok((key, secret))
}

/// A page of keys, in the order in which they were made.
pub(crate) async fn list(store: &Store, after: Option<Uuid>, rows: i64) -> Result<Vec<ApiKey>, ApiKeyError> {
    Ok(store::api_keys::list(&mut *store.connection().await?, after, rows).await?)
}

/// Ends a key's service; one that has ended stays as it is.
pub(crate) async fn revoke(store: &Store, clock: &dyn Clock, origin: &Origin, id: Uuid) -> Result<(), ApiKeyError> {
    store
        .tx("revoke an API key", &(clock, origin, id), |tx, &(clock, origin, id)| {
            Box::pin(revoke_once(tx, clock, origin, id))
        })
        .await
}

async fn insert(
    tx: &mut Transaction,
    clock: &dyn Clock,
    origin: &Origin,
    key: &ApiKey,
    secret: SecretHash,
) -> Result<(), ApiKeyError> {
    store::api_keys::insert(tx, key, secret).await?;
    let change = Change::new("api-key.create", "api-key", key.id).after(store::json(key)?);
    Ok(store::audit_entries::insert(tx, clock, origin, change).await?)
}

async fn revoke_once(tx: &mut Transaction, clock: &dyn Clock, origin: &Origin, id: Uuid) -> Result<(), ApiKeyError> {
    let before = store::api_keys::lock(tx, id).await?.ok_or(ApiKeyError::Unknown)?;
    // As of everything that was deleted: the record is still listed, and there is no key of it any more.
    if before.revoked_at.is_some() {
        return Err(ApiKeyError::Unknown);
    }
    let after = ApiKey {
        revoked_at: Some(clock.now()),
        ..before.clone()
    };
    store::api_keys::revoke(tx, id, clock.now()).await?;
    let change = Change::new("api-key.revoke", "api-key", id)
        .before(store::json(&before)?)
        .after(store::json(&after)?);
    Ok(store::audit_entries::insert(tx, clock, origin, change).await?)
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
