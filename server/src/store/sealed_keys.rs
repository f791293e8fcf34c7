//! `sealed_keys`: the server's own keys, as they are kept.

use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, StoreError};

/// A sealed key.
#[derive(Debug, Clone)]
pub(crate) struct SealedKey {
    pub(crate) id: Uuid,
    pub(crate) purpose: String,
    pub(crate) sealed: Vec<u8>,
    pub(crate) certificate: Option<Vec<u8>>,
}

/// All keys, oldest first.
pub(crate) async fn list(connection: &mut Connection) -> Result<Vec<SealedKey>, StoreError> {
    Ok(sqlx::query_as!(
        SealedKey,
        "SELECT id, purpose, sealed, certificate FROM sealed_keys ORDER BY id"
    )
    .fetch_all(connection)
    .await?)
}

/// Keeps a new key.
pub(crate) async fn insert(
    connection: &mut Connection,
    key: &SealedKey,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO sealed_keys (id, purpose, sealed, certificate, created_at) VALUES ($1, $2, $3, $4, $5)",
        key.id,
        key.purpose,
        key.sealed,
        key.certificate,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}
