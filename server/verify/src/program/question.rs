//! What the proxy's request says of the request that it asks about.

use assay_protocol::dpop::{HttpMethod, TargetUri};
use http::{HeaderName, request::Parts};

use crate::{
    certificate_header::CertificateForm,
    refusal::Refusal,
    verifier::{DPOP, Presented, only},
};

/// The headers that the proxy overwrites, and that are therefore believed.
#[derive(Debug)]
pub(super) struct TrustedHeaders {
    /// `None`: no certificate is read.
    pub(super) certificate: Option<(HeaderName, CertificateForm)>,
    pub(super) request: RequestSource,
    /// The permissions that every request needs.
    pub(super) required: Vec<String>,
    /// Names further permissions.
    pub(super) require_header: Option<HeaderName>,
}

/// Where method and URL come from.
#[derive(Debug)]
pub(super) enum RequestSource {
    Headers {
        method: HeaderName,
        url: HeaderName,
    },
    /// The proxy's request has the method and the path of the one that it asks about.
    Itself {
        origin: String,
    },
}

/// What the proxy asks.
#[derive(Debug)]
pub(super) struct Question {
    certificate: Option<[u8; 32]>,
    request: Option<(HttpMethod, TargetUri)>,
    required: Vec<String>,
}

impl RequestSource {
    pub(super) fn of_origin(origin: &str) -> Option<Self> {
        let target: TargetUri = origin.parse().ok()?;
        let origin = target.as_str().strip_suffix('/')?;
        // The path would be in front of each request's own.
        let is_origin = origin.splitn(4, '/').count() == 3;
        is_origin.then(|| Self::Itself {
            origin: origin.to_owned(),
        })
    }

    fn read(&self, head: &Parts) -> Result<Option<(HttpMethod, TargetUri)>, Refusal> {
        let (method, url) = match self {
            Self::Headers { method, url } => {
                match (only(&head.headers, method)?, only(&head.headers, url)?) {
                    (Some(method), Some(url)) => (method.to_owned(), url.to_owned()),
                    // Only a DPoP proof needs them.
                    _ => return Ok(None),
                }
            }
            Self::Itself { origin } => (head.method.to_string(), format!("{origin}{}", head.uri.path())),
        };
        let invalid = || Refusal::InvalidRequest("the request's method or URL cannot be in a proof".to_owned());
        let request = (
            method.parse().map_err(|_| invalid())?,
            url.parse().map_err(|_| invalid())?,
        );
        Ok(Some(request))
    }
}

impl TrustedHeaders {
    pub(super) fn read(&self, head: &Parts) -> Result<Question, Refusal> {
        Ok(Question {
            certificate: self.certificate(head)?,
            // Without a proof, a URL that no proof can name may pass.
            request: match head.headers.contains_key(&DPOP) {
                true => self.request.read(head)?,
                false => None,
            },
            required: self.required(head)?,
        })
    }

    fn certificate(&self, head: &Parts) -> Result<Option<[u8; 32]>, Refusal> {
        let Some((name, form)) = &self.certificate else {
            return Ok(None);
        };
        match only(&head.headers, name)? {
            Some(header) => form
                .thumbprint(header)
                .map_err(|error| Refusal::Misconfigured(error.to_string())),
            None => Ok(None),
        }
    }

    /// A missing header could mean that a location of the proxy requires nothing by mistake.
    fn required(&self, head: &Parts) -> Result<Vec<String>, Refusal> {
        let mut required = self.required.clone();
        if let Some(name) = &self.require_header {
            let header = only(&head.headers, name)?.unwrap_or_default();
            let before = required.len();
            required.extend(header.split_ascii_whitespace().map(ToOwned::to_owned));
            if required.len() == before {
                return Err(Refusal::Misconfigured(format!(
                    "the proxy does not say in {name} which permissions are required"
                )));
            }
        }
        Ok(required)
    }
}

impl Question {
    pub(super) fn presented<'a>(&'a self, head: &'a Parts) -> Presented<'a> {
        Presented {
            headers: &head.headers,
            certificate: self.certificate,
            request: self.request.clone(),
            required: &self.required,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_no_path() {
        for origin in [
            "https://wiki.example.com",
            "https://Wiki.example.com:443/",
            "http://[::1]:80",
        ] {
            assert!(RequestSource::of_origin(origin).is_some(), "{origin}");
        }
        for origin in [
            "wiki.example.com",
            "https://wiki.example.com/a",
            "https://wiki.example.com/a/",
            "ftp://a",
        ] {
            assert!(RequestSource::of_origin(origin).is_none(), "{origin}");
        }
    }
}
