//! `/v1/admin/enrollment-tokens`

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::words;

words! {
    /// Whether an administrator must approve enrollments with a token.
    #[derive(Default)]
    pub enum Approval {
        /// The machine becomes active at once.
        #[default]
        Automatic = "automatic",
        /// The machine waits for an administrator.
        Manual = "manual",
    }
}

/// `POST /v1/admin/enrollment-tokens`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateEnrollmentToken {
    /// What it is for.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(max_length = 2_000))]
    pub description: String,
    /// Its lifetime.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 31_622_400))]
    pub expires_in_seconds: u64,
    /// How many machines it may enroll.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 1_000_000))]
    pub max_uses: u32,
    /// The serial numbers that it is bound to; any if absent or null.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(min_items = 1, max_items = 10_000))]
    pub serial_numbers: Option<Vec<String>>,
    /// Labels for the machines that it enrolls.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether an administrator must approve.
    #[serde(default)]
    pub approval: Approval,
    /// Whether an enrolled serial number may enroll again with a new key. Only for the serial numbers that the token is
    /// bound to.
    #[serde(default)]
    pub allow_reenrollment: bool,
}

/// An enrollment token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EnrollmentToken {
    /// Its id.
    pub id: Uuid,
    /// What it is for.
    pub description: String,
    /// When it was created.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it expires.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// How many machines it may enroll.
    pub max_uses: u32,
    /// How many machines it has enrolled.
    pub uses: u32,
    /// The serial numbers that it is bound to; null for any.
    pub serial_numbers: Option<Vec<String>>,
    /// Labels for the machines that it enrolls.
    pub labels: BTreeMap<String, String>,
    /// Whether an administrator must approve.
    pub approval: Approval,
    /// Whether an enrolled serial number may enroll again with a new key.
    pub allow_reenrollment: bool,
    /// When it was revoked; null if it was not.
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
}

/// An enrollment token with its secret, which is shown only once.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreatedEnrollmentToken {
    /// The token's record.
    #[serde(flatten)]
    pub enrollment_token: EnrollmentToken,
    /// The secret for the agent.
    pub token: String,
    /// The credentials for an ACME client; absent if ACME is disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_account: Option<ExternalAccountKey>,
}

/// Binds an ACME account to an enrollment token (RFC 8555, section 7.3.4).
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExternalAccountKey {
    /// The key id, which is the token's id.
    pub key_id: String,
    /// The MAC key for HS256, in base64url.
    pub mac_key: String,
}
