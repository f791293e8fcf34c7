//! Proofs of possession (DPoP), and that nothing else is one.

use assay_protocol::{
    PublicKey, UnverifiedCsr, UnverifiedEvidence,
    dpop::{
        DpopNonce, Expectation, HttpMethod, MAX_AGE_SECONDS, Proof, ProofClaims, ProofError, TargetUri,
        UnverifiedProof, access_token_hash,
    },
    evidence::EvidenceError,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use p256::ecdsa::{Signature, SigningKey, signature::Signer};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::key::{claims as evidence_claims, csr, evidence, public_key, signing_key};

const TOKEN: &str = "e.y.J";
const NOW: i64 = 1_795_000_000;

struct Request {
    method: HttpMethod,
    target: TargetUri,
    hash: String,
    nonce: Option<DpopNonce>,
}

fn request(method: &str, target: &str, token: &str, nonce: Option<&str>) -> Request {
    Request {
        method: method.parse().unwrap(),
        target: target.parse().unwrap(),
        hash: access_token_hash(token),
        nonce: nonce.map(|nonce| nonce.parse().unwrap()),
    }
}

fn usual() -> Request {
    request("GET", "https://wiki.example.com/a?b", TOKEN, None)
}

fn claims(nonce: Option<&str>) -> ProofClaims {
    let usual = usual();
    ProofClaims {
        jti: "an-id".to_owned(),
        htm: usual.method,
        htu: usual.target,
        iat: NOW,
        ath: Some(usual.hash),
        nonce: nonce.map(|nonce| nonce.parse().unwrap()),
    }
}

fn sign(key: &SigningKey, claims: &ProofClaims) -> String {
    let sign = |message: &[u8]| Ok::<[u8; 64], serde_json::Error>(fixed(key, message));
    claims.sign(&public_key(key), sign).unwrap()
}

fn fixed(key: &SigningKey, message: &[u8]) -> [u8; 64] {
    let signature: Signature = key.sign(message);
    signature.to_bytes().into()
}

fn verify(jws: &str, key: &PublicKey, request: &Request, now: i64) -> Result<Proof, ProofError> {
    UnverifiedProof::parse(jws)?.verify(&Expectation {
        key: key.thumbprint(),
        method: &request.method,
        target: &request.target,
        access_token_hash: &request.hash,
        nonce: request.nonce.as_ref(),
        now,
    })
}

/// A proof with this header and these claims, signed with the usual key.
fn proof_of(header: &Value, claims: &Value) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(header), encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(fixed(&signing_key(7), signed.as_bytes()));
    format!("{signed}.{signature}")
}

fn header() -> Value {
    let (x, y) = public_key(&signing_key(7)).jwk_coordinates();
    json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": {"kty": "EC", "crv": "P-256", "x": x, "y": y}})
}

#[test]
fn a_proof_comes_back_as_it_was_signed_while_its_time_is_near() {
    let key = signing_key(7);
    for nonce in [None, Some("a-nonce")] {
        let jws = sign(&key, &claims(nonce));
        for now in [NOW - MAX_AGE_SECONDS, NOW, NOW + MAX_AGE_SECONDS] {
            let proof = verify(&jws, &public_key(&key), &usual(), now).unwrap();
            assert_eq!(proof.claims(), &claims(nonce));
            assert_eq!(proof.key(), public_key(&key).thumbprint());
        }
        for now in [NOW - MAX_AGE_SECONDS - 1, NOW + MAX_AGE_SECONDS + 1, i64::MIN, i64::MAX] {
            let refused = verify(&jws, &public_key(&key), &usual(), now);
            assert!(matches!(refused, Err(ProofError::Time)), "{now}");
        }
    }
}

