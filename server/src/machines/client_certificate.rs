//! The certificate that a machine presents in TLS, as far as calls look at it.

use assay_protocol::{KeyThumbprint, PublicKey};
use aws_lc_rs::digest::{SHA256, digest};
use time::OffsetDateTime;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

/// A certificate whose path was validated, and whose key has signed the handshake or that of a session that is resumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientCertificate {
    /// Lower-case hex, as on record.
    pub(crate) serial_number: String,
    pub(crate) sha256: [u8; 32],
    pub(crate) key: KeyThumbprint,
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
}

impl ClientCertificate {
    /// Reads one; `None` where it is none of ours: all of them are on P-256.
    pub(crate) fn parse(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let validity = certificate.validity();
        let key = PublicKey::from_spki_der(certificate.public_key().raw).ok()?;
        Some(Self {
            serial_number: hex::encode(certificate.raw_serial()),
            sha256: digest(&SHA256, der).as_ref().try_into().ok()?,
            key: key.thumbprint(),
            not_before: validity.not_before.to_datetime(),
            not_after: validity.not_after.to_datetime(),
        })
    }
}
