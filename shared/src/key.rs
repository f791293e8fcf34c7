//! P-256 public keys and the thumbprints that name them.

use std::{fmt, str::FromStr, sync::Arc};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA384_ASN1, EcdsaVerificationAlgorithm,
    UnparsedPublicKey,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use p256::elliptic_curve::sec1::ToSec1Point;
use p256::pkcs8::{DecodePublicKey, EncodePublicKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use crate::digest::sha256;

/// A P-256 public key that was checked to lie on the curve.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// The uncompressed point, 65 bytes.
    point: [u8; 65],
    spki: Arc<[u8]>,
    thumbprint: KeyThumbprint,
}

/// The bytes are not a public key on P-256.
#[derive(Debug, thiserror::Error)]
#[error("not a public key on the curve P-256")]
pub struct NotP256;

/// The signature is not this key's over these bytes.
#[derive(Debug, thiserror::Error)]
#[error("the signature does not verify with this key")]
pub struct BadSignature;

impl PublicKey {
    /// Reads a `SubjectPublicKeyInfo` in DER.
    pub fn from_spki_der(der: &[u8]) -> Result<Self, NotP256> {
        Self::from_p256(&p256::PublicKey::from_public_key_der(der).map_err(|_| NotP256)?)
    }

    /// Reads a SEC 1 point, compressed or not.
    pub fn from_sec1(bytes: &[u8]) -> Result<Self, NotP256> {
        Self::from_p256(&p256::PublicKey::from_sec1_bytes(bytes).map_err(|_| NotP256)?)
    }

    /// Reads the coordinates of a JWK: base64url without padding of exactly 32 bytes each (RFC 7518, section 6.2.1.2).
    pub fn from_jwk_coordinates(x: &str, y: &str) -> Result<Self, NotP256> {
        let mut point = [4; 65];
        let (_format, coordinates) = point.split_at_mut(1);
        for (half, coordinate) in coordinates.chunks_exact_mut(32).zip([x, y]) {
            // 32 bytes are 43 characters. Do not decode anything longer.
            let decoded = (coordinate.len() == 43).then(|| URL_SAFE_NO_PAD.decode(coordinate));
            let decoded = decoded.ok_or(NotP256)?.map_err(|_| NotP256)?;
            half.copy_from_slice(&decoded);
        }
        Self::from_sec1(&point)
    }

    /// The `SubjectPublicKeyInfo` in DER.
    #[must_use]
    pub fn spki_der(&self) -> &[u8] {
        &self.spki
    }

    /// The uncompressed point, 65 bytes.
    #[must_use]
    pub fn sec1(&self) -> &[u8; 65] {
        &self.point
    }

    /// Names this key.
    #[must_use]
    pub fn thumbprint(&self) -> KeyThumbprint {
        self.thumbprint
    }

    /// The coordinates as a JWK has them: base64url of 32 bytes each.
    #[must_use]
    pub fn jwk_coordinates(&self) -> (String, String) {
        let (x, y) = self.coordinates();
        (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y))
    }

    /// Verifies an ECDSA signature with SHA-256 in the fixed form of JWS, `r || s`.
    /// A high `s` is accepted: the enclave produces such signatures, and ES256 allows them.
    pub fn verify_fixed(&self, message: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
        self.verify(&ECDSA_P256_SHA256_FIXED, message, signature)
    }

    /// Verifies an ECDSA signature with SHA-256 in DER, as in X.509.
    pub fn verify_der(&self, message: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
        self.verify(&ECDSA_P256_SHA256_ASN1, message, signature)
    }

    /// Verifies an ECDSA signature with SHA-384 in DER.
    pub fn verify_der_sha384(&self, message: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
        self.verify(&ECDSA_P256_SHA384_ASN1, message, signature)
    }

    fn verify(
        &self,
        algorithm: &'static EcdsaVerificationAlgorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), BadSignature> {
        UnparsedPublicKey::new(algorithm, &self.point)
            .verify(message, signature)
            .map_err(|_| BadSignature)
    }

    fn from_p256(key: &p256::PublicKey) -> Result<Self, NotP256> {
        let point: [u8; 65] = key.to_sec1_point(false).as_bytes().try_into().map_err(|_| NotP256)?;
        let spki = key.to_public_key_der().map_err(|_| NotP256)?;
        let mut key = Self {
            point,
            spki: spki.as_bytes().into(),
            thumbprint: KeyThumbprint([0; 32]),
        };
        key.thumbprint = KeyThumbprint::of(&key);
        Ok(key)
    }

    fn coordinates(&self) -> (&[u8], &[u8]) {
        let (_format, coordinates) = self.point.split_at(1);
        coordinates.split_at(32)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PublicKey({})", self.thumbprint)
    }
}

/// The RFC 7638 SHA-256 thumbprint of a public key in base64url, as in `kid` and `cnf.jkt`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyThumbprint([u8; 32]);

/// The text is not a thumbprint: base64url, without padding, of 32 bytes.
#[derive(Debug, thiserror::Error)]
#[error("not a key thumbprint (base64url of 32 bytes)")]
pub struct NotAThumbprint;

impl KeyThumbprint {
    /// The 32 bytes of the digest.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Takes exactly 32 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NotAThumbprint> {
        bytes.try_into().map(Self).map_err(|_| NotAThumbprint)
    }

    fn of(key: &PublicKey) -> Self {
        let (x, y) = key.jwk_coordinates();
        // RFC 7638, section 3: the required members alone, in lexicographic order, without white space.
        let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        Self(sha256(canonical.as_bytes()))
    }
}

/// The thumbprint of a key on another curve, computed elsewhere.
impl From<[u8; 32]> for KeyThumbprint {
    fn from(digest: [u8; 32]) -> Self {
        Self(digest)
    }
}

impl fmt::Display for KeyThumbprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for KeyThumbprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "KeyThumbprint({self})")
    }
}

impl FromStr for KeyThumbprint {
    type Err = NotAThumbprint;

    fn from_str(text: &str) -> Result<Self, NotAThumbprint> {
        // 32 bytes are 43 characters. Do not decode anything longer.
        if text.len() != 43 {
            return Err(NotAThumbprint);
        }
        Self::from_bytes(&URL_SAFE_NO_PAD.decode(text).map_err(|_| NotAThumbprint)?)
    }
}

impl Serialize for KeyThumbprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyThumbprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
