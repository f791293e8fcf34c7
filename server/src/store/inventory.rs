//! `inventory`: the machines that the organization owns.

use assay_protocol::admin_api::inventory::{InventoryItem, InventoryMachine};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, StoreError, parse_json, parse_text};
use crate::machines::labels::Labels;

/// Which items to list. An absent member selects all.
#[derive(Debug, Default)]
pub(crate) struct InventoryFilter {
    /// Whether a machine of this serial number is enrolled: active or quarantined.
    pub(crate) enrolled: Option<bool>,
}

/// The columns of rows to write, as arguments of `unnest`.
#[derive(Debug)]
pub(crate) struct Columns<'a> {
    pub(crate) serial_numbers: &'a [String],
    /// JSON objects.
    pub(crate) labels: &'a [String],
    pub(crate) owners: &'a [Option<String>],
}

struct Row {
    serial_number: String,
    labels: Value,
    owner: Option<String>,
    added_at: OffsetDateTime,
    updated_at: OffsetDateTime,
    machine_id: Option<Uuid>,
    status: Option<String>,
    assurance: Option<String>,
}

impl TryFrom<Row> for InventoryItem {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let machine = match (row.machine_id, row.status, row.assurance) {
            (Some(id), Some(status), Some(assurance)) => Some(InventoryMachine {
                id,
                status: parse_text(&status)?,
                assurance: parse_text(&assurance)?,
            }),
            _ => None,
        };
        Ok(Self {
            serial_number: row.serial_number,
            labels: parse_json(row.labels)?,
            owner: row.owner,
            added_at: row.added_at,
            updated_at: row.updated_at,
            machine,
        })
    }
}

/// The columns of an item. They include the machine with the serial number; if there is none, a pending machine that
/// claims it; otherwise one that had it.
macro_rules! select {
    ($condition:tt, $($argument:expr),+ $(,)?) => {
        sqlx::query_as!(
            Row,
            r#"SELECT inventory.serial_number, inventory.labels, inventory.owner, added_at, updated_at,
                      machine.id AS "machine_id?", machine.status AS "status?", machine.assurance AS "assurance?"
               FROM inventory
               LEFT JOIN LATERAL (
                   SELECT id, status, assurance FROM machines WHERE machines.serial_number = inventory.serial_number
                   ORDER BY status IN ('active', 'quarantined') DESC, status = 'pending' DESC, id DESC LIMIT 1
               ) AS machine ON true "# + $condition,
            $($argument),+
        )
    };
}

/// A page of the inventory in the order of serial numbers.
pub(crate) async fn list(
    connection: &mut Connection,
    filter: &InventoryFilter,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<InventoryItem>, StoreError> {
    select!(
        "WHERE ($1::text IS NULL OR inventory.serial_number > $1)
           AND ($2::boolean IS NULL OR $2 = EXISTS (
                   SELECT FROM machines
                   WHERE machines.serial_number = inventory.serial_number AND status IN ('active', 'quarantined')))
         ORDER BY inventory.serial_number LIMIT $3",
        after,
        filter.enrolled,
        limit,
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(TryInto::try_into)
    .collect()
}

/// Finds the item with a serial number.
pub(crate) async fn find(
    connection: &mut Connection,
    serial_number: &str,
) -> Result<Option<InventoryItem>, StoreError> {
    select!("WHERE inventory.serial_number = $1", serial_number)
        .fetch_optional(connection)
        .await?
        .map(TryInto::try_into)
        .transpose()
}

/// Locks the inventory's row of a serial number until the end of the transaction, and reads its labels. A transaction
/// must lock it before the machine's row, because an import removes rows first and locks their machines afterwards.
pub(crate) async fn lock(connection: &mut Connection, serial_number: &str) -> Result<Option<Labels>, StoreError> {
    let labels = sqlx::query_scalar!(
        "SELECT labels FROM inventory WHERE serial_number = $1 FOR KEY SHARE",
        serial_number
    )
    .fetch_optional(connection)
    .await?;
    labels.map(parse_json).transpose()
}

/// Raises the statement timeout in this transaction, because one import may contain a whole fleet.
pub(crate) async fn allow_time(connection: &mut Connection) -> Result<(), StoreError> {
    sqlx::query!("SET LOCAL statement_timeout = '60s'")
        .execute(connection)
        .await?;
    Ok(())
}

/// Updates existing rows that differ. Returns their number.
pub(crate) async fn update(
    connection: &mut Connection,
    columns: &Columns<'_>,
    now: OffsetDateTime,
) -> Result<u64, StoreError> {
    let done = sqlx::query!(
        "UPDATE inventory SET labels = given.labels::jsonb, owner = given.owner, updated_at = $4
         FROM unnest($1::text[], $2::text[], $3::text[]) AS given (serial_number, labels, owner)
         WHERE inventory.serial_number = given.serial_number
           AND (inventory.labels <> given.labels::jsonb OR inventory.owner IS DISTINCT FROM given.owner)",
        columns.serial_numbers,
        columns.labels,
        columns.owners as &[Option<String>],
        now,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// Inserts the missing rows. Returns their number.
pub(crate) async fn add(
    connection: &mut Connection,
    columns: &Columns<'_>,
    now: OffsetDateTime,
) -> Result<u64, StoreError> {
    let done = sqlx::query!(
        "INSERT INTO inventory (serial_number, labels, owner, added_at, updated_at)
         SELECT serial_number, labels::jsonb, owner, $4, $4
         FROM unnest($1::text[], $2::text[], $3::text[]) AS given (serial_number, labels, owner)
         ON CONFLICT (serial_number) DO NOTHING",
        columns.serial_numbers,
        columns.labels,
        columns.owners as &[Option<String>],
        now,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// Removes all other rows. Returns their serial numbers.
pub(crate) async fn remove_others(connection: &mut Connection, keep: &[String]) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar!(
        "DELETE FROM inventory
         WHERE NOT EXISTS (SELECT FROM unnest($1::text[]) AS kept (serial_number)
                           WHERE kept.serial_number = inventory.serial_number)
         RETURNING serial_number",
        keep
    )
    .fetch_all(connection)
    .await?)
}

/// Removes one row. Returns `false` if it does not exist.
pub(crate) async fn remove(connection: &mut Connection, serial_number: &str) -> Result<bool, StoreError> {
    let done = sqlx::query!("DELETE FROM inventory WHERE serial_number = $1", serial_number)
        .execute(connection)
        .await?;
    Ok(done.rows_affected() == 1)
}
