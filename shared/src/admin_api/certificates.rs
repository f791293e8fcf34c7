//! `/v1/admin/certificates`, and those of one machine

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::key::KeyThumbprint;

/// Whether a certificate can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum CertificateStatus {
    /// Neither expired nor revoked.
    Valid,
    /// Past its end, and never revoked.
    Expired,
    /// Revoked, whether its end has passed or not.
    Revoked,
}

/// A certificate that was issued to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Certificate {
    /// Lower-case hex, two digits a byte.
    pub serial_number: String,
    /// The machine in its subject; its record may be deleted.
    pub machine_id: Uuid,
    /// The key that it certifies.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub key_thumbprint: KeyThumbprint,
    /// Whether it can be relied on now.
    pub status: CertificateStatus,
    /// SHA-256 of the DER, in hex.
    pub sha256: String,
    /// When it becomes valid.
    #[serde(with = "time::serde::rfc3339")]
    pub not_before: OffsetDateTime,
    /// When it expires.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    /// When it was issued.
    #[serde(with = "time::serde::rfc3339")]
    pub issued_at: OffsetDateTime,
    /// When it was revoked; null while it is not.
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
    /// The reason of RFC 5280, in snake case; null while it is not revoked.
    pub revocation_reason: Option<String>,
}
