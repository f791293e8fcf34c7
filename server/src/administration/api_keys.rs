//! Creating, listing, ending and revoking API keys.

use assay_protocol::{
    admin_api::{
        api_keys::{ApiKey, CreateApiKey, Role},
        audit::ActorKind,
    },
    text::rfc3339,
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::{
    changes::{Action, Change, Origin},
    networks::{self, NotANetwork},
    secrets::{self, API_KEY_PREFIX, SecretHash},
    store::{
        self, Store, StoreError, Transaction,
        duties::{self, Duty},
        tx,
    },
    text::is_line,
};

const LONGEST_NAME: usize = 200;
const MOST_NETWORKS: usize = 100;
/// The lifetime of a key whose creator chose none.
const DEFAULT_LIFE: Duration = Duration::days(365);
/// Ten years.
pub(crate) const LONGEST_LIFE_SECONDS: u64 = 10 * 365 * 24 * 60 * 60;
/// How long another key of the role `admin` must still be valid when one is revoked.
const SHORTEST_LIFE_OF_OTHER_ADMIN: Duration = Duration::DAY;

/// Why nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum ApiKeyError {
    /// The name cannot be shown.
    #[error("name must have 1 to {LONGEST_NAME} characters, without control characters and direction marks")]
    Name,
    /// The lifetime is zero or too long.
    #[error("expires_in_seconds must be from 1 to {LONGEST_LIFE_SECONDS}")]
    Life,
    /// A network cannot be read.
    #[error("networks[{place}] is {text:?}: {reason}")]
    Network {
        /// Its place in the list.
        place: usize,
        /// The text.
        text: String,
        /// Why.
        reason: NotANetwork,
    },
    /// A key without networks could never be used.
    #[error("networks must have 1 to {MOST_NETWORKS} networks; leave it out for a key that may be used from anywhere")]
    Networks,
    /// Another valid key has this name.
    #[error("the API key {id} has the name {name:?} already: names are unique, so that the audit names one key")]
    NameTaken {
        /// The name.
        name: String,
        /// The other key.
        id: Uuid,
    },
    /// No key could administer the server afterwards.
    #[error(
        "no other API key of the role admin is valid for more than a day: create one first, or revoke this last one on the \
         server's host with assay-server api-key revoke"
    )]
    LastAdmin,
    /// A key's life can only be shortened.
    #[error("the API key ends at {} already: a key can be ended earlier, not later", rfc3339(*end))]
    EndsBefore {
        /// Its end.
        end: OffsetDateTime,
    },
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
    let secret = secrets::generate(API_KEY_PREFIX);
    let life = request.expires_in_seconds.map(checked_life).transpose()?;
    let key = ApiKey {
        id: store.new_id(),
        prefix: secrets::shown_part(secret.expose_secret()).map(str::to_owned),
        name: checked_name(&request.name)?,
        role: request.role,
        networks: request.networks.as_deref().map(checked_networks).transpose()?,
        created_at: now,
        expires_at: Some(now + life.unwrap_or(DEFAULT_LIFE)),
        revoked_at: None,
        last_used_at: None,
        last_used_address: None,
    };
    let hash = SecretHash::of(secret.expose_secret());
    tx!(store, CreateApiKey, origin => insert(&key, hash)).await?;
    Ok((key, secret))
}

/// A page of keys, oldest first.
pub(crate) async fn list(store: &Store, after: Option<Uuid>, rows: i64) -> Result<Vec<ApiKey>, ApiKeyError> {
    Ok(store::api_keys::list(&mut *store.connection().await?, after, rows).await?)
}

/// One key.
pub(crate) async fn find(store: &Store, id: Uuid) -> Result<ApiKey, ApiKeyError> {
    let found = store::api_keys::find(&mut *store.connection().await?, id).await?;
    found.ok_or(ApiKeyError::Unknown)
}

/// Revokes a key. A key can be revoked once.
pub(crate) async fn revoke(store: &Store, origin: &Origin, id: Uuid) -> Result<(), ApiKeyError> {
    tx!(store, RevokeApiKey, origin => revoke_once(id)).await
}

/// Ends a key's validity at a time, which is earlier than its present end.
pub(crate) async fn end(store: &Store, origin: &Origin, id: Uuid, end: OffsetDateTime) -> Result<ApiKey, ApiKeyError> {
    tx!(store, EndApiKey, origin => end_at(id, end)).await
}

