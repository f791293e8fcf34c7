//! Certificate requests: the agent's in PEM, and those of ACME in DER. An input is either.

#![no_main]

use assay_fuzz::KEY;
use assay_protocol::csr::UnverifiedCsr;
use assay_server::fuzzing::acme_csr;
use der::{Decode, Encode, asn1::BitString, pem::LineEnding};
use libfuzzer_sys::fuzz_target;
use x509_cert::{request::CertReq, spki::SubjectPublicKeyInfoOwned};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};

fuzz_target!(|input: &[u8]| {
    if input.starts_with(b"-----") {
        if let Some(verified) = str::from_utf8(input).ok().and_then(verify_pem) {
            assert!(input.len() <= 16 * 1024);
            check(&verified);
        }
        return;
    }
    let pem = pem(input);
    let (agents, acmes) = (verify_pem(&pem), acme_csr(input));
    if let Some(verified) = &agents {
        check(verified);
    }
    // ACME also accepts P-384, but neither a compressed point nor a long request.
    if let Some(key) = acmes.filter(|key| key.jws_algorithm() == "ES256") {
        assert_eq!(agents.unwrap().public_key().spki_der(), key.spki_der());
    }
    signed_by_this_key(input);
});

/// What a second parser says of a verified request.
fn check(csr: &assay_protocol::Csr) {
    let (rest, second) = X509CertificationRequest::from_der(csr.der()).unwrap();
    assert!(rest.is_empty());
    let spki = second.certification_request_info.subject_pki.raw;
    assert_eq!(
        assay_protocol::PublicKey::from_spki_der(spki).unwrap(),
        *csr.public_key()
    );
    assert_eq!(verify_pem(&pem(csr.der())).unwrap().der(), csr.der());
}

/// A request with any subject and attributes is verified if its key signed it, and names no other key.
fn signed_by_this_key(der: &[u8]) {
    let Ok(mut request) = CertReq::from_der(der) else {
        return;
    };
    request.info.public_key = SubjectPublicKeyInfoOwned::from_der(KEY.public.spki_der()).unwrap();
    request.algorithm.oid = "1.2.840.10045.4.3.2".parse().unwrap();
    let Ok(signed) = request.info.to_der() else { return };
    request.signature = BitString::from_bytes(&KEY.sign_der(&signed)).unwrap();
    let Ok(der) = request.to_der() else { return };
    if der.len() > 8 * 1024 {
        assert!(acme_csr(&der).is_none());
        return;
    }
    assert_eq!(acme_csr(&der).unwrap(), KEY.ec);
    assert_eq!(verify_pem(&pem(&der)).unwrap().public_key(), &KEY.public);
}

fn pem(der: &[u8]) -> String {
    der::pem::encode_string("CERTIFICATE REQUEST", LineEnding::LF, der).unwrap()
}

fn verify_pem(pem: &str) -> Option<assay_protocol::Csr> {
    UnverifiedCsr::from_pem(pem).and_then(UnverifiedCsr::verify).ok()
}
