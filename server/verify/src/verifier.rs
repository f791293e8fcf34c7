//! The verification of one request.

use std::{sync::Arc, time::Duration};

use assay_protocol::{
    Chain,
    dpop::{Expectation, HttpMethod, TargetUri, UnverifiedProof},
    sha256,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName, header::AUTHORIZATION};
use moka::{policy::EvictionPolicy, sync::Cache};
use time::OffsetDateTime;

use crate::{
    access::Access,
    https::{IssuerUrl, Roots, SetUpError, client},
    introspection::{Introspection, IntrospectionOptions},
    keys::{KeyError, Keys},
    refusal::Refusal,
    replay::{ReplayError, Replays},
    token::{GrantToken, UnverifiedToken},
};

pub(crate) const DPOP: HeaderName = HeaderName::from_static("dpop");
/// Limit for remembered tokens. Each takes about a kilobyte.
const MAX_TOKENS: u64 = 100_000;
/// No token lives longer.
const REMEMBERED_FOR: Duration = Duration::from_hours(1);
/// Limit for the proofs of two minutes. Each takes about 50 bytes.
const MAX_PROOFS: usize = 4_000_000;

/// How the caller must prove that it holds the key of its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequiredProof {
    /// By the client certificate of its TLS connection (RFC 8705).
    Certificate,
    /// By a signature for the request (RFC 9449).
    Dpop,
    /// By one of these. The scheme in `Authorization` says which: `Bearer` or `DPoP`.
    Either,
    /// Not at all: anyone with a copy of a token can use it.
    Unbound,
}

/// What a verifier requires.
#[derive(Debug)]
pub struct VerifierOptions {
    /// The Assay server.
    pub issuer: IssuerUrl,
    /// The roots of its TLS certificate.
    pub roots: Roots,
    /// The audience of the tokens: this service.
    pub audience: String,
    /// The proof of possession.
    pub proof: RequiredProof,
    /// How tokens are introspected. `None`: a token is accepted until it expires, whatever happens to its machine.
    pub introspection: Option<IntrospectionOptions>,
}

/// A request, as it is presented to the verifier.
#[derive(Debug)]
pub struct Presented<'a> {
    /// The request's headers, of which `Authorization` and `DPoP` are read.
    pub headers: &'a HeaderMap,
    /// SHA-256 of the client certificate of the request's TLS connection.
    pub certificate: Option<[u8; 32]>,
    /// Method and URL of the request. Only a DPoP proof needs them.
    pub request: Option<(HttpMethod, TargetUri)>,
    /// The permissions that the request needs.
    pub required: &'a [String],
}

/// Verifies requests of machines.
#[derive(Debug)]
pub struct Verifier {
    issuer: IssuerUrl,
    audience: String,
    proof: RequiredProof,
    keys: Keys,
    introspection: Option<Introspection>,
    /// Verified tokens by their digest.
    tokens: Cache<[u8; 32], Arc<GrantToken>>,
    replays: Replays,
}

/// A token as the request has it.
struct PresentedToken<'a> {
    scheme: Scheme,
    text: &'a str,
    digest: [u8; 32],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Bearer,
    Dpop,
}

impl RequiredProof {
    pub(crate) fn takes_bearer(self) -> bool {
        self != Self::Dpop
    }

    pub(crate) fn takes_dpop(self) -> bool {
        self != Self::Certificate
    }
}

impl Verifier {
    /// Sets a verifier up at this time. It calls no one yet.
    pub fn new(options: VerifierOptions, now: OffsetDateTime) -> Result<Self, SetUpError> {
        let http = client(&options.roots)?;
        let introspection = options
            .introspection
            .map(|introspection| Introspection::new(http.clone(), &options.issuer, introspection));
        Ok(Self {
            keys: Keys::new(http, &options.issuer),
            introspection,
            issuer: options.issuer,
            audience: options.audience,
            proof: options.proof,
            tokens: Cache::builder()
                .max_capacity(MAX_TOKENS)
                .eviction_policy(EvictionPolicy::lru())
                .time_to_live(REMEMBERED_FOR)
                .build(),
            replays: Replays::new(MAX_PROOFS, now.unix_timestamp()),
        })
    }

    /// The proof that this verifier requires.
    #[must_use]
    pub fn proof(&self) -> RequiredProof {
        self.proof
    }

    /// Fetches the server's keys, so that the first request does not wait for them. Returns whether that succeeded;
    /// otherwise a request tries again.
    pub async fn fetch_keys(&self, now: OffsetDateTime) -> bool {
        self.keys.fetch_now(now).await.is_ok()
    }

    /// Lets a request in, or says why not. A proof is used up by the call.
    pub async fn verify(&self, presented: &Presented<'_>, now: OffsetDateTime) -> Result<Access, Refusal> {
        let token = self.presented_token(presented.headers)?;
        let grant = self.grant(&token, now).await?;
        self.require_possession(&token, &grant, presented, now)?;
        let permissions = self.permissions(&token, &grant, now).await?;
        if let Some(lacking) = presented.required.iter().find(|name| !permissions.contains(name)) {
            return Err(Refusal::InsufficientScope(lacking.clone()));
        }
        Ok(Access {
            machine_id: grant.machine_id,
            permissions,
            assurance: grant.assurance,
        })
    }

