//! The head of a request to the agent's proxy, as a local program or a web page sends it.

#![no_main]

use std::net::IpAddr;

use assay_agent::fuzzing::prepare_proxied_request;
use http::{HeaderMap, Request, header, request::Parts};
use libfuzzer_sys::fuzz_target;

const HOP_BY_HOP: [&str; 11] = [
    "connection",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

fuzz_target!(|bytes: &[u8]| {
    let Some(head) = parse(bytes) else { return };
    let mut on_socket = head.clone();
    let socket = prepare_proxied_request(&mut on_socket, false);
    if let Ok(target) = &socket {
        check(&head, &on_socket, target);
    }
    let mut on_loopback = head.clone();
    if let Ok(target) = prepare_proxied_request(&mut on_loopback, true) {
        // Whatever a loopback address accepts, a Unix socket accepts, too.
        assert_eq!(socket.as_ref(), Ok(&target));
        assert_eq!(on_socket.headers, on_loopback.headers);
        assert!(is_this_machine(&head.headers));
        assert!(
            head.headers
                .get_all("sec-fetch-site")
                .iter()
                .all(|site| site == "none" || site == "same-origin")
        );
        let origins = head.headers.get_all(header::ORIGIN);
        assert!(
            origins
                .iter()
                .all(|origin| origin.as_bytes().to_ascii_lowercase().starts_with(b"http://"))
        );
    }
});

fn check(before: &Parts, after: &Parts, target: &str) {
    assert!(target.starts_with('/'));
    assert_eq!(Some(target), before.uri.path_and_query().map(|path| path.as_str()));
    assert!(HOP_BY_HOP.iter().all(|name| !after.headers.contains_key(*name)));
    let named = before.headers.get_all(header::CONNECTION);
    for name in named
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
    {
        let name = name.trim().to_ascii_lowercase();
        assert!(
            name == "via" || !after.headers.contains_key(name.as_str()),
            "{name} is left"
        );
    }
    let added = after.headers.get_all(header::VIA).iter().next_back();
    assert_eq!(added.unwrap(), "1.1 assay-agent");
    for (name, value) in after.headers.iter().filter(|(name, _)| *name != header::VIA) {
        assert!(before.headers.get_all(name).iter().any(|other| other == value));
    }
}

/// One `Host` header, and in it localhost or a loopback address, without a user. Written without `Authority`.
fn is_this_machine(headers: &HeaderMap) -> bool {
    let hosts: Vec<_> = headers.get_all(header::HOST).iter().collect();
    let [host] = hosts.as_slice() else { return false };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    !host.contains('@')
        && (name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()))
}

fn parse(bytes: &[u8]) -> Option<Parts> {
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut head = httparse::Request::new(&mut headers);
    if !head.parse(bytes).ok()?.is_complete() {
        return None;
    }
    let mut request = Request::builder().method(head.method?).uri(head.path?);
    for header in head.headers.iter() {
        request = request.header(header.name, header.value);
    }
    Some(request.body(()).ok()?.into_parts().0)
}
