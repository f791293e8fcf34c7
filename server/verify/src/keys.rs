//! The server's keys for grant tokens, and when they are fetched again.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwapOption;
use assay_protocol::{Chain, PublicKey};
use serde::Deserialize;
use time::{Duration, OffsetDateTime};
use tokio::sync::Mutex;

use crate::https::{CallError, IssuerUrl, read};

/// Keys are fetched again after this time, while the ones at hand are still used. A key that the server has withdrawn is
/// then refused.
const FRESH_FOR: Duration = Duration::minutes(5);
/// After this time without a request, a request waits for a fetch. Otherwise the first one after a quiet hour could have a
/// token of a key that was withdrawn long before.
const STALE_AFTER: Duration = Duration::minutes(10);
/// Keys are not used for longer than this without a successful fetch. No token lives longer.
const USABLE_FOR: Duration = Duration::hours(1);
/// At most one fetch in this time. Tokens of unknown keys must not make this program call the server without end.
const PAUSE: Duration = Duration::seconds(10);
/// Limit for the keys of a set. A server publishes a few.
const MAX_KEYS: usize = 64;

/// The keys, and their source.
#[derive(Debug, Clone)]
pub(crate) struct Keys(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    http: reqwest::Client,
    url: String,
    set: ArcSwapOption<KeySet>,
    /// Locked during a fetch, so that there is one at a time.
    last_fetch: Mutex<Option<Fetch>>,
}

#[derive(Debug)]
struct KeySet {
    keys: HashMap<String, PublicKey>,
    fetched_at: OffsetDateTime,
}

#[derive(Debug, Clone, Copy)]
struct Fetch {
    at: OffsetDateTime,
    has_failed: bool,
}

/// Why there is no key for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("the token is signed by a key that the server does not publish")]
    Unknown,
    #[error("the server's keys cannot be fetched")]
    Unavailable,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(default)]
    crv: String,
    #[serde(default)]
    x: String,
    #[serde(default)]
    y: String,
    #[serde(default)]
    kid: String,
}

impl Keys {
    pub(crate) fn new(http: reqwest::Client, issuer: &IssuerUrl) -> Self {
        Self(Arc::new(Inner {
            http,
            url: format!("{issuer}/.well-known/jwks.json"),
            set: ArcSwapOption::empty(),
            last_fetch: Mutex::default(),
        }))
    }

    /// Whether the server publishes this key, as far as the keys at hand say. `false` if they are stale.
    pub(crate) fn has(&self, kid: &str, now: OffsetDateTime) -> bool {
        let set = self.usable(now);
        if set.as_ref().is_some_and(|set| age(set.fetched_at, now) > STALE_AFTER) {
            return false;
        }
        if set.as_ref().is_none_or(|set| age(set.fetched_at, now) > FRESH_FOR) {
            self.fetch_beside(now);
        }
        set.is_some_and(|set| set.keys.contains_key(kid))
    }

    /// The key with this id. Fetches the keys for an unknown one.
    pub(crate) async fn find(&self, kid: &str, now: OffsetDateTime) -> Result<PublicKey, KeyError> {
        if self.has(kid, now)
            && let Some(key) = self.usable(now).and_then(|set| set.keys.get(kid).cloned())
        {
            return Ok(key);
        }
        let fetched = self.fetch(now).await;
        match self.usable(now) {
            Some(set) => match set.keys.get(kid) {
                Some(key) => Ok(key.clone()),
                None if fetched.has_failed => Err(KeyError::Unavailable),
                None => Err(KeyError::Unknown),
            },
            None => Err(KeyError::Unavailable),
        }
    }

    /// Fetches the keys, unless that was just tried.
    pub(crate) async fn fetch_now(&self, now: OffsetDateTime) -> Result<(), KeyError> {
        match self.fetch(now).await.has_failed {
            true => Err(KeyError::Unavailable),
            false => Ok(()),
        }
    }

    fn usable(&self, now: OffsetDateTime) -> Option<Arc<KeySet>> {
        self.0
            .set
            .load_full()
            .filter(|set| age(set.fetched_at, now) <= USABLE_FOR)
    }

    /// Fetches the keys while requests go on with the present ones.
    fn fetch_beside(&self, now: OffsetDateTime) {
        // Another fetch is running.
        if self.0.last_fetch.try_lock().is_err() {
            return;
        }
        let keys = self.clone();
        tokio::spawn(async move { keys.fetch(now).await });
    }

    async fn fetch(&self, now: OffsetDateTime) -> Fetch {
        let mut last = self.0.last_fetch.lock().await;
        if let Some(last) = last.filter(|last| age(last.at, now) < PAUSE) {
            return last;
        }
        let fetched = self.fetch_set(now).await;
        match &fetched {
            Ok(set) => tracing::debug!(keys = set.keys.len(), "fetched the server's keys"),
            Err(error) => tracing::warn!(error = %Chain(error), url = self.0.url, "cannot fetch the server's keys"),
        }
        let fetch = Fetch {
            at: now,
            has_failed: fetched.is_err(),
        };
        if let Ok(set) = fetched {
            self.0.set.store(Some(Arc::new(set)));
        }
        *last = Some(fetch);
        fetch
    }

    async fn fetch_set(&self, now: OffsetDateTime) -> Result<KeySet, CallError> {
        let body = read(self.0.http.get(&self.0.url)).await?;
        let document: Document = serde_json::from_slice(&body)?;
        let keys = document.keys.into_iter().take(MAX_KEYS).filter_map(|key| key.read());
        Ok(KeySet {
            keys: keys.collect(),
            fetched_at: now,
        })
    }
}

/// The time since `then`. After the clock was set back, what was fetched in its future is old, too.
fn age(then: OffsetDateTime, now: OffsetDateTime) -> Duration {
    (now - then).abs()
}

impl Jwk {
    /// The key and its id. Keys of other kinds are not for grant tokens. The id must be the thumbprint, so that no two
    /// keys have the same.
    fn read(self) -> Option<(String, PublicKey)> {
        if self.kty != "EC" || self.crv != "P-256" {
            return None;
        }
        let key = PublicKey::from_jwk_coordinates(&self.x, &self.y).ok()?;
        (key.thumbprint().to_string() == self.kid).then_some((self.kid, key))
    }
}
