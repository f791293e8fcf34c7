//! `mdm_devices` and `mdm_servers`: the devices of an MDM, what they were asked, and whether the MDM can be called.

use assay_protocol::PublicKey;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, StoreError};

/// The only supported MDM.
const NANOMDM: &str = "nanomdm";

/// A device, for checking the MDM's events against.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    pub(crate) serial_number: Option<String>,
    /// Whether Apple attested the serial number together with the device's UDID.
    pub(crate) is_attested: bool,
    pub(crate) asked_command: Option<Uuid>,
    pub(crate) refused_digest: Option<Vec<u8>>,
}

/// A refused attestation.
#[derive(Debug, Clone)]
pub(crate) struct Refused<'a> {
    pub(crate) digest: [u8; 32],
    pub(crate) refusal: &'a str,
    pub(crate) at: OffsetDateTime,
}

/// A device that is due to be asked.
#[derive(Debug, Clone)]
pub(crate) struct Turn {
    pub(crate) enrollment_id: String,
    pub(crate) asked_at: Option<OffsetDateTime>,
    pub(crate) asked_command: Option<Uuid>,
    pub(crate) failures: i32,
    /// The active machine with its serial number, if there is one.
    pub(crate) machine: Option<TurnMachine>,
}

/// The properties of a machine that decide whether it is asked.
#[derive(Debug, Clone)]
pub(crate) struct TurnMachine {
    pub(crate) id: Uuid,
    /// Whether an attestation of its current key counts.
    pub(crate) is_attestable: bool,
    pub(crate) attested_at: Option<OffsetDateTime>,
    pub(crate) key: PublicKey,
}

/// Finds a device.
pub(crate) async fn find(connection: &mut Connection, enrollment_id: &str) -> Result<Option<Device>, StoreError> {
    Ok(sqlx::query_as!(
        Device,
        "SELECT serial_number, is_attested, asked_command, refused_digest FROM mdm_devices WHERE enrollment_id = $1",
        enrollment_id
    )
    .fetch_optional(connection)
    .await?)
}

/// Locks a device, and reads it.
pub(crate) async fn lock(connection: &mut Connection, enrollment_id: &str) -> Result<Option<Device>, StoreError> {
    Ok(sqlx::query_as!(
        Device,
        "SELECT serial_number, is_attested, asked_command, refused_digest FROM mdm_devices WHERE enrollment_id = $1 FOR UPDATE",
        enrollment_id
    )
    .fetch_optional(connection)
    .await?)
}

/// Whether Apple attested that another device has this serial number.
pub(crate) async fn is_attested_of_another(
    connection: &mut Connection,
    enrollment_id: &str,
    serial_number: &str,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM mdm_devices
                          WHERE serial_number = $1 AND is_attested AND enrollment_id <> $2) AS "exists!""#,
        serial_number,
        enrollment_id
    )
    .fetch_one(connection)
    .await?)
}

/// Records a device's serial number, and takes it from any other device that had it.
pub(crate) async fn keep(
    connection: &mut Connection,
    enrollment_id: &str,
    (serial_number, is_attested): (Option<&str>, bool),
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE mdm_devices SET serial_number = NULL, is_attested = false
         WHERE serial_number = $1 AND enrollment_id <> $2",
        serial_number,
        enrollment_id
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "INSERT INTO mdm_devices (enrollment_id, serial_number, is_attested, learned_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (enrollment_id) DO UPDATE SET serial_number = excluded.serial_number,
             is_attested = excluded.is_attested, due_at = excluded.due_at",
        enrollment_id,
        serial_number,
        is_attested,
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Records that an attestation was refused; `None` records that the last one was accepted.
pub(crate) async fn set_refused(
    connection: &mut Connection,
    enrollment_id: &str,
    refused: Option<&Refused<'_>>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE mdm_devices SET refused_at = $2, refused_digest = $3, refusal = $4 WHERE enrollment_id = $1",
        enrollment_id,
        refused.map(|refused| refused.at),
        refused.map(|refused| refused.digest.as_slice()),
        refused.map(|refused| refused.refusal)
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Locks and reads the devices that are due, those due longest first.
pub(crate) async fn due(connection: &mut Connection, now: OffsetDateTime, limit: i64) -> Result<Vec<Turn>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT enrollment_id, asked_at, asked_command, failures, machine.id AS "machine_id?",
                  machine.ground_of_key AND machine_keys.store = 'secure-enclave' AS is_attestable, machine.attested_at AS "attested_at?", spki AS "spki?"
           FROM mdm_devices AS device
           LEFT JOIN machines AS machine ON machine.serial_number = device.serial_number AND machine.status = 'active'
           LEFT JOIN machine_keys ON thumbprint = machine.current_key
           WHERE device.serial_number IS NOT NULL AND due_at <= $1
           ORDER BY due_at LIMIT $2 FOR UPDATE OF device SKIP LOCKED"#,
        now,
        limit
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let machine = match (row.machine_id, row.spki) {
                (Some(id), Some(spki)) => Some(TurnMachine {
                    id,
                    is_attestable: row.is_attestable.unwrap_or(false),
                    attested_at: row.attested_at,
                    key: PublicKey::from_spki_der(&spki)
                        .map_err(|error| StoreError::Corrupt(format!("the key of the machine {id}: {error}")))?,
                }),
                _ => None,
            };
            Ok(Turn {
                enrollment_id: row.enrollment_id,
                asked_at: row.asked_at,
                asked_command: row.asked_command,
                failures: row.failures,
                machine,
            })
        })
        .collect()
}

