//! OCSP requests in DER.

#![no_main]

use std::sync::LazyLock;

use assay_authority::{
    Installation, IssuingAuthority, IssuingParts, OcspRequest, OcspResponder, issuing,
    ocsp::{CertificateStatus, StatusAnswer},
};
use assay_fuzz::NOW;
use libfuzzer_sys::fuzz_target;

/// The identifier of the nonce extension in DER.
const NONCE: &[u8] = &[0x06, 0x09, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x02];

static RESPONDER: LazyLock<OcspResponder> = LazyLock::new(|| {
    let installation = Installation {
        trust_domain: "example.com".to_owned(),
        public_url: "https://assay.example.com".parse().unwrap(),
        revocation_url: "http://assay.example.com:8080".parse().unwrap(),
    };
    let root = issuing::generate_root("example.com", NOW).unwrap();
    let parts = IssuingParts {
        id: uuid::Uuid::from_u128(7),
        ca: issuing::generate_issuing(&root, &installation, NOW).unwrap(),
        intermediates: Vec::new(),
    };
    let ca = IssuingAuthority::new(&parts, &root.certificate, &installation).unwrap();
    ca.issue_ocsp_responder(NOW).unwrap()
});

fuzz_target!(|der: &[u8]| {
    let Ok(request) = OcspRequest::parse(der) else { return };
    assert!((1..=20).contains(&request.questions().len()));
    for question in request.questions() {
        let serial_number = question.serial_number();
        assert!(serial_number.len() <= 42);
        assert!(!question.is_about_issuer(b"another", b"another"));
    }
    let answers: Vec<_> = request
        .questions()
        .iter()
        .map(|question| StatusAnswer {
            question,
            status: CertificateStatus::Unknown,
        })
        .collect();
    // A response repeats the serial numbers and the nonce: the client compares them byte by byte.
    let response = RESPONDER.respond(&request, &answers, NOW).unwrap();
    assert!(!request.has_nonce() || contains(&response, NONCE));
    for question in request.questions() {
        let serial_number = question.serial_number();
        let bytes: Vec<u8> = (0..serial_number.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&serial_number[at..at + 2], 16).unwrap())
            .collect();
        assert!(contains(&response, &bytes));
        assert!(contains(der, &bytes));
    }
});

fn contains(all: &[u8], part: &[u8]) -> bool {
    part.is_empty() || all.windows(part.len()).any(|window| window == part)
}
