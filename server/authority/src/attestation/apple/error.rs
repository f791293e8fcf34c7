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
    /// Nothing to verify.
    #[error("the chain holds no certificate")]
    Empty,
    /// More than any honest chain has.
    #[error("there are more than {most} certificates")]
    TooMany {
        /// How many there may be.
        most: usize,
    },
    /// Longer than any honest certificate.
    #[error("certificate {position} is longer than {LONGEST_CERTIFICATE} bytes")]
    TooLong {
        /// Counted from the leaf, 1.
        position: usize,
    },
    /// Not PEM at all.
    #[error("not PEM")]
    NotPem(#[source] pem::PemError),
    /// PEM of something else.
    #[error("PEM block {position} is a {label}, and not a CERTIFICATE")]
    NotACertificate {
        /// Counted from 1.
        position: usize,
        /// What it is.
        label: String,
    },
    /// No X.509 in DER, or something behind it.
    #[error("certificate {position} is not an X.509 certificate in DER")]
    Unreadable {
        /// Counted from the leaf, 1.
        position: usize,
        /// What is the matter.
        #[source]
        source: der::Error,
    },
    /// RFC 5280, section 4.2: which of the two would count?
    #[error("certificate {position} has the extension {oid} twice")]
    RepeatedExtension {
        /// Counted from the leaf, 1.
        position: usize,
        /// Which.
        oid: ObjectIdentifier,
    },
    /// Its time is over.
    #[error("a certificate of the chain expired at {}; have the MDM ask the Mac for a new attestation", rfc3339(*not_after))]
    Expired {
        /// Since when.
        not_after: OffsetDateTime,
    },
    /// Its time has not come: a clock is off.
    #[error("a certificate of the chain is not valid before {}; is the clock right?", rfc3339(*not_before))]
    NotYetValid {
        /// From when on.
        not_before: OffsetDateTime,
    },
    /// A certificate of Apple's, but not for this.
    #[error("the certificates are meant for another use than attestation")]
    ExtendedKeyUsage,
    /// The rest of what a path may lack.
    #[error("no valid path leads from the first certificate to a trusted attestation root")]
    Path(#[source] webpki::Error),
    /// Apple says it for machines that it knows, and not for all.
    #[error("the attestation names no serial number, or none that can be read; without one it stands for no machine")]
    NoSerialNumber,
    /// Nothing to compare with.
    #[error("the machine has no serial number on record, so that no attestation can be bound to it")]
    NoSerialNumberOnRecord,
    /// Another machine's.
    #[error(
        "the attestation is of the machine {attested}, and this one has the serial number {on_record}; post it there"
    )]
    SerialNumberMismatch {
        /// What Apple says.
        attested: String,
        /// What the record says.
        on_record: String,
    },
    /// It was good once.
    #[error(
        "Apple signed the attestation at {}, longer ago than apple.attestation_max_age; have the MDM ask the Mac for a new one",
        rfc3339(*attested_at)
    )]
    TooOld {
        /// When Apple signed it.
        attested_at: OffsetDateTime,
    },
    /// To go back to what was true before would hide what has changed since.
    #[error(
        "Apple signed the attestation at {}, and the one on record at {}: an older one does not replace it",
        rfc3339(*attested_at),
        rfc3339(*on_record)
    )]
    NotNewer {
        /// When Apple signed it.
        attested_at: OffsetDateTime,
        /// When Apple signed the one on record.
        on_record: OffsetDateTime,
    },
    /// It may be good and was not asked for with this nonce.
    #[error(
        "the attestation was not made for the machine's present key: it carries {}, and the nonce to ask with is {expected}. \
         A Mac makes a new attestation once in 7 days and sends its last one again before that: ask again later",
        described(attested.as_ref())
    )]
    Stale {
        /// What it was made for.
        attested: Option<FreshnessCode>,
        /// What it would have to be made for.
        expected: FreshnessCode,
    },
}

impl AttestationError {
    /// The reason as it is told to programs.
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

    /// In the words of an operator, where there are some.
    pub(super) fn of_path(error: webpki::Error) -> Self {
        match error {
            webpki::Error::CertExpired { not_after, .. } => Self::Expired {
                not_after: from_seconds(not_after.as_secs()),
            },
            webpki::Error::CertNotValidYet { not_before, .. } => Self::NotYetValid {
                not_before: from_seconds(not_before.as_secs()),
            },
            webpki::Error::RequiredEkuNotFoundContext(_) | webpki::Error::EmptyEkuExtension => Self::ExtendedKeyUsage,
            error => Self::Path(error),
        }
    }
}

fn described(code: Option<&FreshnessCode>) -> String {
    code.map_or_else(
        || "no freshness code of 32 bytes".to_owned(),
        |code| format!("the freshness code {code}"),
    )
}
