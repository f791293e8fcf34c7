//! Times the verification of evidence, from its text to verified claims.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a measurement that cannot go on has failed and says where, and criterion's macros document nothing"
)]

use std::hint::black_box;

use assay_protocol::evidence::{Expectation, PROFILE};
use assay_protocol::machine::{KeyClaim, KeyStoreKind, MachineIdentity, Posture};
use assay_protocol::{EvidenceClaims, PublicKey, Purpose, UnverifiedEvidence};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use criterion::{Criterion, criterion_group, criterion_main};
use uuid::Uuid;

const AUDIENCE: &str = "https://assay.example.com";
const MACHINE: Uuid = Uuid::from_u128(0x0191_0000_0000_7000_8000_0000_0000_0001);

criterion_group!(evidence, verify);
criterion_main!(evidence);

fn verify(criterion: &mut Criterion) {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let key = PublicKey::from_sec1(pair.public_key().as_ref()).unwrap();
    let sign = |message: &[u8]| {
        let signature = pair.sign(&SystemRandom::new(), message).unwrap();
        Ok::<[u8; 64], serde_json::Error>(signature.as_ref().try_into().unwrap())
    };
    let jws = claims().sign(key.thumbprint(), sign).unwrap();
    let expected = Expectation {
        audience: AUDIENCE,
        purpose: Purpose::CheckIn,
        subject: Some(MACHINE),
    };
    criterion.bench_function("verify evidence", |bencher| {
        bencher.iter(|| {
            let unverified = UnverifiedEvidence::parse(black_box(&jws)).unwrap();
            unverified.verify(&key, &expected).unwrap()
        });
    });
}

fn claims() -> EvidenceClaims {
    EvidenceClaims {
        eat_profile: PROFILE.to_owned(),
        eat_nonce: "BkQ3o1yzAAAGRDejXLMAAOX4Yl0mK3cQzZbTqk0yVnJw5hQe8sRrUw".to_owned(),
        aud: AUDIENCE.to_owned(),
        iat: 1_795_341_600,
        purpose: Purpose::CheckIn,
        sub: Some(MACHINE),
        csr_sha256: None,
        continuity: None,
        machine: MachineIdentity {
            serial_number: Some("C02XL0GYJGH5".to_owned()),
            hardware_uuid: Some("0B7C9A54-8F1E-5D2C-9A3B-6E4F70819253".to_owned()),
            model_identifier: Some("Mac16,1".to_owned()),
            hostname: Some("mac-1.example.com".to_owned()),
        },
        posture: Posture::healthy(),
        key: KeyClaim {
            store: KeyStoreKind::Software,
            accessibility: None,
        },
    }
}
