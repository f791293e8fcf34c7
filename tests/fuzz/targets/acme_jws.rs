//! ACME's requests. An input is a JWS in flattened JSON; or a protected header, a NUL, and a payload, which the target
//! signs.

#![no_main]

use assay_authority::EcKey;
use assay_fuzz::{KEY, split};
use assay_server::fuzzing::{acme_jws, inner_acme_jws};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, from_slice, json};

fuzz_target!(|input: &[u8]| match split(input) {
    (header, Some(payload)) => signed(header, payload),
    (body, None) => check(body),
});

/// The reader of bytes and the reader of values agree, except on members that appear twice.
fn check(body: &[u8]) {
    let Some((header, payload)) = acme_jws(body, &KEY.ec) else {
        return;
    };
    let value: Value = from_slice(body).unwrap();
    assert_eq!(inner_acme_jws(&value, &KEY.ec), Some((header, payload.clone())));
    if let Some(payload) = payload {
        assert_eq!(value["payload"], URL_SAFE_NO_PAD.encode(payload));
    }
}

fn signed(header: &[u8], payload: &[u8]) {
    let (protected, encoded) = (URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let signature = KEY.sign_fixed(format!("{protected}.{encoded}").as_bytes());
    let signature = URL_SAFE_NO_PAD.encode(signature);
    let body = json!({"protected": protected, "payload": encoded, "signature": signature}).to_string();
    let Some(((alg, url, nonce, kid, jwk), verified)) = acme_jws(body.as_bytes(), &KEY.ec) else {
        return;
    };
    // An unknown member may have a text that only a reader of values rejects.
    let Ok(header) = from_slice::<Value>(header) else {
        return;
    };
    assert_eq!(header["alg"], alg);
    assert_eq!(header["url"], url);
    assert_eq!(header["nonce"].as_str(), nonce.as_deref());
    assert_eq!(header["kid"].as_str(), kid.as_deref());
    assert!(header.get("crit").is_none());
    assert_eq!(verified.as_deref(), (alg == "ES256").then_some(payload));
    if let Some(key) = jwk.and_then(|jwk| EcKey::from_jwk(&jwk).ok()) {
        assert_eq!(EcKey::from_spki_der(key.spki_der()), Ok(key));
    }
}
