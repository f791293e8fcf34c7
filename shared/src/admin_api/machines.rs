//! `/v1/admin/machines`

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    attestation::AttestedClaims,
    key::KeyThumbprint,
    machine::{Assurance, KeyAccessibility, KeyStoreKind, Liveness, MachineStatus, Posture},
};

/// A machine's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Machine {
    /// Its id.
    pub id: Uuid,
    /// Where it stands.
    pub status: MachineStatus,
    /// Why it stands there: the reason of the last decision, a release's and an approval's as well.
    pub status_reason: Option<String>,
    /// What stands behind its serial number.
    pub assurance: Assurance,
    /// Why it has this assurance and no more.
    pub assurance_reason: String,
    /// How recently it checked in.
    pub liveness: Liveness,
    /// The serial number on record.
    pub serial_number: Option<String>,
    /// Whether the inventory names that serial number now.
    pub in_inventory: bool,
    /// Whose machine it is, by the inventory.
    pub owner: Option<String>,
    /// The hardware UUID on record.
    pub hardware_uuid: Option<String>,
    /// The model.
    pub model_identifier: Option<String>,
    /// The host name.
    pub hostname: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// A note for people.
    pub note: Option<String>,
    /// Its current key.
    pub key: MachineKey,
    /// Its current certificate; null while none was issued.
    pub certificate: Option<CertificateSummary>,
    /// The state of its defences.
    pub posture: MachinePosture,
    /// When Apple signed the attestation on record; null without one of the current key.
    #[serde(with = "time::serde::rfc3339::option")]
    pub attested_at: Option<OffsetDateTime>,
    /// When it was let in; null while it waits.
    #[serde(with = "time::serde::rfc3339::option")]
    pub enrolled_at: Option<OffsetDateTime>,
    /// When it checked in last.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_check_in_at: Option<OffsetDateTime>,
    /// What came of the last check-in.
    pub last_verdict: Option<Verdict>,
    /// The machine's clock minus the server's, at the last check-in.
    pub clock_skew_seconds: Option<i64>,
    /// The agent's version.
    pub agent_version: Option<String>,
}

/// The key of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachineKey {
    /// Its thumbprint.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub thumbprint: KeyThumbprint,
    /// Where the agent says it lives.
    pub store: KeyStoreKind,
    /// When the agent says it can be used.
    pub accessibility: Option<KeyAccessibility>,
    /// When the server saw it first.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// What a record shows of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CertificateSummary {
    /// Lower-case hex, two digits a byte.
    pub serial_number: String,
    /// When it becomes valid.
    #[serde(with = "time::serde::rfc3339")]
    pub not_before: OffsetDateTime,
    /// When it expires.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
}

/// Claimed and attested posture, kept apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachinePosture {
    /// What the agent says.
    pub claimed: Posture,
    /// What Apple vouches for, as of `attested_at`; null without an attestation.
    pub attested: Option<AttestedClaims>,
}

/// Whether everything that a machine's grants demand of it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Verdict {
    /// The short of it.
    pub result: VerdictResult,
    /// Every failing condition, in words.
    pub reasons: Vec<String>,
}

/// The short of a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum VerdictResult {
    /// Nothing was denied.
    Pass,
    /// Something was denied.
    Fail,
}

/// `PATCH /v1/admin/machines/{id}`, a merge patch (RFC 7396).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PatchMachine {
    /// Labels to set; null removes one, and null in place of the labels removes them all.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<BTreeMap<String, Option<String>>>))]
    pub labels: Option<Option<BTreeMap<String, Option<String>>>>,
    /// The note to set; null removes it.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub note: Option<Option<String>>,
}

/// Tells a null apart from an absent member, which a merge patch needs.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(deserializer).map(Some)
}
