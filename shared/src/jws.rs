//! What all JWS have in common (RFC 7515).

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, IgnoredAny},
};

use crate::object::object;

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

/// Why a part of a compact JWS cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// Not base64url without padding.
    #[error("not base64url without padding")]
    NotBase64Url,
    /// Not an object with these members.
    #[error("not the expected JSON object")]
    Unreadable(#[source] serde_json::Error),
}

/// Reads a JSON object from base64url without padding.
pub fn read_part<T: DeserializeOwned>(base64url: &str) -> Result<T, PartError> {
    let json = URL_SAFE_NO_PAD.decode(base64url).map_err(|_| PartError::NotBase64Url)?;
    let mut json = serde_json::Deserializer::from_slice(&json);
    let read = object(&mut json).and_then(|read| json.end().map(|()| read));
    read.map_err(PartError::Unreadable)
}

/// A NumericDate (RFC 7519, section 2) may have a fraction. A number out of range becomes the nearest in range.
#[allow(
    clippy::cast_possible_truncation,
    reason = "the cast of a float saturates, as intended"
)]
pub(crate) fn numeric_date<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let number = serde_json::Number::deserialize(deserializer)?;
    let seconds = number
        .as_i64()
        .or_else(|| number.as_f64().map(|seconds| seconds.floor() as i64));
    seconds.ok_or_else(|| serde::de::Error::custom("iat is not a number of seconds"))
}

/// Signs claims under a header, which is JSON, and returns the compact JWS (RFC 7515, section 7.1). `sign` gets the bytes to
/// sign and returns an ECDSA signature with SHA-256 in the fixed form, `r || s`.
pub(crate) fn sign<E, S>(header: &[u8], claims: &impl Serialize, sign: S) -> Result<String, E>
where
    E: From<serde_json::Error>,
    S: FnOnce(&[u8]) -> Result<[u8; 64], E>,
{
    let mut jws = URL_SAFE_NO_PAD.encode(header);
    jws.push('.');
    URL_SAFE_NO_PAD.encode_string(serde_json::to_vec(claims)?, &mut jws);
    let signature = sign(jws.as_bytes())?;
    jws.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut jws);
    Ok(jws)
}
