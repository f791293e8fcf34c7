//! `/v1/admin/certificates` and the certificates of one machine

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::key::KeyThumbprint;
use crate::words;

words! {
    /// Whether a certificate is valid.
    pub enum CertificateStatus {
        /// Neither expired nor revoked.
        Valid = "valid",
        /// Expired and never revoked.
        Expired = "expired",
        /// Revoked, whether expired or not.
        Revoked = "revoked",
    }
}

words! {
    /// Whose key a certificate is for.
    pub enum CertificatePurpose {
        /// The agent's key.
        Machine = "machine",
        /// A key of macOS itself, made on request of an MDM and attested by Apple.
        Device = "device",
    }
}

/// Why a certificate was revoked: the reasons of RFC 5280, section 5.3.1, that are final.
///
/// `certificate_hold` and `remove_from_crl` are missing: a revocation here is final. Quarantine suspends a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", try_from = "String", into = "String")]
pub enum RevocationReason {
    /// No reason is given.
    Unspecified,
    /// Someone else has the private key, or may have it.
    KeyCompromise,
    /// Someone else has the CA's private key, or may have it.
    CaCompromise,
    /// The subject's name or affiliation has changed.
    AffiliationChanged,
    /// Another certificate replaced it.
    Superseded,
    /// It is no longer needed.
    CessationOfOperation,
    /// The machine may no longer have it.
    PrivilegeWithdrawn,
    /// An attribute authority is compromised.
    AaCompromise,
}

/// The text is not a revocation reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownReason {
    /// A reason of RFC 5280 that is not final.
    #[error(
        "the reason {0} is for a suspension that can be lifted, but a revocation is final; to suspend a machine, \
         quarantine it"
    )]
    Hold(String),
    /// Any other text.
    #[error("the reason must be one of {}", RevocationReason::ALL.map(RevocationReason::as_str).join(", "))]
    Unknown,
}

impl RevocationReason {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Unspecified,
        Self::KeyCompromise,
        Self::CaCompromise,
        Self::AffiliationChanged,
        Self::Superseded,
        Self::CessationOfOperation,
        Self::PrivilegeWithdrawn,
        Self::AaCompromise,
    ];

    /// The name that RFC 5280 gives it, in snake case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::KeyCompromise => "key_compromise",
            Self::CaCompromise => "ca_compromise",
            Self::AffiliationChanged => "affiliation_changed",
            Self::Superseded => "superseded",
            Self::CessationOfOperation => "cessation_of_operation",
            Self::PrivilegeWithdrawn => "privilege_withdrawn",
            Self::AaCompromise => "aa_compromise",
        }
    }
}

impl FromStr for RevocationReason {
    type Err = UnknownReason;

    fn from_str(text: &str) -> Result<Self, UnknownReason> {
        if matches!(text, "certificate_hold" | "remove_from_crl") {
            return Err(UnknownReason::Hold(text.to_owned()));
        }
        Self::ALL
            .into_iter()
            .find(|reason| reason.as_str() == text)
            .ok_or(UnknownReason::Unknown)
    }
}

impl TryFrom<String> for RevocationReason {
    type Error = UnknownReason;

    fn try_from(text: String) -> Result<Self, UnknownReason> {
        text.parse()
    }
}

impl From<RevocationReason> for String {
    fn from(reason: RevocationReason) -> Self {
        reason.as_str().to_owned()
    }
}

/// A certificate issued to a machine or a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Certificate {
    /// Lower-case hex, two digits a byte.
    pub serial_number: String,
    /// Whose key it is for.
    pub purpose: CertificatePurpose,
    /// The machine in its subject, whose record may be deleted. For a device, the machine with its serial number or
    /// null.
    pub machine_id: Option<Uuid>,
    /// The serial number in a device certificate's subject; null for a machine.
    pub device_serial_number: Option<String>,
    /// The certified key.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub key_thumbprint: KeyThumbprint,
    /// Whether it is valid now.
    pub status: CertificateStatus,
    /// SHA-256 of the DER, in hex.
    pub sha256: String,
    /// When it becomes valid.
    #[serde(with = "time::serde::rfc3339")]
    pub not_before: OffsetDateTime,
    /// When it expires.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    /// When it was issued.
    #[serde(with = "time::serde::rfc3339")]
    pub issued_at: OffsetDateTime,
    /// When it was revoked; null if it was not.
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
    /// Why it was revoked; null if it was not.
    pub revocation_reason: Option<RevocationReason>,
}

/// `GET /v1/admin/certificates/{serial}`: the entry of the list with the certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CertificateWithPem {
    /// The entry of the list.
    #[serde(flatten)]
    pub certificate: Certificate,
    /// The certificate without its chain, PEM.
    pub pem: String,
}

/// `POST /v1/admin/certificates/{serial}/revoke`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RevokeCertificate {
    /// The reason that relying parties see in the CRL and by OCSP.
    pub reason: RevocationReason,
    /// An explanation for the audit and for the machine's events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 500))]
    pub note: Option<String>,
}
