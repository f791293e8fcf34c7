//! `enrollment_tokens`

use assay_protocol::admin_api::enrollment_tokens::EnrollmentToken;
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, StoreError, json, parse_json, parse_text};
use crate::{clock, secrets::SecretHash};

struct Row {
    id: Uuid,
    description: String,
    created_at: OffsetDateTime,
    expires_at: OffsetDateTime,
    max_uses: i64,
    uses: i64,
    serial_numbers: Option<Vec<String>>,
    labels: Value,
    approval: String,
    allow_reenrollment: bool,
    revoked_at: Option<OffsetDateTime>,
}

impl TryFrom<Row> for EnrollmentToken {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.id,
            description: row.description,
            created_at: row.created_at,
            expires_at: row.expires_at,
            max_uses: count(row.max_uses)?,
            uses: count(row.uses)?,
            serial_numbers: row.serial_numbers,
            labels: parse_json(row.labels)?,
            approval: parse_text(&row.approval)?,
            allow_reenrollment: row.allow_reenrollment,
            revoked_at: row.revoked_at,
        })
    }
}

fn count(number: i64) -> Result<u32, StoreError> {
    u32::try_from(number).map_err(|_| StoreError::Corrupt(format!("{number} is not a number of uses")))
}

/// Inserts a token.
pub(crate) async fn insert(
    connection: &mut Connection,
    token: &EnrollmentToken,
    secret: SecretHash,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO enrollment_tokens (id, secret_hash, description, created_at, expires_at, max_uses, serial_numbers,
                                        labels, approval, allow_reenrollment)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        token.id,
        secret.as_bytes(),
        token.description,
        token.created_at,
        token.expires_at,
        i64::from(token.max_uses),
        token.serial_numbers.as_deref(),
        json(&token.labels)?,
        token.approval.as_str(),
        token.allow_reenrollment,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A page of tokens, oldest first.
pub(crate) async fn list(
    connection: &mut Connection,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<EnrollmentToken>, StoreError> {
    sqlx::query_as!(
        Row,
        "SELECT id, description, created_at, expires_at, max_uses, uses, serial_numbers, labels, approval,
                allow_reenrollment, revoked_at
         FROM enrollment_tokens WHERE id > $1 ORDER BY id LIMIT $2",
        after.unwrap_or(Uuid::nil()),
        limit
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(TryInto::try_into)
    .collect()
}

/// Finds a token.
pub(crate) async fn find(connection: &mut Connection, id: Uuid) -> Result<Option<EnrollmentToken>, StoreError> {
    sqlx::query_as!(
        Row,
        "SELECT id, description, created_at, expires_at, max_uses, uses, serial_numbers, labels, approval,
                allow_reenrollment, revoked_at
         FROM enrollment_tokens WHERE id = $1",
        id
    )
    .fetch_optional(connection)
    .await?
    .map(TryInto::try_into)
    .transpose()
}

/// Locks a token, and reads it.
pub(crate) async fn lock(connection: &mut Connection, id: Uuid) -> Result<Option<EnrollmentToken>, StoreError> {
    sqlx::query_as!(
        Row,
        "SELECT id, description, created_at, expires_at, max_uses, uses, serial_numbers, labels, approval,
                allow_reenrollment, revoked_at
         FROM enrollment_tokens WHERE id = $1 FOR UPDATE",
        id
    )
    .fetch_optional(connection)
    .await?
    .map(TryInto::try_into)
    .transpose()
}

/// Revokes a token.
pub(crate) async fn revoke(connection: &mut Connection, id: Uuid, at: OffsetDateTime) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE enrollment_tokens SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL",
        id,
        at
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Locks a token by its secret and reads it. The lock makes concurrent uses count one after the other.
pub(crate) async fn lock_by_secret(
    connection: &mut Connection,
    secret: SecretHash,
) -> Result<Option<EnrollmentToken>, StoreError> {
    sqlx::query_as!(
        Row,
        "SELECT id, description, created_at, expires_at, max_uses, uses, serial_numbers, labels, approval,
                allow_reenrollment, revoked_at
         FROM enrollment_tokens WHERE secret_hash = $1 FOR UPDATE",
        secret.as_bytes()
    )
    .fetch_optional(connection)
    .await?
    .map(TryInto::try_into)
    .transpose()
}

/// Locks several tokens by their secrets. It locks them in the order of the digests, so two transactions cannot
/// deadlock.
pub(crate) async fn lock_by_secrets(
    connection: &mut Connection,
    secrets: &[SecretHash],
) -> Result<Vec<(SecretHash, EnrollmentToken)>, StoreError> {
    let mut secrets: Vec<&[u8]> = secrets.iter().map(|secret| secret.as_bytes().as_slice()).collect();
    secrets.sort_unstable();
    let rows = sqlx::query!(
        "SELECT token.*
         FROM unnest($1::bytea[]) AS asked (secret)
              CROSS JOIN LATERAL (
                  SELECT secret_hash, id, description, created_at, expires_at, max_uses, uses, serial_numbers, labels, approval,
                         allow_reenrollment, revoked_at
                  FROM enrollment_tokens WHERE secret_hash = asked.secret LIMIT 1 FOR UPDATE
              ) AS token",
        &secrets as &[&[u8]]
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let secret = SecretHash::from_bytes(&row.secret_hash)
                .ok_or_else(|| StoreError::Corrupt("a digest of a secret is not 32 bytes long".to_owned()))?;
            let row = Row {
                id: row.id,
                description: row.description,
                created_at: row.created_at,
                expires_at: row.expires_at,
                max_uses: row.max_uses,
                uses: row.uses,
                serial_numbers: row.serial_numbers,
                labels: row.labels,
                approval: row.approval,
                allow_reenrollment: row.allow_reenrollment,
                revoked_at: row.revoked_at,
            };
            Ok((secret, row.try_into()?))
        })
        .collect()
}

/// Sets the uses of several locked tokens.
pub(crate) async fn set_uses(connection: &mut Connection, tokens: &[&EnrollmentToken]) -> Result<(), StoreError> {
    let ids: Vec<Uuid> = tokens.iter().map(|token| token.id).collect();
    let uses: Vec<i64> = tokens.iter().map(|token| token.uses.into()).collect();
    sqlx::query!(
        "UPDATE enrollment_tokens SET uses = counted.uses
         FROM unnest($1::uuid[], $2::bigint[]) AS counted (id, uses) WHERE enrollment_tokens.id = counted.id",
        &ids,
        &uses
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Counts one use of a locked token.
pub(crate) async fn count_use(connection: &mut Connection, id: Uuid) -> Result<(), StoreError> {
    sqlx::query!("UPDATE enrollment_tokens SET uses = uses + 1 WHERE id = $1", id)
        .execute(connection)
        .await?;
    Ok(())
}

/// Removes the oldest tokens that expired or were revoked before a time. Returns their number.
pub(crate) async fn remove_ended_before(
    connection: &mut Connection,
    before: OffsetDateTime,
    limit: i64,
) -> Result<u64, StoreError> {
    let removed = sqlx::query!(
        "DELETE FROM enrollment_tokens
         WHERE id = ANY(ARRAY(SELECT id FROM enrollment_tokens
                              WHERE id < $1 AND LEAST(expires_at, revoked_at) < $2 ORDER BY id LIMIT $3))",
        clock::first_id_at(before),
        before,
        limit
    )
    .execute(connection)
    .await?;
    Ok(removed.rows_affected())
}
