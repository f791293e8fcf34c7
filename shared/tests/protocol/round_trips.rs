//! What one end makes, the other end and other software read.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use assay_protocol::{
    UnverifiedCsr, UnverifiedEvidence,
    evidence::{EvidenceError, Expectation, Purpose},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use p256::ecdsa::{Signature, signature::Signer};

use crate::key::{AUDIENCE, SUBJECT, claims, csr, evidence, public_key, signing_key};

const EXPECTED: Expectation<'_> = Expectation {
    audience: AUDIENCE,
    purpose: Purpose::CheckIn,
    subject: Some(SUBJECT),
};

#[test]
fn evidence_comes_back_as_it_was_signed() {
    let key = signing_key(7);
    let jws = evidence(&key, &claims());
    let unverified = UnverifiedEvidence::parse(&jws).unwrap();
    assert_eq!(unverified.unverified_key(), public_key(&key).thumbprint());
    assert_eq!(unverified.unverified_subject(), Some(SUBJECT));
    assert_eq!(unverified.unverified_nonce(), "a-nonce");
    let verified = unverified.verify(&public_key(&key), &EXPECTED).unwrap();
    assert_eq!(verified.key(), public_key(&key).thumbprint());
    assert_eq!(verified.claims(), &claims());
    assert_eq!(verified.into_claims(), claims());
}

#[test]
fn evidence_of_another_key_is_not_accepted_under_either_name() {
    let (own, other) = (signing_key(7), signing_key(8));
    let jws = evidence(&other, &claims());
    let parse = || UnverifiedEvidence::parse(&jws).unwrap();
    assert!(matches!(
        parse().verify(&public_key(&own), &EXPECTED),
        Err(EvidenceError::KeyId)
    ));
    assert!(parse().verify(&public_key(&other), &EXPECTED).is_ok());
}

/// Every part of it counts: no flip of a bit, in whichever part, leaves it good.
#[test]
fn no_changed_character_of_evidence_is_accepted() {
    let key = signing_key(7);
    let jws = evidence(&key, &claims());
    for position in (0..jws.len()).step_by(3) {
        let mut changed = jws.clone().into_bytes();
        changed[position] = if changed[position] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        let verified =
            UnverifiedEvidence::parse(&changed).and_then(|evidence| evidence.verify(&public_key(&key), &EXPECTED));
        assert!(verified.is_err(), "accepted with another character at {position}");
    }
}

/// RFC 7515, section 4.1.11: the list must not be empty, and names what a reader must understand.
#[test]
fn evidence_with_critical_extensions_of_any_form_is_refused() {
    let key = signing_key(7);
    let jws = evidence(&key, &claims());
    let claims = jws.split('.').nth(1).unwrap();
    let kid = public_key(&key).thumbprint();
    let parse = |more: &str| {
        let header = format!(r#"{{"alg":"ES256","typ":"eat+jwt","kid":"{kid}"{more}}}"#);
        let signed = format!("{}.{claims}", URL_SAFE_NO_PAD.encode(header));
        let signature: Signature = key.sign(signed.as_bytes());
        let jws = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()));
        UnverifiedEvidence::parse(&jws).and_then(|evidence| evidence.verify(&public_key(&key), &EXPECTED))
    };
    assert!(parse("").is_ok());
    for critical in ["null", "[]", "{}", r#""exp""#, "false", r#"["exp"]"#, "[null]"] {
        let refused = parse(&format!(r#","crit":{critical}"#));
        assert!(matches!(refused, Err(EvidenceError::CriticalHeader)), "{critical}");
    }
}

#[test]
fn a_csr_comes_back_with_its_key() {
    let key = signing_key(7);
    let pem = csr(&key);
    let verified = UnverifiedCsr::from_pem(&pem).unwrap().verify().unwrap();
    assert_eq!(verified.public_key(), &public_key(&key));
    let (label, der) = der::pem::decode_vec(pem.as_bytes()).unwrap();
    assert_eq!((label, der.as_slice()), ("CERTIFICATE REQUEST", verified.der()));
}

/// Independent servers must be able to read what the agent writes.
#[test]
fn openssl_verifies_a_csr() {
    let mut openssl = Command::new("openssl")
        .args(["req", "-verify", "-noout", "-inform", "PEM"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this test needs the program openssl");
    let pem = csr(&signing_key(7));
    openssl.stdin.take().unwrap().write_all(pem.as_bytes()).unwrap();
    let output = openssl.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
}
