//! `/v1/admin/enrollment-tokens`

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

/// Whether an administrator has to approve what comes with a token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Approval {
    /// The machine is active at once.
    #[default]
    Automatic,
    /// The machine waits.
    Manual,
}

/// `POST /v1/admin/enrollment-tokens`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateEnrollmentToken {
    /// What it is for.
    #[serde(default)]
    pub description: String,
    /// Its life.
    pub expires_in_seconds: u64,
    /// How many machines it may enroll.
    pub max_uses: u32,
    /// The only serial numbers it serves for; any where this is absent or null.
    #[serde(default)]
    pub serial_numbers: Option<Vec<String>>,
    /// Labels that its machines get.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether an administrator has to approve.
    #[serde(default)]
    pub approval: Approval,
    /// Whether a serial number that is enrolled already may come back with a new key. Has an effect only for the
    /// serial numbers that the token is bound to.
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
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it expires.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// How many machines it may enroll.
    pub max_uses: u32,
    /// How many it has enrolled.
    pub uses: u32,
    /// The only serial numbers it serves for; null for any.
    pub serial_numbers: Option<Vec<String>>,
    /// Labels that its machines get.
    pub labels: BTreeMap<String, String>,
    /// Whether an administrator has to approve.
    pub approval: Approval,
    /// Whether it lets an enrolled serial number come back with a new key.
    pub allow_reenrollment: bool,
    /// When it was revoked; null while it serves.
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
}

/// An enrollment token with its secret, shown this once.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreatedEnrollmentToken {
    /// The token's record.
    #[serde(flatten)]
    pub enrollment_token: EnrollmentToken,
    /// The secret that the agent is given.
    pub token: String,
    /// What an ACME client is given in its place; absent where ACME is not served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_account: Option<ExternalAccountKey>,
}

/// What binds an ACME account to an enrollment token (RFC 8555, section 7.3.4).
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExternalAccountKey {
    /// The key's id: the token's.
    pub key_id: String,
    /// The MAC key for HS256, in base64url.
    pub mac_key: String,
}
