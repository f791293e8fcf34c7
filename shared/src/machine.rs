//! The vocabulary of a machine: what it claims, and what the server knows about it.

use serde::{Deserialize, Deserializer, Serialize};

use crate::text::{optional_claim, optional_display_text, optional_hardware_id};
use crate::words;

words! {
    /// The status of a machine at its server.
    pub enum MachineStatus {
        /// Waits for an administrator's approval and has no certificate.
        Pending = "pending",
        /// Enrolled and admitted.
        Active = "active",
        /// Suspended until an administrator releases it.
        Quarantined = "quarantined",
        /// Barred for good: its keys are never accepted again.
        Revoked = "revoked",
    }
}

words! {
    /// How well a machine's serial number is confirmed, weakest first: conditions compare with `<`.
    pub enum Assurance {
        /// Only the machine claims the serial number.
        Asserted = "asserted",
        /// A token bound to the serial number, the inventory or an administrator confirmed it.
        Verified = "verified",
        /// An Apple attestation binds the machine's current key to the serial number.
        Attested = "attested",
    }
}

words! {
    /// How recently a machine checked in, computed from stored times alone.
    pub enum Liveness {
        /// It has not checked in yet.
        Never = "never",
        /// Within the last two intervals.
        Live = "live",
        /// More than two intervals ago.
        Late = "late",
        /// More than 24 hours ago.
        Unreachable = "unreachable",
    }
}

words! {
    /// Where the private key is stored, as the agent claims.
    pub enum KeyStoreKind {
        /// Apple's Secure Enclave.
        SecureEnclave = "secure-enclave",
        /// A file.
        Software = "software",
    }
}

words! {
    /// When a key in the enclave can be used.
    pub enum KeyAccessibility {
        /// After the first login since the machine booted.
        AfterFirstUnlock = "after-first-unlock",
        /// Since the machine booted.
        Always = "always",
    }
}

/// What the agent claims about its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeyClaim {
    /// Where the private key is stored.
    pub store: KeyStoreKind,
    /// When it can be used; null if the store has no such restriction.
    #[serde(default)]
    pub accessibility: Option<KeyAccessibility>,
}

words! {
    /// How strictly a Mac checks the system that it boots, weakest first.
    pub enum SecureBoot {
        /// Anything boots.
        Permissive = "permissive",
        /// Any signed system boots.
        Reduced = "reduced",
        /// Only current systems that Apple signed for this machine boot.
        Full = "full",
    }
}

/// The identity that a machine claims. A value that it could not read is null.
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
    /// The host name; null if it is unfit to be shown.
    #[serde(default, deserialize_with = "optional_display_text")]
    pub hostname: Option<String>,
}

/// A machine's security settings. A value that the agent could not read is null, never a guess.
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
    /// The agent's version.
    #[serde(default, deserialize_with = "optional_claim")]
    pub agent_version: Option<String>,
}

impl Posture {
    /// A managed Mac with every protection on: what a simulated machine claims.
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

/// A newer agent may send a level that this build does not know. It counts as unknown, and a condition on it fails.
fn secure_boot<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecureBoot>, D::Error> {
    let level = optional_claim(deserializer)?;
    Ok(level.and_then(|level| SecureBoot::deserialize(serde_json::Value::String(level)).ok()))
}
