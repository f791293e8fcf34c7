//! Continuity values. An input is a value; or 24 bytes: an order, and the number of a machine.

#![no_main]

use assay_server::fuzzing::{issue_continuity, recognize_continuity};
use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use libfuzzer_sys::fuzz_target;
use time::OffsetDateTime;
use uuid::Uuid;

const NONCE_KEY: [u8; 32] = [7; 32];

fuzz_target!(|input: &[u8]| {
    let machine_id = Uuid::from_u128(7);
    if let Ok(value) = str::from_utf8(input)
        && let Some(order) = recognize_continuity(&NONCE_KEY, machine_id, value)
    {
        // Exactly one text stands for an order.
        assert_eq!(issue_continuity(&NONCE_KEY, machine_id, order), value);
    }
    if let Some((order, number)) = input.split_first_chunk::<8>()
        && let Ok(number) = number.try_into()
    {
        genuine(*order, Uuid::from_bytes(number));
    }
});

/// Written by hand: any order, with a valid MAC.
fn genuine(order: [u8; 8], machine_id: Uuid) {
    let key = sign(&Key::new(HMAC_SHA256, &NONCE_KEY), b"assay continuity 1\x01");
    let key = Key::new(HMAC_SHA256, key.as_ref());
    let mac = sign(&key, &[machine_id.as_bytes().as_slice(), &order].concat());
    let value = URL_SAFE_NO_PAD.encode([&order, &mac.as_ref()[..16]].concat());
    let nanoseconds = i128::from(i64::from_be_bytes(order)) * 1000;
    let order = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).ok();
    assert_eq!(recognize_continuity(&NONCE_KEY, machine_id, &value), order);
    let other = Uuid::from_u128(machine_id.as_u128() ^ 1);
    assert_eq!(recognize_continuity(&NONCE_KEY, other, &value), None);
    assert_eq!(recognize_continuity(&[8; 32], machine_id, &value), None);
    if let Some(order) = order {
        assert_eq!(issue_continuity(&NONCE_KEY, machine_id, order), value);
    }
}
