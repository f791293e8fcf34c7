//! `certificates`, as relying parties learn of their revocation.

use assay_authority::RevokedCertificate;
use assay_protocol::admin_api::certificates::RevocationReason;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, StoreError};

/// What is on record of a certificate's revocation.
#[derive(Debug, Clone)]
pub(crate) struct RevocationRecord {
    /// The CA that issued it.
    pub(crate) issuer_id: Uuid,
    pub(crate) serial_number: String,
    /// When and why it was revoked; `None` while it is not.
    pub(crate) revoked: Option<(OffsetDateTime, RevocationReason)>,
}

/// What is on record of certificates with these serial numbers, whichever CA issued them; those that none did are left out.
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

/// The revoked certificates of a CA that expire later than this, as its list names them.
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
                .map_err(|_| StoreError::Corrupt(format!("{:?} is no serial number", row.serial_number)))?;
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

/// A reason as it is kept. Without a detour by way of JSON, as there may be hundreds of thousands.
pub(super) fn reason(text: &str) -> Result<RevocationReason, StoreError> {
    text.parse()
        .map_err(|_| StoreError::Corrupt(format!("{text:?} is no reason of a revocation")))
}
