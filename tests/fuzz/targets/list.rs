//! The queries of lists, with their cursors. An input is a path with a query.

#![no_main]

use std::collections::BTreeMap;

use assay_server::fuzzing::{ListRequest, list};
use http::Uri;
use libfuzzer_sys::fuzz_target;
use url::form_urlencoded::{Serializer, parse};

fuzz_target!(|text: &str| {
    let Ok(uri) = text.parse::<Uri>() else { return };
    for is_by_serial_number in [false, true] {
        let request = list(&uri, is_by_serial_number);
        if let Some(request) = &request {
            check(&uri, request, is_by_serial_number);
        }
        if is_by_serial_number && let Some((filters, rows, Some(cursor))) = &request {
            // A filter that appears twice is one of the list's, and `filters` has only one of the two.
            let others = parse(uri.query().unwrap_or_default().as_bytes()).filter(|(name, _)| name != "limit");
            if uri.path().starts_with('/') && others.count() == filters.len() + 1 {
                again(uri.path(), filters, *rows, cursor);
            }
        }
    }
});

/// A cursor that the server writes is accepted for the same list, and refused for another one.
fn again(path: &str, filters: &BTreeMap<String, String>, rows: i64, cursor: &str) {
    let query = Serializer::new(String::new())
        .extend_pairs(filters)
        .append_pair("cursor", cursor)
        .append_pair("limit", &(rows - 1).to_string())
        .finish();
    if query.len() > 8 * 1024 {
        return;
    }
    let same: Uri = format!("{path}?{query}").parse().unwrap();
    let same = list(&same, true).unwrap();
    assert_eq!((&same.0, same.1, same.2.as_deref()), (filters, rows, Some(cursor)));
    let other: Uri = format!("{path}/other?{query}").parse().unwrap();
    assert_eq!(list(&other, true), None);
}

fn check(uri: &Uri, (filters, rows, cursor): &ListRequest, is_by_serial_number: bool) {
    assert!((2..=501).contains(rows));
    let query: Vec<_> = parse(uri.query().unwrap_or_default().as_bytes()).collect();
    let value = |wanted: &str| {
        query
            .iter()
            .find(|(name, _)| name == wanted)
            .map(|(_, value)| value.as_ref())
    };
    // Exactly one text stands for a position.
    assert_eq!(
        cursor.as_deref(),
        value("cursor"),
        "by serial number: {is_by_serial_number}"
    );
    assert_eq!(*rows - 1, value("limit").map_or(50, |limit| limit.parse().unwrap()));
    for (name, filter) in filters {
        assert!(query.iter().any(|(other, value)| other == name && value == filter));
    }
}
