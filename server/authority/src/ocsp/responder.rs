//! The delegated OCSP responder: a key, and a certificate of the issuing CA that only allows OCSP signing (RFC 6960,
//! section 4.2.2.2).

use std::ops::Range;

use assay_protocol::admin_api::certificates::RevocationReason;
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use der::{
    Any, Decode, Encode,
    asn1::{BitString, GeneralizedTime, Null, ObjectIdentifier, OctetString},
};
use rcgen::SigningKey;
use time::{Duration, OffsetDateTime};
use x509_cert::{ext::pkix::CrlReason, spki::AlgorithmIdentifierOwned};

use super::{
    messages::{
        BasicResponse, OcspResponseMessage, ResponseBytes, ResponseData, ResponseStatus, RevokedMessage,
        SingleResponse, StatusMessage,
    },
    request::{CertificateQuestion, OcspRequest},
};
use crate::{AuthorityError, certificate_signer::CertificateSigner, keys::PrivateKey};

const BASIC_RESPONSE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.1");
const ECDSA_WITH_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
/// How long a response is valid. Until then, an attacker on the path can hide a later revocation from a verifier.
pub const RESPONSE_LIFE: Duration = Duration::minutes(5);

/// How far `thisUpdate` and `producedAt` are in the past. Clients whose clocks are behind refuse a response from the future.
pub const BACKDATING: Duration = Duration::seconds(30);

/// Signs OCSP responses for one issuing CA.
pub struct OcspResponder {
    signer: CertificateSigner,
    certificate: Vec<u8>,
    key_hash: Vec<u8>,
    issuer_key_identifier: Vec<u8>,
    usable: Range<OffsetDateTime>,
}

/// The status of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateStatus {
    /// The certificate was issued and is not revoked.
    Good,
    /// The certificate was revoked.
    Revoked {
        /// When it was revoked.
        at: OffsetDateTime,
        /// Why it was revoked.
        reason: RevocationReason,
    },
    /// This server's CAs did not issue such a certificate.
    Unknown,
}

/// The status of one requested certificate.
#[derive(Debug)]
pub struct StatusAnswer<'a> {
    /// The certificate that the request asks about.
    pub question: &'a CertificateQuestion,
    /// Its status.
    pub status: CertificateStatus,
}

/// An unsigned error response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OcspError {
    /// The bytes are not an OCSP request.
    Malformed,
    /// The database is unavailable.
    TryLater,
    /// None of this server's CAs issued the certificates (RFC 5019, section 2.2.3).
    Unauthorized,
}

impl OcspResponder {
    /// Prepares a key and its certificate, issued by the CA with this key identifier, for signing within `usable`.
    pub(crate) fn new(
        key: &PrivateKey,
        certificate: Vec<u8>,
        issuer_key_identifier: &[u8],
        usable: Range<OffsetDateTime>,
    ) -> Result<Self, AuthorityError> {
        Ok(Self {
            signer: CertificateSigner::new(key)?,
            key_hash: digest(&SHA1_FOR_LEGACY_USE_ONLY, key.public_key().sec1())
                .as_ref()
                .to_vec(),
            certificate,
            issuer_key_identifier: issuer_key_identifier.to_vec(),
            usable,
        })
    }

    /// Whether it may sign for this CA now. If not, the caller issues another responder.
    #[must_use]
    pub fn is_usable(&self, issuer_key_identifier: &[u8], now: OffsetDateTime) -> bool {
        self.issuer_key_identifier == issuer_key_identifier && self.is_in_time(now)
    }

    /// Whether `now` is within the time in which it may sign.
    #[must_use]
    pub fn is_in_time(&self, now: OffsetDateTime) -> bool {
        self.usable.contains(&now)
    }

