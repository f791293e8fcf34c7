//! `apple_attestations`: what Apple vouched for. A row is made of a [`BoundAttestation`] and of nothing else.

use assay_protocol::attestation::AttestedClaims;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, StoreError, json, parse_json};
use crate::attestation::apple::BoundAttestation;

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

/// Keeps an attestation that was bound to a machine.
pub(crate) async fn insert(
    connection: &mut Connection,
    id: Uuid,
    machine_id: Uuid,
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
        machine_id,
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
