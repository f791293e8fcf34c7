//! Secrets that the server gives out. Each is shown once, and only its digest is stored.

use assay_authority::random_bytes;
use assay_protocol::sha256;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::SecretString;
use time::OffsetDateTime;
use zeroize::Zeroizing;

/// The prefix of API keys. Scanners for leaked secrets recognise it.
pub(crate) const API_KEY_PREFIX: &str = "assay_key_";
/// The prefix of enrollment tokens.
pub(crate) const ENROLLMENT_TOKEN_PREFIX: &str = "assay_enroll_";

/// SHA-256 of a secret. A secret has 256 random bits, so it cannot be found from its digest. The duration of a look-up
/// by digest says nothing about the secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SecretHash([u8; 32]);

impl SecretHash {
    pub(crate) fn of(secret: &str) -> Self {
        Self(sha256(secret.as_bytes()))
    }

    /// A stored digest. `None` if it does not have 32 bytes.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// How many characters of an API key are shown, after [`API_KEY_PREFIX`]. They are 36 of its 256 random bits.
const SHOWN_CHARACTERS: usize = 6;

/// The part of an API key that is stored and shown. `None` if the text is not an API key.
pub(crate) fn shown_part(api_key: &str) -> Option<&str> {
    let is_key = api_key.starts_with(API_KEY_PREFIX);
    api_key
        .get(..API_KEY_PREFIX.len() + SHOWN_CHARACTERS)
        .filter(|_| is_key)
}

/// Generates a secret: the prefix and 256 random bits.
pub(crate) fn generate(prefix: &str) -> SecretString {
    let random = Zeroizing::new(random_bytes::<32>());
    let mut secret = prefix.to_owned();
    URL_SAFE_NO_PAD.encode_string(random.as_ref(), &mut secret);
    secret.into()
}

/// A new salt for a digest of something that can be guessed.
pub(crate) fn salt() -> [u8; 32] {
    random_bytes()
}

/// Whether a credential with this expiry and this revocation is valid at `now`.
pub(crate) fn is_valid(
    expires_at: Option<OffsetDateTime>,
    revoked_at: Option<OffsetDateTime>,
    now: OffsetDateTime,
) -> bool {
    revoked_at.is_none() && expires_at.is_none_or(|end| now < end)
}
