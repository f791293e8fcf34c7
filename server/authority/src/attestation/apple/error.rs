//! Why an attestation is not accepted.

use assay_protocol::attestation::{AttestationRefusal, FreshnessCode};
use time::OffsetDateTime;
use x509_cert::der::oid::ObjectIdentifier;

use super::{LONGEST_CERTIFICATE, from_seconds};
use assay_protocol::text::rfc3339;

/// Why an attestation is not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttestationError {
    /// The chain is empty.
    #[error("the chain holds no certificate")]
    Empty,
    /// More certificates than in any valid chain.
    #[error("there are more than {most} certificates")]
    TooMany {
        /// The limit.
        most: usize,
    },
    /// Longer than any valid certificate.
    #[error("certificate {position} is longer than {LONGEST_CERTIFICATE} bytes")]
    TooLong {
        /// Its position, counted from 1 at the leaf.
        position: usize,
    },
    /// Not PEM.
    #[error("not PEM")]
    NotPem(#[source] pem::PemError),
    /// A PEM block that is not a certificate.
    #[error("PEM block {position} is a {label}, not a CERTIFICATE")]
    NotACertificate {
        /// Its position, counted from 1.
        position: usize,
        /// Its label.
        label: String,
    },
    /// Not X.509 in DER, or trailing bytes.
    #[error("certificate {position} is not an X.509 certificate in DER")]
    Unreadable {
        /// Its position, counted from 1 at the leaf.
        position: usize,
        /// The error of the parser.
        #[source]
        source: der::Error,
    },
    /// RFC 5280, section 4.2, forbids it: parsers may disagree about which of the two counts.
    #[error("certificate {position} has the extension {oid} twice")]
    RepeatedExtension {
        /// Its position, counted from 1 at the leaf.
        position: usize,
        /// The repeated extension.
        oid: ObjectIdentifier,
    },
    /// A certificate has expired.
    #[error("a certificate of the chain expired at {}; have the MDM ask the Mac for a new attestation", rfc3339(*not_after))]
    Expired {
        /// When it expired.
        not_after: OffsetDateTime,
    },
    /// A certificate is not valid yet. A clock may be wrong.
    #[error("a certificate of the chain is not valid before {}; is the clock right?", rfc3339(*not_before))]
    NotYetValid {
        /// When it becomes valid.
        not_before: OffsetDateTime,
    },
    /// The certificate is Apple's, but not for attestation.
    #[error("the certificates are for another use than attestation")]
    ExtendedKeyUsage,
    /// Any other reason why there is no valid path.
    #[error("no valid path leads from the first certificate to a trusted attestation root")]
    Path(#[source] PathFault),
    /// Apple attests the serial number only for Macs that are enrolled in an MDM, for example.
    #[error("the attestation names no readable serial number, so it cannot be bound to a machine")]
    NoSerialNumber,
    /// The record has no serial number to compare with.
    #[error("the machine has no serial number on record, so no attestation can be bound to it")]
    NoSerialNumberOnRecord,
    /// The attestation is about another machine.
    #[error(
        "the attestation is about the machine {attested}, but this one has the serial number {on_record}; post it to that machine"
    )]
    SerialNumberMismatch {
        /// The serial number that Apple attests.
        attested: String,
        /// The serial number on record.
        on_record: String,
    },
    /// The attestation is older than the configured limit.
    #[error(
        "Apple signed the attestation at {}, which is longer ago than apple.attestation_max_age; have the MDM ask the Mac for a new one",
        rfc3339(*attested_at)
    )]
    TooOld {
        /// When Apple signed it.
        attested_at: OffsetDateTime,
    },
    /// Replacing it with an older attestation could hide what has changed since.
    #[error(
        "Apple signed the attestation at {}, not after the one on record, which it signed at {}; only a newer one replaces it",
        rfc3339(*attested_at),
        rfc3339(*on_record)
    )]
    NotNewer {
        /// When Apple signed it.
        attested_at: OffsetDateTime,
        /// When Apple signed the one on record.
        on_record: OffsetDateTime,
    },
    /// The attestation was not requested with the nonce of the current key.
    #[error(
        "the attestation was not made for the machine's current key: it carries {}, but the nonce to request it with is {expected}. \
         A Mac makes a new attestation only once in 7 days and sends its last one until then: ask again later",
        described(attested.as_ref())
    )]
    Stale {
        /// The freshness code that it carries.
        attested: Option<FreshnessCode>,
        /// The freshness code of the current key.
        expected: FreshnessCode,
    },
}

/// What is wrong with a path, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PathFault(&'static str);

impl PathFault {
    fn of(error: &webpki::Error) -> Self {
        Self(match error {
            webpki::Error::UnknownIssuer => "no trusted root issued it",
            webpki::Error::InvalidSignatureForPublicKey => "a signature does not verify",
            webpki::Error::UnsupportedSignatureAlgorithmContext(_)
            | webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
                "a signature is not by ECDSA with P-384 and SHA-384"
            }
            webpki::Error::CaUsedAsEndEntity => "the first certificate is that of a CA",
            webpki::Error::EndEntityUsedAsCa => "a certificate that is not that of a CA issued another one",
            webpki::Error::PathLenConstraintViolated => "a CA may not have other CAs below it",
            webpki::Error::UnsupportedCriticalExtension => "a critical extension is unknown",
            webpki::Error::NameConstraintViolation => "a CA may not issue this name",
            webpki::Error::IssuerNotCrlSigner | webpki::Error::CertRevoked => "a certificate is revoked",
            _ => "a certificate is malformed, or breaks the rules of RFC 5280",
        })
    }
}

impl AttestationError {
    /// The reason for programs.
    #[must_use]
    pub fn refusal(&self) -> AttestationRefusal {
        match self {
            Self::Empty
            | Self::TooMany { .. }
            | Self::TooLong { .. }
            | Self::NotPem(_)
            | Self::NotACertificate { .. }
            | Self::Unreadable { .. }
            | Self::RepeatedExtension { .. }
            | Self::Expired { .. }
            | Self::NotYetValid { .. }
            | Self::ExtendedKeyUsage
            | Self::Path(_) => AttestationRefusal::Path,
            Self::NoSerialNumber | Self::NoSerialNumberOnRecord => AttestationRefusal::NoSerialNumber,
            Self::SerialNumberMismatch { .. } => AttestationRefusal::SerialNumberMismatch,
            Self::Stale { .. } | Self::TooOld { .. } | Self::NotNewer { .. } => AttestationRefusal::Stale,
        }
    }

    /// Translates an error of webpki into the operator's terms where there are any.
    pub(super) fn of_path(error: webpki::Error) -> Self {
        match error {
            webpki::Error::CertExpired { not_after, .. } => Self::Expired {
                not_after: from_seconds(not_after.as_secs()),
            },
            webpki::Error::CertNotValidYet { not_before, .. } => Self::NotYetValid {
                not_before: from_seconds(not_before.as_secs()),
            },
            webpki::Error::RequiredEkuNotFoundContext(_) | webpki::Error::EmptyEkuExtension => Self::ExtendedKeyUsage,
            error => Self::Path(PathFault::of(&error)),
        }
    }
}

fn described(code: Option<&FreshnessCode>) -> String {
    code.map_or_else(
        || "no freshness code of 32 bytes".to_owned(),
        |code| format!("the freshness code {code}"),
    )
}
