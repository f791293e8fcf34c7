//! `certificates`

use assay_authority::IssuedClientCertificate;
use assay_protocol::{
    KeyThumbprint,
    admin_api::certificates::{Certificate, CertificatePurpose, CertificateStatus, RevocationReason},
};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, StoreError, machines::presence::LockedMachine, revocations::reason, thumbprint};
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

struct Row {
    serial_number: String,
    machine_id: Option<Uuid>,
    device_serial_number: Option<String>,
    key_thumbprint: Vec<u8>,
    sha256: Vec<u8>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    issued_at: OffsetDateTime,
    revoked_at: Option<OffsetDateTime>,
    revocation_reason: Option<String>,
}

impl CertificateRecord {
    /// Whether it is valid: not expired and not revoked.
    pub(crate) fn is_in_force(&self, now: OffsetDateTime) -> bool {
        self.revoked_at.is_none() && now < self.not_after
    }
}

/// Which certificates to list. An absent member selects all.
#[derive(Debug, Default)]
pub(crate) struct CertificateFilter {
    pub(crate) status: Option<CertificateStatus>,
    pub(crate) machine_id: Option<Uuid>,
    pub(crate) expires_before: Option<OffsetDateTime>,
}

/// A position in the order of expiry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExpiryPlace {
    pub(crate) not_after: OffsetDateTime,
    pub(crate) issued_at: OffsetDateTime,
    pub(crate) serial_number: String,
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

/// The columns of a certificate. All queries share them, so lists and single reads never differ.
macro_rules! select {
    ($($condition:literal)+, $($argument:expr),+ $(,)?) => {
        sqlx::query_as!(
            Row,
            "SELECT serial_number,
                    coalesce(machine_id,
                             (SELECT id FROM machines
                              WHERE machines.serial_number = device_serial_number AND status <> 'pending'
                              ORDER BY status = 'revoked', id DESC LIMIT 1)) AS machine_id,
                    device_serial_number, key_thumbprint, sha256, not_before, not_after, issued_at, revoked_at,
                    revocation_reason
             FROM certificates "
                $(+ $condition)+,
            $($argument),+
        )
    };
}

/// A page in the order of expiry. Each condition has an index in that order, and each page is one range of it with one
/// bound on each side. Given two lower bounds, Postgres starts at the one that excludes less.
macro_rules! by_expiry {
    ($condition:literal, $range:expr, $limit:expr $(, $argument:expr)*) => {
        select!(
            $condition
            " AND (not_after, issued_at, serial_number)
                  > (coalesce($1::timestamptz, '-infinity'), coalesce($2::timestamptz, '-infinity'), $3)
              AND not_after < coalesce($4::timestamptz, 'infinity')
              ORDER BY not_after, issued_at, serial_number LIMIT $5",
            $range.from,
            $range.after_issued_at,
            $range.after_serial_number,
            $range.before,
            $limit
            $(, $argument)*
        )
    };
}

/// Finds a certificate.
pub(crate) async fn find(
    connection: &mut Connection,
    serial_number: &str,
    now: OffsetDateTime,
) -> Result<Option<Certificate>, StoreError> {
    let row = select!("WHERE serial_number = $1", serial_number)
        .fetch_optional(connection)
        .await?;
    row.map(|row| certificate(row, now)).transpose()
}

/// A certificate in DER.
pub(crate) async fn find_der(connection: &mut Connection, serial_number: &str) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(
        sqlx::query_scalar!("SELECT der FROM certificates WHERE serial_number = $1", serial_number)
            .fetch_optional(connection)
            .await?,
    )
}

/// A page of certificates in the order of expiry.
pub(crate) async fn list(
    connection: &mut Connection,
    filter: &CertificateFilter,
    after: Option<&ExpiryPlace>,
    limit: i64,
    now: OffsetDateTime,
) -> Result<Vec<Certificate>, StoreError> {
    let range = filter.range(after, now);
    let rows = match (filter.machine_id, filter.status) {
        (None, None) => by_expiry!("WHERE true", range, limit).fetch_all(connection).await?,
        (None, Some(CertificateStatus::Valid | CertificateStatus::Expired)) => {
            by_expiry!("WHERE revoked_at IS NULL", range, limit)
                .fetch_all(connection)
                .await?
        }
        (None, Some(CertificateStatus::Revoked)) => {
            by_expiry!("WHERE revoked_at IS NOT NULL", range, limit)
                .fetch_all(connection)
                .await?
        }
        // One machine has few enough certificates to sort.
        (Some(machine_id), status) => {
            let revoked = status.map(|status| status == CertificateStatus::Revoked);
            by_expiry!(
                "WHERE (machine_id = $6
                        OR device_serial_number = (SELECT machines.serial_number FROM machines
                                                   WHERE id = $6 AND status <> 'pending'))
                   AND ($7::boolean IS NULL OR (revoked_at IS NOT NULL) = $7)",
                range,
                limit,
                machine_id,
                revoked
            )
            .fetch_all(connection)
            .await?
        }
    };
    rows.into_iter().map(|row| certificate(row, now)).collect()
}

