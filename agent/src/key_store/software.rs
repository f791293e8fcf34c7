//! Keys in files: for machines without a Secure Enclave, for tests, and for simulated fleets. Such a key can be copied.

use assay_protocol::{
    PublicKey,
    machine::{KeyAccessibility, KeyStoreKind},
};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use p256::{
    SecretKey,
    ecdsa::{DerSignature, SigningKey, signature::Signer},
    pkcs8::{DecodePrivateKey, EncodePrivateKey, LineEnding},
};
use zeroize::Zeroizing;

use super::{KeyStore, KeyStoreError, SealedKey};

/// Keys as PKCS#8 in PEM.
#[derive(Debug, Clone, Copy, Default)]
pub struct SoftwareKeyStore;

impl KeyStore for SoftwareKeyStore {
    fn kind(&self) -> KeyStoreKind {
        KeyStoreKind::Software
    }

    fn accessibility(&self, _key: &SealedKey) -> Option<KeyAccessibility> {
        None
    }

    fn create(&self) -> Result<SealedKey, KeyStoreError> {
        let pem = random_scalar()?
            .to_pkcs8_pem(LineEnding::LF)
            .map_err(|error| unavailable(&error))?;
        Ok(SealedKey::new(pem.as_bytes().to_vec()))
    }

    fn public_key(&self, key: &SealedKey) -> Result<PublicKey, KeyStoreError> {
        let verifying = *signing_key(key)?.verifying_key();
        PublicKey::from_sec1(verifying.to_sec1_point(false).as_bytes()).map_err(|error| corrupt(&error))
    }

    fn sign(&self, key: &SealedKey, message: &[u8]) -> Result<Vec<u8>, KeyStoreError> {
        let signature: DerSignature = signing_key(key)?
            .try_sign(message)
            .map_err(|error| unavailable(&error))?;
        Ok(signature.as_bytes().to_vec())
    }
}

/// A uniform scalar by rejection sampling. About one draw in 2^32 is rejected.
fn random_scalar() -> Result<SecretKey, KeyStoreError> {
    let random = SystemRandom::new();
    let mut bytes = Zeroizing::new([0_u8; 32]);
    loop {
        random.fill(bytes.as_mut()).map_err(|error| unavailable(&error))?;
        if let Ok(key) = SecretKey::from_slice(bytes.as_ref()) {
            return Ok(key);
        }
    }
}

fn signing_key(key: &SealedKey) -> Result<SigningKey, KeyStoreError> {
    let pem = std::str::from_utf8(key.expose()).map_err(|error| corrupt(&error))?;
    SigningKey::from_pkcs8_pem(pem).map_err(|error| corrupt(&error))
}

fn corrupt(error: &dyn std::fmt::Display) -> KeyStoreError {
    KeyStoreError::Corrupt {
        reason: error.to_string(),
    }
}

fn unavailable(error: &dyn std::fmt::Display) -> KeyStoreError {
    KeyStoreError::Unavailable {
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_verify() {
        let key = SoftwareKeyStore.create().unwrap();
        let signature = SoftwareKeyStore.sign(&key, b"message").unwrap();
        let public_key = SoftwareKeyStore.public_key(&key).unwrap();
        public_key.verify_der(b"message", &signature).unwrap();
        assert!(public_key.verify_der(b"another", &signature).is_err());
    }

    #[test]
    fn keys_are_different() {
        let first = SoftwareKeyStore.create().unwrap();
        let second = SoftwareKeyStore.create().unwrap();
        assert_ne!(
            SoftwareKeyStore.public_key(&first).unwrap(),
            SoftwareKeyStore.public_key(&second).unwrap()
        );
    }

    #[test]
    fn a_damaged_key_is_corrupt_and_its_text_is_not_shown() {
        let key = SoftwareKeyStore.create().unwrap();
        let mut bytes = key.expose().to_vec();
        bytes[60] = b'!';
        let damaged = SealedKey::new(bytes);
        let error = SoftwareKeyStore.sign(&damaged, b"message").unwrap_err();
        assert!(matches!(error, KeyStoreError::Corrupt { .. }), "{error}");
        assert!(!format!("{damaged:?}").contains("BEGIN"), "{damaged:?}");
    }
}
