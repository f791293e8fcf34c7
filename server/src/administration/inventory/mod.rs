//! The inventory: the machines that the organization owns. Importing it as a whole, listing it, and removing from it.

mod csv;
pub(crate) mod import;
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

/// The resource id of an import in the audit log.
const ALL: &str = "all";

/// Why nothing changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InventoryError {
    /// The file as a whole cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// The file can be read, but some rows are wrong.
    #[error("the inventory is unchanged, because {} wrong: {}", counted(*total), in_words(first, *total))]
    Rows { total: usize, first: Vec<RowError> },
    #[error("a file without rows would empty the inventory; if that is intended, add allow_empty=true to the query")]
    Empty,
    #[error("another import of the inventory is running; repeat this one when it has ended")]
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

/// The item with a serial number.
pub(crate) async fn find(store: &Store, serial_number: &str) -> Result<InventoryItem, InventoryError> {
    store::inventory::find(&mut *store.connection().await?, serial_number)
        .await?
        .ok_or(InventoryError::Unknown)
}

/// Imports a whole file or nothing. Replacing the inventory by an empty file is taken for a mistake unless
/// `allow_empty` is set.
pub(crate) async fn import(
    store: &Store,
    origin: &Origin,
    (mode, allow_empty): (ImportMode, bool),
    format: Format,
    body: Bytes,
) -> Result<ImportedInventory, InventoryError> {
    // A large file takes seconds, which would block other requests on this thread.
    let read = tokio::task::spawn_blocking(move || Import::read(format, &body)).await;
    let import = read.map_err(|_| InventoryError::Interrupted)??;
    if mode == ImportMode::Replace && import.serial_numbers().is_empty() && !allow_empty {
        return Err(InventoryError::Empty);
    }
    tx!(store, ImportInventory, origin => import_once(mode, &import)).await
}

/// Removes a serial number. Its machine loses this ground of its assurance.
pub(crate) async fn remove(store: &Store, origin: &Origin, serial_number: &str) -> Result<(), InventoryError> {
    tx!(store, RemoveFromInventory, origin => remove_once(serial_number)).await
}

async fn import_once(
    tx: &mut Transaction,
    mode: ImportMode,
    import: &Import,
) -> Result<ImportedInventory, InventoryError> {
    // Waiting for the other import could exceed the statement timeout.
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
    // Last, because enrollments wait for the rows that are locked from here on.
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
    // A concurrent call may have removed it since.
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

/// The first few errors as text. The problem lists more of them as members.
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
