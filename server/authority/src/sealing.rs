//! Sealing: Postgres stores private keys encrypted under the master key, each bound to its place.
//!
//! A leaked database contains no usable key. An attacker who can write to the database cannot substitute one sealed key
//! for another, because the ciphertext authenticates the table, the row and the purpose.

use std::fmt;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    hkdf, hmac,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use zeroize::{Zeroize, Zeroizing};

use crate::random_bytes;

/// The first byte of all sealed data. Version 1 is AES-256-GCM with a random nonce and the context below.
const VERSION: u8 = 1;
/// Separates sealing from any other use of the same key.
const DOMAIN: &[u8] = b"assay sealed key";
/// Separates key derivation from any other use of the same key.
const DERIVATION: &[u8] = b"assay derived key";

/// The key that encrypts all sealed keys. Wiped from memory when dropped.
pub struct MasterKey(Zeroizing<[u8; 32]>);

/// Where a sealed secret is stored, and its purpose. A secret opens only in the context in which it was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealingContext<'a> {
    /// The table that holds it.
    pub table: &'a str,
    /// The id of its row.
    pub row_id: &'a str,
    /// What the secret is for, such as `issuing-ca`.
    pub purpose: &'a str,
}

/// Why a secret cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealingError {
    /// The text is not 32 bytes in base64url.
    #[error("not a master key: 32 bytes in base64url (43 characters) are expected")]
    NotAMasterKey,
    /// Sealed in a format that this version does not know.
    #[error("sealed in an unknown format (version {0})")]
    UnknownVersion(u8),
    /// Too short to be sealed data.
    #[error("the sealed data is truncated")]
    Truncated,
    /// Another master key, another context, or changed bytes. The cipher cannot tell which.
    #[error("cannot be decrypted: another master key sealed it, or it was changed or moved")]
    Refused,
    /// The cipher failed. This happens only for plaintext far longer than any key.
    #[error("cannot be sealed")]
    Cipher,
}

impl MasterKey {
    /// Generates a random key.
    #[must_use]
    pub fn generate() -> Self {
        Self(Zeroizing::new(random_bytes()))
    }

    /// Parses 32 bytes in base64url. Padding and surrounding white space are ignored.
    pub fn from_base64url(text: &str) -> Result<Self, SealingError> {
        let text = text.trim().trim_end_matches('=');
        // 43 characters hold 32 bytes.
        if text.len() != 43 {
            return Err(SealingError::NotAMasterKey);
        }
        let mut key = Zeroizing::new([0; 32]);
        let mut decoded = Zeroizing::new([0; 33]);
        let length = URL_SAFE_NO_PAD
            .decode_slice(text, decoded.as_mut_slice())
            .map_err(|_| SealingError::NotAMasterKey)?;
        let bytes = decoded.get(..length).ok_or(SealingError::NotAMasterKey)?;
        if bytes.len() != key.len() {
            return Err(SealingError::NotAMasterKey);
        }
        key.copy_from_slice(bytes);
        Ok(Self(key))
    }

    /// The key in base64url, as [`Self::from_base64url`] parses it.
    #[must_use]
    pub fn to_base64url(&self) -> Zeroizing<String> {
        Zeroizing::new(URL_SAFE_NO_PAD.encode(self.0.as_slice()))
    }

    /// Derives a key for one purpose, which reveals nothing about this one (HKDF-SHA256, RFC 5869). Parts of the server
    /// that seal at run time use a derived key.
    pub fn derive(&self, purpose: &str) -> Result<Self, SealingError> {
        let mut key = Zeroizing::new([0; 32]);
        hkdf::Salt::new(hkdf::HKDF_SHA256, DERIVATION)
            .extract(self.0.as_slice())
            .expand(&[purpose.as_bytes()], hkdf::HKDF_SHA256)
            .and_then(|output| output.fill(key.as_mut_slice()))
            .map_err(|_| SealingError::Cipher)?;
        Ok(Self(key))
    }

