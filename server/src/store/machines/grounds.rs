//! `machines`, as far as their assurance goes: what it rests on. Whoever writes the grounds writes the level that follows.

use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    machines::assurance::{AttestationGround, Grounds},
    store::{Connection, StoreError, parse_text, text},
};

/// A machine and what stands behind its serial number.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) machine_id: Uuid,
    pub(crate) serial_number: String,
    pub(crate) grounds: Grounds,
}

impl Standing {
    /// The same, when the serial number has gone from the inventory.
    pub(crate) fn without_inventory(&self) -> Self {
        Self {
            grounds: self.grounds.without_inventory(),
            ..self.clone()
        }
    }
}

/// The columns. An attestation in them is of the record's own key and serial number: a foreign key sees to that.
#[derive(Debug, Clone, Default)]
pub(super) struct Columns {
    pub(super) ground_token_id: Option<Uuid>,
    pub(super) ground_inventory: Option<String>,
    pub(super) ground_enrollment_id: Option<Uuid>,
    pub(super) apple_attestation_id: Option<Uuid>,
    pub(super) attested_at: Option<OffsetDateTime>,
    pub(super) ground_attestation: Option<String>,
}

/// The grounds in a row that has all the columns.
macro_rules! grounds_of {
    ($row:expr) => {
        $crate::store::machines::grounds::Columns {
            ground_token_id: $row.ground_token_id,
            ground_inventory: $row.ground_inventory,
            ground_enrollment_id: $row.ground_enrollment_id,
            apple_attestation_id: $row.apple_attestation_id,
            attested_at: $row.attested_at,
            ground_attestation: $row.ground_attestation,
        }
        .parse()
    };
}
pub(super) use grounds_of;

impl Columns {
    pub(super) fn parse(&self) -> Result<Grounds, StoreError> {
        let attestation = match (self.apple_attestation_id, self.attested_at, &self.ground_attestation) {
            (Some(id), Some(attested_at), Some(standing)) => {
                Some(AttestationGround::on_record(id, attested_at, parse_text(standing)?))
            }
            _ => None,
        };
        Ok(Grounds {
            token: self.ground_token_id,
            inventory: self.ground_inventory.as_deref().map(parse_text).transpose()?,
            approval: self.ground_enrollment_id,
            attestation,
        })
    }
}

/// What stands behind a machine's serial number.
pub(crate) async fn find(connection: &mut Connection, machine_id: Uuid) -> Result<Option<Grounds>, StoreError> {
    let row = sqlx::query_as!(
        Columns,
        "SELECT ground_token_id, ground_inventory, ground_enrollment_id, apple_attestation_id, attested_at,
                ground_attestation
         FROM machines WHERE id = $1",
        machine_id
    )
    .fetch_optional(connection)
    .await?;
    row.map(|row| row.parse()).transpose()
}

/// Sets what stands behind a machine's serial number, and the level.
pub(crate) async fn set(connection: &mut Connection, machine_id: Uuid, grounds: Grounds) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE machines
         SET assurance = $2, ground_token_id = $3, ground_inventory = $4, ground_enrollment_id = $5,
             apple_attestation_id = $6, attested_at = $7, ground_attestation = $8
         WHERE id = $1",
        machine_id,
        text(&grounds.assurance())?,
        grounds.token,
        grounds.inventory.as_ref().map(text).transpose()?,
        grounds.approval,
        grounds.attestation.map(AttestationGround::id),
        grounds.attestation.map(AttestationGround::attested_at),
        grounds
            .attestation
            .map(|attestation| text(&attestation.standing()))
            .transpose()?,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Holds the presence of every machine that rests on one of these serial numbers being in the inventory, in the order
/// in which presences are held, and returns their ids.
pub(crate) async fn hold_on_inventory(
    connection: &mut Connection,
    serial_numbers: &[String],
) -> Result<Vec<Uuid>, StoreError> {
    Ok(sqlx::query_scalar!(
        "SELECT presence.machine_id
         FROM machine_presence AS presence
              JOIN machines ON machines.id = presence.machine_id
              JOIN unnest($1::text[]) AS gone (serial_number) ON gone.serial_number = machines.serial_number
         WHERE ground_inventory = 'matched'
         ORDER BY presence.machine_id FOR UPDATE OF presence",
        serial_numbers
    )
    .fetch_all(connection)
    .await?)
}

/// Reads what machines rest on whose presence is held, of those that still rest on the inventory, and holds the records.
pub(crate) async fn lock_on_inventory(connection: &mut Connection, ids: &[Uuid]) -> Result<Vec<Standing>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT id, serial_number AS "serial_number!", ground_token_id, ground_inventory, ground_enrollment_id,
                  apple_attestation_id, attested_at, ground_attestation
           FROM machines WHERE id = ANY ($1) AND ground_inventory = 'matched' AND serial_number IS NOT NULL
           ORDER BY id FOR UPDATE"#,
        ids
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Standing {
                machine_id: row.id,
                serial_number: row.serial_number,
                grounds: grounds_of!(row)?,
            })
        })
        .collect()
}

/// Sets what the inventory says for machines that are held, and the levels that follow.
pub(crate) async fn set_all(connection: &mut Connection, all: &[Standing]) -> Result<(), StoreError> {
    let (mut ids, mut levels, mut inventory) = (Vec::new(), Vec::new(), Vec::new());
    for standing in all {
        ids.push(standing.machine_id);
        levels.push(text(&standing.grounds.assurance())?);
        inventory.push(standing.grounds.inventory.as_ref().map(text).transpose()?);
    }
    sqlx::query!(
        "UPDATE machines SET assurance = given.assurance, ground_inventory = given.inventory
         FROM unnest($1::uuid[], $2::text[], $3::text[]) AS given (id, assurance, inventory)
         WHERE machines.id = given.id",
        &ids,
        &levels,
        &inventory as &[Option<String>],
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Machines that rest on an attestation which Apple signed then or earlier.
pub(crate) async fn resting_on_attestations_until(
    connection: &mut Connection,
    attested_since: OffsetDateTime,
    limit: i64,
) -> Result<Vec<Uuid>, StoreError> {
    Ok(sqlx::query_scalar!(
        "SELECT id FROM machines WHERE ground_attestation = 'bound' AND attested_at <= $1 ORDER BY attested_at LIMIT $2",
        attested_since,
        limit
    )
    .fetch_all(connection)
    .await?)
}
