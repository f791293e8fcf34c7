//! `certificates` of devices, for keys that macOS itself holds.

use assay_authority::IssuedClientCertificate;
use assay_protocol::{KeyThumbprint, admin_api::certificates::RevocationReason};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, StoreError, machines::presence::LockedMachine, thumbprint};

/// A device's certificate, as its holder presents it for revocation.
#[derive(Debug)]
pub(crate) struct DeviceCertificate {
    pub(crate) serial_number: String,
    pub(crate) key: KeyThumbprint,
}

/// Which certificates of devices to revoke.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Revoked<'a> {
    /// All of the device with this serial number.
    OfDevice(&'a str),
    /// Those of this key of the device.
    OfKey(&'a str, KeyThumbprint),
    /// This one.
    One(&'a str),
}

/// Locks a device until the end of the transaction, so that its certificates are issued and revoked one after the
/// other. Works even if no machine has the serial number.
pub(crate) async fn lock_device(connection: &mut Connection, serial_number: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "SELECT pg_advisory_xact_lock(hashtextextended('device ' || $1, 0))",
        serial_number
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The serial number of the device that a machine speaks for: see
/// [`Grounds::speak_for_the_device`](crate::machines::assurance::Grounds::speak_for_the_device).
pub(crate) async fn device_of_machine(
    connection: &mut Connection,
    machine: &LockedMachine,
) -> Result<Option<String>, StoreError> {
    let serial_number = sqlx::query_scalar!(
        "SELECT serial_number FROM machines
         WHERE id = $1 AND status IN ('active', 'quarantined')
           AND (ground_token_id IS NOT NULL OR ground_enrollment_id IS NOT NULL OR ground_attestation = 'bound')",
        machine.id()
    )
    .fetch_optional(connection)
    .await?;
    Ok(serial_number.flatten())
}

/// Inserts a certificate.
pub(crate) async fn insert(
    connection: &mut Connection,
    device_serial_number: &str,
    key: KeyThumbprint,
    issuer_id: Uuid,
    certificate: &IssuedClientCertificate,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO certificates (serial_number, device_serial_number, key_thumbprint, issuer_id, sha256, der, not_before,
                                   not_after, issued_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        certificate.serial_number,
        device_serial_number,
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

/// A device's certificate in DER, and the CA that issued it.
pub(crate) async fn find_der(
    connection: &mut Connection,
    serial_number: &str,
) -> Result<Option<(Vec<u8>, Uuid)>, StoreError> {
    let row = sqlx::query!(
        "SELECT der, issuer_id FROM certificates WHERE serial_number = $1 AND device_serial_number IS NOT NULL",
        serial_number
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| (row.der, row.issuer_id)))
}

/// Finds a device's certificate by its serial number and its digest, so only a certificate issued here is found.
pub(crate) async fn find(
    connection: &mut Connection,
    serial_number: &str,
    sha256: &[u8],
) -> Result<Option<DeviceCertificate>, StoreError> {
    let row = sqlx::query!(
        "SELECT serial_number, key_thumbprint FROM certificates
         WHERE serial_number = $1 AND sha256 = $2 AND device_serial_number IS NOT NULL",
        serial_number,
        sha256
    )
    .fetch_optional(connection)
    .await?;
    row.map(|row| {
        Ok(DeviceCertificate {
            serial_number: row.serial_number,
            key: thumbprint(&row.key_thumbprint)?,
        })
    })
    .transpose()
}

/// Revokes the selected certificates of devices that are not revoked yet, and returns them. Expired ones are skipped,
/// as revocation lists do not contain them.
pub(crate) async fn revoke(
    connection: &mut Connection,
    which: Revoked<'_>,
    reason: RevocationReason,
    now: OffsetDateTime,
) -> Result<Vec<String>, StoreError> {
    let (device, key, serial_number) = match &which {
        Revoked::OfDevice(serial_number) => (Some(*serial_number), None, None),
        Revoked::OfKey(device, key) => (Some(*device), Some(key.as_bytes().as_slice()), None),
        Revoked::One(serial_number) => (None, None, Some(*serial_number)),
    };
    Ok(sqlx::query_scalar!(
        "WITH revoked AS (
            UPDATE certificates SET revoked_at = $2, revocation_reason = $1
            WHERE device_serial_number IS NOT NULL AND revoked_at IS NULL
              AND ($3::text IS NULL OR device_serial_number = $3)
              AND ($4::bytea IS NULL OR key_thumbprint = $4) AND ($5::text IS NULL OR serial_number = $5)
            RETURNING serial_number, issuer_id, not_after
         ), waiting AS (
            INSERT INTO revocations_waiting (serial_number, issuer_id)
            SELECT serial_number, issuer_id FROM revoked WHERE not_after >= $2
         )
         SELECT serial_number FROM revoked ORDER BY not_after, serial_number",
        reason.as_str(),
        now,
        device,
        key,
        serial_number,
    )
    .fetch_all(connection)
    .await?)
}
