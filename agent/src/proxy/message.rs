//! How the proxy changes messages, and which requests it rejects.
//!
//! On a loopback address, every program of this machine can reach the proxy. This includes browsers, which send
//! requests for any web page. The `Host` header reveals a foreign page whose name resolves to 127.0.0.1 (DNS
//! rebinding). `Origin`, `Sec-Fetch-Site` or `Referer` reveal cross-origin requests.

use std::net::IpAddr;

use hyper::{
    HeaderMap, Method, StatusCode, Uri,
    header::{
        CONNECTION, EXPECT, HOST, HeaderName, HeaderValue, ORIGIN, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, REFERER,
        TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
    },
    http::{request, response, uri::Authority},
};
use url::Url;

const VIA_AGENT: HeaderValue = HeaderValue::from_static("1.1 assay-agent");
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Headers that apply to one connection (RFC 9110, section 7.6.1), in addition to those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 10] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    // hyper has already answered it.
    EXPECT,
];

/// Where the proxy listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Site {
    Loopback,
    /// Browsers cannot use Unix sockets.
    UnixSocket,
}

/// Why a request is rejected.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum RejectedRequest {
    #[error("this proxy forwards to one service: send requests with a path, as to a server")]
    NoPath,
    #[error("the request must have exactly one Host header")]
    NoHost,
    #[error("the Host header {0:?} is not localhost or a loopback address")]
    OtherHost(String),
    #[error("the request comes from a web page of {0:?}, which must not use this machine's identity")]
    OtherSite(String),
    #[error("the proxy does not forward protocol upgrades (Upgrade: {0})")]
    Upgrade(String),
}

impl RejectedRequest {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::NoPath | Self::NoHost => StatusCode::BAD_REQUEST,
            Self::OtherHost(_) | Self::OtherSite(_) => StatusCode::FORBIDDEN,
            Self::Upgrade(_) => StatusCode::NOT_IMPLEMENTED,
        }
    }
}

/// Checks a request, removes its hop-by-hop headers, and returns the path with its query.
pub(crate) fn prepare_request(head: &mut request::Parts, site: Site) -> Result<String, RejectedRequest> {
    let target = path(&head.method, &head.uri)?;
    if site == Site::Loopback {
        check_site(&head.headers)?;
    }
    if let Some(upgrade) = head.headers.get(UPGRADE) {
        let upgrade = String::from_utf8_lossy(upgrade.as_bytes()).into_owned();
        // Some clients offer an upgrade to `h2c` with every request and work without it (RFC 7540, section 3.2).
        if !upgrade.eq_ignore_ascii_case("h2c") {
            return Err(RejectedRequest::Upgrade(upgrade));
        }
    }
    remove_hop_by_hop(&mut head.headers);
    head.headers.remove(HOST);
    head.headers.append(VIA, VIA_AGENT);
    Ok(target)
}

/// Removes the hop-by-hop headers of a response.
pub(super) fn prepare_response(head: &mut response::Parts) {
    remove_hop_by_hop(&mut head.headers);
    head.headers.append(VIA, VIA_AGENT);
    head.version = hyper::Version::HTTP_11;
    head.extensions.clear();
}

fn path(method: &Method, uri: &Uri) -> Result<String, RejectedRequest> {
    let is_for_a_server = uri.scheme().is_none() && uri.authority().is_none() && *method != Method::CONNECT;
    let path = uri
        .path_and_query()
        .filter(|path| is_for_a_server && path.as_str().starts_with('/'));
    path.map(|path| path.as_str().to_owned()).ok_or(RejectedRequest::NoPath)
}

fn check_site(headers: &HeaderMap) -> Result<(), RejectedRequest> {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(RejectedRequest::NoHost);
    };
    let text = String::from_utf8_lossy(host.as_bytes()).into_owned();
    let Some(host) = text.parse::<Authority>().ok().filter(is_this_machine) else {
        return Err(RejectedRequest::OtherHost(text));
    };
    for origin in headers.get_all(ORIGIN) {
        // A page that was loaded through this proxy has the proxy's own origin.
        let own = format!("http://{host}");
        if !origin.as_bytes().eq_ignore_ascii_case(own.as_bytes()) {
            return Err(RejectedRequest::OtherSite(
                String::from_utf8_lossy(origin.as_bytes()).into_owned(),
            ));
        }
    }
    for site in headers.get_all(FETCH_SITE) {
        if !matches!(site.as_bytes(), b"same-origin" | b"none") {
            return Err(RejectedRequest::OtherSite(
                String::from_utf8_lossy(site.as_bytes()).into_owned(),
            ));
        }
    }
    // Safari before 16.4 sends neither of these with a GET.
    for referrer in headers.get_all(REFERER) {
        if !is_page_of(referrer, &host) {
            return Err(RejectedRequest::OtherSite(
                String::from_utf8_lossy(referrer.as_bytes()).into_owned(),
            ));
        }
    }
    Ok(())
}

/// Whether a referrer is a page that was loaded through this proxy.
fn is_page_of(referrer: &HeaderValue, host: &Authority) -> bool {
    let page = referrer.to_str().ok().and_then(|page| Url::parse(page).ok());
    let own = Url::parse(&format!("http://{host}")).ok();
    let has_no_user = page.as_ref().is_some_and(|page| page.username().is_empty());
    has_no_user && page.map(|page| page.origin()) == own.map(|own| own.origin())
}

