//! Reads `certificates` for revocation lists and OCSP.

use assay_authority::RevokedCertificate;
use assay_protocol::admin_api::certificates::RevocationReason;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, StoreError};

/// The revocation status of a certificate.
#[derive(Debug, Clone)]
pub(crate) struct RevocationRecord {
    /// The CA that issued it.
    pub(crate) issuer_id: Uuid,
    pub(crate) serial_number: String,
    /// When and why it was revoked; `None` if it is valid.
    pub(crate) revoked: Option<(OffsetDateTime, RevocationReason)>,
}

/// The revocation status of certificates with these serial numbers, from any CA. Unknown serial numbers are left out.
pub(crate) async fn find(
    connection: &mut Connection,
    serial_numbers: &[String],
) -> Result<Vec<RevocationRecord>, StoreError> {
    let rows = sqlx::query!(
        "SELECT issuer_id, serial_number, revoked_at, revocation_reason FROM certificates WHERE serial_number = ANY ($1)",
        serial_numbers
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(RevocationRecord {
                issuer_id: row.issuer_id,
                serial_number: row.serial_number,
                revoked: revoked(row.revoked_at, row.revocation_reason.as_deref())?,
            })
        })
        .collect()
}

/// The revoked certificates of a CA that expire after a time, for its list.
pub(crate) async fn list(
    connection: &mut Connection,
    issuer_id: Uuid,
    expire_after: OffsetDateTime,
) -> Result<Vec<RevokedCertificate>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT serial_number, revoked_at AS "revoked_at!", revocation_reason AS "revocation_reason!"
           FROM certificates
           WHERE issuer_id = $1 AND revoked_at IS NOT NULL AND not_after > $2"#,
        issuer_id,
        expire_after
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let serial_number = hex::decode(&row.serial_number)
                .map_err(|_| StoreError::Corrupt(format!("{:?} is not a serial number", row.serial_number)))?;
            Ok(RevokedCertificate {
                serial_number,
                revoked_at: row.revoked_at,
                reason: reason(&row.revocation_reason)?,
            })
        })
        .collect()
}

fn revoked(
    at: Option<OffsetDateTime>,
    why: Option<&str>,
) -> Result<Option<(OffsetDateTime, RevocationReason)>, StoreError> {
    let (Some(at), Some(why)) = (at, why) else {
        return Ok(None);
    };
    Ok(Some((at, reason(why)?)))
}

/// Parses a reason. It avoids JSON, because a list may contain hundreds of thousands.
pub(super) fn reason(text: &str) -> Result<RevocationReason, StoreError> {
    text.parse()
        .map_err(|_| StoreError::Corrupt(format!("{text:?} is not a revocation reason")))
}
