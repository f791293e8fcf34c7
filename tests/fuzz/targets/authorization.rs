//! The header `Authorization` of the admin API.

#![no_main]

use assay_server::fuzzing::presented_key;
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|value: &[u8]| {
    let Ok(header) = HeaderValue::from_bytes(value) else {
        return;
    };
    let headers = HeaderMap::from_iter([(AUTHORIZATION, header)]);
    let [bearer, either] = [false, true].map(|accepts_basic| presented_key(&headers, accepts_basic));
    if let Some(key) = &bearer {
        assert_eq!(either.as_ref(), Some(key));
        assert!(value[..6].eq_ignore_ascii_case(b"bearer") && key.trim() == key.as_str());
        same(&format!("Bearer {}", **key), key);
    } else if let Some(key) = &either {
        assert!(value[..5].eq_ignore_ascii_case(b"basic"));
        same(&format!("Basic {}", STANDARD.encode(format!("user:{}", **key))), key);
    }
});

/// The key is the same when the header is written again.
fn same(header: &str, key: &str) {
    let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(header).unwrap())]);
    assert_eq!(presented_key(&headers, true).unwrap().as_str(), key);
}
