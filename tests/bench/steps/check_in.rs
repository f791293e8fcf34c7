//! Times the steps of a check-in and of an enrollment that take most of the server's time.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a measurement that cannot go on has failed and says where, and criterion's macros document nothing"
)]

use std::convert::Infallible;
use std::hint::black_box;

use assay_authority::{
    AudienceClaim, Confirmation, GrantClaims, GrantSigner, Installation, IssuingAuthority, IssuingParts,
    MachineCertificateRequest, PrivateKey, issuing, spiffe_id,
};
use assay_protocol::machine::Assurance;
use assay_protocol::{Csr, PublicKey, UnverifiedCsr};
use assay_server::measuring::{self, Allocator};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use criterion::{Criterion, criterion_group, criterion_main};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

const NOW: OffsetDateTime = datetime!(2026-11-22 10:00 UTC);
const MACHINE: Uuid = Uuid::from_u128(0x0191_0000_0000_7000_8000_0000_0000_0001);
const TRUST_DOMAIN: &str = "example.com";
const PUBLIC_URL: &str = "https://assay.example.com";

criterion_group!(steps, recognize_nonce, evaluate_grants, sign_grant_token, certify);
criterion_main!(steps);

fn recognize_nonce(criterion: &mut Criterion) {
    let recognize = measuring::recognize_nonce();
    criterion.bench_function("recognize a nonce", |bencher| bencher.iter(&recognize));
}

fn evaluate_grants(criterion: &mut Criterion) {
    let evaluate = measuring::evaluate_grants();
    assert_eq!(evaluate(), 4, "of 5 audiences, one asks for an attestation");
    criterion.bench_function("evaluate 30 grants", |bencher| bencher.iter(&evaluate));
}

fn sign_grant_token(criterion: &mut Criterion) {
    let signer = GrantSigner::new(&PrivateKey::generate().unwrap()).unwrap();
    let key = PrivateKey::generate().unwrap().public_key().thumbprint();
    let claims = GrantClaims {
        iss: PUBLIC_URL.to_owned(),
        sub: spiffe_id(TRUST_DOMAIN, MACHINE),
        aud: AudienceClaim::List(["https://build.example.com".to_owned()]),
        iat: NOW.unix_timestamp(),
        nbf: NOW.unix_timestamp(),
        exp: NOW.unix_timestamp() + 900,
        jti: MACHINE,
        cnf: Confirmation::new(key, &[7; 32]),
        scope: "read write".to_owned(),
        permissions: vec!["read".to_owned(), "write".to_owned()],
        machine_id: MACHINE,
        assurance: Assurance::Verified,
    };
    criterion.bench_function("sign a grant token", |bencher| {
        bencher.iter(|| signer.sign(black_box(&claims), "").unwrap());
    });
}

/// Times the path from the text of a CSR to the text of a certificate.
fn certify(criterion: &mut Criterion) {
    let (authority, csr) = (authority(), csr());
    criterion.bench_function("a certificate for a CSR", |bencher| {
        bencher.iter(|| {
            let csr = UnverifiedCsr::from_pem(black_box(&csr)).unwrap().verify().unwrap();
            let request = MachineCertificateRequest {
                machine_id: MACHINE,
                public_key: csr.public_key(),
                now: NOW,
                ttl: Duration::days(7),
                attested_serial_number: None,
            };
            authority.issue_machine_certificate(&request).unwrap()
        });
    });
}

fn authority() -> IssuingAuthority {
    let installation = Installation {
        trust_domain: TRUST_DOMAIN.to_owned(),
        public_url: PUBLIC_URL.parse().unwrap(),
        revocation_url: PUBLIC_URL.parse().unwrap(),
    };
    let root = issuing::generate_root(TRUST_DOMAIN, NOW).unwrap();
    let parts = IssuingParts {
        id: Uuid::from_u128(7),
        ca: issuing::generate_issuing(&root, &installation, NOW).unwrap(),
        intermediates: Vec::new(),
    };
    IssuingAuthority::new(&parts, &root.certificate, &installation).unwrap()
}

fn csr() -> String {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let public_key = PublicKey::from_sec1(pair.public_key().as_ref()).unwrap();
    let sign = |message: &[u8]| {
        let signature = pair.sign(&SystemRandom::new(), message).unwrap();
        Ok::<Vec<u8>, Infallible>(signature.as_ref().to_vec())
    };
    Csr::build(&public_key, sign).unwrap()
}
