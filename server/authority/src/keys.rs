//! The server's own P-256 keys: generated here, stored as PKCS#8, wiped from memory when dropped.

use std::fmt;

use assay_protocol::PublicKey;
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair},
};
use zeroize::Zeroizing;

/// A private key on P-256, with its public key.
pub struct PrivateKey {
    pkcs8: Zeroizing<Vec<u8>>,
    public_key: PublicKey,
}

/// Why a private key cannot be parsed or generated.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not a PKCS#8 document of a P-256 key, or its private and public halves do not match.
    #[error("not a P-256 private key in PKCS#8")]
    Unreadable,
    /// The cryptographic library could not generate a key.
    #[error("a key cannot be generated")]
    Generate,
}

impl PrivateKey {
    /// Generates a key.
    pub fn generate() -> Result<Self, KeyError> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
            .map_err(|_| KeyError::Generate)?;
        Self::from_pkcs8_der(Zeroizing::new(document.as_ref().to_vec()))
    }

    /// Parses a PKCS#8 document in DER.
    pub fn from_pkcs8_der(pkcs8: Zeroizing<Vec<u8>>) -> Result<Self, KeyError> {
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8).map_err(|_| KeyError::Unreadable)?;
        let public_key = PublicKey::from_sec1(pair.public_key().as_ref()).map_err(|_| KeyError::Unreadable)?;
        Ok(Self { pkcs8, public_key })
    }

    /// The PKCS#8 document in DER. It is secret: only seal it, or pass it to the TLS library.
    #[must_use]
    pub fn pkcs8_der(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The public half. Its thumbprint is the key's `kid`.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// The key, parsed once, for signatures in the format of `algorithm`.
    pub(super) fn signing_pair(&self, algorithm: &'static EcdsaSigningAlgorithm) -> Result<EcdsaKeyPair, KeyError> {
        EcdsaKeyPair::from_pkcs8(algorithm, &self.pkcs8).map_err(|_| KeyError::Unreadable)
    }
}

impl Clone for PrivateKey {
    fn clone(&self) -> Self {
        Self {
            pkcs8: Zeroizing::new(self.pkcs8.to_vec()),
            public_key: self.public_key.clone(),
        }
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PrivateKey(of {})", self.public_key.thumbprint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_parsed_from_its_pkcs8_signs_for_the_same_public_key() {
        let key = PrivateKey::generate().unwrap();
        let again = PrivateKey::from_pkcs8_der(Zeroizing::new(key.pkcs8_der().to_vec())).unwrap();
        assert_eq!(again.public_key(), key.public_key());
        let pair = again.signing_pair(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let signature = pair.sign(&SystemRandom::new(), b"message").unwrap();
        key.public_key().verify_der(b"message", signature.as_ref()).unwrap();
    }

    #[test]
    fn generated_keys_differ() {
        let (one, two) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        assert_ne!(one.public_key().thumbprint(), two.public_key().thumbprint());
    }

    #[test]
    fn anything_else_is_refused_and_debug_shows_no_secret() {
        let key = PrivateKey::generate().unwrap();
        let mut truncated = key.pkcs8_der().to_vec();
        truncated.pop();
        assert!(PrivateKey::from_pkcs8_der(Zeroizing::new(truncated)).is_err());
        assert!(PrivateKey::from_pkcs8_der(Zeroizing::new(Vec::new())).is_err());
        assert_eq!(
            format!("{key:?}"),
            format!("PrivateKey(of {})", key.public_key().thumbprint())
        );
    }
}
