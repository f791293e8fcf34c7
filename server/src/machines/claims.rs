//! A machine's claims and their digest. If the digest is unchanged, a check-in has no new claims to record.

use assay_protocol::{
    evidence::Evidence,
    machine::{KeyClaim, MachineIdentity, Posture},
    sha256,
};
use serde::{Deserialize, Serialize};

/// All claims of one piece of evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) machine: MachineIdentity,
    pub(crate) posture: Posture,
    pub(crate) key: KeyClaim,
}

/// Whether two hardware UUIDs are the same. RFC 9562 has them read in either case, and agents differ.
pub(crate) fn is_same_hardware_uuid(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

/// SHA-256 of all claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ClaimsDigest([u8; 32]);

impl Claims {
    /// The claims of a piece of evidence.
    pub(crate) fn of(evidence: &Evidence) -> Self {
        let claims = evidence.claims();
        Self {
            machine: claims.machine.clone(),
            posture: claims.posture.clone(),
            key: claims.key,
        }
    }

    /// The digest of these claims. It is stable within one version of the server. If a new version changes it, every
    /// machine's next check-in takes the slow path once.
    pub(crate) fn digest(&self) -> Result<ClaimsDigest, serde_json::Error> {
        Ok(ClaimsDigest(sha256(&serde_json::to_vec(self)?)))
    }
}

impl ClaimsDigest {
    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}
