//! `/v1/admin/machines/{id}/apple-attestation`

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    attestation::{AttestedClaims, FreshnessCode},
    key::KeyThumbprint,
    machine::Assurance,
};

/// What to ask a machine's MDM for, and what is on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AppleAttestationState {
    /// The machine.
    pub machine_id: Uuid,
    /// The serial number on record, which the attestation has to name.
    pub serial_number: Option<String>,
    /// The current key, for which it has to be made.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub key_thumbprint: KeyThumbprint,
    /// The `DeviceAttestationNonce` to ask with, in base64 with padding, as a property list has it.
    pub nonce: String,
    /// The same in hex.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub nonce_hex: FreshnessCode,
    /// The whole command for an MDM, a property list in XML. Its `CommandUUID` is another one each time.
    pub device_information: String,
    /// What stands behind the machine's serial number.
    pub assurance: Assurance,
    /// The attestation on record; null where there is none of the current key.
    pub attestation: Option<AppleAttestation>,
}

/// An Apple attestation that was bound to a machine.
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
    /// From when on it is too old to stand for the machine.
    #[serde(with = "time::serde::rfc3339")]
    pub lapses_at: OffsetDateTime,
    /// When the leaf expires.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    /// What it says.
    pub claims: AttestedClaims,
    /// The chain as it came, in PEM, leaf first.
    pub chain: String,
}

/// `POST /v1/admin/machines/{id}/apple-attestation`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PostAppleAttestation {
    /// `DevicePropertiesAttestation` as the Mac answered it: certificates in DER, each in base64, leaf first.
    pub x5c: Vec<String>,
}

/// A machine that has to be attested: it is not, or its attestation is due for renewal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DueAppleAttestation {
    /// The machine.
    pub machine_id: Uuid,
    /// The serial number on record, which the attestation has to name.
    pub serial_number: String,
    /// When Apple signed the one on record; null where there is none of the current key.
    #[serde(with = "time::serde::rfc3339::option")]
    pub attested_at: Option<OffsetDateTime>,
    /// From when on that one is too old to stand for the machine, or since when.
    #[serde(with = "time::serde::rfc3339::option")]
    pub lapses_at: Option<OffsetDateTime>,
    /// The `DeviceAttestationNonce` to ask with, in base64 with padding, as a property list has it.
    pub nonce: String,
    /// The same in hex.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub nonce_hex: FreshnessCode,
    /// The whole command for an MDM, a property list in XML. Its `CommandUUID` is another one each time.
    pub device_information: String,
    /// What is known of it from an MDM; null while no webhook has told of it.
    pub mdm_device: Option<MdmDevice>,
}

/// A machine, as an MDM knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MdmDevice {
    /// What commands are sent to: of a Mac its UDID.
    pub enrollment_id: String,
    /// When the server had it asked last; null where it never did.
    #[serde(with = "time::serde::rfc3339::option")]
    pub asked_at: Option<OffsetDateTime>,
    /// Why the MDM did not take the last command, in words; null when it did.
    pub last_error: Option<String>,
    /// When an answer was refused; null when the last one was taken.
    #[serde(with = "time::serde::rfc3339::option")]
    pub refused_at: Option<OffsetDateTime>,
    /// Why, in words.
    pub refusal: Option<String>,
}
