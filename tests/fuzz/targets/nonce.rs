//! Nonces. An input is a nonce; or 24 bytes: a time, an order, and randomness, for which the target computes the MAC.

#![no_main]

use assay_fuzz::NOW;
use assay_server::fuzzing::{issue_nonce, recognize_nonce};
use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use libfuzzer_sys::fuzz_target;
use time::{Duration, OffsetDateTime};

const KEY: [u8; 32] = [7; 32];

fuzz_target!(|input: &[u8]| {
    if let Ok(nonce) = str::from_utf8(input) {
        assert_eq!(recognize_nonce(&KEY, nonce, NOW), None, "forged");
    }
    if let Ok(body) = <[u8; 24]>::try_from(input) {
        genuine(body);
    }
});

fn genuine(body: [u8; 24]) {
    let mac = sign(&Key::new(HMAC_SHA256, &KEY), &body);
    let nonce = URL_SAFE_NO_PAD.encode([&body, &mac.as_ref()[..16]].concat());
    let recognized = recognize_nonce(&KEY, &nonce, NOW);
    let (issued_at, order) = (time(&body[..8]), time(&body[8..16]));
    let expected = match (issued_at.map(|issued_at| NOW - issued_at), order) {
        (Some(age), Some(order)) if age <= Duration::seconds(300) => Some((order, age < -Duration::MINUTE)),
        _ => None,
    };
    assert_eq!(recognized, expected);
    assert_eq!(recognize_nonce(&[8; 32], &nonce, NOW), None);
    // The next nonce of a machine that used this one has a later order.
    if let Some((order, false)) = recognized {
        let next = issue_nonce(&KEY, NOW, Some(order));
        let (next, _) = recognize_nonce(&KEY, &next, NOW).unwrap();
        assert!(next > order || next.year() == 9999);
    }
}

fn time(microseconds: &[u8]) -> Option<OffsetDateTime> {
    let microseconds = i64::from_be_bytes(microseconds.try_into().unwrap());
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(microseconds) * 1000).ok()
}