    /// Signs the response to a request.
    pub fn respond(
        &self,
        request: &OcspRequest,
        answers: &[StatusAnswer<'_>],
        now: OffsetDateTime,
    ) -> Result<Vec<u8>, AuthorityError> {
        let to_be_signed = self
            .response_data(request, answers, now)
            .map_err(AuthorityError::Encode)?;
        let signed = to_be_signed.to_der().map_err(AuthorityError::Encode)?;
        let signature = self.signer.sign(&signed).map_err(AuthorityError::Sign)?;
        self.response(to_be_signed, &signature).map_err(AuthorityError::Encode)
    }

    fn response_data(
        &self,
        request: &OcspRequest,
        answers: &[StatusAnswer<'_>],
        now: OffsetDateTime,
    ) -> Result<ResponseData, der::Error> {
        let from = now - BACKDATING;
        let responses = answers.iter().map(|answer| {
            Ok(SingleResponse {
                certificate: answer.question.0.clone(),
                status: status_message(answer.status)?,
                this_update: time(from)?,
                next_update: Some(time(from + RESPONSE_LIFE)?),
            })
        });
        Ok(ResponseData {
            responder_key_hash: OctetString::new(self.key_hash.clone())?,
            produced_at: time(from)?,
            responses: responses.collect::<Result<_, der::Error>>()?,
            extensions: request.answer_extensions(),
        })
    }

    fn response(&self, to_be_signed: ResponseData, signature: &[u8]) -> Result<Vec<u8>, der::Error> {
        let basic = BasicResponse {
            to_be_signed,
            signature_algorithm: AlgorithmIdentifierOwned {
                oid: ECDSA_WITH_SHA256,
                parameters: None,
            },
            signature: BitString::from_bytes(signature)?,
            certificates: Some(vec![Any::from_der(&self.certificate)?]),
        };
        let message = OcspResponseMessage {
            status: ResponseStatus::Successful,
            response: Some(ResponseBytes {
                response_type: BASIC_RESPONSE,
                response: OctetString::new(basic.to_der()?)?,
            }),
        };
        message.to_der()
    }
}

impl OcspError {
    /// The response in DER.
    #[must_use]
    pub fn response(self) -> Vec<u8> {
        let status = match self {
            Self::Malformed => ResponseStatus::MalformedRequest,
            Self::TryLater => ResponseStatus::TryLater,
            Self::Unauthorized => ResponseStatus::Unauthorized,
        };
        // Encoding these five bytes cannot fail.
        OcspResponseMessage { status, response: None }
            .to_der()
            .unwrap_or_default()
    }
}

fn status_message(status: CertificateStatus) -> Result<StatusMessage, der::Error> {
    Ok(match status {
        CertificateStatus::Good => StatusMessage::Good(Null),
        CertificateStatus::Unknown => StatusMessage::Unknown(Null),
        CertificateStatus::Revoked { at, reason } => StatusMessage::Revoked(RevokedMessage {
            revoked_at: time(at)?,
            reason: reason_code(reason),
        }),
    })
}

/// RFC 5280, section 5.3.1, asks to omit the reason rather than to state `unspecified`.
fn reason_code(reason: RevocationReason) -> Option<CrlReason> {
    match reason {
        RevocationReason::Unspecified => None,
        RevocationReason::KeyCompromise => Some(CrlReason::KeyCompromise),
        RevocationReason::CaCompromise => Some(CrlReason::CaCompromise),
        RevocationReason::AffiliationChanged => Some(CrlReason::AffiliationChanged),
        RevocationReason::Superseded => Some(CrlReason::Superseded),
        RevocationReason::CessationOfOperation => Some(CrlReason::CessationOfOperation),
        RevocationReason::PrivilegeWithdrawn => Some(CrlReason::PrivilegeWithdrawn),
        RevocationReason::AaCompromise => Some(CrlReason::AaCompromise),
    }
}

fn time(time: OffsetDateTime) -> Result<GeneralizedTime, der::Error> {
    let seconds = u64::try_from(time.unix_timestamp()).map_err(|_| der::ErrorKind::DateTime)?;
    GeneralizedTime::from_unix_duration(std::time::Duration::from_secs(seconds))
}
