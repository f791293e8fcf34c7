//! `/v1/admin/grants`

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    agent_api::Denial,
    machine::{Assurance, KeyStoreKind, MachineStatus, SecureBoot},
    object::object_without_nulls,
    text::optional_time,
};

/// Which machines a grant is for. Every member that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Selector {
    /// These machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub machine_ids: Option<BTreeSet<Uuid>>,
    /// Machines that have all these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub labels: Option<BTreeMap<String, String>>,
    /// Every machine; only `true` has a meaning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub all: Option<bool>,
}

/// What must hold at a check-in. What is unknown of a machine fails its condition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Conditions {
    /// At least this assurance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub min_assurance: Option<Assurance>,
    /// An Apple attestation, and not older than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub max_attestation_age_days: Option<u32>,
    /// The key lives there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub key_store: Option<KeyStoreKind>,
    /// System Integrity Protection is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub sip_enabled: Option<bool>,
    /// FileVault is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub filevault_enabled: Option<bool>,
    /// The application firewall is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub firewall_enabled: Option<bool>,
    /// Gatekeeper is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub gatekeeper_enabled: Option<bool>,
    /// At least this strict: `full` satisfies `reduced`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub secure_boot: Option<SecureBoot>,
    /// At least this version, compared number by number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub min_os_version: Option<String>,
    /// MDM enrollment is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub mdm_enrolled: Option<bool>,
}

/// `POST /v1/admin/grants`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateGrant {
    /// What is granted.
    pub permission_id: Uuid,
    /// To which machines.
    #[serde(deserialize_with = "object_without_nulls")]
    pub selector: Selector,
    /// Under which conditions; none where this is absent.
    #[serde(default, deserialize_with = "object_without_nulls")]
    pub conditions: Conditions,
    /// Until when; for good where this is absent.
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
    /// What is granted.
    pub permission_id: Uuid,
    /// The relying party of that permission.
    pub audience: String,
    /// The name of that permission.
    pub permission: String,
    /// To which machines.
    pub selector: Selector,
    /// Under which conditions.
    pub conditions: Conditions,
    /// Until when.
    #[serde(with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// `POST /v1/admin/grants/evaluate`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    /// The machine.
    pub machine_id: Uuid,
}

/// What a check-in now would give, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EvaluatedGrants {
    /// The machine.
    pub machine_id: Uuid,
    /// Its status; any but `active` gets nothing.
    pub status: MachineStatus,
    /// What stands behind its serial number.
    pub assurance: Assurance,
    /// What would be granted, by audience.
    pub grants: Vec<EvaluatedAudience>,
    /// What would be denied, with every failing condition.
    pub denied: Vec<Denial>,
    /// What came of each grant whose selector matches.
    pub evaluations: Vec<GrantEvaluation>,
}

/// What would be granted for one audience.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EvaluatedAudience {
    /// The relying party.
    pub audience: String,
    /// The permissions there.
    pub permissions: Vec<String>,
}

/// What came of one grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GrantEvaluation {
    /// The grant.
    pub grant_id: Uuid,
    /// Its audience.
    pub audience: String,
    /// Its permission.
    pub permission: String,
    /// Which members of its selector matched, in words.
    pub matched: Vec<String>,
    /// Whether it grants.
    pub granted: bool,
    /// Every failing condition, in words.
    pub reasons: Vec<String>,
}