    /// HMAC-SHA256 under this key. Use it only with derived keys, never with the master key itself.
    pub(super) fn authentication_code(&self, message: &[u8]) -> Zeroizing<[u8; 32]> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.0.as_slice());
        let mut code = Zeroizing::new([0; 32]);
        code.copy_from_slice(hmac::sign(&key, message).as_ref());
        code
    }

    /// Encrypts `plaintext` for this context. Sealing twice gives different bytes.
    pub fn seal(&self, context: &SealingContext<'_>, plaintext: &[u8]) -> Result<Vec<u8>, SealingError> {
        // Reserve room for the tag. Growing the vector would leave a copy of the plaintext in memory.
        let mut in_out = Vec::with_capacity(plaintext.len() + AES_256_GCM.tag_len());
        in_out.extend_from_slice(plaintext);
        let sealed = self
            .cipher()?
            .seal_in_place_append_tag(Aad::from(associated(context)), &mut in_out);
        let nonce = sealed.map_err(|_| {
            in_out.zeroize();
            SealingError::Cipher
        })?;
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + in_out.len());
        sealed.push(VERSION);
        sealed.extend_from_slice(nonce.as_ref());
        sealed.extend_from_slice(&in_out);
        Ok(sealed)
    }

    /// Decrypts what [`Self::seal`] encrypted under this key and in this context. Anything else is an error.
    pub fn open(&self, context: &SealingContext<'_>, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealingError> {
        let (&version, rest) = sealed.split_first().ok_or(SealingError::Truncated)?;
        if version != VERSION {
            return Err(SealingError::UnknownVersion(version));
        }
        let (nonce, ciphertext) = rest.split_at_checked(NONCE_LEN).ok_or(SealingError::Truncated)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealingError::Truncated)?;
        let mut in_out = Zeroizing::new(ciphertext.to_vec());
        let length = self
            .cipher()?
            .open_in_place(nonce, Aad::from(associated(context)), in_out.as_mut_slice())
            .map_err(|_| SealingError::Refused)?
            .len();
        in_out.truncate(length);
        Ok(in_out)
    }

    fn cipher(&self) -> Result<RandomizedNonceKey, SealingError> {
        RandomizedNonceKey::new(&AES_256_GCM, self.0.as_slice()).map_err(|_| SealingError::Cipher)
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("MasterKey(…)")
    }
}

/// The associated data that the cipher authenticates. Each part is preceded by its length; otherwise `("ab", "c")` and
/// `("a", "bc")` would be the same context.
fn associated(context: &SealingContext<'_>) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    for part in [
        DOMAIN,
        context.table.as_bytes(),
        context.row_id.as_bytes(),
        context.purpose.as_bytes(),
    ] {
        bytes.extend_from_slice(&part.len().to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: SealingContext<'static> = SealingContext {
        table: "sealed_keys",
        row_id: "0191",
        purpose: "issuing-ca",
    };

    #[test]
    fn sealed_data_opens_again_and_sealing_twice_differs() {
        let key = MasterKey::generate();
        let sealed = key.seal(&CONTEXT, b"private").unwrap();
        assert_ne!(sealed, key.seal(&CONTEXT, b"private").unwrap());
        assert!(!sealed.windows(7).any(|window| window == b"private"));
        assert_eq!(key.open(&CONTEXT, &sealed).unwrap().as_slice(), b"private");
    }

    #[test]
    fn another_table_row_purpose_or_key_is_refused() {
        let key = MasterKey::generate();
        let sealed = key.seal(&CONTEXT, b"private").unwrap();
        let elsewhere = [
            SealingContext {
                table: "settings",
                ..CONTEXT
            },
            SealingContext {
                row_id: "0192",
                ..CONTEXT
            },
            SealingContext {
                purpose: "root-ca",
                ..CONTEXT
            },
            // The same letters, split at another position.
            SealingContext {
                table: "sealed_keys0",
                row_id: "191",
                ..CONTEXT
            },
        ];
        for context in elsewhere {
            assert!(matches!(key.open(&context, &sealed), Err(SealingError::Refused)));
        }
        let other = MasterKey::generate();
        assert!(matches!(other.open(&CONTEXT, &sealed), Err(SealingError::Refused)));
    }

    #[test]
    fn any_flipped_bit_and_any_truncation_is_refused() {
        let key = MasterKey::generate();
        let sealed = key.seal(&CONTEXT, b"private").unwrap();
        for position in 0..sealed.len() {
            for bit in 0..8 {
                let mut changed = sealed.clone();
                changed[position] ^= 1 << bit;
                assert!(key.open(&CONTEXT, &changed).is_err(), "byte {position}, bit {bit}");
            }
            assert!(key.open(&CONTEXT, &sealed[..position]).is_err());
        }
    }

    #[test]
    fn deriving_is_deterministic_and_differs_by_purpose() {
        let key = MasterKey::generate();
        let derived = key.derive("one").unwrap();
        assert_eq!(derived.0, key.derive("one").unwrap().0);
        assert_ne!(derived.0, key.0);
        assert_ne!(derived.0, key.derive("another").unwrap().0);
        assert_ne!(derived.0, MasterKey::generate().derive("one").unwrap().0);
    }

    #[test]
    fn an_unknown_version_is_named() {
        let key = MasterKey::generate();
        let mut sealed = key.seal(&CONTEXT, b"private").unwrap();
        sealed[0] = 9;
        assert!(matches!(
            key.open(&CONTEXT, &sealed),
            Err(SealingError::UnknownVersion(9))
        ));
    }

    #[test]
    fn text_of_another_length_is_not_a_master_key() {
        let key = MasterKey::generate();
        let text = key.to_base64url();
        let again = MasterKey::from_base64url(&format!("  {}=\n", text.as_str())).unwrap();
        assert_eq!(again.0, key.0);
        for bad in ["", "short", &text[1..], &format!("{}A", text.as_str()), &"!".repeat(43)] {
            assert!(matches!(
                MasterKey::from_base64url(bad),
                Err(SealingError::NotAMasterKey)
            ));
        }
        assert!(!format!("{key:?}").contains(&text[..8]));
    }
}
