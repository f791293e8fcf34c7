//! What a proxy changes in a message, and which requests it does not take.
//!
//! On a loopback address it is reached by every program of this machine, browsers included, and these do what any web
//! page tells them to. A page of elsewhere that has its name resolve to 127.0.0.1 (DNS rebinding) shows in `Host`; one
//! that sends its requests across origins shows in `Origin` or, where that is left out, in `Sec-Fetch-Site`.

use std::net::IpAddr;

use hyper::{
    HeaderMap, Method, StatusCode, Uri,
    header::{
        CONNECTION, EXPECT, HOST, HeaderName, HeaderValue, ORIGIN, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
        TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
    },
    http::{request, response, uri::Authority},
};

const VIA_US: HeaderValue = HeaderValue::from_static("1.1 assay-agent");
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What concerns one connection alone (RFC 9110, section 7.6.1), beside what `Connection` names.
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
    // hyper has answered it.
    EXPECT,
];

/// Where requests come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Site {
    Loopback,
    /// No browser speaks to one.
    UnixSocket,
}

/// Why a request is not taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Misplaced {
    #[error("this proxy leads to one service: ask for a path, as of a server")]
    NoPath,
    #[error("the request names no host, or several")]
    NoHost,
    #[error("{0:?} is not this machine: a request to the proxy is for localhost or a loopback address")]
    OtherHost(String),
    #[error("the request comes from a web page of {0:?}, which is not to speak in this machine's name")]
    OtherSite(String),
    #[error("the proxy does not pass on a change of protocol (Upgrade: {0})")]
    Upgrade(String),
}

impl Misplaced {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::NoPath | Self::NoHost => StatusCode::BAD_REQUEST,
            Self::OtherHost(_) | Self::OtherSite(_) => StatusCode::FORBIDDEN,
            Self::Upgrade(_) => StatusCode::NOT_IMPLEMENTED,
        }
    }
}

/// Takes a request or refuses it, takes out of it what is for this connection alone, and says which path it is for.
pub(super) fn prepare_request(head: &mut request::Parts, site: Site) -> Result<String, Misplaced> {
    let target = path(&head.method, &head.uri)?;
    if site == Site::Loopback {
        check_site(&head.headers)?;
    }
    if let Some(upgrade) = head.headers.get(UPGRADE) {
        let upgrade = String::from_utf8_lossy(upgrade.as_bytes()).into_owned();
        // Clients offer this one beside what they ask for, and do without (RFC 7540, section 3.2).
        if !upgrade.eq_ignore_ascii_case("h2c") {
            return Err(Misplaced::Upgrade(upgrade));
        }
    }
    remove_hop_by_hop(&mut head.headers);
    head.headers.remove(HOST);
    head.headers.append(VIA, VIA_US);
    Ok(target)
}

/// Takes out of an answer what was for the other connection alone.
pub(super) fn prepare_answer(head: &mut response::Parts) {
    remove_hop_by_hop(&mut head.headers);
    head.headers.append(VIA, VIA_US);
    head.version = hyper::Version::HTTP_11;
    head.extensions.clear();
}

fn path(method: &Method, uri: &Uri) -> Result<String, Misplaced> {
    let is_for_a_server = uri.scheme().is_none() && uri.authority().is_none() && *method != Method::CONNECT;
    let path = uri
        .path_and_query()
        .filter(|path| is_for_a_server && path.as_str().starts_with('/'));
    path.map(|path| path.as_str().to_owned()).ok_or(Misplaced::NoPath)
}

fn check_site(headers: &HeaderMap) -> Result<(), Misplaced> {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(Misplaced::NoHost);
    };
    let text = String::from_utf8_lossy(host.as_bytes()).into_owned();
    let Some(host) = text.parse::<Authority>().ok().filter(is_this_machine) else {
        return Err(Misplaced::OtherHost(text));
    };
    for origin in headers.get_all(ORIGIN) {
        // A page that the service itself gave through this proxy is of this very origin.
        let own = format!("http://{host}");
        if !origin.as_bytes().eq_ignore_ascii_case(own.as_bytes()) {
            return Err(Misplaced::OtherSite(
                String::from_utf8_lossy(origin.as_bytes()).into_owned(),
            ));
        }
    }
    for site in headers.get_all(FETCH_SITE) {
        if !matches!(site.as_bytes(), b"same-origin" | b"none") {
            return Err(Misplaced::OtherSite(
                String::from_utf8_lossy(site.as_bytes()).into_owned(),
            ));
        }
    }
    Ok(())
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
    fn a_request_to_this_machine_is_taken(#[case] host: &str) {
        let mut head = request("/a?b=c", &[("host", host), ("origin", &format!("http://{host}"))]);
        assert_eq!(prepare_request(&mut head, Site::Loopback).unwrap(), "/a?b=c");
        assert!(!head.headers.contains_key(HOST));
        assert_eq!(head.headers[VIA], "1.1 assay-agent");
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
    #[case::forward_proxy("http://localhost/", &[("host", "localhost")], StatusCode::BAD_REQUEST)]
    #[case::no_path("*", &[("host", "localhost")], StatusCode::BAD_REQUEST)]
    #[case::upgrade("/", &[("host", "localhost"), ("upgrade", "websocket")], StatusCode::NOT_IMPLEMENTED)]
    fn what_is_not_for_the_proxy_is_refused(
        #[case] target: &str,
        #[case] headers: &[(&str, &str)],
        #[case] status: StatusCode,
    ) {
        let refused = prepare_request(&mut request(target, headers), Site::Loopback).unwrap_err();
        assert_eq!(refused.status(), status, "{refused}");
    }

    #[test]
    fn what_is_for_one_connection_goes_no_further() {
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
    fn a_unix_socket_has_no_name_to_be_called_by() {
        prepare_request(&mut request("/", &[("host", "service")]), Site::UnixSocket).unwrap();
        prepare_request(&mut request("/", &[]), Site::UnixSocket).unwrap();
    }
}
