//! A machine's key, as software has it.

use assay_protocol::{
    Csr, EvidenceClaims, PublicKey, Purpose,
    evidence::PROFILE,
    machine::{KeyClaim, KeyStoreKind, MachineIdentity, Posture, SecureBoot},
};
use p256::ecdsa::{Signature, SigningKey, signature::Signer};
use uuid::Uuid;

pub(crate) const AUDIENCE: &str = "https://assay.example.com";
pub(crate) const SUBJECT: Uuid = Uuid::from_u128(0x0193_a5d0_7c1e_7b6a_9a43_2f6f_0c0f_1a01);

/// The same key each time, so a failure is reproducible.
pub(crate) fn signing_key(seed: u8) -> SigningKey {
    SigningKey::from_slice(&[seed; 32]).unwrap()
}

pub(crate) fn public_key(key: &SigningKey) -> PublicKey {
    PublicKey::from_sec1(&key.verifying_key().to_sec1_bytes()).unwrap()
}

pub(crate) fn claims() -> EvidenceClaims {
    EvidenceClaims {
        eat_profile: PROFILE.to_owned(),
        eat_nonce: "a-nonce".to_owned(),
        aud: AUDIENCE.to_owned(),
        iat: 1_795_000_000,
        purpose: Purpose::CheckIn,
        sub: Some(SUBJECT),
        csr_sha256: None,
        continuity: None,
        machine: MachineIdentity {
            serial_number: Some("C02XYZ".to_owned()),
            hostname: Some("bücherregal.local".to_owned()),
            ..MachineIdentity::default()
        },
        posture: Posture {
            os_version: Some("26.1".to_owned()),
            sip_enabled: Some(true),
            secure_boot: Some(SecureBoot::Reduced),
            ..Posture::default()
        },
        key: KeyClaim {
            store: KeyStoreKind::Software,
            accessibility: None,
        },
    }
}

pub(crate) fn evidence(key: &SigningKey, claims: &EvidenceClaims) -> String {
    let sign = |message: &[u8]| {
        let signature: Signature = key.sign(message);
        Ok::<[u8; 64], serde_json::Error>(signature.to_bytes().into())
    };
    claims.sign(public_key(key).thumbprint(), sign).unwrap()
}

pub(crate) fn csr(key: &SigningKey) -> String {
    let sign = |message: &[u8]| {
        let signature: Signature = key.sign(message);
        Ok::<Vec<u8>, std::convert::Infallible>(signature.to_der().as_bytes().to_vec())
    };
    Csr::build(&public_key(key), sign).unwrap()
}
