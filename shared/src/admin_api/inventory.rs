//! `/v1/admin/inventory`

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::machine::{Assurance, MachineStatus};
use crate::words;

/// `PUT /v1/admin/inventory`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ImportInventory {
    /// The rows. A row replaces everything about its serial number: a field that it leaves out becomes empty.
    pub items: Vec<ImportItem>,
}

/// One row of an import.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ImportItem {
    /// The serial number, compared exactly with what machines claim.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 256))]
    pub serial_number: String,
    /// Labels for its machine, set at enrollment.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The machine's owner, for people.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(max_length = 256))]
    pub owner: Option<String>,
}

words! {
    /// What happens to serial numbers that an import leaves out.
    #[derive(Default)]
    pub enum ImportMode {
        /// They are removed.
        #[default]
        Replace = "replace",
        /// They stay.
        Merge = "merge",
    }
}

/// The result of an import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImportedInventory {
    /// What happened to serial numbers that it leaves out.
    pub mode: ImportMode,
    /// The number of rows.
    pub total: u64,
    /// How many serial numbers were added.
    pub added: u64,
    /// How many got other labels or another owner.
    pub changed: u64,
    /// How many serial numbers were removed.
    pub removed: u64,
    /// How many stayed the same.
    pub unchanged: u64,
    /// How many machines lost assurance because their serial number was removed.
    pub lowered: u64,
}

/// A serial number of the inventory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InventoryItem {
    /// The serial number.
    pub serial_number: String,
    /// Labels for its machine, set at enrollment.
    pub labels: BTreeMap<String, String>,
    /// The machine's owner.
    pub owner: Option<String>,
    /// When it was added.
    #[serde(with = "time::serde::rfc3339")]
    pub added_at: OffsetDateTime,
    /// When its labels or owner last changed.
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
    /// The enrolled machine with this serial number; else the one that waits for approval or was revoked last. Null if
    /// there is none.
    pub machine: Option<InventoryMachine>,
}

/// A machine in the inventory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InventoryMachine {
    /// Its id.
    pub id: Uuid,
    /// Its status.
    pub status: MachineStatus,
    /// How well its serial number is confirmed.
    pub assurance: Assurance,
}
