//! From a body to a request that its sender signed for this very URL, and that serves once (RFC 8555, sections 6.2 to 6.5).

use std::net::IpAddr;

use assay_authority::EcKey;
use serde::de::DeserializeOwned;
use serde_json::Value;
use time::OffsetDateTime;

use super::{
    AcmeError,
    jws::{Header, UnverifiedJws},
    urls::Urls,
};
use crate::{
    changes::Origin,
    check_in::nonce::{GREATEST_REPLICA_SKEW, LIFETIME},
    services::Services,
    store::{
        acme_accounts::{self, Account, AccountStatus},
        acme_nonces,
    },
};

/// A body as it came, and where to.
#[derive(Debug)]
pub(crate) struct Signed {
    /// Path and query.
    pub(crate) path: String,
    pub(crate) body: Vec<u8>,
    pub(crate) caller: Caller,
}

/// Where a request comes from.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) request_id: String,
    pub(crate) address: Option<IpAddr>,
}

/// What an account has signed.
#[derive(Debug)]
pub(crate) struct AccountRequest {
    pub(crate) account: Account,
    pub(crate) payload: Payload,
    pub(crate) caller: Caller,
    /// The URL that it was sent to.
    pub(crate) url: String,
}

/// What a key has signed that it brings itself.
#[derive(Debug)]
pub(crate) struct KeyRequest {
    pub(crate) key: EcKey,
    pub(crate) payload: Payload,
    pub(crate) caller: Caller,
    /// The URL that it was sent to.
    pub(crate) url: String,
}

/// A request whose sender may be either.
#[derive(Debug)]
pub(crate) enum EitherRequest {
    Account(AccountRequest),
    Key(KeyRequest),
}

/// What was signed.
#[derive(Debug)]
pub(crate) struct Payload(Vec<u8>);

impl Payload {
    /// What an inner JWS has signed.
    pub(super) fn of_inner(payload: Vec<u8>) -> Self {
        Self(payload)
    }

    /// Whether this is a POST-as-GET (RFC 8555, section 6.3).
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Demands a POST-as-GET.
    pub(crate) fn demand_empty(&self) -> Result<(), AcmeError> {
        if self.is_empty() {
            return Ok(());
        }
        Err(AcmeError::Malformed(
            "this is read with POST-as-GET: the payload has to be empty",
        ))
    }

    /// Reads a JSON object. Members that are not known are ignored, as RFC 8555, section 6, asks for.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, AcmeError> {
        const REFUSAL: AcmeError = AcmeError::Malformed("the payload is not the JSON object that this takes");
        // serde reads an array as well, member by member.
        if !self.0.trim_ascii_start().starts_with(b"{") {
            return Err(REFUSAL);
        }
        serde_json::from_slice(&self.0).map_err(|_| REFUSAL)
    }
}

impl Caller {
    /// Who caused a change: a client, by its account. It acts for a machine where that is on record.
    pub(super) fn origin(&self, account: &Account, machine_id: Option<uuid::Uuid>) -> Origin {
        Origin::acme_account(account.id, machine_id, self.request_id.clone())
    }
}

/// Verifies a request of an account.
pub(crate) async fn of_account(services: &Services, signed: Signed) -> Result<AccountRequest, AcmeError> {
    match either(services, signed).await? {
        EitherRequest::Account(request) => Ok(request),
        EitherRequest::Key(_) => Err(AcmeError::Malformed(
            "this is signed by an account: the protected header has to have kid, and not jwk",
        )),
    }
}

/// Verifies a request of a key that it brings.
pub(crate) async fn of_key(services: &Services, signed: Signed) -> Result<KeyRequest, AcmeError> {
    match either(services, signed).await? {
        EitherRequest::Key(request) => Ok(request),
        EitherRequest::Account(_) => Err(AcmeError::Malformed(
            "this is signed by the key of a new account: the protected header has to have jwk, and not kid",
        )),
    }
}

/// Verifies a request of an account or of a key that it brings.
pub(crate) async fn either(services: &Services, signed: Signed) -> Result<EitherRequest, AcmeError> {
    let jws = UnverifiedJws::parse(&signed.body)?;
    jws.demand_algorithm()?;
    let urls = Urls(&services.policy.public_url);
    let url = urls.of(&signed.path);
    demand_url(&jws.header, &url)?;
    let now = services.clock.now();
    let nonce = jws.header.nonce.clone().ok_or(AcmeError::NoNonce)?;
    let made_at = services.acme.nonces.recognize(&nonce, now)?.order();
    let caller = signed.caller;
    match (&jws.header.kid, &jws.header.jwk) {
        (Some(kid), None) => {
            let id = urls.account_id(kid).ok_or(AcmeError::UnknownAccount)?;
            let found = acme_accounts::find(&mut *services.store.connection().await?, id).await?;
            let account = found.ok_or(AcmeError::UnknownAccount)?;
            let payload = Payload(jws.verify(&account.key)?);
            services.rate_limits.charge_key(account.key.thumbprint())?;
            use_up(services, &nonce, made_at).await?;
            demand_valid(&account)?;
            Ok(EitherRequest::Account(AccountRequest {
                account,
                payload,
                caller,
                url,
            }))
        }
        (None, Some(jwk)) => {
            let key = EcKey::from_jwk(jwk)?;
            let payload = Payload(jws.verify(&key)?);
            use_up(services, &nonce, made_at).await?;
            Ok(EitherRequest::Key(KeyRequest {
                key,
                payload,
                caller,
                url,
            }))
        }
        _ => Err(AcmeError::Malformed(
            "the protected header has to have either kid or jwk, and not both",
        )),
    }
}

/// A JWS that an inner one has to agree with: without a nonce, as the outer one has it.
pub(super) fn demand_inner(header: &Header, url: &str) -> Result<(), AcmeError> {
    demand_url(header, url)?;
    if header.nonce.is_some() {
        return Err(AcmeError::Malformed("the inner JWS must not have a nonce"));
    }
    Ok(())
}

/// The key that an inner JWS brings.
pub(super) fn inner_key(header: &Header) -> Result<EcKey, AcmeError> {
    let jwk: Option<&Value> = header.jwk.as_ref();
    let jwk = jwk.ok_or(AcmeError::Malformed("the inner JWS has to have the new key as jwk"))?;
    Ok(EcKey::from_jwk(jwk)?)
}

/// A deactivated account authorizes nothing any more (RFC 8555, section 7.3.6).
pub(super) fn demand_valid(account: &Account) -> Result<(), AcmeError> {
    match account.status {
        AccountStatus::Valid => Ok(()),
        AccountStatus::Deactivated => Err(AcmeError::Deactivated),
    }
}

/// Otherwise a request to one resource could be sent to another (RFC 8555, section 6.4).
fn demand_url(header: &Header, actual: &str) -> Result<(), AcmeError> {
    if header.url == actual {
        return Ok(());
    }
    Err(AcmeError::Url {
        signed: header.url.chars().take(256).collect(),
        actual: actual.to_owned(),
    })
}

/// Uses a nonce up, and forgets some that nobody takes any more. After the signature: what anybody can send writes nothing.
async fn use_up(services: &Services, nonce: &str, made_at: OffsetDateTime) -> Result<(), AcmeError> {
    // A replica whose clock is behind takes it for fresh for that much longer.
    let forget_at = made_at.saturating_add(LIFETIME).saturating_add(GREATEST_REPLICA_SKEW);
    let mut connection = services.store.connection().await?;
    if acme_nonces::use_up(&mut connection, nonce, forget_at, services.clock.now()).await? {
        return Ok(());
    }
    Err(AcmeError::NonceUsed)
}
