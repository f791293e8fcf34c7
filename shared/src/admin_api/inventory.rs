//! `/v1/admin/inventory`

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::machine::{Assurance, MachineStatus};

/// `PUT /v1/admin/inventory`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ImportInventory {
    /// The rows. Each is the whole of what is known of its serial number: what it leaves out is empty.
    pub items: Vec<ImportItem>,
}

/// One row of an import.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ImportItem {
    /// The serial number, compared exactly with what machines claim.
    pub serial_number: String,
    /// Labels that its machine gets when it is enrolled.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whose machine it is, for people.
    #[serde(default)]
    pub owner: Option<String>,
}

/// What becomes of the rows that an import does not name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ImportMode {
    /// They are removed.
    #[default]
    Replace,
    /// They stay.
    Merge,
}

/// What an import did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImportedInventory {
    /// What became of the rows that it does not name.
    pub mode: ImportMode,
    /// How many rows it has.
    pub total: u64,
    /// How many serial numbers are new.
    pub added: u64,
    /// How many have other labels or another owner than before.
    pub changed: u64,
    /// How many serial numbers are there no more.
    pub removed: u64,
    /// How many are as before.
    pub unchanged: u64,
    /// How many machines have a lower assurance, as the serial number went that stood behind it.
    pub lowered: u64,
}

/// A serial number of the inventory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InventoryItem {
    /// The serial number.
    pub serial_number: String,
    /// Labels that its machine gets when it is enrolled.
    pub labels: BTreeMap<String, String>,
    /// Whose machine it is.
    pub owner: Option<String>,
    /// When it came in.
    #[serde(with = "time::serde::rfc3339")]
    pub added_at: OffsetDateTime,
    /// When its labels or owner changed last.
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
    /// The machine that has this serial number; without one, the one that waits for approval or was revoked last. Null
    /// where none ever asked.
    pub machine: Option<InventoryMachine>,
}

/// A machine, as the inventory shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InventoryMachine {
    /// Its id.
    pub id: Uuid,
    /// Where it stands.
    pub status: MachineStatus,
    /// What stands behind its serial number.
    pub assurance: Assurance,
}
