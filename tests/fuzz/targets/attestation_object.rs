//! The attestation object of ACME's `device-attest-01`, in CBOR.

#![no_main]

use assay_authority::attestation::apple::UnverifiedAttestation;
use assay_server::fuzzing::attestation_object;
use libfuzzer_sys::fuzz_target;
use minicbor::Encoder;

fuzz_target!(|object: &[u8]| {
    let Some(chain) = attestation_object(object) else {
        return;
    };
    assert!(object.len() <= 32 * 1024);
    assert!(chain.len() <= 4);
    assert!(chain.iter().map(Vec::len).sum::<usize>() < object.len());
    assert_eq!(attestation_object(&encode(&chain)).as_ref(), Some(&chain));
    let _ = UnverifiedAttestation::from_der(chain);
});

/// The shortest object with this chain.
fn encode(chain: &[Vec<u8>]) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new());
    encoder.map(2).unwrap().str("fmt").unwrap().str("apple").unwrap();
    encoder.str("attStmt").unwrap().map(1).unwrap().str("x5c").unwrap();
    encoder.array(chain.len().try_into().unwrap()).unwrap();
    for certificate in chain {
        encoder.bytes(certificate).unwrap();
    }
    encoder.into_writer()
}
