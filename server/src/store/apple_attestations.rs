//! `apple_attestations`: bound attestations. A row is written only from a [`BoundAttestation`].

use assay_authority::attestation::apple::BoundAttestation;
use assay_protocol::{PublicKey, admin_api::apple_attestations::MdmDevice, attestation::AttestedClaims};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, StoreError, json, machines::presence::LockedMachine, parse_json};

/// The attestation on a machine's record, as it was bound.
#[derive(Debug, Clone)]
pub(crate) struct OnRecord {
    pub(crate) id: Uuid,
    pub(crate) attested_at: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
    pub(crate) bound_at: OffsetDateTime,
    pub(crate) claims: AttestedClaims,
    /// DER, leaf first.
    pub(crate) chain: Vec<Vec<u8>>,
}

/// The attestation of a machine's current key.
pub(crate) async fn find_on_record(
    connection: &mut Connection,
    machine_id: Uuid,
) -> Result<Option<OnRecord>, StoreError> {
    let row = sqlx::query!(
        "SELECT attestation.id, attestation.attested_at, not_after, bound_at, claims, chain
         FROM machines JOIN apple_attestations AS attestation ON attestation.id = apple_attestation_id
         WHERE machines.id = $1",
        machine_id
    )
    .fetch_optional(connection)
    .await?;
    row.map(|row| {
        Ok(OnRecord {
            id: row.id,
            attested_at: row.attested_at,
            not_after: row.not_after,
            bound_at: row.bound_at,
            claims: parse_json(row.claims)?,
            chain: row.chain,
        })
    })
    .transpose()
}

/// Inserts an attestation that is bound to a machine.
pub(crate) async fn insert(
    connection: &mut Connection,
    id: Uuid,
    machine: &LockedMachine,
    bound: &BoundAttestation,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    let attestation = bound.attestation();
    let key = bound.key().thumbprint();
    let chain: Vec<&[u8]> = attestation.chain().collect();
    sqlx::query!(
        "INSERT INTO apple_attestations
            (id, machine_id, key_thumbprint, serial_number, attested_at, not_after, bound_at, claims, chain)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        id,
        machine.id(),
        key.as_bytes(),
        bound.serial_number(),
        attestation.attested_at(),
        attestation.not_after(),
        now,
        json(attestation.claims())?,
        &chain as &[&[u8]],
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A machine that should be attested.
#[derive(Debug, Clone)]
pub(crate) struct Due {
    pub(crate) place: DuePlace,
    pub(crate) serial_number: String,
    pub(crate) attested_at: Option<OffsetDateTime>,
    pub(crate) key: PublicKey,
    pub(crate) mdm_device: Option<MdmDevice>,
}

/// A position in the list: the time of the last attestation (the epoch if there was none) and the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DuePlace {
    pub(crate) attested_at: OffsetDateTime,
    pub(crate) machine_id: Uuid,
}

/// A page of the active machines whose current key an attestation counts for, and that were not attested since a time.
pub(crate) async fn list_due(
    connection: &mut Connection,
    attested_before: OffsetDateTime,
    after: Option<DuePlace>,
    limit: i64,
) -> Result<Vec<Due>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT machines.id, coalesce(attested_at, 'epoch') AS "place!", machines.serial_number AS "serial_number!",
                  attested_at, spki,
                  enrollment_id AS "enrollment_id?", asked_at AS "asked_at?", last_error, refused_at AS "refused_at?", refusal
           FROM machines
           JOIN machine_keys ON thumbprint = current_key
           LEFT JOIN mdm_devices AS device ON device.serial_number = machines.serial_number
           WHERE machines.status = 'active' AND machines.serial_number IS NOT NULL
             AND machines.ground_of_key AND machine_keys.store = 'secure-enclave'
             AND coalesce(attested_at, 'epoch') < $1 AND (coalesce(attested_at, 'epoch'), machines.id) > ($2, $3)
           ORDER BY coalesce(attested_at, 'epoch'), machines.id LIMIT $4"#,
        attested_before,
        after.map_or(OffsetDateTime::UNIX_EPOCH, |place| place.attested_at),
        after.map_or(Uuid::nil(), |place| place.machine_id),
        limit
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Due {
                place: DuePlace {
                    attested_at: row.place,
                    machine_id: row.id,
                },
                serial_number: row.serial_number,
                attested_at: row.attested_at,
                key: PublicKey::from_spki_der(&row.spki)
                    .map_err(|error| StoreError::Corrupt(format!("the key of the machine {}: {error}", row.id)))?,
                mdm_device: row.enrollment_id.map(|enrollment_id| MdmDevice {
                    enrollment_id,
                    asked_at: row.asked_at,
                    last_error: row.last_error,
                    refused_at: row.refused_at,
                    refusal: row.refusal,
                }),
            })
        })
        .collect()
}
