//! `api_keys`

use assay_protocol::admin_api::api_keys::ApiKey;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, StoreError, parse_text, text};
use crate::{clock, secrets::SecretHash};

struct Row {
    id: Uuid,
    name: String,
    role: String,
    created_at: OffsetDateTime,
    expires_at: Option<OffsetDateTime>,
    revoked_at: Option<OffsetDateTime>,
}

impl TryFrom<Row> for ApiKey {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.id,
            name: row.name,
            role: parse_text(&row.role)?,
            created_at: row.created_at,
            expires_at: row.expires_at,
            revoked_at: row.revoked_at,
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
        "SELECT id, name, role, created_at, expires_at, revoked_at FROM api_keys WHERE secret_hash = $1",
        secret.as_bytes()
    )
    .fetch_optional(connection)
    .await?
    .map(TryInto::try_into)
    .transpose()
}

/// Inserts a key.
pub(crate) async fn insert(connection: &mut Connection, key: &ApiKey, secret: SecretHash) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO api_keys (id, secret_hash, name, role, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6)",
        key.id,
        secret.as_bytes(),
        key.name,
        text(&key.role)?,
        key.created_at,
        key.expires_at,
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
        "SELECT id, name, role, created_at, expires_at, revoked_at FROM api_keys
         WHERE id > $1 ORDER BY id LIMIT $2",
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
        "SELECT id, name, role, created_at, expires_at, revoked_at FROM api_keys WHERE id = $1 FOR UPDATE",
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
