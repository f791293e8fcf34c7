//! The server's URL, which is also the audience of evidence.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use url::{Host, Url};

/// The server's public URL, without a trailing slash.
///
/// It comes from the machine's administrator and never from the server. A malicious server could otherwise name another
/// server as audience, and relay the evidence to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerUrl(String);

/// The text is not the URL of a server.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ServerUrlError {
    /// The text is not a URL.
    #[error("{text:?} is not a URL; an example is https://assay.example.com")]
    NotAUrl {
        /// The text.
        text: String,
        /// The cause.
        #[source]
        source: url::ParseError,
    },
    /// The scheme is not HTTPS.
    #[error("{0}: the scheme must be https (http is allowed only for loopback addresses)")]
    NotHttps(String),
    /// The URL has more than an origin and a path.
    #[error("{0}: the server's URL must not have a user, query or fragment")]
    Surplus(String),
}

impl ServerUrl {
    /// The URL, which is the audience of evidence.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn is_https(&self) -> bool {
        self.0.starts_with("https:")
    }

    /// The URL of an endpoint. `path` begins with a slash.
    pub(crate) fn endpoint(&self, path: &str) -> String {
        format!("{}{path}", self.0)
    }
}

impl FromStr for ServerUrl {
    type Err = ServerUrlError;

    fn from_str(text: &str) -> Result<Self, ServerUrlError> {
        let url = Url::parse(text.trim()).map_err(|source| ServerUrlError::NotAUrl {
            text: text.to_owned(),
            source,
        })?;
        let is_allowed = url.scheme() == "https" || (url.scheme() == "http" && is_loopback(&url));
        if !is_allowed {
            return Err(ServerUrlError::NotHttps(text.to_owned()));
        }
        let has_user = !url.username().is_empty() || url.password().is_some();
        if has_user || url.query().is_some() || url.fragment().is_some() {
            return Err(ServerUrlError::Surplus(text.to_owned()));
        }
        Ok(Self(url.as_str().trim_end_matches('/').to_owned()))
    }
}

impl TryFrom<String> for ServerUrl {
    type Error = ServerUrlError;

    fn try_from(text: String) -> Result<Self, ServerUrlError> {
        text.parse()
    }
}

impl From<ServerUrl> for String {
    fn from(url: ServerUrl) -> Self {
        url.0
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Plain HTTP is allowed on loopback addresses, where no one can intercept it: for a server behind a local proxy, and
/// for tests.
fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("https://assay.example.com", "https://assay.example.com")]
    #[case("https://Assay.Example.com/", "https://assay.example.com")]
    #[case("https://assay.example.com:8443/fleet/", "https://assay.example.com:8443/fleet")]
    #[case("http://127.0.0.1:8080", "http://127.0.0.1:8080")]
    #[case("http://[::1]:8080/", "http://[::1]:8080")]
    #[case("http://localhost:8080", "http://localhost:8080")]
    fn a_trailing_slash_is_not_part_of_the_audience(#[case] text: &str, #[case] audience: &str) {
        let url: ServerUrl = text.parse().unwrap();
        assert_eq!(url.as_str(), audience);
        assert_eq!(url.endpoint("/v1/nonce"), format!("{audience}/v1/nonce"));
    }

    #[rstest]
    #[case("assay.example.com")]
    #[case("http://assay.example.com")]
    #[case("http://localhost.example.com")]
    #[case("ftp://localhost")]
    #[case("https://user@assay.example.com")]
    #[case("https://assay.example.com/?a=b")]
    #[case("")]
    fn unsafe_urls_are_rejected(#[case] text: &str) {
        assert!(text.parse::<ServerUrl>().is_err());
    }
}