    fn presented_token<'a>(&self, headers: &'a HeaderMap) -> Result<PresentedToken<'a>, Refusal> {
        let authorization = only(headers, &AUTHORIZATION)?.ok_or(Refusal::NoToken)?;
        let invalid = || Refusal::InvalidRequest("Authorization has no token".to_owned());
        let (scheme, text) = authorization.split_once(' ').ok_or_else(invalid)?;
        let text = text.trim_matches(' ');
        let scheme = match scheme {
            bearer if bearer.eq_ignore_ascii_case("bearer") => Scheme::Bearer,
            dpop if dpop.eq_ignore_ascii_case("dpop") => Scheme::Dpop,
            _ => return Err(Refusal::NoToken),
        };
        match (scheme, self.proof) {
            // Otherwise, a stolen token could be used under the other scheme (RFC 9449, section 7.2).
            (Scheme::Bearer, RequiredProof::Dpop) | (Scheme::Dpop, RequiredProof::Certificate) => Err(
                Refusal::InvalidRequest("this service requires another scheme in Authorization".to_owned()),
            ),
            _ if text.is_empty() => Err(invalid()),
            _ => Ok(PresentedToken {
                scheme,
                text,
                digest: sha256(text.as_bytes()),
            }),
        }
    }

    /// The verified token.
    async fn grant(&self, token: &PresentedToken<'_>, now: OffsetDateTime) -> Result<Arc<GrantToken>, Refusal> {
        let invalid = |error: &(dyn std::error::Error + 'static)| Refusal::InvalidToken(Chain(error).to_string());
        if let Some(known) = self.tokens.get(&token.digest)
            && self.keys.has(&known.kid, now)
        {
            known.check_time(now).map_err(|error| invalid(&error))?;
            return Ok(known);
        }
        let unverified = UnverifiedToken::parse(token.text).map_err(|error| invalid(&error))?;
        unverified
            .check(self.issuer.as_str(), &self.audience, now)
            .map_err(|error| invalid(&error))?;
        let key = self.keys.find(unverified.unverified_kid(), now).await;
        let key = key.map_err(|error| match error {
            KeyError::Unknown => invalid(&error),
            KeyError::Unavailable => Refusal::Unavailable(error.to_string()),
        })?;
        let grant = Arc::new(unverified.verify(&key).map_err(|error| invalid(&error))?);
        self.tokens.insert(token.digest, Arc::clone(&grant));
        Ok(grant)
    }

    fn require_possession(
        &self,
        token: &PresentedToken<'_>,
        grant: &GrantToken,
        presented: &Presented<'_>,
        now: OffsetDateTime,
    ) -> Result<(), Refusal> {
        match (token.scheme, self.proof) {
            (Scheme::Dpop, _) => self.require_proof(token, grant, presented, now.unix_timestamp()),
            (Scheme::Bearer, RequiredProof::Unbound) => Ok(()),
            (Scheme::Bearer, _) => match (presented.certificate, grant.certificate) {
                (Some(presented), Some(bound)) if presented == bound => Ok(()),
                (None, _) => Err(Refusal::InvalidToken(
                    "the token is bound to a certificate, and the request came without one".to_owned(),
                )),
                _ => Err(Refusal::InvalidToken(
                    "the token is bound to another certificate".to_owned(),
                )),
            },
        }
    }

    fn require_proof(
        &self,
        token: &PresentedToken<'_>,
        grant: &GrantToken,
        presented: &Presented<'_>,
        now: i64,
    ) -> Result<(), Refusal> {
        let proof = only(presented.headers, &DPOP)?
            .ok_or_else(|| Refusal::InvalidProof("the request has no DPoP proof".to_owned()))?;
        let Some((method, target)) = &presented.request else {
            return Err(Refusal::Misconfigured(
                "the request's method and URL are not known, so no DPoP proof can be verified".to_owned(),
            ));
        };
        let invalid = |error: &(dyn std::error::Error + 'static)| Refusal::InvalidProof(Chain(error).to_string());
        let proof = UnverifiedProof::parse(proof).map_err(|error| invalid(&error))?;
        let expected = Expectation {
            key: grant.key,
            method,
            target,
            access_token_hash: &URL_SAFE_NO_PAD.encode(token.digest),
            nonce: None,
            now,
        };
        let proof = proof.verify(&expected).map_err(|error| invalid(&error))?;
        let claims = proof.claims();
        let accepted = self.replays.accept(proof.key(), &claims.jti, claims.iat, now);
        accepted.map_err(|error| match error {
            ReplayError::Replayed | ReplayError::BeforeStart => invalid(&error),
            ReplayError::Full => Refusal::Unavailable(error.to_string()),
        })
    }

    /// The token's permissions, or those that introspection still grants.
    async fn permissions(
        &self,
        token: &PresentedToken<'_>,
        grant: &GrantToken,
        now: OffsetDateTime,
    ) -> Result<Vec<String>, Refusal> {
        let Some(introspection) = &self.introspection else {
            return Ok(grant.permissions.clone());
        };
        let introspected = introspection.introspect(token.text, token.digest, now).await;
        let introspected = introspected.map_err(|error| Refusal::Unavailable(error.to_string()))?;
        match introspected {
            None => Ok(grant.permissions.clone()),
            Some(introspected) => introspected
                .permissions
                .clone()
                .ok_or_else(|| Refusal::InvalidToken("the token is no longer active".to_owned())),
        }
    }
}

/// The value of a header that may be there once.
pub(crate) fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Refusal> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value
            .to_str()
            .map(Some)
            .map_err(|_| Refusal::InvalidRequest(format!("the header {name} has bytes that are not ASCII"))),
        _ => Err(Refusal::InvalidRequest(format!("the header {name} is there twice"))),
    }
}
