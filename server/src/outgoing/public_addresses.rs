//! Connecting to public addresses only. A URL that an administrator chose then cannot reach the server's own host, its
//! network, or the metadata service of a cloud.
//!
//! The check follows the resolution of the name, at each connection. A check of the URL alone would miss a name that
//! resolves to a private address, also one that its owner changes afterwards.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::net::lookup_host;
use url::{Host, Url};

/// The host has an address that is not public.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the host has the address {0}, which is not public; webhooks.private_addresses denies it")]
pub(super) struct NotPublic(IpAddr);

/// Resolves a name, and fails if one of its addresses is not public.
pub(super) struct PublicAddresses;

impl Resolve for PublicAddresses {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            // The port is replaced by that of the URL.
            let addresses: Vec<SocketAddr> = lookup_host((name.as_str(), 0)).await?.collect();
            match addresses.iter().find(|address| !is_public(address.ip())) {
                Some(address) => Err(io::Error::other(NotPublic(address.ip())).into()),
                None => Ok(Box::new(addresses.into_iter()) as Addrs),
            }
        })
    }
}

/// Checks a host that is an address, which is never resolved.
pub(super) fn check_literal(url: &str) -> Result<(), NotPublic> {
    let url = Url::parse(url).ok();
    let address = match url.as_ref().and_then(Url::host) {
        Some(Host::Ipv4(address)) => IpAddr::V4(address),
        Some(Host::Ipv6(address)) => IpAddr::V6(address),
        Some(Host::Domain(_)) | None => return Ok(()),
    };
    match is_public(address) {
        true => Ok(()),
        false => Err(NotPublic(address)),
    }
}

/// Whether an address is reachable from everywhere, by the registries of special-purpose addresses (RFC 6890). An IPv6
/// address that contains an IPv4 address is judged by that.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => embedded_v4(address).map_or_else(|| is_public_v6(address), is_public_v4),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let special = match address.octets() {
        // This network, shared address space, IETF protocol assignments, benchmarking, and everything from multicast on.
        [0, ..] | [100, 64..=127, ..] | [192, 0, 0, _] | [198, 18..=19, ..] | [224..=255, ..] => true,
        // The relay of 6to4.
        [192, 88, 99, _] => true,
        _ => false,
    };
    !(special || address.is_private() || address.is_loopback() || address.is_link_local() || address.is_documentation())
}

/// Global unicast addresses are those of 2000::/3, apart from some blocks.
fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        // IETF protocol assignments (with Teredo and ORCHID), and documentation.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        [first, ..] => (0x2000..=0x3fff).contains(&first),
    }
}

/// The IPv4 address in a mapped (`::ffff:0:0/96`), translated (`64:ff9b::/96`) or 6to4 (`2002::/16`) address.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let of = |high: u16, low: u16| Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low));
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(of(high, low)),
        [0x2002, high, low, ..] => Some(of(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    fn these_are_public(
        #[values(
            "1.1.1.1",
            "93.184.216.34",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.17.0.1",
            "223.255.255.255",
            "2606:4700::1",
            "2a00:1450:4001::200e",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
            "2002:101:101::"
        )]
        address: IpAddr,
    ) {
        assert!(is_public(address));
    }

    #[rstest]
    fn these_are_not(
        #[values(
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:a00:1::",
            "3fff::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "5f00::1"
        )]
        address: IpAddr,
    ) {
        assert!(!is_public(address));
    }

    #[rstest]
    #[case("https://example.com/", true)]
    #[case("https://1.1.1.1/", true)]
    #[case("http://127.0.0.1:8080/", false)]
    #[case("https://[::ffff:127.0.0.1]/", false)]
    #[case("https://2130706433/", false)]
    #[case("https://0x7f.1/", false)]
    fn a_literal_address_is_checked_in_every_form(#[case] url: &str, #[case] is_fine: bool) {
        assert_eq!(check_literal(url).is_ok(), is_fine);
    }
}