async fn insert(tx: &mut Transaction, key: &ApiKey, secret: SecretHash) -> Result<(), ApiKeyError> {
    duties::wait_for(tx, Duty::ChangeApiKeys).await?;
    let now = tx.now();
    if let Some(id) = store::api_keys::find_valid_by_name(tx, &key.name, now).await? {
        let name = key.name.clone();
        return Err(ApiKeyError::NameTaken { name, id });
    }
    store::api_keys::insert(tx, key, secret).await?;
    let change = Change::new(Action::ApiKeyCreate, key.id).after(audited(key)?);
    Ok(tx.record(change).await?)
}

async fn revoke_once(tx: &mut Transaction, id: Uuid) -> Result<(), ApiKeyError> {
    let before = lock_valid(tx, id).await?;
    let now = tx.now();
    refuse_to_end_last_admin(tx, &before, now).await?;
    let after = ApiKey {
        revoked_at: Some(now),
        ..before.clone()
    };
    store::api_keys::revoke(tx, id, now).await?;
    let change = Change::new(Action::ApiKeyRevoke, id)
        .before(audited(&before)?)
        .after(audited(&after)?);
    Ok(tx.record(change).await?)
}

async fn end_at(tx: &mut Transaction, id: Uuid, end: OffsetDateTime) -> Result<ApiKey, ApiKeyError> {
    let before = lock_valid(tx, id).await?;
    if let Some(present) = before.expires_at.filter(|present| *present <= end) {
        return Err(ApiKeyError::EndsBefore { end: present });
    }
    let after = ApiKey {
        expires_at: Some(end),
        ..before.clone()
    };
    store::api_keys::set_end(tx, id, end).await?;
    let change = Change::new(Action::ApiKeyEnd, id)
        .before(audited(&before)?)
        .after(audited(&after)?);
    tx.record(change).await?;
    Ok(after)
}

/// A second `DELETE` of the same resource is `not-found`, although lists still show the record.
async fn lock_valid(tx: &mut Transaction, id: Uuid) -> Result<ApiKey, ApiKeyError> {
    duties::wait_for(tx, Duty::ChangeApiKeys).await?;
    let key = store::api_keys::lock(tx, id).await?;
    key.filter(|key| key.revoked_at.is_none()).ok_or(ApiKeyError::Unknown)
}

/// Another key that ends within a day does not count: it would lock the administrators out soon.
///
/// On the server's host anyone who may revoke the last key can also create another one.
async fn refuse_to_end_last_admin(tx: &mut Transaction, key: &ApiKey, now: OffsetDateTime) -> Result<(), ApiKeyError> {
    let is_admin = key.role == Role::Admin && secrets::is_valid(key.expires_at, key.revoked_at, now);
    if !is_admin || tx.origin().actor.kind == ActorKind::CommandLine {
        return Ok(());
    }
    let soon = now.saturating_add(SHORTEST_LIFE_OF_OTHER_ADMIN);
    match store::api_keys::another_admin_is_valid(tx, key.id, soon).await? {
        true => Ok(()),
        false => Err(ApiKeyError::LastAdmin),
    }
}

/// A key as the audit has it: without its last use, which is no part of any change.
fn audited(key: &ApiKey) -> Result<Value, StoreError> {
    let mut value = store::json(key)?;
    if let Some(members) = value.as_object_mut() {
        members.remove("last_used_at");
        members.remove("last_used_address");
    }
    Ok(value)
}

fn checked_name(name: &str) -> Result<String, ApiKeyError> {
    let name = name.trim();
    match is_line(name, 1..=LONGEST_NAME) {
        true => Ok(name.to_owned()),
        false => Err(ApiKeyError::Name),
    }
}

fn checked_life(seconds: u64) -> Result<Duration, ApiKeyError> {
    if !(1..=LONGEST_LIFE_SECONDS).contains(&seconds) {
        return Err(ApiKeyError::Life);
    }
    i64::try_from(seconds)
        .map(Duration::seconds)
        .map_err(|_| ApiKeyError::Life)
}

/// The networks as they are stored and shown.
fn checked_networks(networks: &[String]) -> Result<Vec<String>, ApiKeyError> {
    if !(1..=MOST_NETWORKS).contains(&networks.len()) {
        return Err(ApiKeyError::Networks);
    }
    let parse = |(place, text): (usize, &String)| match networks::parse(text.trim()) {
        Ok(network) => Ok(network.to_string()),
        Err(reason) => Err(ApiKeyError::Network {
            place,
            text: text.chars().take(64).collect(),
            reason,
        }),
    };
    networks.iter().enumerate().map(parse).collect()
}
