//! Public keys on P-256 and P-384: the keys that macOS itself holds, and those of ACME accounts.
//!
//! Parsing does not check that the point lies on the curve. Callers trust a key only after they have verified a
//! signature with it, and that fails for a point off the curve.

use assay_protocol::{KeyThumbprint, sha256};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA384_ASN1, ECDSA_P384_SHA256_ASN1,
    ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA384_FIXED, EcdsaVerificationAlgorithm, UnparsedPublicKey,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PublicKeyData, SignatureAlgorithm};
use serde::Deserialize;

/// The bytes before the uncompressed point in a `SubjectPublicKeyInfo` (RFC 5480). DER allows only this encoding.
const P256_SPKI: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const P384_SPKI: &[u8] = &[
    0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00,
    0x22, 0x03, 0x62, 0x00,
];
/// The first byte of an uncompressed point (SEC 1, section 2.3.3).
const UNCOMPRESSED: u8 = 4;

/// A public key on P-256 or P-384.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EcKey {
    curve: Curve,
    spki: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
}

/// The digest of a DER-encoded signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureDigest {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
}

/// The bytes are not a supported public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an uncompressed public key on P-256 or P-384")]
pub struct NotAnEcKey;

/// The signature is not by this key over these bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not verify with this key")]
pub struct BadEcSignature;

/// A JWK (RFC 7517; RFC 7518, section 6.2). Its other members do not identify the key.
#[derive(Deserialize)]
struct JsonWebKey {
    kty: String,
    crv: String,
    x: String,
    y: String,
}

impl Curve {
    const fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
        }
    }

    const fn prefix(self) -> &'static [u8] {
        match self {
            Self::P256 => P256_SPKI,
            Self::P384 => P384_SPKI,
        }
    }

    /// The length of one coordinate, in bytes.
    const fn width(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
        }
    }
}

impl EcKey {
    /// Parses a `SubjectPublicKeyInfo` in DER.
    ///
    /// # Errors
    /// Another kind of key, another curve, or a compressed point.
    pub fn from_spki_der(der: &[u8]) -> Result<Self, NotAnEcKey> {
        let is = |curve: &Curve| {
            let point = der.strip_prefix(curve.prefix());
            point.is_some_and(|point| point.len() == 2 * curve.width() + 1 && point.first() == Some(&UNCOMPRESSED))
        };
        let curve = [Curve::P256, Curve::P384].into_iter().find(is).ok_or(NotAnEcKey)?;
        Ok(Self {
            curve,
            spki: der.to_vec(),
        })
    }

    /// Parses a JWK.
    ///
    /// # Errors
    /// Another kind of key, another curve, or coordinates without their full width.
    pub fn from_jwk(jwk: &serde_json::Value) -> Result<Self, NotAnEcKey> {
        let jwk = JsonWebKey::deserialize(jwk).map_err(|_| NotAnEcKey)?;
        let curve = [Curve::P256, Curve::P384]
            .into_iter()
            .find(|curve| jwk.kty == "EC" && jwk.crv == curve.name())
            .ok_or(NotAnEcKey)?;
        let mut spki = curve.prefix().to_vec();
        spki.push(UNCOMPRESSED);
        for coordinate in [&jwk.x, &jwk.y] {
            let coordinate = URL_SAFE_NO_PAD.decode(coordinate).map_err(|_| NotAnEcKey)?;
            if coordinate.len() != curve.width() {
                return Err(NotAnEcKey);
            }
            spki.extend(coordinate);
        }
        Ok(Self { curve, spki })
    }

    /// The `SubjectPublicKeyInfo` in DER.
    #[must_use]
    pub fn spki_der(&self) -> &[u8] {
        &self.spki
    }

    /// The JWK thumbprint (RFC 7638).
    #[must_use]
    pub fn thumbprint(&self) -> KeyThumbprint {
        let (_form, coordinates) = self.point().split_at_checked(1).unwrap_or_default();
        let (x, y) = coordinates.split_at_checked(self.curve.width()).unwrap_or_default();
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        let canonical = format!(r#"{{"crv":"{}","kty":"EC","x":"{x}","y":"{y}"}}"#, self.curve.name());
        sha256(canonical.as_bytes()).into()
    }

    /// The `alg` of a JWS signed with this key (RFC 7518, section 3.4).
    #[must_use]
    pub const fn jws_algorithm(&self) -> &'static str {
        match self.curve {
            Curve::P256 => "ES256",
            Curve::P384 => "ES384",
        }
    }

