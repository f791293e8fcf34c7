//! Where relying parties read revocation lists, OCSP responses and CA certificates.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use url::Url;

use super::{DAY, MINUTE, PublicUrl, settings::Settings};

const LISTEN: &str = "revocation.listen";
const URL: &str = "revocation.url";
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8080);

/// Revocation status over plain HTTP.
#[derive(Clone, Debug)]
pub struct Revocation {
    /// Where lists, OCSP responses and CA certificates are served over plain HTTP. `None` if they are not.
    pub listen: Option<SocketAddr>,
    /// The base of their URLs in certificates.
    pub url: RevocationUrl,
    /// How long a revocation list is valid.
    pub list_lifetime: Duration,
}

/// The base of the revocation URLs in certificates: an origin, without a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevocationUrl {
    url: Url,
    /// Whether the port is that of the listener.
    follows_listener: bool,
}

/// Why a text is not a valid revocation URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RevocationUrlError {
    /// Not a URL with a host.
    #[error("it must be a URL, such as http://assay.example.com:8080")]
    NotAUrl,
    /// More than an origin.
    #[error("it must end after host and port")]
    NotAnOrigin,
    /// TLS. A verifier would need the status of one certificate to ask for that of another.
    #[error("it must begin with http:// (RFC 5280, section 8), or be public_url")]
    NotHttp,
}

/// An address, or `off`.
enum Listen {
    On(SocketAddr),
    Off,
}

impl FromStr for Listen {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            address => (address.parse().map(Self::On))
                .map_err(|_| "it must be an address with a port, such as 0.0.0.0:8080, or off"),
        }
    }
}

impl Revocation {
    /// `public_url` is `None` if it is missing or invalid, which is an error of its own. `api` is where the API listens.
    pub(super) fn read(settings: &mut Settings, public_url: Option<&PublicUrl>, api: SocketAddr) -> Option<Self> {
        let origin = settings.origin(LISTEN);
        let listen = match settings.parsed(LISTEN) {
            None => Some(DEFAULT_LISTEN),
            Some(Listen::On(address)) => Some(address),
            Some(Listen::Off) => None,
        };
        // Otherwise the start would fail only after it has migrated the database.
        if let Some(address) = listen.filter(|address| overlap(*address, api)) {
            let problem = format!("is {address}, which overlaps with listen, {api}: set another port, or \"off\"");
            return settings.refuse(LISTEN, origin, &problem);
        }
        let list_lifetime = settings.duration("revocation.list_lifetime", 10 * MINUTE..=30 * DAY);
        let origin = settings.origin(URL);
        let given = settings.text(URL);
        let public_url = public_url?;
        let url = match given {
            None => RevocationUrl::derived(listen, public_url),
            Some(text) => match RevocationUrl::parse(&text, public_url) {
                Ok(url) => url,
                Err(error) => return settings.refuse(URL, origin, &format!("is {text:?}: {error}")),
            },
        };
        Some(Self {
            listen,
            url,
            list_lifetime: list_lifetime.unwrap_or(DAY),
        })
    }
}

/// Whether two listeners cannot both have their address. Port 0 is any free port.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let is_everywhere = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && one.port() != 0 && (is_everywhere || one.ip() == other.ip())
}

impl RevocationUrl {
    /// The URL.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The URL of the listener at this address: the port may have been chosen by the operating system.
    #[must_use]
    pub fn at(self, address: SocketAddr) -> Self {
        let mut url = self.url.clone();
        match self.follows_listener && url.set_port(Some(address.port())).is_ok() {
            true => Self { url, ..self },
            false => self,
        }
    }

    /// The host of the public URL with the listener's port. Without a listener, the API serves what certificates lead to.
    fn derived(listen: Option<SocketAddr>, public_url: &PublicUrl) -> Self {
        let plain = listen.and_then(|address| {
            let host = public_url.url().host_str()?;
            format!("http://{host}:{}", address.port()).parse().ok()
        });
        Self {
            follows_listener: plain.is_some(),
            url: plain.unwrap_or_else(|| public_url.url().clone()),
        }
    }

    fn parse(text: &str, public_url: &PublicUrl) -> Result<Self, RevocationUrlError> {
        let url: Url = text.parse().map_err(|_| RevocationUrlError::NotAUrl)?;
        if !url.has_host() {
            return Err(RevocationUrlError::NotAUrl);
        }
        if url.scheme() != "http" && url != *public_url.url() {
            return Err(RevocationUrlError::NotHttp);
        }
        let is_origin = url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        match is_origin {
            true => Ok(Self {
                url,
                follows_listener: false,
            }),
            false => Err(RevocationUrlError::NotAnOrigin),
        }
    }
}

impl fmt::Display for RevocationUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.url.as_str().trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn public_url(text: &str) -> PublicUrl {
        text.parse().unwrap()
    }

    #[rstest]
    #[case("https://assay.example.com", Some("0.0.0.0:8080"), "http://assay.example.com:8080")]
    #[case("https://assay.example.com:8443", Some("0.0.0.0:80"), "http://assay.example.com")]
    #[case("https://[::1]:8443", Some("[::1]:8080"), "http://[::1]:8080")]
    #[case("https://192.0.2.7", Some("192.0.2.7:8080"), "http://192.0.2.7:8080")]
    #[case("https://assay.example.com:8443", None, "https://assay.example.com:8443")]
    fn the_url_follows_the_listener(#[case] public: &str, #[case] listen: Option<&str>, #[case] expected: &str) {
        let listen = listen.map(|address| address.parse().unwrap());
        assert_eq!(
            RevocationUrl::derived(listen, &public_url(public)).to_string(),
            expected
        );
    }

    #[test]
    fn only_a_derived_url_takes_the_port_of_the_listener() {
        let (public, bound) = (
            public_url("https://assay.example.com"),
            "127.0.0.1:40123".parse().unwrap(),
        );
        let at = |url: RevocationUrl| url.at(bound).to_string();
        let listen = Some("127.0.0.1:0".parse().unwrap());
        assert_eq!(
            at(RevocationUrl::derived(listen, &public)),
            "http://assay.example.com:40123"
        );
        let given = RevocationUrl::parse("http://pki.example.com", &public).unwrap();
        assert_eq!(at(given), "http://pki.example.com");
        assert_eq!(at(RevocationUrl::derived(None, &public)), "https://assay.example.com");
    }

    #[rstest]
    #[case("http://pki.example.com", Ok(()))]
    #[case("http://pki.example.com:8080/", Ok(()))]
    #[case("https://assay.example.com", Ok(()))]
    #[case("https://pki.example.com", Err(RevocationUrlError::NotHttp))]
    #[case("ldap://pki.example.com", Err(RevocationUrlError::NotHttp))]
    #[case("http://pki.example.com/base", Err(RevocationUrlError::NotAnOrigin))]
    #[case("http://user@pki.example.com", Err(RevocationUrlError::NotAnOrigin))]
    #[case("http://pki.example.com/?a", Err(RevocationUrlError::NotAnOrigin))]
    #[case("pki.example.com", Err(RevocationUrlError::NotAUrl))]
    fn accepts_plain_http_or_the_public_url(#[case] text: &str, #[case] expected: Result<(), RevocationUrlError>) {
        let parsed = RevocationUrl::parse(text, &public_url("https://assay.example.com"));
        assert_eq!(parsed.map(drop), expected);
    }
}
