//! Bytes from outside never make a parser panic, and never become something that verifies.
//!
//! This is the suite's fuzzing: a fixed number of cases at each run, half of them without any form, half made from
//! valid inputs by flipping, cutting, splicing and repeating, which gets past the first check of a parser.

use std::str::FromStr;

use assay_protocol::{
    KeyThumbprint, Problem, ProblemKind, PublicKey, Purpose, Retry, UnverifiedCsr, UnverifiedEvidence,
    admin_api::{
        api_keys::CreateApiKey,
        enrollment_tokens::CreateEnrollmentToken,
        enrollments::{Approve, Decide},
        grants::{Evaluate, GrantRequest},
        machines::{Machine, PatchMachine},
        permissions::CreatePermission,
    },
    agent_api::{CheckInRequest, CheckedIn, EnrollRequest, Enrolled, EnrollmentPending, RenewRequest, Renewed},
    evidence::{EvidenceClaims, Expectation},
    problem::MEDIA_TYPE,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use proptest::{collection::vec, prelude::*, sample::Index};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::key::{AUDIENCE, SUBJECT, claims, csr, evidence, public_key, signing_key};

const EXPECTED: Expectation<'_> = Expectation {
    audience: AUDIENCE,
    purpose: Purpose::CheckIn,
    subject: Some(SUBJECT),
};

#[derive(Debug, Clone)]
enum Mutation {
    Flip(Index, u8),
    Replace(Index, u8),
    Truncate(Index),
    Remove(Index, Index),
    Insert(Index, Vec<u8>),
    Repeat(Index, Index),
    Swap(Index, Index),
}

impl Mutation {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let range = |from: &Index, to: &Index, length: usize| {
            let (from, to) = (from.index(length), to.index(length));
            from.min(to)..from.max(to)
        };
        match self {
            Self::Flip(at, bit) => {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << (bit % 8);
            }
            Self::Replace(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Self::Truncate(at) => bytes.truncate(at.index(bytes.len())),
            Self::Remove(from, to) => drop(bytes.drain(range(from, to, bytes.len()))),
            Self::Insert(at, new) => {
                let at = at.index(bytes.len());
                drop(bytes.splice(at..at, new.iter().copied()));
            }
            Self::Repeat(from, to) => {
                let part = bytes[range(from, to, bytes.len())].to_vec();
                bytes.extend(part);
            }
            Self::Swap(one, other) => {
                let (one, other) = (one.index(bytes.len()), other.index(bytes.len()));
                bytes.swap(one, other);
            }
        }
    }
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let index = any::<Index>;
    prop_oneof![
        (index(), any::<u8>()).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        // Bytes that mean something in JSON, PEM, base64url and JWS.
        (index(), proptest::sample::select(b"\"\\{}[],:.-=\0\n0A_".to_vec()))
            .prop_map(|(at, byte)| Mutation::Replace(at, byte)),
        index().prop_map(Mutation::Truncate),
        (index(), index()).prop_map(|(from, to)| Mutation::Remove(from, to)),
        (index(), vec(any::<u8>(), 0..64)).prop_map(|(at, new)| Mutation::Insert(at, new)),
        (index(), index()).prop_map(|(from, to)| Mutation::Repeat(from, to)),
        (index(), index()).prop_map(|(one, other)| Mutation::Swap(one, other)),
    ]
}

/// `valid` with one to six changes, or bytes without any form.
fn outside(valid: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let mutated = vec(mutation(), 1..=6).prop_map(move |mutations| {
        let mut bytes = valid.clone();
        for mutation in &mutations {
            mutation.apply(&mut bytes);
        }
        bytes
    });
    prop_oneof![vec(any::<u8>(), 0..2048), mutated]
}

/// As a parser of text gets them.
fn outside_text(valid: String) -> impl Strategy<Value = String> {
    outside(valid.into_bytes()).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Evidence whose parts decode, so that what is mutated is what is inside them.
fn evidence_with_mutated_parts() -> impl Strategy<Value = String> {
    let jws = evidence(&signing_key(7), &claims());
    let parts: Vec<Vec<u8>> = jws
        .split('.')
        .map(|part| URL_SAFE_NO_PAD.decode(part).unwrap())
        .collect();
    (0..parts.len(), vec(mutation(), 1..=3)).prop_map(move |(which, mutations)| {
        let mut parts = parts.clone();
        for mutation in &mutations {
            mutation.apply(&mut parts[which]);
        }
        parts
            .iter()
            .map(|part| URL_SAFE_NO_PAD.encode(part))
            .collect::<Vec<_>>()
            .join(".")
    })
}

/// A request whose PEM is whole, so that what is mutated is the DER in it.
fn csr_with_mutated_der() -> impl Strategy<Value = String> {
    let csr = UnverifiedCsr::from_pem(&csr(&signing_key(7)))
        .unwrap()
        .verify()
        .unwrap();
    outside(csr.der().to_vec()).prop_map(|der| {
        let ending = der::pem::LineEnding::LF;
        der::pem::encode_string("CERTIFICATE REQUEST", ending, &der).unwrap()
    })
}

fn verify_evidence(jws: &str) -> Option<EvidenceClaims> {
    let unverified = UnverifiedEvidence::parse(jws).ok()?;
    let (_, _, _) = (
        unverified.unverified_key(),
        unverified.unverified_subject(),
        unverified.unverified_nonce(),
    );
    let verified = unverified.verify(&public_key(&signing_key(7)), &EXPECTED).ok()?;
    Some(verified.into_claims())
}

/// What is read can be written, and is then read as the same.
fn read_write_read<T: DeserializeOwned + Serialize>(bytes: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(bytes) {
        let written = serde_json::to_value(&value).unwrap();
        let read: T = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), written);
    }
}

