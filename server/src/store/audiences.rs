//! `audiences`

use assay_protocol::admin_api::audiences::{Audience, TokenForm};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, StoreError, json, parse_json};

/// The constraint that a second row of the same audience violates.
pub(crate) const UNIQUE_AUDIENCE: &str = "audiences_audience_key";

struct Row {
    id: Uuid,
    audience: String,
    token: Value,
    created_at: OffsetDateTime,
}

impl TryFrom<Row> for Audience {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.id,
            audience: row.audience,
            token: parse_json(row.token)?,
            created_at: row.created_at,
        })
    }
}

/// Inserts an audience.
pub(crate) async fn insert(connection: &mut Connection, audience: &Audience) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO audiences (id, audience, token, created_at) VALUES ($1, $2, $3, $4)",
        audience.id,
        audience.audience,
        json(&audience.token)?,
        audience.created_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A page of audiences, oldest first.
pub(crate) async fn list(
    connection: &mut Connection,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Audience>, StoreError> {
    sqlx::query_as!(
        Row,
        "SELECT id, audience, token, created_at FROM audiences WHERE id > $1 ORDER BY id LIMIT $2",
        after.unwrap_or(Uuid::nil()),
        limit
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(TryInto::try_into)
    .collect()
}

/// Finds an audience.
pub(crate) async fn find(connection: &mut Connection, id: Uuid) -> Result<Option<Audience>, StoreError> {
    sqlx::query_as!(
        Row,
        "SELECT id, audience, token, created_at FROM audiences WHERE id = $1",
        id
    )
    .fetch_optional(connection)
    .await?
    .map(TryInto::try_into)
    .transpose()
}

/// Replaces the form of its tokens.
pub(crate) async fn set_token(connection: &mut Connection, id: Uuid, token: &TokenForm) -> Result<(), StoreError> {
    sqlx::query!("UPDATE audiences SET token = $2 WHERE id = $1", id, json(token)?)
        .execute(connection)
        .await?;
    Ok(())
}

/// Deletes an audience.
pub(crate) async fn delete(connection: &mut Connection, id: Uuid) -> Result<(), StoreError> {
    sqlx::query!("DELETE FROM audiences WHERE id = $1", id)
        .execute(connection)
        .await?;
    Ok(())
}
