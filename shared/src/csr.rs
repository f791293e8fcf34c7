//! Certificate signing requests (PKCS#10, RFC 2986): built with any signer, and trusted only once verified.

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
/// `ecdsa-with-SHA384` (RFC 5758): some key stores sign with nothing weaker. It proves possession just as well.
const ECDSA_WITH_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
/// The longest accepted request in bytes of PEM. An honest request has about 500.
const LONGEST_PEM: usize = 16 * 1024;

/// A request that is not verified: its sender may not have the private key.
#[derive(Debug)]
pub struct UnverifiedCsr {
    request: CertReq,
}

/// A request whose sender has the private key. The server trusts and keeps nothing else from it.
#[derive(Debug, Clone)]
pub struct Csr {
    public_key: PublicKey,
    der: Vec<u8>,
}

/// Why a request is refused.
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
    /// The signature algorithm is not one of this protocol.
    #[error("the request is signed neither with ecdsa-with-SHA256 nor with ecdsa-with-SHA384")]
    SignatureAlgorithm,
    /// The signature is not made with the key in the request.
    #[error("the request's signature does not verify with the key in it")]
    Signature,
}

/// Why a request could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildCsrError<E: std::error::Error + 'static> {
    /// The parts cannot be encoded. A valid key never causes this.
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

    /// Verifies the proof of possession: the sender has the private key.
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
    /// Builds a request for `public_key` and returns it in PEM. The subject is empty, because the server decides it.
    ///
    /// `sign` gets the bytes to sign and returns an ECDSA signature with SHA-256 in DER.
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

    /// The key whose private part the sender has.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// The whole request in DER, over which `csr_sha256` is computed.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }
}
