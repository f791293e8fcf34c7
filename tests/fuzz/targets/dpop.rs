//! Proofs of possession (DPoP). An input is a compact JWS; or the JSON of a header, a NUL, and the JSON of claims, which
//! the target signs.

#![no_main]

use assay_fuzz::{KEY, split};
use assay_protocol::UnverifiedEvidence;
use assay_protocol::dpop::{
    Expectation, HttpMethod, MAX_AGE_SECONDS, Proof, ProofClaims, TargetUri, UnverifiedProof, access_token_hash,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, from_slice, json};

const TOKEN: &str = "e.y.J";
const NOW: i64 = 1_778_371_200;

fuzz_target!(|input: &[u8]| {
    if let Ok(text) = str::from_utf8(input) {
        check_target(text);
    }
    let Some(jws) = jws(input) else { return };
    if let Some(proof) = verify(&jws) {
        check(&jws, &proof);
    }
});

fn jws(input: &[u8]) -> Option<String> {
    let (header, Some(claims)) = split(input) else {
        return Some(str::from_utf8(input).ok()?.to_owned());
    };
    let (x, y) = KEY.public.jwk_coordinates();
    let header = match header {
        b"" => json!({"alg": "ES256", "typ": "dpop+jwt", "jwk": {"kty": "EC", "crv": "P-256", "x": x, "y": y}})
            .to_string()
            .into_bytes(),
        header => header.to_vec(),
    };
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(KEY.sign_fixed(signed.as_bytes()));
    Some(format!("{signed}.{signature}"))
}

fn method() -> HttpMethod {
    "GET".parse().unwrap()
}

fn target() -> TargetUri {
    "https://wiki.example.com/a".parse().unwrap()
}

fn verify(jws: &str) -> Option<Proof> {
    let expected = Expectation {
        key: KEY.public.thumbprint(),
        method: &method(),
        target: &target(),
        access_token_hash: &access_token_hash(TOKEN),
        nonce: None,
        now: NOW,
    };
    UnverifiedProof::parse(jws).ok()?.verify(&expected).ok()
}

/// Nothing but ES256 of this key is verified, it is for this request alone, and it is no evidence.
fn check(jws: &str, proof: &Proof) {
    assert!(jws.len() <= 8 * 1024);
    let ProofClaims {
        jti,
        htm,
        htu,
        iat,
        ath,
        nonce,
    } = proof.claims();
    assert_eq!((htm, htu), (&method(), &target()));
    assert_eq!(ath.as_deref(), Some(access_token_hash(TOKEN).as_str()));
    assert!((NOW - MAX_AGE_SECONDS..=NOW + MAX_AGE_SECONDS).contains(iat));
    assert!((1..=128).contains(&jti.len()));
    assert!(nonce.as_ref().is_none_or(|nonce| nonce.as_str().len() <= 512));
    assert!(UnverifiedEvidence::parse(jws).is_err());
    let parts: Vec<_> = jws
        .split('.')
        .map(|part| URL_SAFE_NO_PAD.decode(part).unwrap())
        .collect();
    let [header, _, signature] = parts.as_slice() else {
        panic!("not three parts")
    };
    assert_eq!(signature.len(), 64);
    if let Ok(header) = from_slice::<Value>(header) {
        assert_eq!((&header["alg"], &header["typ"]), (&json!("ES256"), &json!("dpop+jwt")));
        assert!(header.get("crit").is_none());
        assert!(header["jwk"].get("d").is_none_or(Value::is_null));
    }
    let sign = |message: &[u8]| Ok::<_, serde_json::Error>(KEY.sign_fixed(message));
    let again = proof.claims().sign(&KEY.public, sign).unwrap();
    // Escapes may make it longer than what was read.
    if again.len() <= 8 * 1024 {
        assert_eq!(verify(&again).unwrap().claims(), proof.claims());
    }
}

/// A target is read again as itself, and a second parser agrees about scheme, host and port.
fn check_target(text: &str) {
    let Ok(target) = text.parse::<TargetUri>() else { return };
    assert_eq!(target.as_str().parse::<TargetUri>().as_ref(), Ok(&target));
    assert!(!target.as_str().contains(['?', '#']));
    let (Ok(whole), Ok(url)) = (url::Url::parse(text), url::Url::parse(target.as_str())) else {
        return;
    };
    assert_eq!(whole.origin(), url.origin());
    assert!(url.username().is_empty() && url.password().is_none());
}
