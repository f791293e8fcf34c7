//! What every JWS that is read has in common (RFC 7515).

use serde::{Deserialize, Deserializer, de::IgnoredAny};

/// The member `crit` of a header. Any value counts, even null.
///
/// RFC 7515, section 4.1.11: `crit` is a list of extensions that a reader must understand, and is not empty. No
/// protocol here has an extension, so every `crit` is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CriticalExtensions {
    is_present: bool,
}

impl CriticalExtensions {
    /// Whether the header has the member.
    #[must_use]
    pub fn is_present(self) -> bool {
        self.is_present
    }
}

impl<'de> Deserialize<'de> for CriticalExtensions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer)?;
        Ok(Self { is_present: true })
    }
}
