//! Why a request is not let in, and the response that says so (RFC 6750, section 3, and RFC 9449, section 7.1).

use http::{HeaderMap, HeaderValue, StatusCode, header::WWW_AUTHENTICATE};

use crate::verifier::RequiredProof;

/// Why a request is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no token.
    #[error("the request has no grant token")]
    NoToken,
    /// The request repeats a header that it may have once, or has another scheme.
    #[error("{0}")]
    InvalidRequest(String),
    /// The token is not valid, or is not the caller's.
    #[error("{0}")]
    InvalidToken(String),
    /// The proof of possession is not valid.
    #[error("{0}")]
    InvalidProof(String),
    /// The machine lacks a permission.
    #[error("the machine lacks the permission {0}")]
    InsufficientScope(String),
    /// The server does not answer, so nothing can be said of the token; or too many proofs are remembered.
    #[error("{0}")]
    Unavailable(String),
    /// The proxy in front does not set the headers that it must set.
    #[error("{0}")]
    Misconfigured(String),
}

impl Refusal {
    /// The status of the response.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoToken | Self::InvalidRequest(_) | Self::InvalidToken(_) | Self::InvalidProof(_) => {
                StatusCode::UNAUTHORIZED
            }
            Self::InsufficientScope(_) => StatusCode::FORBIDDEN,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Misconfigured(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Adds the challenges.
    pub(crate) fn write(&self, proof: RequiredProof, headers: &mut HeaderMap) {
        let (error, scope) = match self {
            Self::NoToken => (None, None),
            Self::InvalidRequest(_) => (Some("invalid_request"), None),
            Self::InvalidToken(_) => (Some("invalid_token"), None),
            Self::InvalidProof(_) => (Some("invalid_dpop_proof"), None),
            Self::InsufficientScope(permission) => (Some("insufficient_scope"), Some(permission)),
            Self::Unavailable(_) | Self::Misconfigured(_) => return,
        };
        let mut parameters = String::new();
        if let Some(error) = error {
            let description = quotable(&self.to_string());
            parameters = format!(r#" error="{error}", error_description="{description}""#);
        }
        if let Some(scope) = scope {
            parameters.push_str(&format!(r#", scope="{}""#, quotable(scope)));
        }
        let mut challenge = |challenge: String| {
            if let Ok(challenge) = HeaderValue::from_str(&challenge) {
                headers.append(WWW_AUTHENTICATE, challenge);
            }
        };
        if proof.takes_bearer() && !matches!(self, Self::InvalidProof(_)) {
            challenge(format!("Bearer{parameters}"));
        }
        if proof.takes_dpop() {
            let comma = if parameters.is_empty() { "" } else { "," };
            challenge(format!(r#"DPoP{parameters}{comma} algs="ES256""#));
        }
    }
}

/// Limit for a description, in characters. It may quote the caller, and a proxy fails on long headers.
const LONGEST_DESCRIPTION: usize = 200;

/// The beginning of the text, without characters that end a quoted string.
fn quotable(text: &str) -> String {
    text.chars()
        .take(LONGEST_DESCRIPTION)
        .map(|character| match character {
            '"' | '\\' => '\'',
            character if character.is_ascii_graphic() || character == ' ' => character,
            _ => '?',
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// nginx answers 500 if the headers of a response exceed 4 or 8 kB.
    #[test]
    fn a_challenge_is_short_whatever_the_caller_sent() {
        let mut headers = HeaderMap::new();
        Refusal::InvalidToken("\"x\u{e9}".repeat(10_000)).write(RequiredProof::Either, &mut headers);
        let challenges: Vec<_> = headers.get_all(WWW_AUTHENTICATE).iter().collect();
        assert_eq!(challenges.len(), 2);
        assert!(
            challenges.iter().all(|challenge| challenge.len() < 300),
            "{challenges:?}"
        );
    }
}
