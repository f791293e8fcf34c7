//! Evidence. An input is a compact JWS; or the JSON of a header, a NUL, and the JSON of claims, which the target signs.

#![no_main]

use assay_fuzz::{AUDIENCE, KEY, split};
use assay_protocol::{
    EvidenceClaims, Purpose, UnverifiedEvidence,
    evidence::{Evidence, Expectation, PROFILE},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, from_slice, json};

fuzz_target!(|input: &[u8]| {
    let Some(jws) = jws(input) else { return };
    let verified = verify(&jws);
    if let Some(evidence) = &verified {
        check(&jws, evidence);
    }
    // With the header that an agent writes, serde alone must come to the same result.
    if let (b"", Some(claims)) = split(input) {
        let read = from_slice::<EvidenceClaims>(claims).ok().filter(is_expected);
        let is_object = claims.trim_ascii_start().starts_with(b"{") && jws.len() <= 32 * 1024;
        assert_eq!(
            verified.map(Evidence::into_claims),
            read.filter(|_| is_object),
            "two readers differ"
        );
    }
});

fn jws(input: &[u8]) -> Option<String> {
    let (header, Some(claims)) = split(input) else {
        return Some(str::from_utf8(input).ok()?.to_owned());
    };
    let header = match header {
        b"" => json!({"alg": "ES256", "typ": "eat+jwt", "kid": KEY.public.thumbprint()})
            .to_string()
            .into_bytes(),
        header => header.to_vec(),
    };
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(KEY.sign_fixed(signed.as_bytes()));
    Some(format!("{signed}.{signature}"))
}

fn verify(jws: &str) -> Option<Evidence> {
    let unverified = UnverifiedEvidence::parse(jws).ok()?;
    let expected = Expectation {
        audience: AUDIENCE,
        purpose: Purpose::CheckIn,
        subject: unverified.unverified_subject(),
    };
    unverified.verify(&KEY.public, &expected).ok()
}

fn is_expected(claims: &EvidenceClaims) -> bool {
    claims.eat_profile == PROFILE && claims.aud == AUDIENCE && claims.purpose == Purpose::CheckIn
}

/// Nothing but ES256 of this key is verified, and the claims are the same when they are signed and read again.
fn check(jws: &str, evidence: &Evidence) {
    assert!(jws.len() <= 32 * 1024);
    let parts: Vec<_> = jws
        .split('.')
        .map(|part| URL_SAFE_NO_PAD.decode(part).unwrap())
        .collect();
    let [header, claims, signature] = parts.as_slice() else {
        panic!("not three parts")
    };
    assert_eq!(signature.len(), 64);
    // An unknown member may have a text that only a reader of values rejects.
    let (Ok(header), Ok(claims)) = (from_slice::<Value>(header), from_slice::<Value>(claims)) else {
        return;
    };
    assert_eq!((&header["alg"], &header["typ"]), (&json!("ES256"), &json!("eat+jwt")));
    assert_eq!(header["kid"], KEY.public.thumbprint().to_string());
    assert!(header.get("crit").is_none());
    assert!(is_expected(evidence.claims()));
    assert!(
        evidence
            .claims()
            .continuity
            .as_ref()
            .is_none_or(|value| value.len() <= 64)
    );
    assert_eq!(claims["eat_nonce"], evidence.claims().eat_nonce);
    let again = evidence
        .claims()
        .sign::<serde_json::Error, _>(KEY.public.thumbprint(), |message| Ok(KEY.sign_fixed(message)))
        .unwrap();
    // Escapes may make it longer than what was read.
    if again.len() <= 32 * 1024 {
        assert_eq!(verify(&again).unwrap().claims(), evidence.claims());
    }
}
