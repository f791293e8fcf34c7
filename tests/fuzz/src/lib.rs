//! What the targets share: one key of a machine, which signs what a target has changed.

use std::sync::LazyLock;

use assay_authority::EcKey;
use assay_protocol::PublicKey;
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm},
};
use time::{OffsetDateTime, macros::datetime};

/// The audience of all evidence.
pub const AUDIENCE: &str = "https://assay.example.com";
/// The time of all targets.
pub const NOW: OffsetDateTime = datetime!(2026-05-10 00:00 UTC);
/// The private key of the test vectors in `shared/tests/protocol`.
const PRIVATE_KEY: [u8; 32] = [7; 32];

/// A machine's key.
pub struct Key {
    /// As the protocol has it.
    pub public: PublicKey,
    /// As the CA has it.
    pub ec: EcKey,
    fixed: EcdsaKeyPair,
    der: EcdsaKeyPair,
}

/// The same in every process: a crash must be repeatable.
pub static KEY: LazyLock<Key> = LazyLock::new(|| {
    let key = p256::ecdsa::SigningKey::from_slice(&PRIVATE_KEY).unwrap();
    let public = PublicKey::from_sec1(&key.verifying_key().to_sec1_bytes()).unwrap();
    let pair = |algorithm: &'static EcdsaSigningAlgorithm| {
        EcdsaKeyPair::from_private_key_and_public_key(algorithm, &PRIVATE_KEY, public.sec1()).unwrap()
    };
    Key {
        ec: EcKey::from_spki_der(public.spki_der()).unwrap(),
        fixed: pair(&ECDSA_P256_SHA256_FIXED_SIGNING),
        der: pair(&ECDSA_P256_SHA256_ASN1_SIGNING),
        public,
    }
});

impl Key {
    /// Signs for a JWS: `r || s`.
    pub fn sign_fixed(&self, message: &[u8]) -> [u8; 64] {
        let signature = self.fixed.sign(&SystemRandom::new(), message).unwrap();
        signature.as_ref().try_into().unwrap()
    }

    /// Signs for X.509, in DER.
    pub fn sign_der(&self, message: &[u8]) -> Vec<u8> {
        self.der.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
    }
}

/// Splits an input at its first NUL. Without one, the second part is missing.
pub fn split(input: &[u8]) -> (&[u8], Option<&[u8]>) {
    match input.iter().position(|byte| *byte == 0) {
        Some(place) => (&input[..place], Some(&input[place + 1..])),
        None => (input, None),
    }
}
