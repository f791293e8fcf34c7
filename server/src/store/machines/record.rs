//! `machines` for enrollment and check-in: identity, claims and grounds.

use assay_protocol::{
    KeyThumbprint,
    machine::{Assurance, KeyAccessibility, MachineStatus},
};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{grounds::grounds_of, presence::LockedMachine};
use crate::machines::{assurance::Grounds, claims::Claims};
use crate::store::{Connection, StoreError, json, parse_json, parse_text, thumbprint};

/// The columns that name the hardware, as `withheld` has them.
pub(crate) const SERIAL_NUMBER: &str = "serial_number";
pub(crate) const HARDWARE_UUID: &str = "hardware_uuid";

/// The identity of a machine, for deciding whether a request comes from the same machine.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) id: Uuid,
    pub(crate) status: MachineStatus,
    pub(crate) status_reason: Option<String>,
    /// The recorded level. [`Self::assurance_at`] gives the current one.
    pub(crate) assurance: Assurance,
    pub(crate) grounds: Grounds,
    pub(crate) serial_number: Option<String>,
    pub(crate) hardware_uuid: Option<String>,
    pub(crate) current_key: KeyThumbprint,
}

impl Identity {
    /// The level, given that attestations signed at or before this time are too old.
    pub(crate) fn assurance_at(&self, attested_since: OffsetDateTime) -> Assurance {
        self.grounds.assurance_at(self.assurance, attested_since)
    }
}

struct IdentityRow {
    id: Uuid,
    status: String,
    status_reason: Option<String>,
    assurance: String,
    ground_token_id: Option<Uuid>,
    ground_inventory: Option<String>,
    ground_enrollment_id: Option<Uuid>,
    ground_of_key: bool,
    apple_attestation_id: Option<Uuid>,
    attested_at: Option<OffsetDateTime>,
    ground_attestation: Option<String>,
    serial_number: Option<String>,
    hardware_uuid: Option<String>,
    current_key: Vec<u8>,
}

impl TryFrom<IdentityRow> for Identity {
    type Error = StoreError;

    fn try_from(row: IdentityRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.id,
            status: parse_text(&row.status)?,
            status_reason: row.status_reason,
            assurance: parse_text(&row.assurance)?,
            grounds: grounds_of!(row)?,
            serial_number: row.serial_number,
            hardware_uuid: row.hardware_uuid,
            current_key: thumbprint(&row.current_key)?,
        })
    }
}

/// The identity of a machine.
pub(crate) async fn find_identity(connection: &mut Connection, id: Uuid) -> Result<Option<Identity>, StoreError> {
    sqlx::query_as!(
        IdentityRow,
        "SELECT id, status, status_reason, assurance, ground_token_id, ground_inventory, ground_enrollment_id,
                ground_of_key, apple_attestation_id, attested_at, ground_attestation, serial_number, hardware_uuid, current_key
         FROM machines WHERE id = $1",
        id
    )
    .fetch_optional(connection)
    .await?
    .map(TryInto::try_into)
    .transpose()
}

/// The machine that a serial number belongs to: the active or quarantined one, otherwise the one revoked last. A
/// pending machine has no claim to the serial number yet, and a denied one never had any.
pub(crate) async fn find_by_serial_number(
    connection: &mut Connection,
    serial_number: &str,
) -> Result<Option<Identity>, StoreError> {
    sqlx::query_as!(
        IdentityRow,
        "SELECT id, status, status_reason, assurance, ground_token_id, ground_inventory, ground_enrollment_id,
                ground_of_key, apple_attestation_id, attested_at, ground_attestation, serial_number, hardware_uuid, current_key
         FROM machines
         WHERE serial_number = $1 AND status <> 'pending'
           AND NOT EXISTS (SELECT FROM machine_keys AS key WHERE key.thumbprint = current_key AND key.status = 'denied')
         ORDER BY status = 'revoked', id DESC LIMIT 1",
        serial_number
    )
    .fetch_optional(connection)
    .await?
    .map(TryInto::try_into)
    .transpose()
}

/// The serial number of the only active machine that claims this hardware UUID. `None` if there is no such machine, or
/// several.
pub(crate) async fn serial_number_by_hardware_uuid(
    connection: &mut Connection,
    hardware_uuid: &str,
) -> Result<Option<String>, StoreError> {
    let found = sqlx::query_scalar!(
        "SELECT serial_number FROM machines WHERE upper(hardware_uuid) = upper($1) AND status = 'active' LIMIT 2",
        hardware_uuid
    )
    .fetch_all(connection)
    .await?;
    match <[Option<String>; 1]>::try_from(found) {
        Ok([serial_number]) => Ok(serial_number),
        Err(_none_or_several) => Ok(None),
    }
}

