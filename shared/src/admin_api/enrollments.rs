//! `/v1/admin/enrollments`

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::audit::Actor;
use crate::{key::KeyThumbprint, machine::KeyStoreKind, words};

words! {
    /// What a key asks for.
    pub enum EnrollmentKind {
        /// A machine without a record.
        Enrollment = "enrollment",
        /// A new key for an existing record. It signs for itself.
        ReEnrollment = "re-enrollment",
        /// A next key, which the machine's current key asks for.
        Rotation = "rotation",
    }
}

words! {
    /// The status of an enrollment.
    pub enum EnrollmentStatus {
        /// It waits for an administrator.
        Pending = "pending",
        /// A token or an administrator approved it.
        Approved = "approved",
        /// An administrator denied it. This key stays denied.
        Denied = "denied",
        /// There was no decision in time. The key may enroll again.
        Expired = "expired",
    }
}

/// The key of an enrollment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EnrollmentKey {
    /// Its thumbprint.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub thumbprint: KeyThumbprint,
    /// Where it is stored, as the agent claims. Null for a rotation.
    pub store: Option<KeyStoreKind>,
}

/// The key that a re-enrollment or a rotation replaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PreviousKey {
    /// Its thumbprint.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub thumbprint: KeyThumbprint,
}

/// A request to enroll a key, and the decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Enrollment {
    /// Its id.
    pub id: Uuid,
    /// What the key asks for.
    pub kind: EnrollmentKind,
    /// Its status.
    pub status: EnrollmentStatus,
    /// The machine that it creates, or whose key it replaces.
    pub machine_id: Uuid,
    /// The serial number that the machine claims.
    pub serial_number: Option<String>,
    /// Whether the inventory has that serial number now.
    pub in_inventory: bool,
    /// The hardware UUID that it claims.
    pub hardware_uuid: Option<String>,
    /// The model that it claims.
    pub model_identifier: Option<String>,
    /// The host name that it claims.
    pub hostname: Option<String>,
    /// The key to enroll.
    pub key: EnrollmentKey,
    /// The key that it would replace.
    pub previous_key: Option<PreviousKey>,
    /// The token that was used; null if none was.
    pub token_id: Option<Uuid>,
    /// The address that it was requested from; null if it is unknown or was deleted.
    pub address: Option<String>,
    /// When it was first requested.
    #[serde(with = "time::serde::rfc3339")]
    pub requested_at: OffsetDateTime,
    /// When it expires; null once it is decided.
    #[serde(with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
    /// When it was decided or expired.
    #[serde(with = "time::serde::rfc3339::option")]
    pub decided_at: Option<OffsetDateTime>,
    /// Who decided; null if the token did, the server itself if it expired.
    pub decided_by: Option<Actor>,
    /// The reason for the decision.
    pub reason: Option<String>,
}

/// `POST /enrollments/{id}/approve`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Approve {
    /// The reason, for the audit.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 500))]
    pub reason: Option<String>,
}

/// `POST /machines/{id}/approve`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ApproveKey {
    /// Why, for the audit.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 500))]
    pub reason: Option<String>,
    /// The thumbprint of the key to approve. Required if several keys wait. The current key of an active machine becomes
    /// `verified` by it.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub key_thumbprint: Option<KeyThumbprint>,
}

/// The body of every other decision: `deny`, `quarantine`, `release`, `revoke`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Decide {
    /// The reason: for the audit and for the machine's administrator.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 500))]
    pub reason: String,
}
