//! `server_certificates`: the TLS certificates that replicas have issued to themselves.

use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, StoreError};

/// A TLS certificate that a replica has issued to itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerCertificateRecord {
    pub(crate) serial_number: String,
    pub(crate) issuer_id: Uuid,
    pub(crate) not_after: OffsetDateTime,
}

/// Inserts a certificate. Repeating the call changes nothing.
pub(crate) async fn insert(
    connection: &mut Connection,
    record: &ServerCertificateRecord,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO server_certificates (serial_number, issuer_id, issued_at, not_after) VALUES ($1, $2, $3, $4)
         ON CONFLICT DO NOTHING",
        record.serial_number,
        record.issuer_id,
        now,
        record.not_after,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Those of these serial numbers that belong to certificates of this CA.
pub(crate) async fn find(
    connection: &mut Connection,
    issuer_id: Uuid,
    serial_numbers: &[String],
) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar!(
        "SELECT serial_number FROM server_certificates WHERE issuer_id = $1 AND serial_number = ANY ($2)",
        issuer_id,
        serial_numbers,
    )
    .fetch_all(connection)
    .await?)
}

/// Removes the certificates that expired before this time.
pub(crate) async fn remove_expired(connection: &mut Connection, before: OffsetDateTime) -> Result<(), StoreError> {
    sqlx::query!("DELETE FROM server_certificates WHERE not_after < $1", before)
        .execute(connection)
        .await?;
    Ok(())
}
