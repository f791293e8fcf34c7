//! `cross_certificates`: which root vouches for which.

use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, StoreError};

/// A certificate of a root's subject and key that an earlier root has signed.
#[derive(Debug, Clone)]
pub(crate) struct CrossCertificate {
    pub(crate) id: Uuid,
    pub(crate) issuer_id: Uuid,
    pub(crate) root_id: Uuid,
    /// In DER.
    pub(crate) certificate: Vec<u8>,
    pub(crate) not_after: OffsetDateTime,
}

/// All of them, oldest first.
pub(crate) async fn list(connection: &mut Connection) -> Result<Vec<CrossCertificate>, StoreError> {
    Ok(sqlx::query_as!(
        CrossCertificate,
        "SELECT id, issuer_id, root_id, certificate, not_after FROM cross_certificates ORDER BY id"
    )
    .fetch_all(connection)
    .await?)
}

/// Inserts one. The caller must have the duty to rotate keys.
pub(crate) async fn insert(
    connection: &mut Connection,
    cross: &CrossCertificate,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO cross_certificates (id, issuer_id, root_id, certificate, not_after, created_at)
         VALUES ($1, $2, $3, $4, $5, $6)",
        cross.id,
        cross.issuer_id,
        cross.root_id,
        cross.certificate,
        cross.not_after,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Deletes an expired one.
pub(crate) async fn delete(connection: &mut Connection, id: Uuid) -> Result<(), StoreError> {
    sqlx::query!("DELETE FROM cross_certificates WHERE id = $1", id)
        .execute(connection)
        .await?;
    Ok(())
}
