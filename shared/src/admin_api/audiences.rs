//! `/v1/admin/audiences`

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{object::object_without_nulls, words};

words! {
    /// How a token names its audience.
    pub enum AudienceForm {
        List = "list",
        Text = "text",
    }
}

/// How the grant tokens for one audience differ from the usual ones. Texts may contain placeholders in braces:
/// `{machine_id}`, `{serial_number}`, `{assurance}`, `{scope}` and `{labels.KEY}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TokenForm {
    /// Whether `aud` is a list of one text, as usual, or the text itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub aud: Option<AudienceForm>,
    /// How long a token is valid; `grants.ttl` of the server if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false, minimum = 60, maximum = 3600))]
    pub lifetime_seconds: Option<u32>,
    /// The `sub` of the tokens; the machine's SPIFFE id if absent. It must contain `{machine_id}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false, max_length = 255))]
    pub subject: Option<String>,
    /// Further claims by name. The placeholder `{permissions}` is a list, and must be a whole text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = std::collections::BTreeMap<String, Value>))]
    pub claims: BTreeMap<String, Value>,
}

/// `POST /v1/admin/audiences`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateAudience {
    /// The audience, as permissions name it.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 256))]
    pub audience: String,
    /// How its tokens differ from the usual ones.
    #[serde(deserialize_with = "object_without_nulls")]
    pub token: TokenForm,
}

/// `PUT /v1/admin/audiences/{id}`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ReplaceAudience {
    /// How its tokens differ from the usual ones.
    #[serde(deserialize_with = "object_without_nulls")]
    pub token: TokenForm,
}

/// An audience whose tokens differ from the usual ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Audience {
    /// Its id.
    pub id: Uuid,
    /// The audience, as permissions name it.
    pub audience: String,
    /// How its tokens differ from the usual ones.
    pub token: TokenForm,
    /// When it was created.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}
