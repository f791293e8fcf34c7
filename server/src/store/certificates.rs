//! `certificates`

use assay_protocol::{
    KeyThumbprint,
    admin_api::certificates::{Certificate, CertificateStatus},
};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, StoreError, thumbprint};
use crate::authority::IssuedMachineCertificate;

/// A certificate that is on record.
#[derive(Debug, Clone)]
pub(crate) struct CertificateRecord {
    pub(crate) serial_number: String,
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
    pub(crate) der: Vec<u8>,
}

struct Row {
    serial_number: String,
    machine_id: Uuid,
    key_thumbprint: Vec<u8>,
    sha256: Vec<u8>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    issued_at: OffsetDateTime,
    revoked_at: Option<OffsetDateTime>,
    revocation_reason: Option<String>,
}

/// A page of a machine's certificates, the newest first, whether its record is there or deleted.
pub(crate) async fn list_of_machine(
    connection: &mut Connection,
    machine_id: Uuid,
    after: Option<&str>,
    limit: i64,
    now: OffsetDateTime,
) -> Result<Vec<Certificate>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT serial_number, machine_id, key_thumbprint, sha256, not_before, not_after, issued_at, revoked_at,
                revocation_reason
         FROM certificates
         WHERE machine_id = $1
           AND ($2::text IS NULL
                OR (issued_at, serial_number)
                   < (SELECT last.issued_at, last.serial_number FROM certificates AS last WHERE last.serial_number = $2))
         ORDER BY issued_at DESC, serial_number DESC LIMIT $3",
        machine_id,
        after,
        limit
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(|row| certificate(row, now)).collect()
}

/// Keeps a new certificate; where its key is the machine's current one, so is the certificate.
pub(crate) async fn insert(
    connection: &mut Connection,
    machine_id: Uuid,
    key: KeyThumbprint,
    issuer_id: Uuid,
    certificate: &IssuedMachineCertificate,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "WITH issued AS (
            INSERT INTO certificates
                (serial_number, machine_id, key_thumbprint, issuer_id, sha256, der, not_before, not_after, issued_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
         ), stale AS (
            UPDATE machine_presence SET record_version = record_version + 1 WHERE machine_id = $2
         )
         UPDATE machines SET certificate_serial_number = $1 WHERE id = $2 AND current_key = $3",
        certificate.serial_number,
        machine_id,
        key.as_bytes(),
        issuer_id,
        &certificate.sha256,
        certificate.der,
        certificate.not_before,
        certificate.not_after,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The certificate that a key of the machine has now: of its current key the current one, of its next key the newest.
/// `None` where none was issued, or it was revoked.
pub(crate) async fn find_of_key(
    connection: &mut Connection,
    machine_id: Uuid,
    key: KeyThumbprint,
) -> Result<Option<CertificateRecord>, StoreError> {
    Ok(sqlx::query_as!(
        CertificateRecord,
        "SELECT certificate.serial_number, not_before, not_after, der
         FROM machines JOIN certificates AS certificate ON certificate.machine_id = machines.id
         WHERE machines.id = $1 AND key_thumbprint = $2 AND revoked_at IS NULL
           AND (certificate.serial_number = certificate_serial_number OR current_key <> $2)
         ORDER BY issued_at DESC LIMIT 1",
        machine_id,
        key.as_bytes()
    )
    .fetch_optional(connection)
    .await?)
}

/// Revokes whatever certificates of one key are not revoked yet, for a reason of RFC 5280 in snake_case.
pub(crate) async fn revoke_of_key(
    connection: &mut Connection,
    machine_id: Uuid,
    key: KeyThumbprint,
    reason: &str,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE certificates SET revoked_at = $4, revocation_reason = $3
         WHERE machine_id = $1 AND key_thumbprint = $2 AND revoked_at IS NULL",
        machine_id,
        key.as_bytes(),
        reason,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Revokes whatever certificates of this machine are not revoked yet, for a reason of RFC 5280 in snake_case.
pub(crate) async fn revoke_all(
    connection: &mut Connection,
    machine_id: Uuid,
    reason: &str,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "WITH revoked AS (
            UPDATE certificates SET revoked_at = $3, revocation_reason = $2
            WHERE machine_id = $1 AND revoked_at IS NULL
         )
         UPDATE machines SET certificate_serial_number = NULL WHERE id = $1",
        machine_id,
        reason,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes the first to expire of those that did before a time and are no machine's current one; returns how many.
pub(crate) async fn remove_expired_before(
    connection: &mut Connection,
    before: OffsetDateTime,
    limit: i64,
) -> Result<u64, StoreError> {
    let removed = sqlx::query!(
        "DELETE FROM certificates
         WHERE serial_number = ANY(ARRAY(
             SELECT serial_number FROM certificates
             WHERE not_after < $1
               AND NOT EXISTS (SELECT FROM machines
                               WHERE id = machine_id AND certificate_serial_number = certificates.serial_number)
             ORDER BY not_after LIMIT $2))",
        before,
        limit
    )
    .execute(connection)
    .await?;
    Ok(removed.rows_affected())
}

fn certificate(row: Row, now: OffsetDateTime) -> Result<Certificate, StoreError> {
    let status = match row.revoked_at {
        Some(_) => CertificateStatus::Revoked,
        None if row.not_after < now => CertificateStatus::Expired,
        None => CertificateStatus::Valid,
    };
    Ok(Certificate {
        serial_number: row.serial_number,
        machine_id: row.machine_id,
        key_thumbprint: thumbprint(&row.key_thumbprint)?,
        status,
        sha256: hex::encode(row.sha256),
        not_before: row.not_before,
        not_after: row.not_after,
        issued_at: row.issued_at,
        revoked_at: row.revoked_at,
        revocation_reason: row.revocation_reason,
    })
}
