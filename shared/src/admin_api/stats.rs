//! `/v1/admin/stats`

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// The fleet in figures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Stats {
    /// Machines on record.
    pub machines: MachineStats,
    /// Certificates of machines, those of deleted ones too.
    pub certificates: CertificateStats,
    /// How many machines checked in within the last minute.
    pub check_ins_per_minute: u64,
    /// When this was counted. Counting a large fleet takes time, so its figures are those of some seconds ago.
    #[serde(with = "time::serde::rfc3339")]
    pub computed_at: OffsetDateTime,
}

/// Machines on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachineStats {
    /// All of them.
    pub total: u64,
    /// By where they stand.
    pub by_status: MachinesByStatus,
    /// By what stands behind their serial number.
    pub by_assurance: MachinesByAssurance,
    /// By how recently they checked in.
    pub by_liveness: MachinesByLiveness,
    /// By the version of their system, as they claim it: the most frequent ones, the rest as `other`, and `unknown` for
    /// those that do not say.
    pub by_os_version: BTreeMap<String, u64>,
}

/// Machines by where they stand.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachinesByStatus {
    /// Wait for approval.
    pub pending: u64,
    /// Enrolled and admitted.
    pub active: u64,
    /// Held back.
    pub quarantined: u64,
    /// Out for good.
    pub revoked: u64,
}

/// Machines by what stands behind their serial number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachinesByAssurance {
    /// Their own word.
    pub asserted: u64,
    /// A serial-bound token, the inventory or an administrator.
    pub verified: u64,
    /// An Apple attestation.
    pub attested: u64,
}

/// Machines by how recently they checked in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachinesByLiveness {
    /// Have not checked in yet.
    pub never: u64,
    /// Within two intervals.
    pub live: u64,
    /// Over two intervals ago.
    pub late: u64,
    /// Over 24 hours ago.
    pub unreachable: u64,
}

/// Certificates of machines. Each is one of `valid`, `expired` and `revoked`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CertificateStats {
    /// Neither expired nor revoked.
    pub valid: u64,
    /// Those of the valid ones that expire within 7 days.
    pub expiring_within_7_days: u64,
    /// Past their end, and not revoked.
    pub expired: u64,
    /// Revoked, whether expired or not.
    pub revoked: u64,
}
