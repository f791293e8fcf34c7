//! `certificates`

mod search;

use assay_authority::IssuedClientCertificate;
use assay_protocol::{KeyThumbprint, admin_api::certificates::RevocationReason};
use time::OffsetDateTime;
use uuid::Uuid;

pub(crate) use self::search::{CertificateFilter, ExpiryPlace, find, list, list_of_machine};
use super::{Connection, StoreError, machines::presence::LockedMachine};
use crate::machines::client_certificate::ClientCertificate;

/// A certificate that is on record.
#[derive(Debug, Clone)]
pub(crate) struct CertificateRecord {
    pub(crate) serial_number: String,
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
    pub(crate) revoked_at: Option<OffsetDateTime>,
    pub(crate) der: Vec<u8>,
    /// The CA that issued it.
    pub(crate) issuer_id: Uuid,
}

impl CertificateRecord {
    /// Whether it is valid: not expired and not revoked.
    pub(crate) fn is_in_force(&self, now: OffsetDateTime) -> bool {
        self.revoked_at.is_none() && now < self.not_after
    }
}

/// Which certificates of a machine to revoke.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Revoked<'a> {
    /// All of them.
    All,
    /// Those of this key.
    OfKey(KeyThumbprint),
    /// This one.
    One(&'a str),
}

/// A certificate in DER.
pub(crate) async fn find_der(connection: &mut Connection, serial_number: &str) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(
        sqlx::query_scalar!("SELECT der FROM certificates WHERE serial_number = $1", serial_number)
            .fetch_optional(connection)
            .await?,
    )
}

/// Inserts a certificate. If its key is the machine's current one, it becomes the current certificate.
///
/// It counts as issued after the key's earlier ones, although a replica whose clock is ahead may have issued those.
pub(crate) async fn insert(
    connection: &mut Connection,
    machine_id: Uuid,
    key: KeyThumbprint,
    issuer_id: Uuid,
    certificate: &IssuedClientCertificate,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "WITH issued AS (
            INSERT INTO certificates
                (serial_number, machine_id, key_thumbprint, issuer_id, sha256, der, not_before, not_after, issued_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, GREATEST($9, (
                SELECT max(issued_at) + interval '1 microsecond' FROM certificates
                WHERE machine_id = $2 AND key_thumbprint = $3
            )))
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

/// The newest certificate of this machine and key, even if it is expired or revoked.
pub(crate) async fn find_last_of_key(
    connection: &mut Connection,
    machine_id: Uuid,
    key: KeyThumbprint,
) -> Result<Option<CertificateRecord>, StoreError> {
    Ok(sqlx::query_as!(
        CertificateRecord,
        "SELECT serial_number, not_before, not_after, revoked_at, der, issuer_id FROM certificates
         WHERE machine_id = $1 AND key_thumbprint = $2 ORDER BY issued_at DESC LIMIT 1",
        machine_id,
        key.as_bytes()
    )
    .fetch_optional(connection)
    .await?)
}

/// Whether a presented certificate was issued here to a machine and is not revoked. A device's certificate is for a key
/// of macOS itself, and cannot authenticate an agent.
pub(crate) async fn is_in_force(
    connection: &mut Connection,
    presented: &ClientCertificate,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (
               SELECT FROM certificates
               WHERE serial_number = $1 AND sha256 = $2 AND revoked_at IS NULL AND machine_id IS NOT NULL
           ) AS "in_force!""#,
        presented.serial_number,
        &presented.sha256,
    )
    .fetch_one(connection)
    .await?)
}

/// Whether this certificate was issued to this machine, and is neither revoked nor expired.
pub(crate) async fn is_valid_of_machine(
    connection: &mut Connection,
    machine_id: Uuid,
    sha256: &[u8],
    now: OffsetDateTime,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (
               SELECT FROM certificates
               WHERE machine_id = $1 AND sha256 = $2 AND revoked_at IS NULL AND not_after > $3
           ) AS "is_valid!""#,
        machine_id,
        sha256,
        now,
    )
    .fetch_one(connection)
    .await?)
}

/// Revokes the selected certificates of a machine that are not revoked yet. Returns their serial numbers.
pub(crate) async fn revoke(
    connection: &mut Connection,
    machine: &LockedMachine,
    which: Revoked<'_>,
    reason: RevocationReason,
    now: OffsetDateTime,
) -> Result<Vec<String>, StoreError> {
    revoke_of(connection, machine.id(), which, reason, now).await
}

/// Revokes a certificate of a machine whose record was deleted.
pub(crate) async fn revoke_of_deleted(
    connection: &mut Connection,
    machine_id: Uuid,
    which: Revoked<'_>,
    reason: RevocationReason,
    now: OffsetDateTime,
) -> Result<Vec<String>, StoreError> {
    revoke_of(connection, machine_id, which, reason, now).await
}

/// Revocation lists do not contain expired certificates.
async fn revoke_of(
    connection: &mut Connection,
    machine_id: Uuid,
    which: Revoked<'_>,
    reason: RevocationReason,
    now: OffsetDateTime,
) -> Result<Vec<String>, StoreError> {
    let (key, serial_number) = match &which {
        Revoked::All => (None, None),
        Revoked::OfKey(key) => (Some(key.as_bytes().as_slice()), None),
        Revoked::One(serial_number) => (None, Some(*serial_number)),
    };
    Ok(sqlx::query_scalar!(
        "WITH revoked AS (
            UPDATE certificates SET revoked_at = $3, revocation_reason = $2
            WHERE machine_id = $1 AND revoked_at IS NULL
              AND ($4::bytea IS NULL OR key_thumbprint = $4) AND ($5::text IS NULL OR serial_number = $5)
            RETURNING serial_number, issuer_id, not_after
         ), waiting AS (
            INSERT INTO revocations_waiting (serial_number, issuer_id)
            SELECT serial_number, issuer_id FROM revoked WHERE not_after >= $3
         ), current AS (
            UPDATE machines SET certificate_serial_number = NULL
            WHERE id = $1 AND certificate_serial_number IN (SELECT serial_number FROM revoked)
         )
         SELECT serial_number FROM revoked ORDER BY not_after, serial_number",
        machine_id,
        reason.as_str(),
        now,
        key,
        serial_number,
    )
    .fetch_all(connection)
    .await?)
}

/// Removes certificates that expired before a time and are not a machine's current one, in the order of expiry.
/// Returns their number.
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

/// How often something happened to a machine lately.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recent {
    pub(crate) count: i64,
    pub(crate) first_at: Option<OffsetDateTime>,
}

/// The certificates that a machine got between these times, without those that its enrollments issued.
///
/// Their beginnings are counted. `issued_at` is never before that of an earlier certificate of the key, so one replica with
/// a clock that is far ahead would have all later renewals count for months.
pub(crate) async fn renewals_within(
    connection: &mut Connection,
    machine: &LockedMachine,
    within: (OffsetDateTime, OffsetDateTime),
) -> Result<Recent, StoreError> {
    let (since, until) = within;
    Ok(sqlx::query_as!(
        Recent,
        r#"SELECT count(*) - (SELECT count(*) FROM enrollments
                              WHERE enrollments.machine_id = $1 AND kind <> 'rotation' AND status = 'approved'
                                AND decided_at > $2 AND decided_at <= $3) AS "count!",
                  min(not_before) AS first_at
           FROM certificates WHERE certificates.machine_id = $1 AND not_before > $2 AND not_before <= $3"#,
        machine.id(),
        since,
        until
    )
    .fetch_one(connection)
    .await?)
}
