//! TLS: the server's certificate, and the certificates of machines.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::settings::Settings;
use crate::networks::{self, NotANetwork};

/// TLS of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    /// A certificate of the server's own CA, renewed automatically.
    SelfIssued,
    /// PEM files, reloaded when they change.
    Files {
        /// The chain, leaf first.
        certificate: PathBuf,
        /// The leaf's private key.
        private_key: PathBuf,
    },
    /// No TLS: a proxy terminates it.
    Upstream {
        /// The peers whose `X-Forwarded-For` counts.
        trusted_proxies: Vec<IpNet>,
    },
}

/// How certificates of machines are used in TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Clients are not asked for a certificate.
    Off,
    /// A certificate is optional. If one is presented, it must be valid.
    Optional,
    /// Check-in and renewal require a certificate.
    Required,
}

/// An address, or a network in CIDR notation.
struct AddressOrNetwork(IpNet);

impl FromStr for AddressOrNetwork {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        networks::parse(text).map(Self)
    }
}

impl Tls {
    /// The peers whose `X-Forwarded-For` counts.
    #[must_use]
    pub fn trusted_proxies(&self) -> &[IpNet] {
        match self {
            Self::Upstream { trusted_proxies } => trusted_proxies,
            Self::SelfIssued | Self::Files { .. } => &[],
        }
    }

    pub(super) fn read(settings: &mut Settings) -> Self {
        #[derive(Clone, Copy, PartialEq)]
        enum Mode {
            SelfIssued,
            Files,
            Upstream,
        }
        let modes = [
            ("self-issued", Mode::SelfIssued),
            ("files", Mode::Files),
            ("upstream", Mode::Upstream),
        ];
        let mode = settings.word("tls.mode", &modes).unwrap_or(Mode::SelfIssued);
        let mut path = |key| {
            if mode == Mode::Files {
                let path = settings.path(key);
                return settings.require(key, path);
            }
            settings.refuse_given(key, "can only be used if tls.mode is \"files\"");
            None
        };
        let files = (path("tls.certificate"), path("tls.private_key"));
        let trusted_proxies = trusted_proxies(settings, mode == Mode::Upstream);
        match (mode, files) {
            (Mode::Upstream, _) => Self::Upstream { trusted_proxies },
            (Mode::Files, (Some(certificate), Some(private_key))) => Self::Files {
                certificate,
                private_key,
            },
            // Without its files this is an error, which `settings` has.
            (Mode::SelfIssued | Mode::Files, _) => Self::SelfIssued,
        }
    }
}

/// By default a proxy on this host.
fn trusted_proxies(settings: &mut Settings, is_upstream: bool) -> Vec<IpNet> {
    const KEY: &str = "tls.trusted_proxies";
    if !is_upstream {
        settings.refuse_given(KEY, "can only be used if tls.mode is \"upstream\"");
    }
    let given = settings.list::<AddressOrNetwork>(KEY);
    given.map_or_else(loopback, |given| given.into_iter().map(|network| network.0).collect())
}

fn loopback() -> Vec<IpNet> {
    let ipv4 = Ipv4Net::new(Ipv4Addr::LOCALHOST, 8).map(|network| IpNet::V4(network.trunc()));
    let ipv6 = Ipv6Net::from(Ipv6Addr::LOCALHOST).into();
    ipv4.into_iter().chain([ipv6]).collect()
}

impl ClientCertificates {
    pub(super) fn read(settings: &mut Settings, tls: &Tls) -> Self {
        const KEY: &str = "tls.client_certificates";
        let words = [
            ("off", Self::Off),
            ("optional", Self::Optional),
            ("required", Self::Required),
        ];
        let origin = settings.origin(KEY);
        let configured = settings.word(KEY, &words).unwrap_or(Self::Optional);
        if !matches!(tls, Tls::Upstream { .. }) {
            return configured;
        }
        // The proxy terminates TLS. A header with a certificate is not accepted, because anyone who reaches the port
        // could send one.
        if configured == Self::Required {
            let problem = "is \"required\", which tls.mode \"upstream\" does not allow: the proxy terminates TLS";
            let _: Option<()> = settings.refuse(KEY, origin, problem);
        }
        Self::Off
    }
}
