//! The vocabulary that describes a machine: what it says of itself, and what is held of it.

use serde::{Deserialize, Deserializer, Serialize};

use crate::text::{optional_claim, optional_hardware_id};

/// Where a machine stands with its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum MachineStatus {
    /// Waits for an administrator's approval; holds no certificate.
    Pending,
    /// Enrolled and admitted.
    Active,
    /// Held back until an administrator releases it.
    Quarantined,
    /// Out for good: its keys never serve again.
    Revoked,
}

/// How much stands behind a machine's serial number, lowest first, so that `<` compares as a condition does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Assurance {
    /// The serial number is the machine's own word.
    Asserted,
    /// A serial-bound token, an inventory match or an administrator stands behind it.
    Verified,
    /// An Apple attestation binds this very key to this serial number.
    Attested,
}

/// How recently a machine has checked in, computed from stored times alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Liveness {
    /// It has not checked in yet.
    Never,
    /// Within two intervals.
    Live,
    /// Over two intervals ago.
    Late,
    /// Over 24 hours ago.
    Unreachable,
}

/// Where an agent says that its private key lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum KeyStoreKind {
    /// Apple's Secure Enclave.
    SecureEnclave,
    /// A file.
    Software,
}

/// When a key in the enclave can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum KeyAccessibility {
    /// From the first login after a boot on.
    AfterFirstUnlock,
    /// From boot on.
    Always,
}

/// What the agent says of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeyClaim {
    /// Where the private key lives.
    pub store: KeyStoreKind,
    /// When it can be used; null where the store knows no such thing.
    #[serde(default)]
    pub accessibility: Option<KeyAccessibility>,
}

/// How strictly a Mac checks what it boots, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum SecureBoot {
    /// Anything boots.
    Permissive,
    /// Any signed system boots.
    Reduced,
    /// Only current systems that Apple signed for this machine boot.
    Full,
}

/// Which machine this is, in its own words. What could not be read is null.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachineIdentity {
    /// The hardware serial number.
    #[serde(default, deserialize_with = "optional_hardware_id")]
    pub serial_number: Option<String>,
    /// The hardware UUID (`IOPlatformUUID`).
    #[serde(default, deserialize_with = "optional_hardware_id")]
    pub hardware_uuid: Option<String>,
    /// The model, such as `Mac15,6`.
    #[serde(default, deserialize_with = "optional_claim")]
    pub model_identifier: Option<String>,
    /// The host name.
    #[serde(default, deserialize_with = "optional_claim")]
    pub hostname: Option<String>,
}

/// The state of a machine's defences. What could not be read is null, never guessed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Posture {
    /// The operating system, such as `macOS`.
    #[serde(default, deserialize_with = "optional_claim")]
    pub os_name: Option<String>,
    /// Its version, such as `26.1`.
    #[serde(default, deserialize_with = "optional_claim")]
    pub os_version: Option<String>,
    /// Its build, such as `25B78`.
    #[serde(default, deserialize_with = "optional_claim")]
    pub os_build: Option<String>,
    /// System Integrity Protection.
    #[serde(default)]
    pub sip_enabled: Option<bool>,
    /// FileVault.
    #[serde(default)]
    pub filevault_enabled: Option<bool>,
    /// The application firewall.
    #[serde(default)]
    pub firewall_enabled: Option<bool>,
    /// Gatekeeper.
    #[serde(default)]
    pub gatekeeper_enabled: Option<bool>,
    /// The boot policy.
    #[serde(default, deserialize_with = "secure_boot")]
    pub secure_boot: Option<SecureBoot>,
    /// Whether an MDM manages the machine.
    #[serde(default)]
    pub mdm_enrolled: Option<bool>,
    /// The version of the agent that says so.
    #[serde(default, deserialize_with = "optional_claim")]
    pub agent_version: Option<String>,
}

impl Posture {
    /// A managed Mac with every defence on: what a simulated machine claims.
    #[must_use]
    pub fn healthy() -> Self {
        Self {
            os_name: Some("macOS".to_owned()),
            os_version: Some("26.1".to_owned()),
            os_build: Some("25B78".to_owned()),
            sip_enabled: Some(true),
            filevault_enabled: Some(true),
            firewall_enabled: Some(true),
            gatekeeper_enabled: Some(true),
            secure_boot: Some(SecureBoot::Full),
            mdm_enrolled: Some(true),
            agent_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        }
    }
}

/// A level that a newer agent knows and this build does not is unknown, not an error: a condition on it fails.
fn secure_boot<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecureBoot>, D::Error> {
    let level = optional_claim(deserializer)?;
    Ok(level.and_then(|level| SecureBoot::deserialize(serde_json::Value::String(level)).ok()))
}
