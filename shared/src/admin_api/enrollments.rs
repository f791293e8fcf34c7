//! `/v1/admin/enrollments`

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::audit::Actor;
use crate::{key::KeyThumbprint, machine::KeyStoreKind};

/// Whether a machine is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum EnrollmentKind {
    /// A serial number that was not enrolled before.
    Enrollment,
    /// A new key for a record that exists.
    ReEnrollment,
}

/// How far an enrollment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum EnrollmentStatus {
    /// Waits for an administrator.
    Pending,
    /// Let in, by a token or an administrator.
    Approved,
    /// Kept out by an administrator; stays so for this key.
    Denied,
    /// Nobody decided in time; the key may ask anew.
    Expired,
}

/// A key, as an enrollment names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EnrollmentKey {
    /// Its thumbprint.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub thumbprint: KeyThumbprint,
    /// Where the agent says it lives.
    pub store: KeyStoreKind,
}

/// A key that a re-enrollment replaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PreviousKey {
    /// Its thumbprint.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub thumbprint: KeyThumbprint,
}

/// A key that asked to be enrolled, and what was decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Enrollment {
    /// Its id.
    pub id: Uuid,
    /// Whether the machine is new.
    pub kind: EnrollmentKind,
    /// How far it is.
    pub status: EnrollmentStatus,
    /// The machine that it makes or that it would take over.
    pub machine_id: Uuid,
    /// The serial number that the machine claims.
    pub serial_number: Option<String>,
    /// Whether the inventory names that serial number now.
    pub in_inventory: bool,
    /// The hardware UUID that it claims.
    pub hardware_uuid: Option<String>,
    /// The model that it claims to be.
    pub model_identifier: Option<String>,
    /// Its host name.
    pub hostname: Option<String>,
    /// The key that asks.
    pub key: EnrollmentKey,
    /// The key that it would replace.
    pub previous_key: Option<PreviousKey>,
    /// The token that came along; null where none did.
    pub token_id: Option<Uuid>,
    /// When it asked first.
    #[serde(with = "time::serde::rfc3339")]
    pub requested_at: OffsetDateTime,
    /// Until when it can be decided; null once it is.
    #[serde(with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
    /// When it was decided, or expired.
    #[serde(with = "time::serde::rfc3339::option")]
    pub decided_at: Option<OffsetDateTime>,
    /// Who decided; null where the token did. The server by itself, where it expired.
    pub decided_by: Option<Actor>,
    /// Why.
    pub reason: Option<String>,
}

/// `POST …/approve`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Approve {
    /// Why, for the audit.
    #[serde(default)]
    pub reason: Option<String>,
}

/// The body of every other decision: `deny`, `quarantine`, `release`, `revoke`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Decide {
    /// Why: for the audit, and for the machine's administrator to read.
    pub reason: String,
}