#[test]
fn a_proof_is_for_one_key_request_token_and_nonce() {
    let (key, other) = (signing_key(7), public_key(&signing_key(8)));
    let verify = |request: Request, key: &PublicKey, nonce| {
        verify(&sign(&signing_key(7), &claims(nonce)), key, &request, NOW).map(|_| ())
    };
    let own = public_key(&key);
    let url = "https://wiki.example.com/a";
    assert!(verify(request("GET", &format!("{url}?other#query"), TOKEN, None), &own, None).is_ok());
    assert!(verify(request("GET", url, TOKEN, Some("n")), &own, Some("n")).is_ok());
    assert!(matches!(verify(usual(), &other, None), Err(ProofError::OtherKey)));
    assert!(matches!(
        verify(request("POST", url, TOKEN, None), &own, None),
        Err(ProofError::Method)
    ));
    for url in [
        "https://wiki.example.com/A",
        "http://wiki.example.com/a",
        "https://wiki.example.com/a/",
    ] {
        let refused = verify(request("GET", url, TOKEN, None), &own, None);
        assert!(matches!(refused, Err(ProofError::Target)), "{url}");
    }
    assert!(matches!(
        verify(request("GET", url, "another", None), &own, None),
        Err(ProofError::AccessToken)
    ));
    for nonce in [None, Some("m")] {
        let refused = verify(request("GET", url, TOKEN, Some("n")), &own, nonce);
        assert!(matches!(refused, Err(ProofError::Nonce)), "{nonce:?}");
    }
    // Without `ath`, a proof could be combined with any token of its key.
    let mut without = claims(None);
    without.ath = None;
    let refused = self::verify(&sign(&key, &without), &own, &usual(), NOW);
    assert!(matches!(refused, Err(ProofError::AccessToken)));
}

#[test]
fn no_changed_character_of_a_proof_is_accepted() {
    let key = signing_key(7);
    let jws = sign(&key, &claims(None));
    for position in 0..jws.len() {
        let mut changed = jws.clone().into_bytes();
        changed[position] = if changed[position] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        let verified = verify(&changed, &public_key(&key), &usual(), NOW);
        assert!(verified.is_err(), "accepted with another character at {position}");
    }
}

#[test]
fn a_header_other_than_that_of_a_proof_is_refused() {
    let claims = serde_json::to_value(claims(None)).unwrap();
    let check = |change: &dyn Fn(&mut Value)| {
        let mut header = header();
        change(&mut header);
        verify(&proof_of(&header, &claims), &public_key(&signing_key(7)), &usual(), NOW)
    };
    assert!(check(&|_| ()).is_ok());
    assert!(check(&|header| header["kid"] = json!("ignored")).is_ok());
    for alg in [json!("none"), json!("HS256"), json!("es256"), json!("ES384")] {
        assert!(matches!(
            check(&|header| header["alg"] = alg.clone()),
            Err(ProofError::Algorithm)
        ));
    }
    for typ in [json!("JWT"), json!("eat+jwt"), json!(null), json!("DPOP+JWT")] {
        assert!(matches!(
            check(&|header| header["typ"] = typ.clone()),
            Err(ProofError::Type)
        ));
    }
    for crit in [json!(null), json!([]), json!(["exp"])] {
        let refused = check(&|header| header["crit"] = crit.clone());
        assert!(matches!(refused, Err(ProofError::CriticalHeader)), "{crit}");
    }
    let refused = check(&|header| header["jwk"]["d"] = json!("AAAA"));
    assert!(matches!(refused, Err(ProofError::PrivateKey)));
    for (member, value) in [
        ("kty", json!("RSA")),
        ("crv", json!("P-384")),
        ("x", json!("AAAA")),
        ("y", json!("")),
    ] {
        let refused = check(&|header| header["jwk"][member] = value.clone());
        assert!(matches!(refused, Err(ProofError::Jwk)), "{member}");
    }
    // Not on the curve.
    let refused = check(&|header| header["jwk"]["x"] = header["jwk"]["y"].clone());
    assert!(matches!(refused, Err(ProofError::Jwk)));
    assert!(check(&|header| header["jwk"] = json!(["EC", "P-256", "", ""])).is_err());
}

