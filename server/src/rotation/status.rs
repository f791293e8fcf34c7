//! The state of the server's keys, for an administrator.

use assay_authority::{key_identifier, validity};
use serde::Serialize;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::{RotationError, keys, steps::Keys};
use crate::{
    keyring::Keyring,
    store::{
        self, Store,
        sealed_keys::{self, KeyPurpose, KeyState, SealedKey},
    },
};

/// All keys that are not retired, oldest first.
#[derive(Debug, Serialize)]
pub(crate) struct AuthorityStatus {
    pub(crate) roots: Vec<KeyStatus>,
    pub(crate) issuing_cas: Vec<KeyStatus>,
    pub(crate) grant_keys: Vec<KeyStatus>,
}

/// One key.
#[derive(Debug, Serialize)]
pub(crate) struct KeyStatus {
    pub(crate) id: Uuid,
    /// The subject key identifier in hex; of a grant key, its `kid`; null for a key that has no certificate yet.
    pub(crate) key_identifier: Option<String>,
    /// SHA-256 of the certificate, in hex. The root's is what machines are configured with to recognize the server.
    pub(crate) fingerprint: Option<String>,
    pub(crate) state: KeyState,
    /// Whether the key, or the root above it, is external.
    pub(crate) is_external: bool,
    #[serde(with = "time::serde::rfc3339::option")]
    pub(crate) not_before: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub(crate) not_after: Option<OffsetDateTime>,
    /// When it starts, or started, to sign.
    #[serde(with = "time::serde::rfc3339::option")]
    pub(crate) signs_from: Option<OffsetDateTime>,
    /// When it retires, if known.
    #[serde(with = "time::serde::rfc3339::option")]
    pub(crate) retires_at: Option<OffsetDateTime>,
    /// Only for an issuing CA: when an administrator withdrew it.
    #[serde(with = "time::serde::rfc3339::option")]
    pub(crate) withdrawn_at: Option<OffsetDateTime>,
    /// Only for an issuing CA: the number of valid certificates of machines.
    pub(crate) valid_certificates: Option<i64>,
    /// Only for the next grant key: when relying parties have it, by how long they cache the keys.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) caches: Vec<CachesHaveIt>,
}

/// From when on every cache of the keys that is refreshed within this time has a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct CachesHaveIt {
    pub(crate) max_age_seconds: i64,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) from: OffsetDateTime,
    /// Whether that is no later than the key signs. Otherwise such a cache may refuse tokens for a while.
    pub(crate) in_time: bool,
}

/// The ages of caches that libraries and proxies have by default, and longer ones up to the longest overlap.
const CACHE_AGES: [Duration; 5] = [
    Duration::minutes(5),
    Duration::HOUR,
    Duration::DAY,
    Duration::days(7),
    Duration::days(30),
];

/// Reads the status in one snapshot.
pub(crate) async fn status(
    store: &Store,
    keyring: &Keyring,
    now: OffsetDateTime,
) -> Result<AuthorityStatus, RotationError> {
    let mut snapshot = store.snapshot().await?;
    let keys = keys::read(&mut snapshot).await?;
    if keys.keys.is_empty() {
        return Err(RotationError::NotBootstrapped);
    }
    let mut status = AuthorityStatus {
        roots: Vec::new(),
        issuing_cas: Vec::new(),
        grant_keys: Vec::new(),
    };
    for key in &keys.keys {
        let mut shown = of_key(keyring, &keys, key)?;
        match key.purpose {
            KeyPurpose::RootCa => status.roots.push(shown),
            KeyPurpose::IssuingCa => {
                shown.valid_certificates = Some(sealed_keys::count_valid(&mut snapshot, key.id, now).await?);
                status.issuing_cas.push(shown);
            }
            KeyPurpose::GrantSigning => status.grant_keys.push(shown),
            KeyPurpose::Nonce => {}
        }
    }
    store::end(snapshot).await?;
    Ok(status)
}

/// The subject key identifier of a CA in hex; the `kid` of a grant key.
pub(crate) fn identifier(key: &SealedKey, keyring: &Keyring) -> Result<Option<String>, RotationError> {
    Ok(match (&key.certificate, key.purpose) {
        // An external root may have none.
        (Some(certificate), _) => key_identifier(certificate).ok().map(hex::encode),
        (None, KeyPurpose::GrantSigning) => Some(keyring.private_key(key)?.public_key().thumbprint().to_string()),
        (None, _) => None,
    })
}

fn of_key(keyring: &Keyring, keys: &Keys, key: &SealedKey) -> Result<KeyStatus, RotationError> {
    let validity = key.certificate.as_deref().map(validity).transpose()?;
    let holder = if key.purpose == KeyPurpose::IssuingCa {
        keys.root_of(key)
    } else {
        Some(key)
    };
    Ok(KeyStatus {
        id: key.id,
        key_identifier: identifier(key, keyring)?,
        fingerprint: key.certificate.as_deref().map(assay_authority::fingerprint),
        state: key.state,
        is_external: holder.is_some_and(|holder| holder.sealed.is_none()),
        not_before: validity.map(|(from, _)| from),
        not_after: validity.map(|(_, end)| end),
        signs_from: key.signs_from,
        retires_at: keys.retires_at(key),
        withdrawn_at: key.withdrawn_at,
        valid_certificates: None,
        caches: caches(key),
    })
}

/// A grant key is published as soon as it is created, which its id says.
fn caches(key: &SealedKey) -> Vec<CachesHaveIt> {
    if key.purpose != KeyPurpose::GrantSigning || key.state != KeyState::Next {
        return Vec::new();
    }
    let created_at = key.id.get_timestamp().map(|timestamp| timestamp.to_unix().0);
    let created_at = created_at.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds.try_into().ok()?).ok());
    let (Some(published_at), Some(signs_from)) = (created_at, key.signs_from) else {
        return Vec::new();
    };
    let have_it = |age: Duration| CachesHaveIt {
        max_age_seconds: age.whole_seconds(),
        from: published_at + age,
        in_time: published_at + age <= signs_from,
    };
    CACHE_AGES.map(have_it).to_vec()
}
