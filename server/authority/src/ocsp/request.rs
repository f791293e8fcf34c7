//! Parses the requests of relying parties. The bytes are not trusted.

use aws_lc_rs::digest::{self, SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA384, SHA512};
use der::{
    Decode,
    asn1::{ObjectIdentifier, OctetString},
};
use x509_cert::ext::Extension;

use super::messages::{CertificateId, OcspRequestMessage};

/// `id-pkix-ocsp-nonce`
const NONCE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.2");
const SHA1_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");
const SHA256_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
const SHA384_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2");
const SHA512_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.3");
/// The most certificates in one request: enough for a chain, too few to query a fleet.
const MOST_QUESTIONS: usize = 20;
/// RFC 9654, section 2.1: an empty nonce, or one over 128 bytes, makes a request malformed.
const LONGEST_NONCE: usize = 128;
/// The limit of RFC 5280, section 4.1.2.2, plus a byte for the sign.
const LONGEST_SERIAL_NUMBER: usize = 21;

/// A parsed request.
#[derive(Debug)]
pub struct OcspRequest {
    questions: Vec<CertificateQuestion>,
    nonce: Option<Extension>,
}

/// The certificate that a request asks about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateQuestion(pub(super) CertificateId);

/// The bytes are not an OCSP request, or not one that an honest client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an OCSP request")]
pub struct UnreadableRequest;

impl OcspRequest {
    /// Parses a request in DER.
    pub fn parse(bytes: &[u8]) -> Result<Self, UnreadableRequest> {
        let message = OcspRequestMessage::from_der(bytes).map_err(|_| UnreadableRequest)?;
        let request = message.to_be_signed;
        if request.version != 0 || !(1..=MOST_QUESTIONS).contains(&request.requests.len()) {
            return Err(UnreadableRequest);
        }
        let mut nonce = None;
        for extension in request.extensions.unwrap_or_default() {
            if extension.extn_id == NONCE {
                check_nonce(&extension)?;
                nonce = Some(extension);
            } else if extension.critical {
                return Err(UnreadableRequest);
            }
        }
        let questions = request.requests.into_iter().map(|request| {
            let extensions = request.extensions.unwrap_or_default();
            let is_readable = extensions.iter().all(|extension| !extension.critical)
                && request.certificate.serial_number.as_bytes().len() <= LONGEST_SERIAL_NUMBER;
            is_readable.then_some(CertificateQuestion(request.certificate))
        });
        Ok(Self {
            questions: questions.collect::<Option<_>>().ok_or(UnreadableRequest)?,
            nonce,
        })
    }

    /// The certificates asked about; at least one.
    #[must_use]
    pub fn questions(&self) -> &[CertificateQuestion] {
        &self.questions
    }

    /// Whether the response must be signed for this request alone. A response without a nonce can be cached.
    #[must_use]
    pub fn has_nonce(&self) -> bool {
        self.nonce.is_some()
    }

    /// The extensions of the response: the nonce, unchanged.
    pub(super) fn answer_extensions(&self) -> Option<Vec<Extension>> {
        self.nonce.clone().map(|nonce| vec![nonce])
    }
}

impl CertificateQuestion {
    /// Whether it asks about a certificate of the CA with this name (in DER) and this public key (without its
    /// algorithm).
    #[must_use]
    pub fn is_about_issuer(&self, name: &[u8], public_key: &[u8]) -> bool {
        let algorithm = match self.0.hash_algorithm.oid {
            SHA1_OID => &SHA1_FOR_LEGACY_USE_ONLY,
            SHA256_OID => &SHA256,
            SHA384_OID => &SHA384,
            SHA512_OID => &SHA512,
            _ => return false,
        };
        digest::digest(algorithm, name).as_ref() == self.0.issuer_name_hash.as_bytes()
            && digest::digest(algorithm, public_key).as_ref() == self.0.issuer_key_hash.as_bytes()
    }

    /// The serial number in the server's notation: lower-case hex.
    #[must_use]
    pub fn serial_number(&self) -> String {
        hex::encode(self.0.serial_number.as_bytes())
    }
}

fn check_nonce(extension: &Extension) -> Result<(), UnreadableRequest> {
    let nonce = OctetString::from_der(extension.extn_value.as_bytes()).map_err(|_| UnreadableRequest)?;
    if (1..=LONGEST_NONCE).contains(&nonce.as_bytes().len()) {
        Ok(())
    } else {
        Err(UnreadableRequest)
    }
}
