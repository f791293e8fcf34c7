//! The software key of a simulated machine. AWS-LC signs, because a load generator must leave the CPU to the server.

use std::convert::Infallible;

use assay_protocol::{Csr, KeyThumbprint, PublicKey};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};

/// An EC private key in DER (RFC 5915): this prefix, the number, then the curve.
const SEC1_PREFIX: &[u8] = &[0x30, 0x31, 0x02, 0x01, 0x01, 0x04, 0x20];
const SEC1_CURVE: &[u8] = &[0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

#[derive(Debug)]
pub(super) struct Key {
    pair: EcdsaKeyPair,
    pub(super) thumbprint: KeyThumbprint,
}

impl Key {
    pub(super) fn generate() -> Self {
        Self::new(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    /// The key with this private number. All but one in 2^32 random numbers are below the order of the group.
    pub(super) fn from_number(number: [u8; 32]) -> Self {
        let der = [SEC1_PREFIX, &number, SEC1_CURVE].concat();
        Self::new(EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, &der).unwrap())
    }

    fn new(pair: EcdsaKeyPair) -> Self {
        Self {
            thumbprint: public_key(&pair).thumbprint(),
            pair,
        }
    }

    pub(super) fn public_key(&self) -> PublicKey {
        public_key(&self.pair)
    }

    pub(super) fn pkcs8_der(&self) -> Vec<u8> {
        self.pair.to_pkcs8v1().unwrap().as_ref().to_vec()
    }

    /// A signature in the format of JWS.
    pub(super) fn sign(&self, message: &[u8]) -> [u8; 64] {
        let signature = self.pair.sign(&SystemRandom::new(), message).unwrap();
        signature.as_ref().try_into().unwrap()
    }

    pub(super) fn csr(&self) -> String {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &self.pkcs8_der()).unwrap();
        let sign = |message: &[u8]| {
            let signature = pair.sign(&SystemRandom::new(), message).unwrap();
            Ok::<_, Infallible>(signature.as_ref().to_vec())
        };
        Csr::build(&self.public_key(), sign).unwrap()
    }
}

fn public_key(pair: &EcdsaKeyPair) -> PublicKey {
    PublicKey::from_sec1(pair.public_key().as_ref()).unwrap()
}
