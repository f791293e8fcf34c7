//! The trust domain: the name of the fleet in SPIFFE ids.

use std::fmt;
use std::str::FromStr;

/// The maximum length in bytes (SPIFFE-ID, section 2.1).
const MAX_LENGTH: usize = 255;

/// A SPIFFE trust domain: lower-case letters, digits, dots, dashes and underscores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// The name, without `spiffe://`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Why a text is not a valid trust domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it must be 1 to 255 lower-case letters, digits, dots, dashes and underscores, such as example.com")]
pub struct TrustDomainError;

impl FromStr for TrustDomain {
    type Err = TrustDomainError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > MAX_LENGTH || !text.bytes().all(allowed) {
            return Err(TrustDomainError);
        }
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_exactly_what_spiffe_allows() {
        for text in ["example.com", "a", "prod_1.example-2.com", &"a".repeat(255)] {
            assert_eq!(text.parse::<TrustDomain>().unwrap().as_str(), text);
        }
        for text in [
            "",
            "Example.com",
            "spiffe://example.com",
            "example.com/",
            "exämple.com",
            "a b",
            &"a".repeat(256),
        ] {
            assert_eq!(text.parse::<TrustDomain>(), Err(TrustDomainError), "{text}");
        }
    }
}
