//! The MDM that the server calls.

use std::{path::PathBuf, str::FromStr};

use secrecy::SecretString;
use url::{Host, Url};

use super::Settings;

/// A NanoMDM and the key of its API.
#[derive(Clone, Debug)]
pub struct NanoMdm {
    /// Where it is.
    pub url: Url,
    /// The key of its API.
    pub api_key: ApiKey,
}

/// Where a key comes from.
#[derive(Clone, Debug)]
pub enum ApiKey {
    /// A file that holds it.
    File(PathBuf),
    /// The key itself.
    Value(SecretString),
}

/// An address of a server that a secret is sent to.
struct SafeUrl(Url);

impl FromStr for SafeUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = text
            .parse::<Url>()
            .map_err(|_| "it must be a URL, as in https://mdm.example.com")?;
        let is_loopback = match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        let is_safe = url.scheme() == "https" || (url.scheme() == "http" && is_loopback);
        let is_bare =
            url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none();
        if is_safe && is_bare {
            return Ok(Self(url));
        }
        Err(
            "it must begin with https:// (plain http only for a loopback host), and hold neither credentials nor a query",
        )
    }
}

impl NanoMdm {
    pub(super) fn read(settings: &mut Settings) -> Option<Self> {
        const URL: &str = "mdm.nanomdm.url";
        const KEY: &str = "mdm.nanomdm.api_key";
        const KEY_FILE: &str = "mdm.nanomdm.api_key_file";
        if !settings.is_given(URL) {
            for key in [KEY, KEY_FILE] {
                settings.refuse_given(key, "has a meaning only beside mdm.nanomdm.url");
            }
        } else if settings.is_given(KEY) {
            settings.refuse_given(KEY_FILE, "cannot be given together with mdm.nanomdm.api_key");
        } else if !settings.is_given(KEY_FILE) {
            let origin = settings.origin(KEY);
            let _: Option<()> = settings.refuse(
                KEY,
                origin,
                "is required beside mdm.nanomdm.url, or mdm.nanomdm.api_key_file",
            );
        }
        let url = settings.parsed::<SafeUrl>(URL);
        let value = settings.secret(KEY, |_| Ok(()));
        let file = settings.path(KEY_FILE);
        let api_key = value.map(ApiKey::Value).or(file.map(ApiKey::File))?;
        Some(Self { url: url?.0, api_key })
    }
}
