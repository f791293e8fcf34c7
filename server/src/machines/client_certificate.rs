//! The properties of a TLS client certificate that handlers check.

use assay_protocol::{KeyThumbprint, PublicKey, sha256};
use time::OffsetDateTime;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

/// A certificate with a validated path, whose key signed the handshake, or the handshake of the session that is
/// resumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientCertificate {
    /// In lower-case hex, as in the database.
    pub(crate) serial_number: String,
    pub(crate) sha256: [u8; 32],
    pub(crate) key: KeyThumbprint,
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
}

impl ClientCertificate {
    /// Parses a certificate; `None` if its key is not on P-256, so that it cannot be a machine's.
    pub(crate) fn parse(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let validity = certificate.validity();
        let key = PublicKey::from_spki_der(certificate.public_key().raw).ok()?;
        Some(Self {
            serial_number: hex::encode(certificate.raw_serial()),
            sha256: sha256(der),
            key: key.thumbprint(),
            not_before: validity.not_before.to_datetime(),
            not_after: validity.not_after.to_datetime(),
        })
    }
}
