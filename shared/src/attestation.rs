//! What Apple attests of a machine (Managed Device Attestation), as it is shown to people and programs.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use crate::{digest::sha256, key::PublicKey, machine::SecureBoot};

/// What ties an attestation to one key: SHA-256 of the key's `SubjectPublicKeyInfo`, which the MDM sends to the Mac as
/// `DeviceAttestationNonce`. Written in hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FreshnessCode([u8; 32]);

/// The text is not a freshness code: 64 hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("not a freshness code (64 hexadecimal digits)")]
pub struct NotAFreshnessCode;

impl FreshnessCode {
    /// The code that an attestation for this key carries.
    #[must_use]
    pub fn of(key: &PublicKey) -> Self {
        Self(sha256(key.spki_der()))
    }

    /// Takes 32 bytes, and nothing shorter or longer.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NotAFreshnessCode> {
        bytes.try_into().map(Self).map_err(|_| NotAFreshnessCode)
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A digest of something else than a key: with ACME, of the challenge's token.
impl From<[u8; 32]> for FreshnessCode {
    fn from(digest: [u8; 32]) -> Self {
        Self(digest)
    }
}

impl fmt::Display for FreshnessCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for FreshnessCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "FreshnessCode({self})")
    }
}

impl FromStr for FreshnessCode {
    type Err = NotAFreshnessCode;

    fn from_str(text: &str) -> Result<Self, NotAFreshnessCode> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| NotAFreshnessCode)?;
        Ok(Self(bytes))
    }
}

impl Serialize for FreshnessCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for FreshnessCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// What an attestation says. Null is unknown: Apple did not say it, or not in a form that is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AttestedClaims {
    /// The hardware serial number.
    pub serial_number: Option<String>,
    /// The UDID by which the machine is provisioned.
    pub udid: Option<String>,
    /// The model, as software updates know it.
    pub software_update_device_id: Option<String>,
    /// The version of macOS.
    pub os_version: Option<String>,
    /// The version of the Secure Enclave's system.
    pub sep_os_version: Option<String>,
    /// The version of the boot loader.
    pub llb_version: Option<String>,
    /// System Integrity Protection.
    pub sip_enabled: Option<bool>,
    /// The boot policy.
    pub secure_boot: Option<SecureBoot>,
    /// Whether kernel extensions of third parties are allowed.
    pub third_party_kexts_allowed: Option<bool>,
    /// Which key the attestation was asked for.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub freshness_code: Option<FreshnessCode>,
}

/// Why an attestation is refused: the `reason` of the problem `attestation-refused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum AttestationRefusal {
    /// No chain of certificates that are valid now leads from it to a trusted root.
    Path,
    /// It was made for another key, or too long ago: the Mac sends its last one again.
    Stale,
    /// It vouches for another machine.
    SerialNumberMismatch,
    /// There is no serial number to compare.
    NoSerialNumber,
}
