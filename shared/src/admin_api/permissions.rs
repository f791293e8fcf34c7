//! `/v1/admin/permissions`

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

/// `POST /v1/admin/permissions`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreatePermission {
    /// The relying party that defines this permission.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 256))]
    pub audience: String,
    /// Its name at the relying party: a `scope` token, without white space.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 128))]
    pub name: String,
    /// What it allows, for people.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(max_length = 2_000))]
    pub description: String,
}

/// `PUT /v1/admin/permissions/{id}`. Audience and name stay: tokens and grants refer to them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ReplacePermission {
    /// What it allows, for people.
    #[cfg_attr(feature = "openapi", schema(max_length = 2_000))]
    pub description: String,
}

/// Something that a machine may do at a relying party.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Permission {
    /// Its id.
    pub id: Uuid,
    /// The relying party.
    pub audience: String,
    /// Its name at the relying party.
    pub name: String,
    /// What it allows.
    pub description: String,
    /// When it was created.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}
