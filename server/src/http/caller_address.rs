//! Determines the caller's address: that of the peer, or the one forwarded by a proxy that terminates TLS.

use std::net::{IpAddr, SocketAddr};

use axum::{
    extract::{ConnectInfo, Request},
    http::HeaderMap,
};

use super::rate_limit::CallerAddress;

/// What the peers of connections are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peers {
    /// The callers themselves. Forwarding headers are ignored, because callers could forge them.
    Callers,
    /// A proxy, which appends the caller's address to `X-Forwarded-For`.
    Proxy,
}

/// Records the caller's address in the request.
pub(super) fn determine(peers: Peers, request: &mut Request) {
    let peer = request
        .extensions()
        .get::<ConnectInfo<SocketAddr>>()
        .map(|ConnectInfo(peer)| peer.ip());
    let forwarded = (peers == Peers::Proxy)
        .then(|| forwarded_for(request.headers()))
        .flatten();
    if let Some(address) = forwarded.or(peer) {
        request.extensions_mut().insert(CallerAddress(address.to_canonical()));
    }
}

/// The last entry of the last header, which the proxy wrote. The caller can forge the entries before it.
fn forwarded_for(headers: &HeaderMap) -> Option<IpAddr> {
    let last = headers.get_all("x-forwarded-for").iter().next_back()?;
    last.to_str().ok()?.rsplit(',').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_entry_of_the_proxy_is_used() {
        let mut headers = HeaderMap::new();
        assert_eq!(forwarded_for(&headers), None);
        headers.append("x-forwarded-for", "192.0.2.1, 198.51.100.7".parse().unwrap());
        assert_eq!(forwarded_for(&headers), Some(IpAddr::from([198, 51, 100, 7])));
        headers.append("x-forwarded-for", "203.0.113.9".parse().unwrap());
        assert_eq!(forwarded_for(&headers), Some(IpAddr::from([203, 0, 113, 9])));
        headers.append("x-forwarded-for", "nonsense".parse().unwrap());
        assert_eq!(forwarded_for(&headers), None);
    }
}