#[test]
fn claims_out_of_bounds_are_refused() {
    let check = |member: &str, value: Value| {
        let mut claims = serde_json::to_value(claims(None)).unwrap();
        claims[member] = value;
        UnverifiedProof::parse(&proof_of(&header(), &claims)).map(|_| ())
    };
    assert!(check("iat", json!(1.5)).is_ok());
    for (member, value) in [
        ("jti", json!("")),
        ("jti", json!("a".repeat(129))),
        ("jti", json!(7)),
        ("htm", json!("GE T")),
        ("htu", json!("/a")),
        ("htu", json!("https://a@b/")),
        ("iat", json!("now")),
        ("nonce", json!("")),
        ("nonce", json!("a b")),
        ("nonce", json!("a".repeat(513))),
    ] {
        let refused = check(member, value.clone());
        assert!(
            matches!(refused, Err(ProofError::Unreadable { part: "claims", .. })),
            "{member}: {value}"
        );
    }
    assert!(matches!(
        UnverifiedProof::parse(&"A".repeat(9000)),
        Err(ProofError::TooLong)
    ));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Local programs choose method, URL and nonce of what the machine's key signs as a proof.
    #[test]
    fn what_is_signed_as_a_proof_is_nothing_else(
        id in "[ -~]{1,40}",
        method in "[!#-'A-Z^-z]{1,20}",
        path in "[!-~&&[^?#]]{0,200}",
        nonce in proptest::option::of("[!#-\\[\\]-~]{1,200}"),
        iat in any::<i64>(),
    ) {
        let key = signing_key(7);
        let claims = ProofClaims {
            jti: id,
            htm: method.parse().unwrap(),
            htu: format!("https://wiki.example.com/{path}").parse().unwrap(),
            iat,
            ath: Some(access_token_hash(TOKEN)),
            nonce: nonce.map(|nonce| nonce.parse().unwrap()),
        };
        let mut signed = Vec::new();
        let jws = claims.sign::<serde_json::Error, _>(&public_key(&key), |message| {
            signed = message.to_vec();
            Ok(fixed(&key, message))
        });
        let jws = jws.unwrap();
        let own = Request {
            method: claims.htm.clone(), target: claims.htu.clone(), hash: access_token_hash(TOKEN), nonce: claims.nonce.clone(),
        };
        let proof = verify(&jws, &public_key(&key), &own, iat).unwrap();
        prop_assert_eq!(proof.claims(), &claims);
        // The whole header is fixed, apart from the key.
        let beginning = URL_SAFE_NO_PAD.encode("{\"typ\":\"dpop+jwt\",\"alg\":\"ES256\",\"jwk");
        prop_assert!(signed.starts_with(beginning.as_bytes()));
        let refused = UnverifiedEvidence::parse(&jws);
        let is_refused = matches!(refused, Err(EvidenceError::Unreadable { .. } | EvidenceError::Type));
        prop_assert!(is_refused);
        prop_assert!(UnverifiedCsr::from_pem(&jws).is_err());
        // TLS 1.3 signs 64 spaces first (RFC 8446, section 4.4.3), TLS 1.2 a ClientHello (RFC 5246, section 7.4.8), and a
        // CSR is a SEQUENCE.
        prop_assert!(!signed.starts_with(b" ") && !signed.starts_with(&[1]) && !signed.starts_with(&[0x30]));
        // Signed once as a proof, the same bytes have no second meaning under another header.
        prop_assert!(signed.iter().filter(|byte| **byte == b'.').count() == 1);
    }

    #[test]
    fn a_proof_never_panics_and_never_says_what_was_not_signed(
        position in any::<proptest::sample::Index>(),
        part in 0..3_usize,
        bytes in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let key = signing_key(7);
        let jws = sign(&key, &claims(None));
        let mut parts: Vec<_> = jws.split('.').map(|part| URL_SAFE_NO_PAD.decode(part).unwrap()).collect();
        let at = position.index(parts[part].len());
        let end = (at + bytes.len()).min(parts[part].len());
        drop(parts[part].splice(at..end, bytes));
        let changed: Vec<_> = parts.iter().map(|part| URL_SAFE_NO_PAD.encode(part)).collect();
        if let Ok(proof) = verify(&changed.join("."), &public_key(&key), &usual(), NOW) {
            prop_assert_eq!(proof.claims(), &claims(None));
        }
    }
}

#[test]
fn evidence_and_requests_are_no_proofs() {
    let key = signing_key(7);
    let jws = evidence(&key, &evidence_claims());
    assert!(UnverifiedProof::parse(&jws).is_err());
    assert!(UnverifiedProof::parse(&csr(&key)).is_err());
    // Evidence whose claims are also those of a proof.
    let (x, y) = public_key(&key).jwk_coordinates();
    let mixed =
        json!({"alg": "ES256", "typ": "eat+jwt", "kid": "", "jwk": {"kty": "EC", "crv": "P-256", "x": x, "y": y}});
    let mixed = proof_of(&mixed, &serde_json::to_value(claims(None)).unwrap());
    assert!(matches!(UnverifiedProof::parse(&mixed), Err(ProofError::Type)));
}