/// Changes the status of a machine.
pub(crate) async fn set_status(
    connection: &mut Connection,
    machine: &LockedMachine,
    status: MachineStatus,
    reason: Option<&str>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE machines SET status = $2, status_reason = $3 WHERE id = $1",
        machine.id(),
        status.as_str(),
        reason
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Admits a pending machine.
pub(crate) async fn admit(
    connection: &mut Connection,
    machine: &LockedMachine,
    reason: Option<&str>,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE machines SET status = $2, status_reason = $3, enrolled_at = $4 WHERE id = $1",
        machine.id(),
        MachineStatus::Active.as_str(),
        reason,
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The last claims of a machine.
pub(crate) async fn find_claims(connection: &mut Connection, id: Uuid) -> Result<Option<Claims>, StoreError> {
    let row = sqlx::query!(
        r#"SELECT jsonb_build_object(
                'machine', jsonb_build_object('serial_number', serial_number, 'hardware_uuid', hardware_uuid,
                                              'model_identifier', model_identifier, 'hostname', hostname),
                'posture', claimed_posture,
                'key', jsonb_build_object('store', key_store, 'accessibility', key_accessibility)) AS "claims!"
           FROM machines WHERE id = $1"#,
        id
    )
    .fetch_optional(connection)
    .await?;
    row.map(|row| parse_json(row.claims)).transpose()
}

/// Records what the machine claims now, and which values on record it leaves out. A serial number and a hardware UUID
/// that are on record stay. Returns which values the evidence before left out.
pub(crate) async fn set_claims(
    connection: &mut Connection,
    machine: &LockedMachine,
    claims: &Claims,
    late_serial_number: Option<&str>,
    withheld: &[String],
) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"UPDATE machines
         SET hardware_uuid = coalesce(hardware_uuid, $2), model_identifier = $3, hostname = $4, claimed_posture = $5,
             key_store = $6, key_accessibility = $7, serial_number = coalesce(serial_number, $8), withheld = $9
         FROM (SELECT withheld FROM machines WHERE id = $1) AS before
         WHERE id = $1
         RETURNING before.withheld AS "withheld!""#,
        machine.id(),
        claims.machine.hardware_uuid,
        claims.machine.model_identifier,
        claims.machine.hostname,
        json(&claims.posture)?,
        claims.key.store.as_str(),
        claims.key.accessibility.map(KeyAccessibility::as_str),
        late_serial_number,
        withheld,
    )
    .fetch_one(connection)
    .await?)
}

/// Gives a record a new key with that key's claims and grounds, and makes the record active. A trigger removes the old key's
/// attestation. A hardware UUID that is on record stays if the key's machine sends none. Returns the names of such values.
pub(crate) async fn replace_key(
    connection: &mut Connection,
    machine: &LockedMachine,
    key: KeyThumbprint,
    claims: &Claims,
    grounds: Grounds,
    now: OffsetDateTime,
) -> Result<Vec<String>, StoreError> {
    let withheld = sqlx::query_scalar!(
        r#"UPDATE machines
         SET status = 'active', status_reason = NULL, hardware_uuid = coalesce($2, hardware_uuid), model_identifier = $3, hostname = $4,
             claimed_posture = $5, current_key = $6, key_store = $7, key_accessibility = $8, key_created_at = $9,
             certificate_serial_number = NULL, verdict_reasons = NULL, assurance = 'asserted',
             withheld = CASE WHEN $2::text IS NULL AND hardware_uuid IS NOT NULL THEN ARRAY['hardware_uuid'] ELSE '{}' END
         WHERE id = $1 RETURNING withheld AS "withheld!""#,
        machine.id(),
        claims.machine.hardware_uuid,
        claims.machine.model_identifier,
        claims.machine.hostname,
        json(&claims.posture)?,
        key.as_bytes(),
        claims.key.store.as_str(),
        claims.key.accessibility.map(KeyAccessibility::as_str),
        now,
    )
    .fetch_one(&mut *connection)
    .await?;
    super::grounds::set(connection, machine, grounds).await?;
    Ok(withheld)
}

/// Makes the next key of a record current, with its newest certificate.
pub(crate) async fn rotate_key(
    connection: &mut Connection,
    machine: &LockedMachine,
    key: KeyThumbprint,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE machines
         SET current_key = $2,
             key_created_at = (SELECT created_at FROM machine_keys WHERE thumbprint = $2),
             certificate_serial_number = (SELECT serial_number FROM certificates
                                          WHERE machine_id = $1 AND key_thumbprint = $2 AND revoked_at IS NULL
                                          ORDER BY issued_at DESC LIMIT 1)
         WHERE id = $1",
        machine.id(),
        key.as_bytes(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Records the reasons of the last verdict.
pub(crate) async fn set_verdict(
    connection: &mut Connection,
    machine: &LockedMachine,
    reasons: &[String],
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE machines SET verdict_reasons = $2 WHERE id = $1",
        machine.id(),
        reasons
    )
    .execute(connection)
    .await?;
    Ok(())
}