fn certificate() -> Value {
    json!({"serial_number": "00ff", "not_before": "2026-11-22T10:00:00Z", "not_after": "2026-11-29T10:00:00Z", "chain": "PEM"})
}

fn wire_examples() -> impl Strategy<Value = Vec<u8>> {
    let id = SUBJECT;
    let examples = [
        json!({"token": "t", "csr": "PEM", "evidence": "a.b.c"}),
        json!({"evidence": "a.b.c"}),
        json!({"csr": "PEM", "evidence": "a.b.c"}),
        json!({"machine_id": id, "status": "active", "assurance": "verified", "spiffe_id": "spiffe://a/machine/b",
            "certificate": certificate(), "trust_bundle": "PEM", "next_check_in_seconds": 300}),
        json!({"enrollment_id": id, "machine_id": null, "status": "pending", "retry_after_seconds": 60}),
        json!({"machine_id": id, "status": "active", "assurance": "asserted", "next_check_in_seconds": 300,
            "grants": [{"audience": "a", "permissions": ["p"], "token": "j.w.t", "expires_at": "2026-11-22T10:10:00Z"}],
            "denied": [{"audience": "a", "permission": "q", "reasons": ["sip_enabled is unknown"]}],
            "actions": [{"type": "renew_certificate"}, {"type": "of_a_newer_server", "with": 1}]}),
        json!({"certificate": certificate(), "trust_bundle": "PEM", "withdrawn_issuers": ["00ff"]}),
        json!({"name": "n", "role": "operator", "expires_in_seconds": 60}),
        json!({"description": "d", "expires_in_seconds": 60, "max_uses": 2, "serial_numbers": ["C02XYZ"],
            "labels": {"k": "v"}, "approval": "manual", "allow_reenrollment": true}),
        json!({"reason": "r"}),
        json!({"permission_id": id, "selector": {"machine_ids": [id], "labels": {"k": "v"}, "all": true},
            "conditions": {"min_assurance": "attested", "secure_boot": "full", "min_os_version": "26.1"},
            "expires_at": "2026-11-22T10:00:00Z"}),
        json!({"machine_id": id}),
        json!({"labels": {"k": null}, "note": null}),
        json!({"audience": "a", "name": "p", "description": "d"}),
    ];
    let examples: Vec<_> = examples
        .iter()
        .map(|example| example.to_string().into_bytes())
        .collect();
    proptest::sample::select(examples).prop_flat_map(outside)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn evidence_never_panics_and_never_says_what_was_not_signed(
        jws in prop_oneof![outside_text(evidence(&signing_key(7), &claims())), evidence_with_mutated_parts()],
    ) {
        if let Some(verified) = verify_evidence(&jws) {
            prop_assert_eq!(verified, claims());
        }
    }

    #[test]
    fn a_csr_never_panics_and_never_names_another_key(
        pem in prop_oneof![outside_text(csr(&signing_key(7))), csr_with_mutated_der()],
    ) {
        if let Ok(verified) = UnverifiedCsr::from_pem(&pem).and_then(UnverifiedCsr::verify) {
            prop_assert_eq!(verified.public_key(), &public_key(&signing_key(7)));
        }
    }

    #[test]
    fn a_public_key_never_panics_and_is_written_as_it_was_read(
        spki in outside(public_key(&signing_key(7)).spki_der().to_vec()),
        point in outside(public_key(&signing_key(7)).sec1().to_vec()),
        signature in vec(any::<u8>(), 0..80),
    ) {
        for key in [PublicKey::from_spki_der(&spki), PublicKey::from_sec1(&point)].into_iter().flatten() {
            prop_assert_eq!(&PublicKey::from_spki_der(key.spki_der()).unwrap(), &key);
            prop_assert_eq!(&PublicKey::from_sec1(key.sec1()).unwrap(), &key);
            prop_assert!(key.verify_fixed(&point, &signature).is_err());
            prop_assert!(key.verify_der(&point, &signature).is_err());
        }
    }

    #[test]
    fn a_thumbprint_never_panics_and_is_written_as_it_was_read(
        text in outside_text(public_key(&signing_key(7)).thumbprint().to_string()),
        bytes in vec(any::<u8>(), 0..64),
    ) {
        if let Ok(thumbprint) = KeyThumbprint::from_str(&text) {
            prop_assert_eq!(thumbprint.to_string(), text);
        }
        prop_assert_eq!(KeyThumbprint::from_bytes(&bytes).is_ok(), bytes.len() == 32);
    }

    #[test]
    fn a_problem_never_panics_and_always_says_what_to_do(
        body in outside(serde_json::to_vec(&Problem::new(ProblemKind::BadNonce, "why".into(), "r".into())).unwrap()),
        content_type in prop_oneof![Just(MEDIA_TYPE.to_owned()), outside_text(MEDIA_TYPE.to_owned())],
    ) {
        if let Some(problem) = Problem::parse(Some(&content_type), &body) {
            match problem.kind() {
                Some(kind) => prop_assert_eq!((kind.urn(), kind.retry()), (problem.kind_urn.clone(), problem.retry())),
                None => prop_assert_eq!(problem.retry() == Retry::After, problem.status == 429 || problem.status >= 500),
            }
        }
    }

    #[test]
    fn wire_types_never_panic_and_are_written_as_they_were_read(bytes in wire_examples()) {
        read_write_read::<EnrollRequest>(&bytes);
        read_write_read::<CheckInRequest>(&bytes);
        read_write_read::<RenewRequest>(&bytes);
        read_write_read::<Enrolled>(&bytes);
        read_write_read::<EnrollmentPending>(&bytes);
        read_write_read::<Renewed>(&bytes);
        read_write_read::<CreateApiKey>(&bytes);
        read_write_read::<CreateEnrollmentToken>(&bytes);
        read_write_read::<Approve>(&bytes);
        read_write_read::<Decide>(&bytes);
        read_write_read::<GrantRequest>(&bytes);
        read_write_read::<Evaluate>(&bytes);
        read_write_read::<PatchMachine>(&bytes);
        read_write_read::<CreatePermission>(&bytes);
        read_write_read::<EvidenceClaims>(&bytes);
        read_write_read::<CheckedIn>(&bytes);
        // Only ever written by the server, and read by tools.
        drop(serde_json::from_slice::<Machine>(&bytes));
    }
}

