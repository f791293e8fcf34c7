//! `machine_openings`: permissions for a machine's record to be taken over by a new key without a token.
//!
//! Every writer has locked the machine.

use assay_protocol::KeyThumbprint;
use time::OffsetDateTime;
use uuid::Uuid;

use super::presence::LockedMachine;
use crate::{
    machines::opening::Opening,
    store::{Connection, StoreError, Transaction, json, parse_json},
};

/// The opening of a machine that was not ended. Its time may be over.
pub(crate) async fn find(connection: &mut Connection, machine_id: Uuid) -> Result<Option<Opening>, StoreError> {
    let row = sqlx::query!(
        "SELECT id, hours, reason, opened_by, opened_at, ends_at, watched_until, contested_at
         FROM machine_openings WHERE machine_id = $1 AND ended_at IS NULL",
        machine_id
    )
    .fetch_optional(connection)
    .await?;
    row.map(|row| {
        Ok(Opening {
            id: row.id,
            machine_id,
            hours: u32::try_from(row.hours).unwrap_or_default(),
            reason: row.reason,
            opened_by: parse_json(row.opened_by)?,
            opened_at: row.opened_at,
            ends_at: row.ends_at,
            watched_until: row.watched_until,
            contested_at: row.contested_at,
        })
    })
    .transpose()
}

/// Opens a machine's record.
pub(crate) async fn insert(
    connection: &mut Connection,
    machine: &LockedMachine,
    opening: &Opening,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO machine_openings (id, machine_id, hours, reason, opened_by, opened_at, ends_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        opening.id,
        machine.id(),
        i32::try_from(opening.hours).unwrap_or(i32::MAX),
        opening.reason,
        json(&opening.opened_by)?,
        opening.opened_at,
        opening.ends_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Records the key that took the record over, and until when another key contests that.
pub(crate) async fn take(
    connection: &mut Connection,
    machine: &LockedMachine,
    key: KeyThumbprint,
    watched_until: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE machine_openings SET first_key = $2, watched_until = $3 WHERE machine_id = $1 AND ended_at IS NULL",
        machine.id(),
        key.as_bytes(),
        watched_until
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Records that another key asked after the takeover.
pub(crate) async fn contest(tx: &mut Transaction, machine: &LockedMachine) -> Result<(), StoreError> {
    let now = tx.now();
    sqlx::query!(
        "UPDATE machine_openings SET contested_at = $2
         WHERE machine_id = $1 AND ended_at IS NULL AND contested_at IS NULL",
        machine.id(),
        now
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Ends the opening of a machine, if it has one.
pub(crate) async fn end(tx: &mut Transaction, machine: &LockedMachine) -> Result<(), StoreError> {
    let now = tx.now();
    sqlx::query!(
        "UPDATE machine_openings SET ended_at = $2 WHERE machine_id = $1 AND ended_at IS NULL",
        machine.id(),
        now
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}
