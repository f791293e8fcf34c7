//! Parses certificates of CAs, and checks which CA issued which.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA384_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1,
    EcdsaVerificationAlgorithm, UnparsedPublicKey,
};
use time::OffsetDateTime;
use x509_parser::{
    certificate::X509Certificate, extensions::ParsedExtension, prelude::FromDer, x509::SubjectPublicKeyInfo,
};

use super::AuthorityError;

const ECDSA_WITH_SHA256: &str = "1.2.840.10045.4.3.2";
const ECDSA_WITH_SHA384: &str = "1.2.840.10045.4.3.3";

/// The curves that a CA's key may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Curve {
    P256,
    P384,
}

impl Curve {
    /// The curve of a public key; `None` for any other kind of key.
    pub(super) fn of(key: &SubjectPublicKeyInfo<'_>) -> Option<Self> {
        let curve = key.algorithm.parameters.as_ref()?.as_oid().ok()?;
        match curve.to_id_string().as_str() {
            "1.2.840.10045.3.1.7" => Some(Self::P256),
            "1.3.132.0.34" => Some(Self::P384),
            _ => None,
        }
    }

    /// Its name in a JWK (RFC 7518).
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
        }
    }
}

/// The subject key identifier of a CA's certificate in DER.
pub fn key_identifier(certificate: &[u8]) -> Result<Vec<u8>, AuthorityError> {
    subject_key_identifier(&read(certificate)?).ok_or(AuthorityError::Certificate)
}

/// The serial number of a certificate in DER, big endian.
pub fn serial_number(certificate: &[u8]) -> Result<Vec<u8>, AuthorityError> {
    Ok(read(certificate)?.raw_serial().to_vec())
}

/// Whether two certificates in DER have the same subject and key. In a path, one can stand for the other.
pub fn is_same_authority(one: &[u8], other: &[u8]) -> Result<bool, AuthorityError> {
    let (one, other) = (read(one)?, read(other)?);
    Ok(one.subject().as_raw() == other.subject().as_raw() && one.public_key().raw == other.public_key().raw)
}

/// The validity of a certificate in DER: `notBefore` and `notAfter`.
pub fn validity(certificate: &[u8]) -> Result<(OffsetDateTime, OffsetDateTime), AuthorityError> {
    let parsed = read(certificate)?;
    let time = |seconds| OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| AuthorityError::Certificate);
    let validity = parsed.validity();
    Ok((
        time(validity.not_before.timestamp())?,
        time(validity.not_after.timestamp())?,
    ))
}

/// Whether a certificate in DER is that of a CA.
pub fn is_ca(certificate: &[u8]) -> Result<bool, AuthorityError> {
    let constraints = read(certificate)?
        .basic_constraints()
        .map_err(|_| AuthorityError::Certificate)?
        .map(|constraints| constraints.value.ca);
    Ok(constraints.unwrap_or_default())
}

/// Parses a certificate in DER. Trailing bytes are an error.
pub(super) fn read(der: &[u8]) -> Result<X509Certificate<'_>, AuthorityError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(AuthorityError::Certificate),
    }
}

pub(super) fn subject_key_identifier(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    let mut extensions = certificate.extensions().iter();
    extensions.find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(identifier) => Some(identifier.0.to_vec()),
        _ => None,
    })
}

/// Whether `certificate` names `issuer` as its issuer and `issuer`'s key, on P-256 or P-384, signed it.
pub(super) fn is_issued_by(certificate: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> bool {
    let is_named = certificate.issuer().as_raw() == issuer.subject().as_raw();
    is_named
        && algorithm(&certificate.signature_algorithm.algorithm.to_id_string(), issuer).is_some_and(|algorithm| {
            let key = UnparsedPublicKey::new(algorithm, &issuer.public_key().subject_public_key.data);
            let signed = certificate.tbs_certificate.as_ref();
            key.verify(signed, &certificate.signature_value.data).is_ok()
        })
}

/// How to verify the issuer's signatures with the signature algorithm of this object identifier.
pub(super) fn algorithm(oid: &str, issuer: &X509Certificate<'_>) -> Option<&'static EcdsaVerificationAlgorithm> {
    match (Curve::of(issuer.public_key())?, oid) {
        (Curve::P256, ECDSA_WITH_SHA256) => Some(&ECDSA_P256_SHA256_ASN1),
        (Curve::P256, ECDSA_WITH_SHA384) => Some(&ECDSA_P256_SHA384_ASN1),
        (Curve::P384, ECDSA_WITH_SHA256) => Some(&ECDSA_P384_SHA256_ASN1),
        (Curve::P384, ECDSA_WITH_SHA384) => Some(&ECDSA_P384_SHA384_ASN1),
        _ => None,
    }
}
