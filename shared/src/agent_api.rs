//! What goes over `/v1/enroll`, `/v1/check-in` and `/v1/renew`.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::machine::{Assurance, MachineStatus};

/// The header that carries a fresh nonce, on every answer of an agent endpoint.
pub const REPLAY_NONCE: &str = "replay-nonce";

/// `POST /v1/enroll`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EnrollRequest {
    /// An enrollment token; null where the server demands none, or where the key is known already.
    #[serde(default)]
    pub token: Option<String>,
    /// A PKCS#10 request for the machine's key, PEM. Nothing but the key is taken from it.
    pub csr: String,
    /// Evidence for the purpose `enroll`, signed by the same key.
    pub evidence: String,
}

/// A certificate that was issued to a machine.
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

/// The answer to an enrollment that is through (200, 201).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Enrolled {
    /// The machine's id, for as long as its record exists.
    pub machine_id: Uuid,
    /// `active`
    pub status: MachineStatus,
    /// What stands behind the serial number.
    pub assurance: Assurance,
    /// The machine's SPIFFE id.
    pub spiffe_id: String,
    /// Its current certificate.
    pub certificate: IssuedCertificate,
    /// The roots, PEM.
    pub trust_bundle: String,
    /// When to check in first.
    pub next_check_in_seconds: u64,
}

/// The answer to an enrollment that waits for an administrator (202).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EnrollmentPending {
    /// What the administrator decides on.
    pub enrollment_id: Uuid,
    /// Null for a re-enrollment, whose old key keeps working meanwhile.
    pub machine_id: Option<Uuid>,
    /// `pending`
    pub status: MachineStatus,
    /// When to repeat the call; the same as `Retry-After`.
    pub retry_after_seconds: u64,
}

/// `POST /v1/check-in`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CheckInRequest {
    /// Evidence for the purpose `check-in`.
    pub evidence: String,
    /// SHA-256 of the trust bundle that the machine has, as it was sent, in base64url; null where it wants no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_bundle_sha256: Option<String>,
}

/// The answer to a check-in.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CheckedIn {
    /// The machine.
    pub machine_id: Uuid,
    /// `active`
    pub status: MachineStatus,
    /// What stands behind its serial number.
    pub assurance: Assurance,
    /// One entry, with one token, for each audience.
    pub grants: Vec<AudienceGrant>,
    /// What this machine would have, but for a condition that fails.
    pub denied: Vec<Denial>,
    /// When to check in next.
    pub next_check_in_seconds: u64,
    /// What the agent should do besides. Unknown ones are ignored.
    pub actions: Vec<Action>,
    /// The roots, PEM, where they are not those that the request named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_bundle: Option<String>,
}

/// All that is granted for one audience.
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

/// A permission whose selector matches this machine and whose conditions fail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Denial {
    /// The relying party.
    pub audience: String,
    /// The permission's name.
    pub permission: String,
    /// Every failing condition, in words.
    pub reasons: Vec<String>,
}

/// Something that the server asks of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Action {
    /// Renew the certificate now.
    RenewCertificate,
    /// Replace the key.
    RotateKey,
    /// One of a newer server.
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
}

/// The answer to a renewal.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Renewed {
    /// The new certificate.
    pub certificate: IssuedCertificate,
    /// The roots, PEM.
    pub trust_bundle: String,
}
