//! Certificate signing requests (PKCS#10, RFC 2986): made with any signer, trusted only when verified.

use const_oid::ObjectIdentifier;
use der::{Decode, DecodePem, Encode, EncodePem, asn1::BitString, pem::LineEnding};
use x509_cert::{
    name::Name,
    request::{CertReq, CertReqInfo, Version},
    spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned},
};

use crate::key::PublicKey;

/// `ecdsa-with-SHA256` (RFC 5758).
const ECDSA_WITH_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
/// `ecdsa-with-SHA384` (RFC 5758): some key stores sign with nothing less, and possession is proved all the same.
const ECDSA_WITH_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
/// The longest request that is looked at, in bytes of PEM: an honest one has about 500.
const LONGEST_PEM: usize = 16 * 1024;

/// A request that was read and not verified: whoever sent it may not hold the key in it.
#[derive(Debug)]
pub struct UnverifiedCsr {
    request: CertReq,
}

/// A request whose sender holds the private key of the public key in it. Nothing else in it is trusted or kept.
#[derive(Debug, Clone)]
pub struct Csr {
    public_key: PublicKey,
    der: Vec<u8>,
}

/// Why a request is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// Longer than any honest request.
    #[error("the request is longer than {LONGEST_PEM} bytes")]
    TooLong,
    /// Neither PEM nor PKCS#10.
    #[error("not a PKCS#10 certificate request in PEM")]
    Unreadable(#[source] der::Error),
    /// The key is of another kind.
    #[error("the key in the request is not on the curve P-256")]
    NotP256,
    /// Signed in another way than this protocol uses.
    #[error("the request is signed neither with ecdsa-with-SHA256 nor with ecdsa-with-SHA384")]
    SignatureAlgorithm,
    /// No proof of possession.
    #[error("the request's signature does not verify with the key in it")]
    Signature,
}

/// Why a request could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildCsrError<E: std::error::Error + 'static> {
    /// The parts do not encode; never the case for a valid key.
    #[error("the request cannot be encoded")]
    Encode(#[source] der::Error),
    /// The signer failed.
    #[error("the request cannot be signed")]
    Sign(#[source] E),
}

impl UnverifiedCsr {
    /// Reads a request in PEM (label `CERTIFICATE REQUEST`).
    pub fn from_pem(pem: &str) -> Result<Self, CsrError> {
        if pem.len() > LONGEST_PEM {
            return Err(CsrError::TooLong);
        }
        let request = CertReq::from_pem(pem.as_bytes()).map_err(CsrError::Unreadable)?;
        Ok(Self { request })
    }

    /// Checks that the sender holds the key: the proof of possession.
    pub fn verify(self) -> Result<Csr, CsrError> {
        let spki = self.request.info.public_key.to_der().map_err(CsrError::Unreadable)?;
        let public_key = PublicKey::from_spki_der(&spki).map_err(|_| CsrError::NotP256)?;
        let signed = self.request.info.to_der().map_err(CsrError::Unreadable)?;
        let signature = self.request.signature.as_bytes().ok_or(CsrError::Signature)?;
        let verified = match self.request.algorithm.oid {
            ECDSA_WITH_SHA256 => public_key.verify_der(&signed, signature),
            ECDSA_WITH_SHA384 => public_key.verify_der_sha384(&signed, signature),
            _ => return Err(CsrError::SignatureAlgorithm),
        };
        verified.map_err(|_| CsrError::Signature)?;
        let der = self.request.to_der().map_err(CsrError::Unreadable)?;
        Ok(Csr { public_key, der })
    }
}

impl Csr {
    /// Makes a request for `public_key`, with an empty subject (the server decides it), and returns it in PEM.
    ///
    /// `sign` gets the bytes to sign and answers with an ECDSA signature with SHA-256 in DER.
    pub fn build<E, S>(public_key: &PublicKey, sign: S) -> Result<String, BuildCsrError<E>>
    where
        E: std::error::Error + 'static,
        S: FnOnce(&[u8]) -> Result<Vec<u8>, E>,
    {
        let info = CertReqInfo {
            version: Version::V1,
            subject: Name::default(),
            public_key: SubjectPublicKeyInfoOwned::from_der(public_key.spki_der()).map_err(BuildCsrError::Encode)?,
            attributes: Default::default(),
        };
        let signature = sign(&info.to_der().map_err(BuildCsrError::Encode)?).map_err(BuildCsrError::Sign)?;
        let request = CertReq {
            info,
            algorithm: AlgorithmIdentifierOwned {
                oid: ECDSA_WITH_SHA256,
                parameters: None,
            },
            signature: BitString::from_bytes(&signature).map_err(BuildCsrError::Encode)?,
        };
        request.to_pem(LineEnding::LF).map_err(BuildCsrError::Encode)
    }

    /// The key that the sender holds.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// The whole request in DER: what `csr_sha256` is computed over.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }
}