/// Postpones devices that need nothing now.
pub(crate) async fn put_off(connection: &mut Connection, until: &[(String, OffsetDateTime)]) -> Result<(), StoreError> {
    let (ids, times): (Vec<String>, Vec<OffsetDateTime>) = until.iter().cloned().unzip();
    sqlx::query!(
        "UPDATE mdm_devices SET due_at = later.due_at
         FROM unnest($1::text[], $2::timestamptz[]) AS later (enrollment_id, due_at)
         WHERE mdm_devices.enrollment_id = later.enrollment_id",
        &ids,
        &times
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Records that a device is being asked, and when to ask it again at the earliest.
pub(crate) async fn note_asked(
    connection: &mut Connection,
    enrollment_id: &str,
    command: Uuid,
    now: OffsetDateTime,
    due_at: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE mdm_devices SET asked_at = $3, asked_command = $2, due_at = $4, last_error = NULL
         WHERE enrollment_id = $1",
        enrollment_id,
        command,
        now,
        due_at
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Records that the MDM accepted the command.
pub(crate) async fn note_taken(connection: &mut Connection, enrollment_id: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE mdm_devices SET failures = 0 WHERE enrollment_id = $1 AND failures > 0",
        enrollment_id
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Records that the MDM did not accept the command, so the device counts as not asked, and when to try again.
pub(crate) async fn note_not_taken(
    connection: &mut Connection,
    turn: &Turn,
    failures: i32,
    error: &str,
    due_at: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE mdm_devices SET asked_at = $2, asked_command = $3, failures = $4, last_error = $5, due_at = $6
         WHERE enrollment_id = $1",
        turn.enrollment_id,
        turn.asked_at,
        turn.asked_command,
        failures,
        error,
        due_at
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Records that it is unknown whether the MDM accepted the command.
pub(crate) async fn note_unclear(
    connection: &mut Connection,
    enrollment_id: &str,
    error: &str,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE mdm_devices SET last_error = $2 WHERE enrollment_id = $1",
        enrollment_id,
        error
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Until when the MDM is not called, and how many calls failed in a row. `None` if the last call succeeded.
pub(crate) async fn pause(connection: &mut Connection) -> Result<Option<(OffsetDateTime, i32)>, StoreError> {
    let row = sqlx::query!(
        "SELECT paused_until, failures FROM mdm_servers WHERE name = $1",
        NANOMDM
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| (row.paused_until, row.failures)))
}

/// Records another failure of the MDM.
pub(crate) async fn set_pause(
    connection: &mut Connection,
    until: OffsetDateTime,
    failures: i32,
    error: &str,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO mdm_servers (name, failures, paused_until, last_error) VALUES ($1, $2, $3, $4)
         ON CONFLICT (name) DO UPDATE
         SET failures = excluded.failures, paused_until = excluded.paused_until, last_error = excluded.last_error",
        NANOMDM,
        failures,
        until,
        error
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Records that the MDM works again.
pub(crate) async fn end_pause(connection: &mut Connection) -> Result<(), StoreError> {
    sqlx::query!("DELETE FROM mdm_servers WHERE name = $1", NANOMDM)
        .execute(connection)
        .await?;
    Ok(())
}
