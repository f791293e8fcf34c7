//! Finding and listing certificates for administrators.

use assay_protocol::admin_api::certificates::{Certificate, CertificatePurpose, CertificateStatus};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::store::{Connection, StoreError, revocations::reason, thumbprint};

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
