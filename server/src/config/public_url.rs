//! The URL under which machines and relying parties reach the server.

use std::fmt;
use std::str::FromStr;

use url::{Host, Url};

/// An https origin: scheme, host and port, without a path or a final slash. It is the `aud` of evidence and the `iss`
/// of grant tokens. These are compared as strings, so only the canonical spelling is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl {
    text: String,
    url: Url,
}

impl PublicUrl {
    /// Without a final slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The parsed URL, for its host and port.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.url
    }
}

impl fmt::Display for PublicUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// Why a text is not a valid public URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublicUrlError {
    /// Not a URL with a host.
    #[error("it must be a URL, such as https://assay.example.com")]
    NotAUrl,
    /// Plain HTTP to another host.
    #[error("it must begin with https:// (plain http only for a loopback host)")]
    NotHttps,
    /// More than an origin.
    #[error("it must end after host and port")]
    NotAnOrigin,
    /// A host that no certificate can name.
    #[error("its host must be a name without an asterisk and without a final dot, or an address")]
    NoCertificateHost,
    /// Another spelling of the same origin.
    #[error("write it as {0}")]
    NotCanonical(String),
}

impl FromStr for PublicUrl {
    type Err = PublicUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url: Url = text.parse().map_err(|_| PublicUrlError::NotAUrl)?;
        let host = url.host().ok_or(PublicUrlError::NotAUrl)?;
        match url.scheme() {
            "https" => {}
            "http" if is_loopback(&host) => {}
            _ => return Err(PublicUrlError::NotHttps),
        }
        if url.path() != "/"
            || url.query().is_some()
            || url.fragment().is_some()
            || !url.username().is_empty()
            || url.password().is_some()
        {
            return Err(PublicUrlError::NotAnOrigin);
        }
        if matches!(host, Host::Domain(name) if name.ends_with('.') || name.contains('*')) {
            return Err(PublicUrlError::NoCertificateHost);
        }
        let canonical = url.as_str().trim_end_matches('/');
        let text = text.strip_suffix('/').unwrap_or(text);
        if text != canonical {
            return Err(PublicUrlError::NotCanonical(canonical.to_owned()));
        }
        Ok(Self {
            text: text.to_owned(),
            url,
        })
    }
}

fn is_loopback(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => *name == "localhost",
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("https://assay.example.com", "https://assay.example.com")]
    #[case("https://assay.example.com/", "https://assay.example.com")]
    #[case("https://assay.example.com:8443/", "https://assay.example.com:8443")]
    #[case("https://127.0.0.1:8443", "https://127.0.0.1:8443")]
    #[case("http://localhost:8080", "http://localhost:8080")]
    #[case("http://[::1]:8080", "http://[::1]:8080")]
    fn accepts_an_origin_and_drops_the_slash(#[case] text: &str, #[case] expected: &str) {
        assert_eq!(text.parse::<PublicUrl>().unwrap().as_str(), expected);
    }

    #[rstest]
    #[case("assay.example.com", PublicUrlError::NotAUrl)]
    #[case("https://", PublicUrlError::NotAUrl)]
    #[case("http://assay.example.com", PublicUrlError::NotHttps)]
    #[case("ftp://assay.example.com", PublicUrlError::NotHttps)]
    #[case("https://assay.example.com/base", PublicUrlError::NotAnOrigin)]
    #[case("https://assay.example.com//", PublicUrlError::NotAnOrigin)]
    #[case("https://assay.example.com/?a=b", PublicUrlError::NotAnOrigin)]
    #[case("https://assay.example.com#top", PublicUrlError::NotAnOrigin)]
    #[case("https://user@assay.example.com", PublicUrlError::NotAnOrigin)]
    #[case("https://localhost.:8443", PublicUrlError::NoCertificateHost)]
    #[case("https://assay.example.com.", PublicUrlError::NoCertificateHost)]
    #[case("https://*.example.com", PublicUrlError::NoCertificateHost)]
    #[case("https://Assay.example.com", PublicUrlError::NotCanonical("https://assay.example.com".to_owned()))]
    #[case("https://assay.example.com:443", PublicUrlError::NotCanonical("https://assay.example.com".to_owned()))]
    fn refuses_other_urls(#[case] text: &str, #[case] expected: PublicUrlError) {
        assert_eq!(text.parse::<PublicUrl>().unwrap_err(), expected);
    }
}
