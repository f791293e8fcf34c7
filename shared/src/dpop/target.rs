//! Method and URI of a request, as a proof names them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The longest accepted URI in bytes, without query and fragment.
const LONGEST_TARGET: usize = 4096;
/// The longest accepted method in bytes.
const LONGEST_METHOD: usize = 32;

/// An HTTP or HTTPS URI without query and fragment: the `htu` of a proof (RFC 9449, section 4.2).
///
/// Scheme and host are in lower case, the scheme's own port is left out, and an empty path is `/`. The path stays as it
/// was sent: a service may tell `/a%2fb` from `/a/b`, so one proof must not serve for both.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TargetUri(String);

/// The text is not the URI of an HTTP request.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not an http or https URI of at most {LONGEST_TARGET} visible ASCII characters, without a user")]
pub struct NotATargetUri;

/// A method of HTTP. Methods are case-sensitive (RFC 9110, section 9.1).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HttpMethod(String);

/// The text is not a method.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a method: a token of at most {LONGEST_METHOD} characters (RFC 9110, section 5.6.2)")]
pub struct NotAMethod;

impl TargetUri {
    /// The normalized text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TargetUri {
    type Err = NotATargetUri;

    fn from_str(text: &str) -> Result<Self, NotATargetUri> {
        let end = text.find(['?', '#']).unwrap_or(text.len());
        let text = text.get(..end).unwrap_or_default();
        if text.len() > LONGEST_TARGET || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(NotATargetUri);
        }
        let (scheme, rest) = text.split_once("://").ok_or(NotATargetUri)?;
        let (scheme, default_port) = match scheme {
            https if https.eq_ignore_ascii_case("https") => ("https", "443"),
            http if http.eq_ignore_ascii_case("http") => ("http", "80"),
            _ => return Err(NotATargetUri),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = host_and_port(authority).ok_or(NotATargetUri)?;
        let mut uri = format!("{scheme}://{}", host.to_ascii_lowercase());
        if !port.is_empty() && port != default_port {
            uri.push(':');
            uri.push_str(port);
        }
        uri.push_str(if path.is_empty() { "/" } else { path });
        // An empty path has become a character longer.
        (uri.len() <= LONGEST_TARGET).then_some(Self(uri)).ok_or(NotATargetUri)
    }
}

/// Host and port of an authority. The port may be empty. `None` for an authority with a user, which no request has.
fn host_and_port(authority: &str) -> Option<(&str, &str)> {
    let (host, port) = if authority.starts_with('[') {
        let (host, rest) = authority.split_at(authority.find(']')? + 1);
        let is_address = host
            .trim_matches(['[', ']'])
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.'));
        let port = if rest.is_empty() { rest } else { rest.strip_prefix(':')? };
        (is_address.then_some(host)?, port)
    } else {
        let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
        let is_name = host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
        (is_name.then_some(host)?, port)
    };
    let is_port = port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
    (is_port && host.bytes().any(|byte| byte.is_ascii_alphanumeric() || byte == b':')).then_some((host, port))
}

impl TryFrom<String> for TargetUri {
    type Error = NotATargetUri;

    fn try_from(text: String) -> Result<Self, NotATargetUri> {
        text.parse()
    }
}

impl From<TargetUri> for String {
    fn from(uri: TargetUri) -> Self {
        uri.0
    }
}

impl fmt::Display for TargetUri {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl HttpMethod {
    /// The method.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HttpMethod {
    type Err = NotAMethod;

    fn from_str(text: &str) -> Result<Self, NotAMethod> {
        let is_token = text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte));
        match is_token && (1..=LONGEST_METHOD).contains(&text.len()) {
            true => Ok(Self(text.to_owned())),
            false => Err(NotAMethod),
        }
    }
}

impl TryFrom<String> for HttpMethod {
    type Error = NotAMethod;

    fn try_from(text: String) -> Result<Self, NotAMethod> {
        text.parse()
    }
}

impl From<HttpMethod> for String {
    fn from(method: HttpMethod) -> Self {
        method.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_uri_are_equal_and_paths_stay_as_they_are() {
        for (text, uri) in [
            ("https://wiki.example.com", "https://wiki.example.com/"),
            ("HTTPS://Wiki.Example.COM:443/A?b=c#d", "https://wiki.example.com/A"),
            ("https://wiki.example.com:/a", "https://wiki.example.com/a"),
            ("https://wiki.example.com?a", "https://wiki.example.com/"),
            ("http://localhost:80/", "http://localhost/"),
            ("http://localhost:443/", "http://localhost:443/"),
            ("http://[::1]:8080/a", "http://[::1]:8080/a"),
            ("https://a/%2e%2E//b/../%2f|\\", "https://a/%2e%2E//b/../%2f|\\"),
        ] {
            let read: TargetUri = text.parse().unwrap();
            assert_eq!(read.as_str(), uri);
            assert_eq!(read.as_str().parse::<TargetUri>(), Ok(read));
        }
    }

    #[test]
    fn the_longest_target_is_read_again() {
        let longest = format!("https://{}", "a".repeat(LONGEST_TARGET - "https:///".len()));
        let read: TargetUri = longest.parse().unwrap();
        assert_eq!(read.as_str().parse::<TargetUri>().as_ref(), Ok(&read));
        assert!(format!("{longest}a").parse::<TargetUri>().is_err());
    }

    #[test]
    fn other_texts_are_no_targets() {
        for text in [
            "",
            "/a",
            "//a/b",
            "ftp://a/",
            "https:/a",
            "https://",
            "https:///a",
            "https://user@a/",
            "https://a:b@c/",
            "https://a:999999/",
            "https://a:1:2/",
            "https://[::1/",
            "https://[::1]a/",
            "https://[]/",
            "https://[wiki]/",
            "https://a b/",
            "https://a/\n",
            "https://ä/",
            "https://a\\@b/",
        ] {
            assert_eq!(text.parse::<TargetUri>(), Err(NotATargetUri), "{text}");
        }
        assert!(
            format!("https://a/{}", "a".repeat(LONGEST_TARGET))
                .parse::<TargetUri>()
                .is_err()
        );
    }

    #[test]
    fn methods_are_tokens() {
        for text in ["GET", "get", "M-SEARCH", "X!#"] {
            assert_eq!(text.parse::<HttpMethod>().unwrap().as_str(), text);
        }
        for text in ["", "GE T", "GET\n", "GÉT", "A,B", &"A".repeat(33)] {
            assert_eq!(text.parse::<HttpMethod>(), Err(NotAMethod), "{text}");
        }
    }
}
