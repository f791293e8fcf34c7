//! Networks in CIDR notation.

use std::net::IpAddr;

use ipnet::IpNet;

/// The text is neither an address nor a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it must be an address or a network, such as 192.0.2.7 or 10.0.0.0/8")]
pub struct NotANetwork;

/// Parses a network, or an address as the network of that address alone. Bits after the prefix are dropped.
pub(crate) fn parse(text: &str) -> Result<IpNet, NotANetwork> {
    let network: Result<IpNet, _> = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network.map(|network| network.trunc()).map_err(|_| NotANetwork)
}

/// Whether one of the networks contains the address. A network that cannot be parsed contains none.
pub(crate) fn contain(networks: &[String], address: IpAddr) -> bool {
    let address = address.to_canonical();
    let mut parsed = networks.iter().filter_map(|network| parse(network).ok());
    parsed.any(|network| network.contains(&address))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("10.1.2.3/8", Some("10.0.0.0/8"))]
    #[case("192.0.2.7", Some("192.0.2.7/32"))]
    #[case("2001:db8::1/32", Some("2001:db8::/32"))]
    #[case("::1", Some("::1/128"))]
    #[case("0.0.0.0/0", Some("0.0.0.0/0"))]
    #[case("10.0.0.0/33", None)]
    #[case("10.0.0/8", None)]
    #[case("example.com", None)]
    #[case("", None)]
    fn a_network_is_shown_without_the_bits_after_its_prefix(#[case] text: &str, #[case] shown: Option<&str>) {
        assert_eq!(parse(text).ok().map(|network| network.to_string()).as_deref(), shown);
    }

    #[rstest]
    #[case("10.9.9.9", true)]
    #[case("::ffff:10.9.9.9", true)]
    #[case("11.0.0.0", false)]
    #[case("2001:db8:ffff::1", true)]
    #[case("2001:db9::1", false)]
    fn an_address_is_compared_with_every_network(#[case] address: &str, #[case] is_contained: bool) {
        let networks = ["10.0.0.0/8", "2001:db8::/32", "nonsense"].map(str::to_owned);
        assert_eq!(contain(&networks, address.parse().unwrap()), is_contained);
    }
}