    /// Verifies the signature of a JWS, `r || s`.
    ///
    /// # Errors
    /// The signature does not verify.
    pub fn verify_jws(&self, message: &[u8], signature: &[u8]) -> Result<(), BadEcSignature> {
        let algorithm = match self.curve {
            Curve::P256 => &ECDSA_P256_SHA256_FIXED,
            Curve::P384 => &ECDSA_P384_SHA384_FIXED,
        };
        self.verify(algorithm, message, signature)
    }

    /// Verifies a DER-encoded signature, as in X.509.
    ///
    /// # Errors
    /// The signature does not verify.
    pub fn verify_der(
        &self,
        signed_digest: SignatureDigest,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), BadEcSignature> {
        let algorithm = match (self.curve, signed_digest) {
            (Curve::P256, SignatureDigest::Sha256) => &ECDSA_P256_SHA256_ASN1,
            (Curve::P256, SignatureDigest::Sha384) => &ECDSA_P256_SHA384_ASN1,
            (Curve::P384, SignatureDigest::Sha256) => &ECDSA_P384_SHA256_ASN1,
            (Curve::P384, SignatureDigest::Sha384) => &ECDSA_P384_SHA384_ASN1,
        };
        self.verify(algorithm, message, signature)
    }

    fn verify(
        &self,
        algorithm: &'static EcdsaVerificationAlgorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), BadEcSignature> {
        UnparsedPublicKey::new(algorithm, self.point())
            .verify(message, signature)
            .map_err(|_| BadEcSignature)
    }

    fn point(&self) -> &[u8] {
        self.spki.get(self.curve.prefix().len()..).unwrap_or_default()
    }
}

impl PublicKeyData for EcKey {
    fn der_bytes(&self) -> &[u8] {
        self.point()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match self.curve {
            Curve::P256 => &PKCS_ECDSA_P256_SHA256,
            Curve::P384 => &PKCS_ECDSA_P384_SHA384,
        }
    }
}

#[cfg(test)]
mod tests {
    use assay_protocol::PublicKey;
    use proptest::prelude::*;
    use rcgen::KeyPair;
    use serde_json::json;

    use super::*;
    use crate::PrivateKey;

    fn jwk(key: &EcKey) -> serde_json::Value {
        let coordinates = &key.point()[1..];
        let (x, y) = coordinates.split_at(key.curve.width());
        json!({"kty": "EC", "crv": key.curve.name(), "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)})
    }

    #[test]
    fn a_key_is_the_same_read_from_its_spki_and_from_its_jwk() {
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384] {
            let pair = KeyPair::generate_for(algorithm).unwrap();
            let spki = pair.subject_public_key_info();
            let key = EcKey::from_spki_der(&spki).unwrap();
            assert_eq!(key.spki_der(), spki);
            assert_eq!(EcKey::from_jwk(&jwk(&key)).unwrap(), key);
        }
    }

    #[test]
    fn a_p256_key_has_the_same_thumbprint_as_a_machines_key() {
        let key = PrivateKey::generate().unwrap();
        let public: &PublicKey = key.public_key();
        let same = EcKey::from_spki_der(public.spki_der()).unwrap();
        assert_eq!(same.thumbprint(), public.thumbprint());
    }

    #[test]
    fn other_keys_and_forms_are_refused() {
        let key = EcKey::from_spki_der(PrivateKey::generate().unwrap().public_key().spki_der()).unwrap();
        let good = jwk(&key);
        for (member, value) in [
            ("kty", json!("RSA")),
            ("crv", json!("P-384")),
            ("crv", json!("P-521")),
            ("x", json!("AAAA")),
            ("y", json!("not base64url!")),
            ("y", json!(null)),
        ] {
            let mut bad = good.clone();
            bad[member] = value;
            assert_eq!(EcKey::from_jwk(&bad), Err(NotAnEcKey), "{bad}");
        }
        let spki = key.spki_der();
        assert!(EcKey::from_spki_der(&spki[..spki.len() - 1]).is_err());
        assert!(EcKey::from_spki_der(&[spki, &[0]].concat()).is_err());
    }

    proptest! {
        #[test]
        fn bytes_from_outside_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(EcKey::from_spki_der(&bytes).is_err());
        }
    }
}
