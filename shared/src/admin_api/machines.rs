//! `/v1/admin/machines`

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::audit::Actor;
use crate::{
    attestation::AttestedClaims,
    key::KeyThumbprint,
    machine::{Assurance, KeyAccessibility, KeyStoreKind, Liveness, MachineStatus, Posture},
    words,
};

/// A machine's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Machine {
    /// Its id.
    pub id: Uuid,
    /// Its status.
    pub status: MachineStatus,
    /// The reason of the last decision about it, including a release or an approval.
    pub status_reason: Option<String>,
    /// How well its serial number is confirmed.
    pub assurance: Assurance,
    /// Why it has this assurance and not a higher one.
    pub assurance_reason: String,
    /// How recently it checked in.
    pub liveness: Liveness,
    /// The serial number on record.
    pub serial_number: Option<String>,
    /// Whether the inventory has that serial number now.
    pub in_inventory: bool,
    /// Its owner according to the inventory.
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
    /// Its current certificate; null before the first.
    pub certificate: Option<CertificateSummary>,
    /// Its security settings.
    pub posture: MachinePosture,
    /// When Apple signed the attestation on record; null if there is none for the current key.
    #[serde(with = "time::serde::rfc3339::option")]
    pub attested_at: Option<OffsetDateTime>,
    /// When it was admitted; null while it waits.
    #[serde(with = "time::serde::rfc3339::option")]
    pub enrolled_at: Option<OffsetDateTime>,
    /// When it last checked in.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_check_in_at: Option<OffsetDateTime>,
    /// The verdict of the last check-in.
    pub last_verdict: Option<Verdict>,
    /// The machine's clock minus the server's clock at the last check-in.
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
    /// Where it is stored, as the agent claims.
    pub store: KeyStoreKind,
    /// When it can be used, as the agent claims.
    pub accessibility: Option<KeyAccessibility>,
    /// When the server first saw it.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// The certificate in a machine's record.
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

/// Claimed and attested posture, kept separate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachinePosture {
    /// What the agent claims.
    pub claimed: Posture,
    /// What Apple attested at `attested_at`; null without an attestation.
    pub attested: Option<AttestedClaims>,
}

/// Whether a machine meets all conditions of its grants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Verdict {
    /// The result.
    pub result: VerdictResult,
    /// Every failing condition.
    pub reasons: Vec<String>,
}

words! {
    /// The result of a verdict.
    pub enum VerdictResult {
        /// Nothing was denied.
        Pass = "pass",
        /// Something was denied.
        Fail = "fail",
    }
}

/// `PATCH /v1/admin/machines/{id}`, a merge patch (RFC 7396).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PatchMachine {
    /// Labels to set. Null as a value removes that label; null instead of the object removes all labels.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<BTreeMap<String, Option<String>>>))]
    pub labels: Option<Option<BTreeMap<String, Option<String>>>>,
    /// The note to set; null removes the note.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, max_length = 4_000))]
    pub note: Option<Option<String>>,
}

/// `POST /machines/{id}/open`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct OpenMachine {
    /// How many hours the record stays open, from 1 to 168. The default is 24.
    #[serde(default)]
    pub hours: Option<u32>,
    /// The reason, for the audit.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 500))]
    pub reason: Option<String>,
}

/// Permission for a new key of the same hardware to take a machine's record over without a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Opening {
    /// Its id.
    pub id: Uuid,
    /// The machine whose record is open.
    pub machine_id: Uuid,
    /// When it was opened.
    #[serde(with = "time::serde::rfc3339")]
    pub opened_at: OffsetDateTime,
    /// Who opened it.
    pub opened_by: Actor,
    /// The reason.
    pub reason: Option<String>,
    /// When it ends. It ends before if a key takes the record over, or if the recorded key checks in.
    #[serde(with = "time::serde::rfc3339")]
    pub ends_at: OffsetDateTime,
}

/// A merge patch distinguishes a null from an absent member.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(deserializer).map(Some)
}
