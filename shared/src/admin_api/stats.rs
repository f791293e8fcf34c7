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
    /// Certificates of machines, including deleted ones.
    pub certificates: CertificateStats,
    /// How many machines checked in within the last minute.
    pub check_ins_per_minute: u64,
    /// When the figures were counted. In a large fleet they are some seconds old, because counting takes time.
    #[serde(with = "time::serde::rfc3339")]
    pub computed_at: OffsetDateTime,
}

/// Machines on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachineStats {
    /// The number of machines.
    pub total: u64,
    /// By status.
    pub by_status: MachinesByStatus,
    /// By assurance.
    pub by_assurance: MachinesByAssurance,
    /// By liveness.
    pub by_liveness: MachinesByLiveness,
    /// By claimed OS version: the most frequent versions, `other` for the rest, `unknown` for machines that claim none.
    pub by_os_version: BTreeMap<String, u64>,
}

/// Machines by status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachinesByStatus {
    /// Waiting for approval.
    pub pending: u64,
    /// Enrolled and admitted.
    pub active: u64,
    /// Suspended.
    pub quarantined: u64,
    /// Barred for good.
    pub revoked: u64,
}

/// Machines by assurance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachinesByAssurance {
    /// Only the machine claims the serial number.
    pub asserted: u64,
    /// A token bound to the serial number, the inventory or an administrator confirmed it.
    pub verified: u64,
    /// An Apple attestation confirmed it.
    pub attested: u64,
}

/// Machines by liveness.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachinesByLiveness {
    /// They have not checked in yet.
    pub never: u64,
    /// Within the last two intervals.
    pub live: u64,
    /// More than two intervals ago.
    pub late: u64,
    /// More than 24 hours ago.
    pub unreachable: u64,
}

/// Certificates of machines. Each is either `valid`, `expired` or `revoked`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CertificateStats {
    /// Neither expired nor revoked.
    pub valid: u64,
    /// Valid certificates that expire within 7 days.
    pub expiring_within_7_days: u64,
    /// Expired and not revoked.
    pub expired: u64,
    /// Revoked, whether expired or not.
    pub revoked: u64,
}
