//! `/v1/admin/machines/{id}/apple-attestation`

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    attestation::{AttestedClaims, FreshnessCode},
    key::KeyThumbprint,
    machine::Assurance,
};

/// What to request from a machine's MDM, and the attestation on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AppleAttestationState {
    /// The machine.
    pub machine_id: Uuid,
    /// The serial number on record. The attestation must name it.
    pub serial_number: Option<String>,
    /// The current key. The attestation must be for it.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub key_thumbprint: KeyThumbprint,
    /// The `DeviceAttestationNonce` to request with, in base64 with padding as in a property list.
    pub nonce: String,
    /// The nonce in hex.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub nonce_hex: FreshnessCode,
    /// The complete MDM command, a property list in XML. Its `CommandUUID` differs in every response.
    pub device_information: String,
    /// How well the machine's serial number is confirmed.
    pub assurance: Assurance,
    /// The attestation on record; null if there is none for the current key.
    pub attestation: Option<AppleAttestation>,
}

/// An Apple attestation bound to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AppleAttestation {
    /// Its id.
    pub id: Uuid,
    /// When Apple signed it.
    #[serde(with = "time::serde::rfc3339")]
    pub attested_at: OffsetDateTime,
    /// When it was verified and bound.
    #[serde(with = "time::serde::rfc3339")]
    pub bound_at: OffsetDateTime,
    /// When it becomes too old to be accepted.
    #[serde(with = "time::serde::rfc3339")]
    pub lapses_at: OffsetDateTime,
    /// When the leaf certificate expires.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    /// Its claims.
    pub claims: AttestedClaims,
    /// The certificate chain as received, in PEM, leaf first.
    pub chain: String,
}

/// `POST /v1/admin/machines/{id}/apple-attestation`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PostAppleAttestation {
    /// `DevicePropertiesAttestation` from the Mac's answer: certificates in DER, each in base64, leaf first.
    pub x5c: Vec<String>,
}

/// A machine without an attestation, or with one that is due for renewal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DueAppleAttestation {
    /// The machine.
    pub machine_id: Uuid,
    /// The serial number on record. The attestation must name it.
    pub serial_number: String,
    /// When Apple signed the attestation on record; null if there is none for the current key.
    #[serde(with = "time::serde::rfc3339::option")]
    pub attested_at: Option<OffsetDateTime>,
    /// When that attestation becomes, or became, too old to be accepted.
    #[serde(with = "time::serde::rfc3339::option")]
    pub lapses_at: Option<OffsetDateTime>,
    /// The `DeviceAttestationNonce` to request with, in base64 with padding as in a property list.
    pub nonce: String,
    /// The nonce in hex.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub nonce_hex: FreshnessCode,
    /// The complete MDM command, a property list in XML. Its `CommandUUID` differs in every response.
    pub device_information: String,
    /// What an MDM reported about it; null before the first webhook.
    pub mdm_device: Option<MdmDevice>,
}

/// A machine as an MDM knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MdmDevice {
    /// The id that commands are sent to; for a Mac its UDID.
    pub enrollment_id: String,
    /// When the server last sent it a command; null if never.
    #[serde(with = "time::serde::rfc3339::option")]
    pub asked_at: Option<OffsetDateTime>,
    /// Why the MDM rejected the last command; null if it accepted it.
    pub last_error: Option<String>,
    /// When the server refused an answer; null if it accepted the last one.
    #[serde(with = "time::serde::rfc3339::option")]
    pub refused_at: Option<OffsetDateTime>,
    /// Why it was refused.
    pub refusal: Option<String>,
}
