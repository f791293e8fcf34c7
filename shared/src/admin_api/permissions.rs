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
    pub audience: String,
    /// Its name at the relying party: a `scope` token, without white space.
    pub name: String,
    /// What it allows, for people.
    #[serde(default)]
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
