//! The assurance columns of `machines`. The grounds and the level that follows from them are always written together.

use std::collections::HashMap;

use time::OffsetDateTime;
use uuid::Uuid;

use super::presence::LockedMachine;
use crate::machines::assurance::{AttestationGround, Grounds, InventoryGround};
use crate::store::{Connection, StoreError, Transaction, parse_text};

/// The grounds of a machine whose record is also locked.
#[derive(Debug, Clone)]
pub(crate) struct LockedGrounds<'a> {
    pub(crate) machine: &'a LockedMachine,
    pub(crate) serial_number: String,
    pub(crate) grounds: Grounds,
}

impl LockedGrounds<'_> {
    /// The grounds after the serial number was removed from the inventory.
    pub(crate) fn without_inventory(&self) -> Self {
        Self {
            grounds: self.grounds.without_inventory(),
            ..self.clone()
        }
    }
}

/// The columns. A foreign key guarantees that an attestation in them is about the record's own key and serial number.
#[derive(Debug, Clone, Default)]
pub(super) struct Columns {
    pub(super) ground_token_id: Option<Uuid>,
    pub(super) ground_inventory: Option<String>,
    pub(super) ground_enrollment_id: Option<Uuid>,
    pub(super) ground_of_key: bool,
    pub(super) apple_attestation_id: Option<Uuid>,
    pub(super) attested_at: Option<OffsetDateTime>,
    pub(super) ground_attestation: Option<String>,
}

/// The grounds in a row that has all these columns.
macro_rules! grounds_of {
    ($row:expr) => {
        $crate::store::machines::grounds::Columns {
            ground_token_id: $row.ground_token_id,
            ground_inventory: $row.ground_inventory,
            ground_enrollment_id: $row.ground_enrollment_id,
            ground_of_key: $row.ground_of_key,
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
            of_key: self.ground_of_key,
            attestation,
        })
    }
}

/// The grounds for trusting a machine's serial number.
pub(crate) async fn find(connection: &mut Connection, machine_id: Uuid) -> Result<Option<Grounds>, StoreError> {
    let row = sqlx::query_as!(
        Columns,
        "SELECT ground_token_id, ground_inventory, ground_enrollment_id, ground_of_key, apple_attestation_id, attested_at,
                ground_attestation
         FROM machines WHERE id = $1",
        machine_id
    )
    .fetch_optional(connection)
    .await?;
    row.map(|row| row.parse()).transpose()
}

/// Whether an attestation of a machine's current key counts. Apple's answer proves that the Mac exists. That the key is that
/// Mac's takes a token or an approval that was given to this very key, and a key that never claimed to be in software.
pub(crate) async fn is_attestable(connection: &mut Connection, machine_id: Uuid) -> Result<bool, StoreError> {
    let found = sqlx::query_scalar!(
        r#"SELECT machines.ground_of_key AND coalesce(machine_keys.store = 'secure-enclave', false) AS "is_attestable!"
           FROM machines JOIN machine_keys ON thumbprint = current_key
           WHERE machines.id = $1"#,
        machine_id
    )
    .fetch_optional(connection)
    .await?;
    Ok(found.unwrap_or(false))
}

/// Sets a machine's grounds and its level.
pub(crate) async fn set(
    connection: &mut Connection,
    machine: &LockedMachine,
    grounds: Grounds,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE machines
         SET assurance = $2, ground_token_id = $3, ground_inventory = $4, ground_enrollment_id = $5,
             apple_attestation_id = $6, attested_at = $7, ground_attestation = $8, ground_of_key = $9
         WHERE id = $1",
        machine.id(),
        grounds.assurance().as_str(),
        grounds.token,
        grounds.inventory.map(InventoryGround::as_str),
        grounds.approval,
        grounds.attestation.map(AttestationGround::id),
        grounds.attestation.map(AttestationGround::attested_at),
        grounds.attestation.map(|attestation| attestation.state().as_str()),
        grounds.of_key,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Locks the records of those machines among these that still count as in the inventory, and reads their grounds.
pub(crate) async fn lock_on_inventory<'a>(
    tx: &mut Transaction,
    machines: &'a [LockedMachine],
) -> Result<Vec<LockedGrounds<'a>>, StoreError> {
    let by_id: HashMap<Uuid, &LockedMachine> = machines.iter().map(|machine| (machine.id(), machine)).collect();
    let ids: Vec<Uuid> = machines.iter().map(LockedMachine::id).collect();
    let rows = sqlx::query!(
        r#"SELECT id, serial_number AS "serial_number!", ground_token_id, ground_inventory, ground_enrollment_id,
                  ground_of_key, apple_attestation_id, attested_at, ground_attestation
           FROM machines WHERE id = ANY ($1) AND ground_inventory = 'matched' AND serial_number IS NOT NULL
           ORDER BY id FOR UPDATE"#,
        &ids
    )
    .fetch_all(&mut **tx)
    .await?;
    rows.into_iter()
        .filter_map(|row| {
            let machine = by_id.get(&row.id)?;
            Some(grounds_of!(row).map(|grounds| LockedGrounds {
                machine,
                serial_number: row.serial_number,
                grounds,
            }))
        })
        .collect()
}

/// Sets the inventory grounds of several machines, and their levels.
pub(crate) async fn set_all(connection: &mut Connection, all: &[LockedGrounds<'_>]) -> Result<(), StoreError> {
    let (mut ids, mut levels, mut inventory) = (Vec::new(), Vec::new(), Vec::new());
    for of_machine in all {
        ids.push(of_machine.machine.id());
        levels.push(of_machine.grounds.assurance().as_str());
        inventory.push(of_machine.grounds.inventory.map(InventoryGround::as_str));
    }
    sqlx::query!(
        "UPDATE machines SET assurance = given.assurance, ground_inventory = given.inventory
         FROM unnest($1::uuid[], $2::text[], $3::text[]) AS given (id, assurance, inventory)
         WHERE machines.id = given.id",
        &ids,
        &levels as &[&str],
        &inventory as &[Option<&str>],
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Machines whose attestation Apple signed at or before a time.
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