/// A page of a machine's certificates, newest first, even if its record was deleted.
pub(crate) async fn list_of_machine(
    connection: &mut Connection,
    machine_id: Uuid,
    after: Option<&str>,
    limit: i64,
    now: OffsetDateTime,
) -> Result<Vec<Certificate>, StoreError> {
    let rows = select!(
        "WHERE (machine_id = $1
                OR device_serial_number = (SELECT machines.serial_number FROM machines
                                           WHERE id = $1 AND status <> 'pending'))
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

/// Inserts a certificate. If its key is the machine's current one, it becomes the current certificate.
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

/// A range in the order of expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ExpiryRange<'a> {
    from: Option<OffsetDateTime>,
    /// Excludes those that expire at `from` and were issued at or before this.
    after_issued_at: Option<OffsetDateTime>,
    after_serial_number: &'a str,
    before: Option<OffsetDateTime>,
}

impl CertificateFilter {
    /// A certificate is still valid in its last second.
    fn range<'a>(&self, after: Option<&'a ExpiryPlace>, now: OffsetDateTime) -> ExpiryRange<'a> {
        let (from, before) = match self.status {
            Some(CertificateStatus::Valid) => (Some(now), self.expires_before),
            Some(CertificateStatus::Expired) => (None, Some(self.expires_before.map_or(now, |time| time.min(now)))),
            Some(CertificateStatus::Revoked) | None => (None, self.expires_before),
        };
        // The last certificate of the previous page may have expired since.
        let after = after.filter(|place| from.is_none_or(|from| place.not_after >= from));
        ExpiryRange {
            from: after.map_or(from, |place| Some(place.not_after)),
            after_issued_at: after.map(|place| place.issued_at),
            after_serial_number: after.map_or("", |place| &place.serial_number),
            before,
        }
    }
}

impl From<&Certificate> for ExpiryPlace {
    fn from(certificate: &Certificate) -> Self {
        Self {
            not_after: certificate.not_after,
            issued_at: certificate.issued_at,
            serial_number: certificate.serial_number.clone(),
        }
    }
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

fn certificate(row: Row, now: OffsetDateTime) -> Result<Certificate, StoreError> {
    let status = match row.revoked_at {
        Some(_) => CertificateStatus::Revoked,
        None if row.not_after < now => CertificateStatus::Expired,
        None => CertificateStatus::Valid,
    };
    Ok(Certificate {
        serial_number: row.serial_number,
        purpose: match row.device_serial_number {
            Some(_) => CertificatePurpose::Device,
            None => CertificatePurpose::Machine,
        },
        machine_id: row.machine_id,
        device_serial_number: row.device_serial_number,
        key_thumbprint: thumbprint(&row.key_thumbprint)?,
        status,
        sha256: hex::encode(row.sha256),
        not_before: row.not_before,
        not_after: row.not_after,
        issued_at: row.issued_at,
        revoked_at: row.revoked_at,
        revocation_reason: row.revocation_reason.as_deref().map(reason).transpose()?,
    })
}

/// How often something happened to a machine lately.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recent {
    pub(crate) count: i64,
    pub(crate) first_at: Option<OffsetDateTime>,
}

/// The certificates that a machine got since a time, without those that its enrollments issued.
pub(crate) async fn renewals_since(
    connection: &mut Connection,
    machine: &LockedMachine,
    since: OffsetDateTime,
) -> Result<Recent, StoreError> {
    Ok(sqlx::query_as!(
        Recent,
        r#"SELECT count(*) - (SELECT count(*) FROM enrollments
                              WHERE enrollments.machine_id = $1 AND kind <> 'rotation' AND status = 'approved'
                                AND decided_at > $2) AS "count!",
                  min(issued_at) AS first_at
           FROM certificates WHERE certificates.machine_id = $1 AND issued_at > $2"#,
        machine.id(),
        since
    )
    .fetch_one(connection)
    .await?)
}