fn is_this_machine(host: &Authority) -> bool {
    let name = host.host();
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let has_user = host.as_str().contains('@');
    !has_user && (name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback()))
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<_> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse::<HeaderName>().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use hyper::Request;
    use rstest::rstest;

    use super::*;

    fn request(target: &str, headers: &[(&str, &str)]) -> request::Parts {
        let mut request = Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[rstest]
    #[case("localhost")]
    #[case("LOCALHOST:8080")]
    #[case("127.0.0.1:8080")]
    #[case("[::1]:8080")]
    fn requests_with_a_local_host_are_accepted(#[case] host: &str) {
        let mut head = request("/a?b=c", &[("host", host), ("origin", &format!("http://{host}"))]);
        assert_eq!(prepare_request(&mut head, Site::Loopback).unwrap(), "/a?b=c");
        assert!(!head.headers.contains_key(HOST));
        assert_eq!(head.headers[VIA], "1.1 assay-agent");
    }

    #[test]
    fn a_page_of_the_proxy_itself_may_be_the_referrer() {
        for referrer in ["http://localhost:80/a?b", "HTTP://LOCALHOST:80", "http://localhost/"] {
            let mut head = request("/", &[("host", "localhost:80"), ("referer", referrer)]);
            assert!(prepare_request(&mut head, Site::Loopback).is_ok(), "{referrer}");
        }
    }

    #[rstest]
    #[case::rebound("/", &[("host", "evil.example.com")], StatusCode::FORBIDDEN)]
    #[case::rebound_name("/", &[("host", "localhost.evil.example.com:80")], StatusCode::FORBIDDEN)]
    #[case::user("/", &[("host", "localhost@evil.example.com")], StatusCode::FORBIDDEN)]
    #[case::no_address("/", &[("host", "127.0.0.1.nip.io")], StatusCode::FORBIDDEN)]
    #[case::garbage("/", &[("host", "a b")], StatusCode::FORBIDDEN)]
    #[case::no_host("/", &[], StatusCode::BAD_REQUEST)]
    #[case::two_hosts("/", &[("host", "localhost"), ("host", "localhost")], StatusCode::BAD_REQUEST)]
    #[case::other_origin("/", &[("host", "localhost:80"), ("origin", "https://evil.example.com")], StatusCode::FORBIDDEN)]
    #[case::null_origin("/", &[("host", "localhost:80"), ("origin", "null")], StatusCode::FORBIDDEN)]
    #[case::other_port("/", &[("host", "localhost:80"), ("origin", "http://localhost:81")], StatusCode::FORBIDDEN)]
    #[case::image("/", &[("host", "localhost"), ("sec-fetch-site", "cross-site")], StatusCode::FORBIDDEN)]
    #[case::same_site("/", &[("host", "localhost"), ("sec-fetch-site", "same-site")], StatusCode::FORBIDDEN)]
    #[case::old_browser("/", &[("host", "localhost:80"), ("referer", "https://evil.example.com/")], StatusCode::FORBIDDEN)]
    #[case::referrer_of_other_port("/", &[("host", "localhost:80"), ("referer", "http://localhost:81/")], StatusCode::FORBIDDEN)]
    #[case::referrer_with_user("/", &[("host", "localhost"), ("referer", "http://localhost@evil.example.com/")], StatusCode::FORBIDDEN)]
    #[case::unreadable_referrer("/", &[("host", "localhost"), ("referer", "about:blank")], StatusCode::FORBIDDEN)]
    #[case::second_referrer("/", &[("host", "localhost"), ("referer", "http://localhost/"), ("referer", "http://a/")], StatusCode::FORBIDDEN)]
    #[case::forward_proxy("http://localhost/", &[("host", "localhost")], StatusCode::BAD_REQUEST)]
    #[case::no_path("*", &[("host", "localhost")], StatusCode::BAD_REQUEST)]
    #[case::upgrade("/", &[("host", "localhost"), ("upgrade", "websocket")], StatusCode::NOT_IMPLEMENTED)]
    fn other_requests_are_rejected(#[case] target: &str, #[case] headers: &[(&str, &str)], #[case] status: StatusCode) {
        let refused = prepare_request(&mut request(target, headers), Site::Loopback).unwrap_err();
        assert_eq!(refused.status(), status, "{refused}");
    }

    #[test]
    fn hop_by_hop_headers_are_removed() {
        let headers = [
            ("host", "localhost"),
            ("connection", "close, X-Private"),
            ("x-private", "a"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("proxy-authorization", "Basic x"),
            ("upgrade", "h2c"),
            ("x-public", "b"),
            ("authorization", "Bearer own"),
        ];
        let mut head = request("/", &headers);
        prepare_request(&mut head, Site::Loopback).unwrap();
        let mut left: Vec<_> = head.headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization", "via", "x-public"]);
    }

    #[test]
    fn a_unix_socket_accepts_any_host() {
        prepare_request(&mut request("/", &[("host", "service")]), Site::UnixSocket).unwrap();
        prepare_request(&mut request("/", &[]), Site::UnixSocket).unwrap();
    }
}
