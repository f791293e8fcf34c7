//! What Apple attests about a machine (Managed Device Attestation), as the API shows it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use crate::{digest::sha256, key::PublicKey, machine::SecureBoot, words};

/// Ties an attestation to one key: SHA-256 of the key's `SubjectPublicKeyInfo`, in hex. The MDM sends it to the Mac as
/// `DeviceAttestationNonce`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FreshnessCode([u8; 32]);

/// The text is not a freshness code: 64 hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("not a freshness code (64 hexadecimal digits)")]
pub struct NotAFreshnessCode;

impl FreshnessCode {
    /// The code in an attestation for this key.
    #[must_use]
    pub fn of(key: &PublicKey) -> Self {
        Self(sha256(key.spki_der()))
    }

    /// Takes exactly 32 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NotAFreshnessCode> {
        bytes.try_into().map(Self).map_err(|_| NotAFreshnessCode)
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// ACME has the digest of the challenge's token in its place.
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

/// The claims of an attestation. Null means that Apple did not state the value, or in an unknown form.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AttestedClaims {
    /// The hardware serial number.
    pub serial_number: Option<String>,
    /// The machine's provisioning UDID.
    pub udid: Option<String>,
    /// The model identifier that software updates use.
    pub software_update_device_id: Option<String>,
    /// The version of macOS.
    pub os_version: Option<String>,
    /// The version of the Secure Enclave's operating system.
    pub sep_os_version: Option<String>,
    /// The version of the boot loader.
    pub llb_version: Option<String>,
    /// System Integrity Protection.
    pub sip_enabled: Option<bool>,
    /// The boot policy.
    pub secure_boot: Option<SecureBoot>,
    /// Whether third-party kernel extensions are allowed.
    pub third_party_kexts_allowed: Option<bool>,
    /// The key for which the attestation was requested.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub freshness_code: Option<FreshnessCode>,
}

words! {
    /// Why an attestation is refused: `reason` of the problem `attestation-refused`.
    pub enum AttestationRefusal {
        /// No currently valid certificate chain leads to a trusted root.
        Path = "path",
        /// It is for another key or too old. A Mac may resend its last attestation.
        Stale = "stale",
        /// It is for another machine.
        SerialNumberMismatch = "serial-number-mismatch",
        /// The attestation or the record has no serial number.
        NoSerialNumber = "no-serial-number",
    }
}
