//! `/v1/admin/api-keys`

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::words;

words! {
    /// What an API key may do. `operator` includes `viewer`, and `admin` includes both.
    pub enum Role {
        /// Read everything.
        Viewer = "viewer",
        /// Also approve, quarantine, revoke and label machines, and create enrollment tokens.
        Operator = "operator",
        /// Also manage permissions, grants, API keys and webhooks, and delete machines.
        Admin = "admin",
        /// Introspect grant tokens, nothing else.
        RelyingParty = "relying-party",
        /// Send events of an MDM, nothing else.
        Mdm = "mdm",
    }
}

/// `POST /v1/admin/api-keys`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateApiKey {
    /// Who or what uses the key. The audit shows this name.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 200))]
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Its lifetime: at most ten years; without this a year.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 315_360_000))]
    pub expires_in_seconds: Option<u64>,
    /// The addresses and networks from which it may be used, such as `192.0.2.7` or `10.0.0.0/8`; without this any.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(max_items = 100))]
    pub networks: Option<Vec<String>>,
}

/// An API key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApiKey {
    /// Its id.
    pub id: Uuid,
    /// The beginning of the secret, by which people recognize the key. Null for a key of an earlier version that has
    /// not been used since.
    pub prefix: Option<String>,
    /// Who or what uses the key. No two valid keys have the same name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The networks from which it may be used; null for any.
    pub networks: Option<Vec<String>>,
    /// When it was created.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it expires; null for never, which only keys of earlier versions have.
    #[serde(with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
    /// When it was revoked; null if it was not.
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
    /// When it was used last, at most a minute behind; null before its first use.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_used_at: Option<OffsetDateTime>,
    /// The address from which it was used then.
    pub last_used_address: Option<String>,
}

/// An API key with its secret, which is shown only once.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreatedApiKey {
    /// The key's record.
    #[serde(flatten)]
    pub api_key: ApiKey,
    /// The secret that goes into `Authorization: Bearer`.
    pub key: String,
}
