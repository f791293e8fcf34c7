//! `api_keys`

use std::net::IpAddr;

use assay_protocol::admin_api::api_keys::ApiKey;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::{Connection, StoreError, parse_text};
use crate::{
    clock,
    secrets::{self, SecretHash},
};

struct Row {
    id: Uuid,
    prefix: Option<String>,
    name: String,
    role: String,
    networks: Option<Vec<String>>,
    created_at: OffsetDateTime,
    expires_at: Option<OffsetDateTime>,
    revoked_at: Option<OffsetDateTime>,
    last_used_at: Option<OffsetDateTime>,
    last_used_address: Option<String>,
}

impl TryFrom<Row> for ApiKey {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.id,
            prefix: row.prefix,
            name: row.name,
            role: parse_text(&row.role)?,
            networks: row.networks,
            created_at: row.created_at,
            expires_at: row.expires_at,
            revoked_at: row.revoked_at,
            last_used_at: row.last_used_at,
            last_used_address: row.last_used_address,
        })
    }
}

/// Finds a key by its secret, even if it is expired or revoked.
pub(crate) async fn find_by_secret(
    connection: &mut Connection,
    secret: SecretHash,
) -> Result<Option<ApiKey>, StoreError> {
    sqlx::query_as!(
        Row,
        "SELECT id, prefix, name, role, networks, created_at, expires_at, revoked_at, last_used_at, last_used_address
         FROM api_keys WHERE secret_hash = $1",
        secret.as_bytes()
    )
    .fetch_optional(connection)
    .await?
    .map(TryInto::try_into)
    .transpose()
}

/// Finds a key, even if it is expired or revoked.
pub(crate) async fn find(connection: &mut Connection, id: Uuid) -> Result<Option<ApiKey>, StoreError> {
    sqlx::query_as!(
        Row,
        "SELECT id, prefix, name, role, networks, created_at, expires_at, revoked_at, last_used_at, last_used_address
         FROM api_keys WHERE id = $1",
        id
    )
    .fetch_optional(connection)
    .await?
    .map(TryInto::try_into)
    .transpose()
}

/// Finds the valid key with this name.
pub(crate) async fn find_valid_by_name(
    connection: &mut Connection,
    name: &str,
    now: OffsetDateTime,
) -> Result<Option<Uuid>, StoreError> {
    Ok(sqlx::query_scalar!(
        "SELECT id FROM api_keys
         WHERE name = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)
         ORDER BY id LIMIT 1",
        name,
        now
    )
    .fetch_optional(connection)
    .await?)
}

/// Whether a key of the role `admin` other than this one is valid at this time.
pub(crate) async fn another_admin_is_valid(
    connection: &mut Connection,
    id: Uuid,
    now: OffsetDateTime,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (
               SELECT FROM api_keys
               WHERE role = 'admin' AND id <> $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)
           ) AS "exists!""#,
        id,
        now
    )
    .fetch_one(connection)
    .await?)
}

/// Inserts a key.
pub(crate) async fn insert(connection: &mut Connection, key: &ApiKey, secret: SecretHash) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO api_keys (id, secret_hash, prefix, name, role, networks, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        key.id,
        secret.as_bytes(),
        key.prefix,
        key.name,
        key.role.as_str(),
        key.networks.as_deref(),
        key.created_at,
        key.expires_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Records a use of a key, whose `secret` it was used with. Of several concurrent calls only one writes: the others find
/// that the last use is no longer the one that `seen` has, or that the row is locked, and do not wait.
pub(crate) async fn record_use(
    connection: &mut Connection,
    seen: &ApiKey,
    secret: &str,
    address: Option<IpAddr>,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE api_keys SET last_used_at = $2, last_used_address = $3, prefix = coalesce(prefix, $4)
         WHERE id = (SELECT id FROM api_keys WHERE id = $1 AND last_used_at IS NOT DISTINCT FROM $5
                     FOR NO KEY UPDATE SKIP LOCKED)",
        seen.id,
        now,
        address.map(|address| address.to_string()),
        secrets::shown_part(secret),
        seen.last_used_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A page of keys, oldest first.
pub(crate) async fn list(
    connection: &mut Connection,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<ApiKey>, StoreError> {
    sqlx::query_as!(
        Row,
        "SELECT id, prefix, name, role, networks, created_at, expires_at, revoked_at, last_used_at, last_used_address
         FROM api_keys WHERE id > $1 ORDER BY id LIMIT $2",
        after.unwrap_or(Uuid::nil()),
        limit
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(TryInto::try_into)
    .collect()
}

/// Locks a key, and reads it.
pub(crate) async fn lock(connection: &mut Connection, id: Uuid) -> Result<Option<ApiKey>, StoreError> {
    sqlx::query_as!(
        Row,
        "SELECT id, prefix, name, role, networks, created_at, expires_at, revoked_at, last_used_at, last_used_address
         FROM api_keys WHERE id = $1 FOR UPDATE",
        id
    )
    .fetch_optional(connection)
    .await?
    .map(TryInto::try_into)
    .transpose()
}

/// Revokes a key.
pub(crate) async fn revoke(connection: &mut Connection, id: Uuid, at: OffsetDateTime) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE api_keys SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL",
        id,
        at
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Sets a key's end. An administrator chose it, so it is not announced.
pub(crate) async fn set_end(connection: &mut Connection, id: Uuid, end: OffsetDateTime) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE api_keys SET expires_at = $2, end_announced = true WHERE id = $1",
        id,
        end
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Takes valid keys that end within `notice` and live longer than that. Each is taken once.
pub(crate) async fn take_ending(
    connection: &mut Connection,
    now: OffsetDateTime,
    notice: Duration,
    limit: i64,
) -> Result<Vec<ApiKey>, StoreError> {
    sqlx::query_as!(
        Row,
        "UPDATE api_keys SET end_announced = true
         WHERE id = ANY(ARRAY(SELECT id FROM api_keys
                              WHERE revoked_at IS NULL AND NOT end_announced AND expires_at > $1 AND expires_at <= $2
                                AND created_at < expires_at - make_interval(secs => $3)
                              ORDER BY expires_at, id LIMIT $4 FOR UPDATE))
         RETURNING id, prefix, name, role, networks, created_at, expires_at, revoked_at, last_used_at, last_used_address",
        now,
        now + notice,
        notice.as_seconds_f64(),
        limit
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(TryInto::try_into)
    .collect()
}

/// The keys among these that are valid at this time.
pub(crate) async fn find_valid(
    connection: &mut Connection,
    ids: &[Uuid],
    now: OffsetDateTime,
) -> Result<Vec<Uuid>, StoreError> {
    Ok(sqlx::query_scalar!(
        "SELECT id FROM api_keys
         WHERE id = ANY($1) AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)",
        ids,
        now
    )
    .fetch_all(connection)
    .await?)
}

/// Removes the oldest keys that expired or were revoked before a time. Returns their number.
pub(crate) async fn remove_ended_before(
    connection: &mut Connection,
    before: OffsetDateTime,
    limit: i64,
) -> Result<u64, StoreError> {
    let removed = sqlx::query!(
        "DELETE FROM api_keys
         WHERE id = ANY(ARRAY(SELECT id FROM api_keys
                              WHERE id < $1 AND LEAST(expires_at, revoked_at) < $2 ORDER BY id LIMIT $3))",
        clock::first_id_at(before),
        before,
        limit
    )
    .execute(connection)
    .await?;
    Ok(removed.rows_affected())
}
