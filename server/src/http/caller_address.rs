//! Determines the caller's address: that of the peer, or the one that a trusted proxy forwards.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{ConnectInfo, Request},
    http::HeaderMap,
};
use ipnet::IpNet;

use super::rate_limit::CallerAddress;

/// The peers whose `X-Forwarded-For` counts. Any other peer could forge the header, and is itself the caller.
#[derive(Debug, Clone)]
pub(crate) struct TrustedProxies(Arc<[IpNet]>);

impl TrustedProxies {
    pub(crate) fn new(networks: &[IpNet]) -> Self {
        Self(networks.into())
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    fn caller(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        match self.contains(peer) {
            true => self.forwarded_for(headers).unwrap_or(peer),
            false => peer,
        }
    }

    /// The last entry that is not a trusted proxy. Each proxy appends the address of its peer, and the caller can forge
    /// the entries before its own.
    fn forwarded_for(&self, headers: &HeaderMap) -> Option<IpAddr> {
        let values = headers.get_all("x-forwarded-for").iter().rev();
        let entries = values.flat_map(|value| value.to_str().unwrap_or_default().rsplit(','));
        let mut last_proxy = None;
        for entry in entries {
            let Ok(address) = entry.trim().parse::<IpAddr>() else {
                break;
            };
            if !self.contains(address) {
                return Some(address);
            }
            last_proxy = Some(address);
        }
        last_proxy
    }
}

/// Records the caller's address in the request.
pub(super) fn determine(trusted_proxies: &TrustedProxies, request: &mut Request) {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    if let Some(ConnectInfo(peer)) = peer {
        let address = trusted_proxies.caller(peer.ip(), request.headers()).to_canonical();
        request.extensions_mut().insert(CallerAddress(address));
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const PROXY: &str = "192.0.2.1";

    #[rstest]
    #[case::no_header(PROXY, &[], PROXY)]
    #[case::last_entry(PROXY, &["203.0.113.1, 198.51.100.7"], "198.51.100.7")]
    #[case::last_header(PROXY, &["198.51.100.7", "203.0.113.9"], "203.0.113.9")]
    #[case::second_proxy(PROXY, &["203.0.113.1, 198.51.100.7, 192.0.2.200"], "198.51.100.7")]
    #[case::only_proxies(PROXY, &["192.0.2.7"], "192.0.2.7")]
    #[case::nonsense(PROXY, &["198.51.100.7, nonsense"], PROXY)]
    #[case::nonsense_before_a_proxy(PROXY, &["nonsense, 192.0.2.7"], "192.0.2.7")]
    #[case::mapped_proxy("::ffff:192.0.2.1", &["198.51.100.7"], "198.51.100.7")]
    #[case::stranger("198.51.100.9", &["203.0.113.1"], "198.51.100.9")]
    fn a_forwarded_address_counts_only_from_a_trusted_proxy(
        #[case] peer: &str,
        #[case] forwarded: &[&str],
        #[case] caller: &str,
    ) {
        let trusted_proxies = TrustedProxies::new(&["192.0.2.0/24".parse().unwrap()]);
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append("x-forwarded-for", value.parse().unwrap());
        }
        let address = trusted_proxies.caller(peer.parse().unwrap(), &headers);
        assert_eq!(address, caller.parse::<IpAddr>().unwrap());
    }
}
