//! The golden vectors: made by other software, so that both ends cannot be wrong in the same way.

use std::str::FromStr;

use assay_protocol::{
    KeyThumbprint, PublicKey, UnverifiedCsr, UnverifiedEvidence,
    evidence::{Expectation, Purpose},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

#[derive(Deserialize)]
struct EvidenceCorpus {
    aud: String,
    nonce: String,
    sub: Uuid,
    kid: String,
    public_key_spki: String,
    jwk: Value,
    cases: Vec<EvidenceCase>,
}

#[derive(Deserialize)]
struct EvidenceCase {
    name: String,
    jws: String,
    accept: bool,
    problem: Option<String>,
}

#[derive(Deserialize)]
struct CsrCorpus {
    cases: Vec<CsrCase>,
}

#[derive(Deserialize)]
struct CsrCase {
    name: String,
    csr: String,
    accept: bool,
    problem: Option<String>,
}

fn evidence() -> EvidenceCorpus {
    serde_json::from_str(include_str!("../vectors/evidence.json")).unwrap()
}

fn csrs() -> CsrCorpus {
    serde_json::from_str(include_str!("../vectors/csr.json")).unwrap()
}

impl EvidenceCorpus {
    fn key(&self) -> PublicKey {
        PublicKey::from_spki_der(&URL_SAFE_NO_PAD.decode(&self.public_key_spki).unwrap()).unwrap()
    }

    /// The slug that the server would answer with: the nonce is the server's to check, the rest is `shared`'s.
    fn judge(&self, jws: &str) -> Result<(), &'static str> {
        let expected = Expectation {
            audience: &self.aud,
            purpose: Purpose::CheckIn,
            subject: Some(self.sub),
        };
        let verified = UnverifiedEvidence::parse(jws).and_then(|evidence| evidence.verify(&self.key(), &expected));
        let verified = verified.map_err(|_| "bad-evidence")?;
        assert_eq!(verified.key(), self.key().thumbprint());
        if verified.claims().eat_nonce == self.nonce {
            Ok(())
        } else {
            Err("bad-nonce")
        }
    }
}

fn judge_csr(pem: &str) -> Result<(), &'static str> {
    let csr = UnverifiedCsr::from_pem(pem).and_then(UnverifiedCsr::verify);
    csr.map(drop).map_err(|_| "bad-csr")
}

fn expected(accept: bool, problem: Option<&str>) -> Result<(), &str> {
    if accept { Ok(()) } else { Err(problem.unwrap()) }
}

/// A test for each case, by its name in the corpus, and one that none of the corpus was left out.
macro_rules! cases {
    ($corpus:ident, $judge:expr, $bytes:ident, $($test:ident = $name:literal,)+) => {
        mod $corpus {
            $(
                #[test]
                fn $test() {
                    let corpus = super::$corpus();
                    let case = corpus.cases.iter().find(|case| case.name == $name).expect($name);
                    let judged = ($judge)(&corpus, &case.$bytes);
                    assert_eq!(judged, super::expected(case.accept, case.problem.as_deref()), "{}", $name);
                }
            )+

            #[test]
            fn every_case_of_the_corpus_is_a_test() {
                let cases = super::$corpus().cases;
                assert!(!cases.is_empty());
                let names: Vec<_> = cases.iter().map(|case| case.name.as_str()).collect();
                assert_eq!(names, [$($name),+]);
            }
        }
    };
}

cases! {
    evidence, |corpus: &super::EvidenceCorpus, jws: &str| corpus.judge(jws), jws,
    check_in = "check-in",
    signature_with_a_high_s = "signature with a high s",
    signature_with_a_low_s = "signature with a low s",
    unknown_claims_are_ignored = "unknown claims are ignored",
    unknown_posture_fields_are_ignored = "unknown posture fields are ignored",
    posture_that_could_not_be_read = "posture that could not be read",
    alg_none = "alg none",
    alg_hs256_keyed_with_the_public_key = "alg HS256 keyed with the public key",
    alg_es384_named_es256_signed = "alg ES384 named, ES256 signed",
    typ_jwt = "typ JWT",
    no_typ = "no typ",
    kid_of_another_key = "kid of another key",
    signed_by_another_key = "signed by another key",
    critical_header_not_understood = "critical header not understood",
    embedded_jwk_of_the_attacker = "embedded jwk of the attacker",
    der_signature = "DER signature",
    signature_of_zeros = "signature of zeros",
    signature_one_byte_short = "signature one byte short",
    payload_changed_by_one_bit = "payload changed by one bit",
    audience_of_another_server = "audience of another server",
    wrong_purpose = "wrong purpose",
    another_profile = "another profile",
    no_nonce = "no nonce",
    another_nonce = "another nonce",
    sub_of_another_machine = "sub of another machine",
    payload_is_not_json = "payload is not JSON",
    payload_is_an_array = "payload is an array",
    two_parts = "two parts",
    five_parts = "five parts",
    padding_kept = "padding kept",
    empty = "empty",
}

cases! {
    csrs, |_: &super::CsrCorpus, pem: &str| super::judge_csr(pem), csr,
    p_256 = "P-256",
    empty_subject = "empty subject",
    asks_to_be_a_ca_and_for_other_names = "asks to be a CA and for other names",
    p_256_key_sha_384_signature = "P-256 key, SHA-384 signature",
    p_384 = "P-384",
    secp256k1 = "secp256k1",
    rsa_2048 = "RSA 2048",
    signature_changed_by_one_bit = "signature changed by one bit",
    key_swapped_after_signing = "key swapped after signing",
    trailing_bytes = "trailing bytes",
    cut_in_half = "cut in half",
    a_certificate_in_its_place = "a certificate in its place",
    not_pem = "not PEM",
    empty = "empty",
    point_off_the_curve = "point off the curve",
}

#[test]
fn the_thumbprint_of_the_corpus_is_that_of_rfc_7638() {
    let corpus = evidence();
    let key = corpus.key();
    assert_eq!(key.thumbprint(), KeyThumbprint::from_str(&corpus.kid).unwrap());
    let (x, y) = key.jwk_coordinates();
    assert_eq!(
        (Value::from(x), Value::from(y)),
        (corpus.jwk["x"].clone(), corpus.jwk["y"].clone())
    );
}

/// A replayed or relayed body is refused for what it is, not for its nonce.
#[test]
fn evidence_serves_no_other_endpoint_audience_or_machine() {
    let corpus = evidence();
    let jws = &corpus.cases.iter().find(|case| case.accept).unwrap().jws;
    let good = Expectation {
        audience: &corpus.aud,
        purpose: Purpose::CheckIn,
        subject: Some(corpus.sub),
    };
    let verify = |expected: &Expectation<'_>| UnverifiedEvidence::parse(jws).unwrap().verify(&corpus.key(), expected);
    assert!(verify(&good).is_ok());
    for purpose in [Purpose::Enroll, Purpose::Renew] {
        assert!(verify(&Expectation { purpose, ..good }).is_err(), "{purpose:?}");
    }
    let slash = format!("{}/", corpus.aud);
    for audience in ["", "https://assay.example.org", &slash] {
        assert!(verify(&Expectation { audience, ..good }).is_err(), "{audience:?}");
    }
    for subject in [None, Some(Uuid::nil())] {
        assert!(verify(&Expectation { subject, ..good }).is_err(), "{subject:?}");
    }
}
