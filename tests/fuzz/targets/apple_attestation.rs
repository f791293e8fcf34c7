//! Apple's attestation chains. An input is a chain in PEM; or, after the byte 0xff, extensions of a leaf that the target
//! signs: the number of an object identifier, the length of the value, and the value; or else one certificate in DER.

#![no_main]

use std::{collections::HashSet, sync::LazyLock};

use assay_authority::attestation::apple::{
    AppleAttestation, AttestationError, AttestationRoots, UnverifiedAttestation,
};
use assay_fuzz::NOW;
use assay_protocol::{attestation::AttestedClaims, machine::SecureBoot};
use libfuzzer_sys::fuzz_target;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P384_SHA384,
};
use time::Duration;

/// Below 1.2.840.113635.100.8. The last one is unknown.
const EXTENSIONS: [&[u64]; 11] = [
    &[9, 1],
    &[9, 2],
    &[9, 4],
    &[10, 1],
    &[10, 2],
    &[10, 3],
    &[11, 1],
    &[13, 1],
    &[13, 2],
    &[13, 3],
    &[99, 1],
];

struct TestRoot {
    issuer: Issuer<'static, KeyPair>,
    leaf_key: KeyPair,
    roots: AttestationRoots,
}

static ROOT: LazyLock<TestRoot> = LazyLock::new(|| {
    let key = || KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let mut root = params();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root_key = key();
    let pem = root.self_signed(&root_key).unwrap().pem();
    TestRoot {
        issuer: Issuer::new(root, root_key),
        leaf_key: key(),
        roots: AttestationRoots::from_pem(&pem).unwrap(),
    }
});

fuzz_target!(|input: &[u8]| match input {
    [0xff, extensions @ ..] => leaf(extensions),
    [b'-', ..] => {
        let Ok(pem) = str::from_utf8(input) else { return };
        if let Ok(chain) = UnverifiedAttestation::from_pem(pem) {
            assert!((1..=4).contains(&chain.describe().len()));
            refused(chain);
        }
    }
    der => {
        let one = UnverifiedAttestation::from_der(vec![der.to_vec()]);
        let four = UnverifiedAttestation::from_der(vec![der.to_vec(); 4]);
        assert!(UnverifiedAttestation::from_der(vec![der.to_vec(); 5]).is_err());
        assert_eq!(one.is_ok(), four.is_ok());
        if let Ok(chain) = one {
            assert!(der.len() <= 8 * 1024);
            assert_eq!(chain.describe().len(), 1);
            refused(chain);
        }
    }
});

/// No input has a signature of the root, which has a new key in every process.
fn refused(chain: UnverifiedAttestation) {
    assert!(chain.verify(&ROOT.roots, NOW).is_err());
}

fn leaf(input: &[u8]) {
    let extensions = extensions(input);
    let numbers: HashSet<_> = extensions.iter().map(|(number, _)| number).collect();
    let mut leaf = params();
    leaf.custom_extensions = extensions
        .iter()
        .map(|(number, value)| extension(*number, value))
        .collect();
    let der = leaf.signed_by(&ROOT.leaf_key, &ROOT.issuer).unwrap().der().to_vec();
    let parsed = UnverifiedAttestation::from_der(vec![der.clone()]);
    if der.len() > 8 * 1024 {
        assert!(matches!(parsed, Err(AttestationError::TooLong { .. })));
        return;
    }
    if numbers.len() < extensions.len() {
        assert!(matches!(parsed, Err(AttestationError::RepeatedExtension { .. })));
        return;
    }
    let attestation = parsed.unwrap().verify(&ROOT.roots, NOW).unwrap();
    check(&attestation, &extensions);
}

/// A claim is exactly what its extension says, or it is unknown.
fn check(attestation: &AppleAttestation, extensions: &[(usize, &[u8])]) {
    let value = |number| {
        extensions
            .iter()
            .find(|(other, _)| *other == number)
            .map(|(_, value)| *value)
    };
    let claims: &AttestedClaims = attestation.claims();
    let texts = [
        &claims.serial_number,
        &claims.udid,
        &claims.software_update_device_id,
        &claims.os_version,
        &claims.sep_os_version,
        &claims.llb_version,
    ];
    for (number, text) in texts.into_iter().enumerate() {
        let Some(text) = text else { continue };
        assert_eq!(Some(text.as_bytes()), value(number));
        assert!((1..=64).contains(&text.len()) && text.trim() == text);
        assert!(
            text.chars()
                .all(|character| character == ' ' || character.is_ascii_graphic())
        );
    }
    let code = claims.freshness_code.map(|code| code.as_bytes().to_vec());
    assert_eq!(code.as_deref(), value(6).filter(|value| value.len() == 32));
    let flag = |number| match value(number) {
        Some([2, 1, bit @ (0 | 1)]) => Some(*bit == 1),
        _ => None,
    };
    assert_eq!(claims.sip_enabled, flag(7).map(|disabled| !disabled));
    let secure_boot = match value(8) {
        Some(b"Full Security") => Some(SecureBoot::Full),
        Some(b"Reduced Security") => Some(SecureBoot::Reduced),
        Some(b"Permissive Security") => Some(SecureBoot::Permissive),
        _ => None,
    };
    assert_eq!(claims.secure_boot, secure_boot);
    assert_eq!(claims.third_party_kexts_allowed, flag(9));
}

fn extensions(mut input: &[u8]) -> Vec<(usize, &[u8])> {
    let mut extensions = Vec::new();
    while let [number, length, rest @ ..] = input {
        let (value, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        extensions.push((usize::from(*number) % EXTENSIONS.len(), value));
        input = rest;
    }
    extensions
}

fn extension(number: usize, value: &[u8]) -> CustomExtension {
    let oid = [&[1, 2, 840, 113_635, 100, 8], EXTENSIONS[number]].concat();
    CustomExtension::from_oid_content(&oid, value.to_vec())
}

fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = NOW - Duration::HOUR;
    params.not_after = NOW + Duration::HOUR;
    params
}
