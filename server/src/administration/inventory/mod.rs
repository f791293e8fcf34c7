//! The inventory: the machines that the organization says it has. Imported as a whole, listed, taken from.

mod csv;
mod import;
mod json;
mod lowering;
mod rows;

use assay_protocol::admin_api::inventory::{ImportMode, ImportedInventory, InventoryItem};
use axum::body::Bytes;

use self::import::Import;
pub(crate) use self::{import::Format, rows::RowError};
use crate::{
    changes::{Action, Change, Origin},
    store::{
        self, Store, StoreError, Transaction,
        duties::{self, Duty},
        inventory::InventoryFilter,
        tx,
    },
};

/// What the audit calls the resource of an import.
const ALL: &str = "all";

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InventoryError {
    /// The whole cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// It can be read, and some rows are wrong.
    #[error("the inventory is as it was, as {} wrong: {}", counted(*total), in_words(first, *total))]
    Rows { total: usize, first: Vec<RowError> },
    #[error(
        "an inventory without a row would remove every row that there is: say allow_empty=true in the query if that is meant"
    )]
    Empty,
    #[error("another import of the inventory is under way; repeat this one when it has ended")]
    Busy,
    #[error("the server is stopping")]
    Interrupted,
    #[error("there is no such serial number in the inventory")]
    Unknown,
    #[error(transparent)]
    Store(#[from] StoreError),
}

crate::store::has_store_error!(InventoryError);

/// A page of the inventory, in the order of the serial numbers.
pub(crate) async fn list(
    store: &Store,
    filter: &InventoryFilter,
    after: Option<&str>,
    rows: i64,
) -> Result<Vec<InventoryItem>, InventoryError> {
    Ok(store::inventory::list(&mut *store.connection().await?, filter, after, rows).await?)
}

/// What the inventory says of a serial number.
pub(crate) async fn find(store: &Store, serial_number: &str) -> Result<InventoryItem, InventoryError> {
    store::inventory::find(&mut *store.connection().await?, serial_number)
        .await?
        .ok_or(InventoryError::Unknown)
}

/// Takes over what a file says, or nothing of it. A file of no row is taken for a mistake where nobody says that it is none.
pub(crate) async fn import(
    store: &Store,
    origin: &Origin,
    (mode, allow_empty): (ImportMode, bool),
    format: Format,
    body: Bytes,
) -> Result<ImportedInventory, InventoryError> {
    // Seconds of work with a large file, for which no other request should wait.
    let read = tokio::task::spawn_blocking(move || Import::read(format, &body)).await;
    let import = read.map_err(|_| InventoryError::Interrupted)??;
    if mode == ImportMode::Replace && import.serial_numbers().is_empty() && !allow_empty {
        return Err(InventoryError::Empty);
    }
    tx!(store, ImportInventory, origin => import_once(mode, &import)).await
}

/// Takes a serial number out. Its machine loses what it said for it.
pub(crate) async fn remove(store: &Store, origin: &Origin, serial_number: &str) -> Result<(), InventoryError> {
    tx!(store, RemoveFromInventory, origin => remove_once(serial_number)).await
}

async fn import_once(
    tx: &mut Transaction,
    mode: ImportMode,
    import: &Import,
) -> Result<ImportedInventory, InventoryError> {
    // Waiting for the other one could take longer than a statement may.
    if !duties::try_take(tx, Duty::ImportInventory).await? {
        return Err(InventoryError::Busy);
    }
    store::inventory::allow_time(tx).await?;
    let now = tx.now();
    let (mut added, mut changed) = (0, 0);
    for columns in import.batches() {
        changed += store::inventory::update(tx, &columns, now).await?;
        added += store::inventory::add(tx, &columns, now).await?;
    }
    // Last, because machines that enroll wait for what is locked from here on.
    let removed = match mode {
        ImportMode::Replace => store::inventory::remove_others(tx, import.serial_numbers()).await?,
        ImportMode::Merge => Vec::new(),
    };
    let lowered = lowering::lower(tx, &removed).await?;
    let (total, removed) = (count(import.serial_numbers().len()), count(removed.len()));
    let imported = ImportedInventory {
        mode,
        total,
        added,
        changed,
        removed,
        unchanged: total.saturating_sub(added).saturating_sub(changed),
        lowered,
    };
    if added + changed + removed > 0 {
        let mut after = store::json(&imported)?;
        if let Some(members) = after.as_object_mut() {
            members.insert("sha256".to_owned(), import.sha256().into());
        }
        let change = Change::new(Action::InventoryImport, ALL).after(after);
        tx.record(change).await?;
    }
    Ok(imported)
}

async fn remove_once(tx: &mut Transaction, serial_number: &str) -> Result<(), InventoryError> {
    let before = store::inventory::find(tx, serial_number).await?;
    let before = before.ok_or(InventoryError::Unknown)?;
    // Somebody may have come first.
    if !store::inventory::remove(tx, serial_number).await? {
        return Err(InventoryError::Unknown);
    }
    let lowered = lowering::lower(tx, &[serial_number.to_owned()]).await?;
    let change = Change::new(Action::InventoryRemove, serial_number)
        .before(store::json(&before)?)
        .after(serde_json::json!({ "lowered": lowered }));
    Ok(tx.record(change).await?)
}

fn count(rows: usize) -> u64 {
    u64::try_from(rows).unwrap_or(u64::MAX)
}

fn counted(rows: usize) -> String {
    match rows {
        1 => "1 row is".to_owned(),
        rows => format!("{rows} rows are"),
    }
}

/// The first few; the answer has more of them, each on its own.
fn in_words(first: &[RowError], total: usize) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<String> = first
        .iter()
        .take(SHOWN)
        .map(|error| format!("line {}: {}", error.line, error.detail))
        .collect();
    let rest = if total > shown.len() { "; …" } else { "" };
    format!("{}{rest}", shown.join("; "))
}
