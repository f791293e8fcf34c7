//! The MDM that the server calls.

use std::{path::PathBuf, str::FromStr};

use secrecy::SecretString;
use url::{Host, Url};

use super::settings::{Secrecy, Settings};

/// A NanoMDM server and its API key.
#[derive(Clone, Debug)]
pub struct NanoMdm {
    /// The base URL.
    pub url: Url,
    /// The API key.
    pub api_key: ApiKey,
}

/// Where an API key comes from.
#[derive(Clone, Debug)]
pub enum ApiKey {
    /// A file that contains it.
    File(PathBuf),
    /// The key itself.
    Value(SecretString),
}

/// The URL of a server that receives a secret.
struct SafeUrl(Url);

impl FromStr for SafeUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = text
            .parse::<Url>()
            .map_err(|_| "it must be a URL, such as https://mdm.example.com")?;
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
            "it must begin with https:// (plain http only for a loopback host), and must not contain credentials or a query",
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
                settings.refuse_given(key, "can only be used with mdm.nanomdm.url");
            }
        } else if settings.is_given(KEY) {
            settings.refuse_given(KEY_FILE, "cannot be used together with mdm.nanomdm.api_key");
        } else if !settings.is_given(KEY_FILE) {
            let origin = settings.origin(KEY);
            let _: Option<()> = settings.refuse(
                KEY,
                origin,
                "or mdm.nanomdm.api_key_file is required with mdm.nanomdm.url",
            );
        }
        let url = settings.parsed::<SafeUrl>(URL);
        let value = settings.secret(KEY, |_| Ok(Secrecy::Secret));
        let file = settings.path(KEY_FILE);
        let api_key = value.map(ApiKey::Value).or(file.map(ApiKey::File))?;
        Some(Self { url: url?.0, api_key })
    }
}
