//! Secrets that the server hands out: made here, shown once, kept as a digest alone.

use assay_authority::random_bytes;
use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::SecretString;
use time::OffsetDateTime;
use zeroize::Zeroizing;

/// What an API key starts with, so that scanners for leaked secrets find it.
pub(crate) const API_KEY_PREFIX: &str = "assay_key_";
/// What an enrollment token starts with.
pub(crate) const ENROLLMENT_TOKEN_PREFIX: &str = "assay_enroll_";

/// SHA-256 of a secret. A secret has 256 random bits: nobody finds it from its digest, and a look-up by the digest
/// tells by its time nothing of the secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SecretHash([u8; 32]);

impl SecretHash {
    pub(crate) fn of(secret: &str) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, secret.as_bytes()).as_ref());
        Self(hash)
    }

    /// One that was stored; `None` when it has not 32 bytes.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Makes a secret of 256 random bits behind a prefix.
pub(crate) fn generate(prefix: &str) -> SecretString {
    let random = Zeroizing::new(random_bytes::<32>());
    let mut secret = prefix.to_owned();
    URL_SAFE_NO_PAD.encode_string(random.as_ref(), &mut secret);
    secret.into()
}

/// Whether something with this end and this revocation serves at this time.
pub(crate) fn serves(
    expires_at: Option<OffsetDateTime>,
    revoked_at: Option<OffsetDateTime>,
    now: OffsetDateTime,
) -> bool {
    revoked_at.is_none() && expires_at.is_none_or(|end| now < end)
}
