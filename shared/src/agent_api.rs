//! The bodies of `/v1/enroll`, `/v1/check-in` and `/v1/renew`.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::machine::{Assurance, MachineStatus};

/// The response header with a fresh nonce. Every response of an agent endpoint has it.
pub const REPLAY_NONCE: &str = "replay-nonce";

/// `POST /v1/enroll`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EnrollRequest {
    /// An enrollment token; null if the server requires none or already knows the key.
    #[serde(default)]
    pub token: Option<String>,
    /// A PKCS#10 request for the machine's key, PEM. The server uses only the key from it.
    pub csr: String,
    /// Evidence for the purpose `enroll`, signed by the same key.
    pub evidence: String,
}

/// A certificate issued to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IssuedCertificate {
    /// Lower-case hex, two digits a byte.
    pub serial_number: String,
    /// When it becomes valid.
    #[serde(with = "time::serde::rfc3339")]
    pub not_before: OffsetDateTime,
    /// When it expires.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    /// PEM, leaf first, without the root.
    pub chain: String,
}

/// The response to a completed enrollment (200, 201).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Enrolled {
    /// The machine's id. It stays the same while the record exists.
    pub machine_id: Uuid,
    /// `active`
    pub status: MachineStatus,
    /// How well the serial number is confirmed.
    pub assurance: Assurance,
    /// The machine's SPIFFE id.
    pub spiffe_id: String,
    /// Its current certificate.
    pub certificate: IssuedCertificate,
    /// The roots, PEM, followed by certificates that show which root follows which.
    pub trust_bundle: String,
    /// The subject key identifiers, in hex, of issuing CAs that an administrator has withdrawn. The agent accepts no
    /// certificate of theirs from then on. Absent if no issuing CA is withdrawn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub withdrawn_issuers: Vec<String>,
    /// When to check in for the first time.
    pub next_check_in_seconds: u64,
    /// What the machine's next evidence must carry in the claim of this name. It is opaque, and older servers send none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continuity: Option<String>,
}

/// The response to an enrollment that waits for an administrator (202).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EnrollmentPending {
    /// The enrollment that the administrator decides on.
    pub enrollment_id: Uuid,
    /// The new machine. Null for a re-enrollment: the machine keeps its old key meanwhile.
    pub machine_id: Option<Uuid>,
    /// `pending`
    pub status: MachineStatus,
    /// When to repeat the call; equals `Retry-After`.
    pub retry_after_seconds: u64,
}

/// `POST /v1/check-in`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CheckInRequest {
    /// Evidence for the purpose `check-in`.
    pub evidence: String,
    /// SHA-256 of the machine's current trust bundle as received, in base64url; null to receive no bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_bundle_sha256: Option<String>,
}

/// The response to a check-in.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CheckedIn {
    /// The machine.
    pub machine_id: Uuid,
    /// `active`
    pub status: MachineStatus,
    /// How well its serial number is confirmed.
    pub assurance: Assurance,
    /// One entry with one token per audience.
    pub grants: Vec<AudienceGrant>,
    /// Permissions that a failing condition denies.
    pub denied: Vec<Denial>,
    /// When to check in next.
    pub next_check_in_seconds: u64,
    /// What else the agent should do. Agents ignore unknown actions.
    pub actions: Vec<Action>,
    /// The roots, PEM, followed by certificates that show which root follows which; absent if the machine already has
    /// them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_bundle: Option<String>,
    /// The subject key identifiers, in hex, of issuing CAs that an administrator has withdrawn. The agent accepts no
    /// certificate of theirs from then on. Absent if no issuing CA is withdrawn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub withdrawn_issuers: Vec<String>,
    /// What the machine's next evidence must carry in the claim of this name. It is opaque, and older servers send none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continuity: Option<String>,
}

/// Everything granted for one audience.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AudienceGrant {
    /// The relying party.
    pub audience: String,
    /// What this machine may do there.
    pub permissions: Vec<String>,
    /// The grant token, a JWT.
    pub token: String,
    /// When the token expires.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}

/// A permission denied because a condition of its grant fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Denial {
    /// The relying party.
    pub audience: String,
    /// The permission's name.
    pub permission: String,
    /// Every failing condition.
    pub reasons: Vec<String>,
}

/// Something that the server asks the agent to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Action {
    /// Renew the certificate now.
    RenewCertificate,
    /// Replace the key.
    RotateKey,
    /// An action of a newer server.
    #[serde(other)]
    Unknown,
}

/// `POST /v1/renew`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RenewRequest {
    /// A PKCS#10 request, PEM.
    pub csr: String,
    /// Evidence for the purpose `renew`, with `csr_sha256`.
    pub evidence: String,
    /// An enrollment token that is bound to the machine's serial number. It speaks for the CSR's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// The answer to a renewal whose key waits for an administrator (202). The machine's current key stays valid.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RotationPending {
    /// What the administrator decides on.
    pub enrollment_id: Uuid,
    /// `pending`
    pub status: MachineStatus,
    /// When to repeat the call; the same as `Retry-After`.
    pub retry_after_seconds: u64,
}

/// The response to a renewal.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Renewed {
    /// The new certificate.
    pub certificate: IssuedCertificate,
    /// The roots, PEM, followed by certificates that show which root follows which.
    pub trust_bundle: String,
    /// The subject key identifiers, in hex, of issuing CAs that an administrator has withdrawn. The agent accepts no
    /// certificate of theirs from then on. Absent if no issuing CA is withdrawn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub withdrawn_issuers: Vec<String>,
    /// What the machine's next evidence must carry in the claim of this name. It is opaque, and older servers send none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continuity: Option<String>,
}
