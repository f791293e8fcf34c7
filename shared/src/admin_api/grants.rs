//! `/v1/admin/grants`

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::audiences::AudienceForm;
use crate::{
    agent_api::Denial,
    machine::{Assurance, KeyStoreKind, MachineStatus, SecureBoot},
    object::object_without_nulls,
    text::optional_time,
};

/// Which machines a grant applies to. All given members must match.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Selector {
    /// The machines with these ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false, min_items = 1, max_items = 10_000))]
    pub machine_ids: Option<BTreeSet<Uuid>>,
    /// Machines with all these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub labels: Option<BTreeMap<String, String>>,
    /// Every machine. Must be `true` if given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub all: Option<bool>,
}

/// What must hold at a check-in. An unknown value fails its condition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Conditions {
    /// The lowest assurance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub min_assurance: Option<Assurance>,
    /// The maximum age of the Apple attestation, which must exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false, minimum = 1, maximum = 36_500))]
    pub max_attestation_age_days: Option<u32>,
    /// Where the key must be stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub key_store: Option<KeyStoreKind>,
    /// Whether System Integrity Protection must be on or off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub sip_enabled: Option<bool>,
    /// Whether FileVault must be on or off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub filevault_enabled: Option<bool>,
    /// Whether the application firewall must be on or off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub firewall_enabled: Option<bool>,
    /// Whether Gatekeeper must be on or off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub gatekeeper_enabled: Option<bool>,
    /// The weakest boot policy: `full` satisfies `reduced`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub secure_boot: Option<SecureBoot>,
    /// The lowest OS version, compared number by number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false, min_length = 1, max_length = 64))]
    pub min_os_version: Option<String>,
    /// Whether the machine must be enrolled in an MDM or must not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub mdm_enrolled: Option<bool>,
}

/// `POST /v1/admin/grants` and `PUT /v1/admin/grants/{id}`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct GrantRequest {
    /// A name that no other grant has: visible ASCII characters without `"` and `\`. If absent, a new grant is named after
    /// its id, and an existing one keeps its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 128))]
    pub name: Option<String>,
    /// What it is for, for people.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(max_length = 2_000))]
    pub description: String,
    /// The permission to grant.
    pub permission_id: Uuid,
    /// The machines it applies to.
    #[serde(deserialize_with = "object_without_nulls")]
    pub selector: Selector,
    /// The conditions; none if absent.
    #[serde(default, deserialize_with = "object_without_nulls")]
    pub conditions: Conditions,
    /// When the grant expires; never if absent.
    #[serde(
        default,
        serialize_with = "time::serde::rfc3339::option::serialize",
        deserialize_with = "optional_time"
    )]
    pub expires_at: Option<OffsetDateTime>,
}

/// A permission for machines, under conditions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Grant {
    /// Its id.
    pub id: Uuid,
    /// Its name, which no other grant has.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// The permission to grant.
    pub permission_id: Uuid,
    /// The relying party of the permission.
    pub audience: String,
    /// The name of the permission.
    pub permission: String,
    /// The machines it applies to.
    pub selector: Selector,
    /// The conditions.
    pub conditions: Conditions,
    /// When it expires; null for never.
    #[serde(with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
    /// When it was created.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it was created or last changed.
    #[serde(with = "time::serde::rfc3339")]
    pub changed_at: OffsetDateTime,
}

/// `POST /v1/admin/grants/evaluate`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    /// The machine.
    pub machine_id: Uuid,
}

/// What a check-in would return now, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EvaluatedGrants {
    /// The machine.
    pub machine_id: Uuid,
    /// Its status. Only an `active` machine is granted anything.
    pub status: MachineStatus,
    /// How well its serial number is confirmed.
    pub assurance: Assurance,
    /// What would be granted, by audience.
    pub grants: Vec<EvaluatedAudience>,
    /// What would be denied, with every failing condition.
    pub denied: Vec<Denial>,
    /// The result of each grant whose selector matches.
    pub evaluations: Vec<GrantEvaluation>,
}

/// What would be granted for one audience.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EvaluatedAudience {
    /// The relying party.
    pub audience: String,
    /// The permissions at that relying party.
    pub permissions: Vec<String>,
    /// How its token would differ from the usual one; absent if it would not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub token: Option<EvaluatedToken>,
}

/// What one token would contain besides the usual claims.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EvaluatedToken {
    /// The form of `aud`.
    pub aud: AudienceForm,
    /// How long it would be valid at most; null for `grants.ttl`.
    pub lifetime_seconds: Option<i64>,
    /// Its `sub`; null for the SPIFFE id.
    pub subject: Option<String>,
    /// The further claims.
    #[cfg_attr(feature = "openapi", schema(value_type = std::collections::BTreeMap<String, serde_json::Value>))]
    pub claims: serde_json::Map<String, serde_json::Value>,
}

/// The result of one grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GrantEvaluation {
    /// The grant.
    pub grant_id: Uuid,
    /// Its audience.
    pub audience: String,
    /// Its permission.
    pub permission: String,
    /// The members of its selector that matched.
    pub matched: Vec<String>,
    /// Whether it is granted.
    pub granted: bool,
    /// Every failing condition.
    pub reasons: Vec<String>,
}
