//! Introspection (RFC 7662): what a token is worth now, with a cache.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use assay_protocol::Chain;
use moka::{policy::EvictionPolicy, sync::Cache};
use reqwest::{StatusCode, header::CONTENT_TYPE};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use time::OffsetDateTime;
use tokio::sync::Mutex;
use url::form_urlencoded;

use crate::https::{CallError, IssuerUrl, read};

/// Limit for remembered tokens.
const MAX_TOKENS: u64 = 100_000;
/// How long a result is remembered for an outage. No token lives longer.
const REMEMBERED_FOR: Duration = Duration::from_hours(1);
/// How long no call is made after one has failed. Requests would otherwise wait for each other's timeouts.
const PAUSE: time::Duration = time::Duration::seconds(10);
/// Calls that run at once. Tokens that share a lane wait for each other, and the same token is asked about once.
const LANES: usize = 32;

/// How a verifier introspects tokens.
#[derive(Debug)]
pub struct IntrospectionOptions {
    /// An API key with the role `relying-party`.
    pub api_key: SecretString,
    /// How long a result is used without asking again.
    pub lifetime: Duration,
    /// What happens while the server does not answer.
    pub when_away: WhenAway,
}

/// What happens to tokens that cannot be introspected, because the server does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum WhenAway {
    /// They are refused.
    Refuse,
    /// The last result is used, however old. Without one, the token itself says what it is worth until it expires.
    Accept,
}

/// The introspected tokens.
#[derive(Debug)]
pub(crate) struct Introspection {
    http: reqwest::Client,
    url: String,
    options: IntrospectionOptions,
    results: Cache<[u8; 32], Arc<Introspected>>,
    lanes: [Mutex<()>; LANES],
    last_failure: RwLock<Option<OffsetDateTime>>,
}

/// The result for one token.
#[derive(Debug)]
pub(crate) struct Introspected {
    /// `None` if the token is not active.
    pub(crate) permissions: Option<Vec<String>>,
    at: OffsetDateTime,
}

/// The server cannot say what a token is worth.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IntrospectionError {
    #[error("the server refuses this program's API key")]
    ApiKey,
    #[error("the server cannot be asked about the token")]
    Away(#[source] CallError),
    #[error("the server could not be asked about tokens in the last seconds")]
    WasAway,
}

#[derive(Deserialize)]
struct Document {
    active: bool,
    #[serde(default)]
    permissions: Vec<String>,
}

impl Introspection {
    pub(crate) fn new(http: reqwest::Client, issuer: &IssuerUrl, options: IntrospectionOptions) -> Self {
        Self {
            http,
            url: format!("{issuer}/v1/introspect"),
            options,
            results: Cache::builder()
                .max_capacity(MAX_TOKENS)
                // A token that was just refused must be kept, however seldom it comes.
                .eviction_policy(EvictionPolicy::lru())
                .time_to_live(REMEMBERED_FOR)
                .build(),
            lanes: std::array::from_fn(|_| Mutex::default()),
            last_failure: RwLock::default(),
        }
    }

    /// What a verified token is worth now. `None` if the token itself says so.
    pub(crate) async fn introspect(
        &self,
        token: &str,
        digest: [u8; 32],
        now: OffsetDateTime,
    ) -> Result<Option<Arc<Introspected>>, IntrospectionError> {
        if let Some(fresh) = self.fresh(&digest, now) {
            return Ok(Some(fresh));
        }
        let _lane = match self.lane(digest) {
            Some(lane) => Some(lane.lock().await),
            None => None,
        };
        // Another request has asked meanwhile.
        if let Some(fresh) = self.fresh(&digest, now) {
            return Ok(Some(fresh));
        }
        if self.was_just_away(now) {
            return self.without_answer(&digest, IntrospectionError::WasAway);
        }
        match self.ask(token, now).await {
            Ok(introspected) => {
                let introspected = Arc::new(introspected);
                self.results.insert(digest, Arc::clone(&introspected));
                Ok(Some(introspected))
            }
            Err(error @ IntrospectionError::ApiKey) => {
                tracing::error!(error = %Chain(&error), "no token can be introspected");
                Err(error)
            }
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "cannot introspect a token");
                *self.last_failure.write().unwrap_or_else(PoisonError::into_inner) = Some(now);
                self.without_answer(&digest, error)
            }
        }
    }

    /// Whether a call has failed so recently that another one is not tried.
    fn was_just_away(&self, now: OffsetDateTime) -> bool {
        let last_failure = *self.last_failure.read().unwrap_or_else(PoisonError::into_inner);
        last_failure.is_some_and(|failure| (now - failure).abs() < PAUSE)
    }

    fn without_answer(
        &self,
        digest: &[u8; 32],
        error: IntrospectionError,
    ) -> Result<Option<Arc<Introspected>>, IntrospectionError> {
        match self.options.when_away {
            WhenAway::Refuse => Err(error),
            WhenAway::Accept => Ok(self.results.get(digest)),
        }
    }

    /// The lane of a token. Digests are evenly distributed.
    fn lane(&self, [first, ..]: [u8; 32]) -> Option<&Mutex<()>> {
        self.lanes.get(usize::from(first) % LANES)
    }

    fn fresh(&self, digest: &[u8; 32], now: OffsetDateTime) -> Option<Arc<Introspected>> {
        self.results
            .get(digest)
            .filter(|result| (now - result.at).abs() < self.options.lifetime)
    }

    async fn ask(&self, token: &str, now: OffsetDateTime) -> Result<Introspected, IntrospectionError> {
        let body = form_urlencoded::Serializer::new(String::new())
            .append_pair("token", token)
            .finish();
        let request = self
            .http
            .post(&self.url)
            .bearer_auth(self.options.api_key.expose_secret())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(body);
        let body = read(request).await.map_err(|error| match error {
            CallError::Status(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => IntrospectionError::ApiKey,
            error => IntrospectionError::Away(error),
        })?;
        let document: Document =
            serde_json::from_slice(&body).map_err(|error| IntrospectionError::Away(error.into()))?;
        Ok(Introspected {
            permissions: document.active.then_some(document.permissions),
            at: now,
        })
    }
}