/// serde would read a struct from an array of its members' values, which is never intended.
#[test]
fn an_array_is_no_object() {
    let grant = |selector: Value, conditions: Value| {
        serde_json::from_value::<GrantRequest>(
            json!({"permission_id": SUBJECT, "selector": selector, "conditions": conditions}),
        )
    };
    assert!(grant(json!({"all": true}), json!({})).is_ok());
    assert!(grant(json!([null, null, true]), json!({})).is_err());
    assert!(grant(json!({"all": true}), json!([])).is_err());
    let refused = grant(json!({"all": true}), json!(null)).unwrap_err().to_string();
    assert!(
        refused.contains("an object") && !refused.contains("Conditions"),
        "{refused}"
    );

    // In the order in which the struct has them.
    let claims = serde_json::to_value(claims()).unwrap();
    let members = [
        "eat_profile",
        "eat_nonce",
        "aud",
        "iat",
        "purpose",
        "sub",
        "csr_sha256",
        "continuity",
        "machine",
        "posture",
        "key",
    ];
    let members: Value = members.iter().map(|member| claims[member].clone()).collect();
    assert!(
        serde_json::from_value::<EvidenceClaims>(members.clone()).is_ok(),
        "serde would not read it anyway"
    );
    let with_payload = |payload: &Value| {
        let jws = evidence(&signing_key(7), &crate::key::claims());
        let (header, _) = jws.split_once('.').unwrap();
        format!("{header}.{}.AAAA", URL_SAFE_NO_PAD.encode(payload.to_string()))
    };
    assert!(UnverifiedEvidence::parse(&with_payload(&claims)).is_ok());
    assert!(UnverifiedEvidence::parse(&with_payload(&members)).is_err());
    for member in ["machine", "posture", "key"] {
        let mut claims = claims.clone();
        claims[member] = json!([]);
        assert!(serde_json::from_value::<EvidenceClaims>(claims).is_err(), "{member}");
    }
}

/// Nesting is what overflows a stack: of the answer that a false server sends, too.
#[test]
fn deep_nesting_is_refused() {
    for depth in [200, 10_000] {
        let nested = [vec![b'['; depth], vec![b']'; depth]].concat();
        assert!(serde_json::from_slice::<CheckedIn>(&nested).is_err());
        assert!(Problem::parse(Some(MEDIA_TYPE), &nested).is_none());
        let payload = URL_SAFE_NO_PAD.encode(&nested);
        assert!(UnverifiedEvidence::parse(&format!("{payload}.{payload}.AA")).is_err());
    }
}

#[test]
fn what_is_too_long_is_not_looked_at() {
    let long = "A".repeat(33 * 1024);
    assert!(
        UnverifiedEvidence::parse(&long)
            .unwrap_err()
            .to_string()
            .contains("longer than")
    );
    assert!(
        UnverifiedCsr::from_pem(&long)
            .unwrap_err()
            .to_string()
            .contains("longer than")
    );
}
