//! `/v1/admin/certificates`, and those of one machine

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::key::KeyThumbprint;

/// Whether a certificate can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum CertificateStatus {
    /// Neither expired nor revoked.
    Valid,
    /// Past its end, and never revoked.
    Expired,
    /// Revoked, whether its end has passed or not.
    Revoked,
}

/// Whose key a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum CertificatePurpose {
    /// The agent's.
    Machine,
    /// That of the Mac's own system, which an MDM had it make and Apple attested.
    Device,
}

/// Why a certificate was revoked: the reasons of RFC 5280, section 5.3.1, but for the two that are no revocation.
///
/// `certificate_hold` would be undone by `remove_from_crl`, and here a revocation is final: what holds a machine back for
/// a while is its quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", try_from = "String", into = "String")]
pub enum RevocationReason {
    /// Nothing is said.
    Unspecified,
    /// Somebody else has the private key, or may have it.
    KeyCompromise,
    /// Somebody else has the private key of the CA, or may have it.
    CaCompromise,
    /// The subject's name or affiliation has changed.
    AffiliationChanged,
    /// Another certificate has replaced it.
    Superseded,
    /// It is needed no more.
    CessationOfOperation,
    /// The machine may not have it any more.
    PrivilegeWithdrawn,
    /// An attribute authority is compromised.
    AaCompromise,
}

/// A text that is no reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownReason {
    /// A reason of RFC 5280 that can be taken back.
    #[error(
        "the reason {0} belongs to a hold that can be lifted, and a revocation here is final; to hold a machine back for \
         a while, quarantine it"
    )]
    Hold(String),
    /// Something else.
    #[error("the reason has to be one of {}", RevocationReason::ALL.map(RevocationReason::as_str).join(", "))]
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

/// A certificate that was issued to a machine or to a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Certificate {
    /// Lower-case hex, two digits a byte.
    pub serial_number: String,
    /// Whose key it is for.
    pub purpose: CertificatePurpose,
    /// The machine in its subject, whose record may be deleted; of a device, the machine with its serial number, or null.
    pub machine_id: Option<Uuid>,
    /// The serial number in the subject of a device's; null in a machine's.
    pub device_serial_number: Option<String>,
    /// The key that it certifies.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub key_thumbprint: KeyThumbprint,
    /// Whether it can be relied on now.
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
    /// When it was revoked; null while it is not.
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
    /// Why it was revoked; null while it is not.
    pub revocation_reason: Option<RevocationReason>,
}

/// `GET /v1/admin/certificates/{serial}`: what the lists show, and the certificate itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CertificateWithPem {
    /// What the lists show.
    #[serde(flatten)]
    pub certificate: Certificate,
    /// The certificate, without its chain.
    pub pem: String,
}

/// `POST /v1/admin/certificates/{serial}/revoke`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RevokeCertificate {
    /// Why, in the words that relying parties read.
    pub reason: RevocationReason,
    /// Why, in the words of whoever revokes it: for the audit, and for the machine's events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}
