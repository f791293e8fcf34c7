//! Which URLs a webhook may have.

use std::net::IpAddr;

use url::{Host, Url};

const MAX_LENGTH: usize = 2048;

/// Why a URL is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WebhookUrlError {
    #[error("url must be an absolute URL of at most {MAX_LENGTH} bytes")]
    Unreadable,
    #[error(
        "url must be https, because events would otherwise be sent unencrypted; http is allowed only for loopback addresses"
    )]
    Scheme,
    #[error("url must not contain credentials or a fragment: receivers verify the signature instead")]
    Parts,
}

/// Checks a URL and returns it in its normal form.
pub(crate) fn check(text: &str) -> Result<String, WebhookUrlError> {
    if text.len() > MAX_LENGTH {
        return Err(WebhookUrlError::Unreadable);
    }
    let url = Url::parse(text).map_err(|_| WebhookUrlError::Unreadable)?;
    let is_acceptable = match url.scheme() {
        "https" => url.host().is_some(),
        "http" => url.host().is_some_and(|host| is_loopback(&host)),
        _ => false,
    };
    if !is_acceptable {
        return Err(WebhookUrlError::Scheme);
    }
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err(WebhookUrlError::Parts);
    }
    Ok(url.into())
}

/// What callers other than administrators see of a URL: its scheme, host and port. For some receivers, the rest of the
/// URL is the secret that lets anyone post there.
pub(crate) fn masked(url: &str) -> String {
    let origin = Url::parse(url).map(|url| url.origin().ascii_serialization());
    format!("{}/…", origin.as_deref().unwrap_or("…"))
}

/// No other name counts as loopback, even if it resolves to it now: its owner can change that.
fn is_loopback(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => *name == "localhost",
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => IpAddr::V6(*address).to_canonical().is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("https://example.com/hook?team=1", "https://example.com/hook?team=1")]
    #[case("HTTPS://Example.com", "https://example.com/")]
    #[case("https://192.0.2.1:8443/", "https://192.0.2.1:8443/")]
    #[case("http://localhost:8080/", "http://localhost:8080/")]
    #[case("http://127.0.0.1:8080/a", "http://127.0.0.1:8080/a")]
    #[case("http://[::1]/", "http://[::1]/")]
    fn is_accepted(#[case] text: &str, #[case] normal: &str) {
        assert_eq!(check(text).unwrap(), normal);
    }

    #[rstest]
    #[case("", WebhookUrlError::Unreadable)]
    #[case("/hook", WebhookUrlError::Unreadable)]
    #[case("example.com/hook", WebhookUrlError::Unreadable)]
    #[case("https://", WebhookUrlError::Unreadable)]
    #[case("http://example.com/", WebhookUrlError::Scheme)]
    #[case("http://169.254.169.254/latest", WebhookUrlError::Scheme)]
    #[case("http://10.0.0.1/", WebhookUrlError::Scheme)]
    #[case("http://localhost.example.com/", WebhookUrlError::Scheme)]
    #[case("http://127.0.0.1.example.com/", WebhookUrlError::Scheme)]
    #[case("ftp://127.0.0.1/", WebhookUrlError::Scheme)]
    #[case("file:///etc/passwd", WebhookUrlError::Scheme)]
    #[case("mailto:a@example.com", WebhookUrlError::Scheme)]
    #[case("https://user@example.com/", WebhookUrlError::Parts)]
    #[case("https://user:secret@example.com/", WebhookUrlError::Parts)]
    #[case("https://example.com/#part", WebhookUrlError::Parts)]
    fn is_refused(#[case] text: &str, #[case] error: WebhookUrlError) {
        assert_eq!(check(text), Err(error));
    }

    #[rstest]
    #[case("https://hooks.example.com/services/T0/B0/secret?a=b", "https://hooks.example.com/…")]
    #[case("https://hooks.example.com:8443/", "https://hooks.example.com:8443/…")]
    #[case("http://[::1]:80/x", "http://[::1]/…")]
    #[case("https://hooks.example.com/…", "https://hooks.example.com/…")]
    #[case("unreadable", "…/…")]
    fn a_mask_leaves_only_the_origin(#[case] url: &str, #[case] expected: &str) {
        assert_eq!(masked(url), expected);
    }

    #[test]
    fn a_long_one_is_refused() {
        let url = format!("https://example.com/{}", "a".repeat(MAX_LENGTH));
        assert_eq!(check(&url), Err(WebhookUrlError::Unreadable));
    }
}
