//! What counts as one address for limits.

use std::net::{IpAddr, Ipv6Addr};

/// An IPv4 address, or the /64 of an IPv6 address: a provider gives every customer at least a /64, so one caller has
/// 2⁶⁴ addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Network(IpAddr);

impl Network {
    pub(crate) fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
            IpAddr::V4(address) => address.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::same_64("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", true)]
    #[case::next_64("2001:db8:1:2::1", "2001:db8:1:3::1", false)]
    #[case::ipv4("192.0.2.1", "192.0.2.2", false)]
    #[case::mapped_ipv4("192.0.2.1", "::ffff:192.0.2.1", true)]
    fn addresses_of_one_caller_are_one_network(#[case] one: IpAddr, #[case] other: IpAddr, #[case] is_one: bool) {
        assert_eq!(Network::of(one) == Network::of(other), is_one);
    }
}
