//! `/v1/admin/policy`

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use super::{
    audiences::TokenForm,
    grants::{Conditions, Selector},
};
use crate::{
    object::{object_without_nulls, objects},
    text::optional_time,
    words,
};

/// All permissions, grants and audiences. Everything is named, and nothing has an id, so that a file can hold it. A document
/// without one of the lists is refused: with `prune`, it would delete everything of that kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Permissions, each with its own audience and name.
    #[serde(deserialize_with = "objects")]
    #[cfg_attr(feature = "openapi", schema(max_items = 10_000))]
    pub permissions: Vec<PolicyPermission>,
    /// Grants, each with its own name.
    #[serde(deserialize_with = "objects")]
    #[cfg_attr(feature = "openapi", schema(max_items = 10_000))]
    pub grants: Vec<PolicyGrant>,
    /// Audiences whose tokens differ from the usual ones.
    #[serde(deserialize_with = "objects")]
    #[cfg_attr(feature = "openapi", schema(max_items = 10_000))]
    pub audiences: Vec<PolicyAudience>,
}

/// A permission of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PolicyPermission {
    /// The relying party that defines this permission.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 256))]
    pub audience: String,
    /// Its name at the relying party.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 128))]
    pub name: String,
    /// What it allows, for people.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(max_length = 2_000))]
    pub description: String,
}

/// A grant of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PolicyGrant {
    /// Its name.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 128))]
    pub name: String,
    /// What it is for, for people.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(max_length = 2_000))]
    pub description: String,
    /// The relying party of the permission.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 256))]
    pub audience: String,
    /// The name of the permission.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 128))]
    pub permission: String,
    /// The machines it applies to.
    #[serde(deserialize_with = "object_without_nulls")]
    pub selector: Selector,
    /// The conditions; none if absent.
    #[serde(default, deserialize_with = "object_without_nulls")]
    pub conditions: Conditions,
    /// When it expires; never if absent.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "time::serde::rfc3339::option::serialize",
        deserialize_with = "optional_time"
    )]
    pub expires_at: Option<OffsetDateTime>,
}

/// An audience of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PolicyAudience {
    /// The audience, as permissions name it.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 256))]
    pub audience: String,
    /// How its tokens differ from the usual ones.
    #[serde(deserialize_with = "object_without_nulls")]
    pub token: TokenForm,
}

words! {
    /// What a policy consists of.
    pub enum PolicyKind {
        Audience = "audience",
        Grant = "grant",
        Permission = "permission",
    }
}

words! {
    /// What a policy does to one of its parts.
    pub enum PolicyStep {
        Create = "create",
        Delete = "delete",
        Keep = "keep",
        Replace = "replace",
    }
}

/// One difference between a policy and what the server has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PolicyChange {
    /// What it is.
    pub kind: PolicyKind,
    /// The audience; null for a grant.
    pub audience: Option<String>,
    /// The name of the permission or grant; null for an audience.
    pub name: Option<String>,
    /// What happens to it. `keep`: the policy lacks it, and it would be deleted with `prune`.
    pub step: PolicyStep,
    /// It before; null if it is created.
    pub before: Option<Value>,
    /// It afterwards; null if it is deleted.
    pub after: Option<Value>,
}

/// What `PUT /v1/admin/policy` did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AppliedPolicy {
    /// Whether nothing was changed, because the call asked only what would be.
    pub dry_run: bool,
    /// The differences: permissions, then audiences, then grants.
    pub changes: Vec<PolicyChange>,
}
