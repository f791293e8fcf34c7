//! Connects our keys with rcgen: a key that signs certificates, and a public key to certify.
//!
//! rcgen's own key type keeps a copy of the private key that is never wiped. With these traits rcgen never sees a
//! private key.

use assay_protocol::PublicKey;
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair},
};
use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey};

use super::keys::{KeyError, PrivateKey};

/// A private key that signs certificates. It parses the key once, because every enrollment issues a certificate.
pub(super) struct CertificateSigner {
    pair: EcdsaKeyPair,
    public_key: PublicKey,
}

/// A public key to be certified.
pub(super) struct SubjectKey<'a>(pub(super) &'a PublicKey);

impl CertificateSigner {
    pub(super) fn new(key: &PrivateKey) -> Result<Self, KeyError> {
        Ok(Self {
            pair: key.signing_pair(&ECDSA_P256_SHA256_ASN1_SIGNING)?,
            public_key: key.public_key().clone(),
        })
    }
}

impl PublicKeyData for CertificateSigner {
    fn der_bytes(&self) -> &[u8] {
        self.public_key.sec1()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for CertificateSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature = self
            .pair
            .sign(&SystemRandom::new(), message)
            .map_err(|_| rcgen::Error::RingUnspecified)?;
        Ok(signature.as_ref().to_vec())
    }
}

impl PublicKeyData for SubjectKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.sec1()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}
