//! Verifies that a request was signed for this URL, and that its nonce is used once (RFC 8555, sections 6.2 to 6.5).

use assay_authority::EcKey;
use serde::de::DeserializeOwned;
use serde_json::Value;
use time::OffsetDateTime;

use super::{
    AcmeError,
    jws::{Header, UnverifiedJws, read_object},
    urls::Urls,
};
use crate::{
    changes::{Identity, Origin, RequestSource},
    check_in::nonce::{GREATEST_REPLICA_SKEW, LIFETIME},
    services::Services,
    store::{
        acme_accounts::{self, Account, AccountStatus},
        acme_nonces,
    },
};

/// A body before verification, and where it was sent.
#[derive(Debug)]
pub(crate) struct Signed {
    /// The path and the query.
    pub(crate) path: String,
    pub(crate) body: Vec<u8>,
    pub(crate) source: RequestSource,
}

/// A request signed by an account.
#[derive(Debug)]
pub(crate) struct AccountRequest {
    pub(crate) account: Account,
    pub(crate) payload: Payload,
    pub(crate) source: RequestSource,
    /// The URL of the request.
    pub(crate) url: String,
}

/// A request signed by the key that it contains.
#[derive(Debug)]
pub(crate) struct KeyRequest {
    pub(crate) key: EcKey,
    pub(crate) payload: Payload,
    pub(crate) source: RequestSource,
    /// The URL of the request.
    pub(crate) url: String,
}

/// A request that may be signed in either way.
#[derive(Debug)]
pub(crate) enum EitherRequest {
    Account(AccountRequest),
    Key(KeyRequest),
}

/// The signed payload.
#[derive(Debug)]
pub(crate) struct Payload(Vec<u8>);

impl Payload {
    /// The payload of an inner JWS.
    pub(super) fn of_inner(payload: Vec<u8>) -> Self {
        Self(payload)
    }

    /// Whether this is a POST-as-GET (RFC 8555, section 6.3).
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Requires a POST-as-GET.
    pub(crate) fn require_empty(&self) -> Result<(), AcmeError> {
        if self.is_empty() {
            return Ok(());
        }
        Err(AcmeError::Malformed(
            "this resource is read with POST-as-GET: the payload must be empty",
        ))
    }

    /// Parses a JSON object. Unknown members are ignored, as RFC 8555, section 6, requires.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, AcmeError> {
        read_object(&self.0).ok_or(AcmeError::Malformed("the payload is not the expected JSON object"))
    }
}

/// The origin of a change: a client, by its account. `machine_id` is the machine it acts for, if one is registered.
pub(super) fn origin(source: &RequestSource, account: &Account, machine_id: Option<uuid::Uuid>) -> Origin {
    Origin::acme_account(account.id, machine_id, source)
}

/// Verifies a request that an account must sign.
pub(crate) async fn of_account(services: &Services, signed: Signed) -> Result<AccountRequest, AcmeError> {
    match either(services, signed).await? {
        EitherRequest::Account(request) => Ok(request),
        EitherRequest::Key(_) => Err(AcmeError::Malformed(
            "an account must sign this request: the protected header must have kid, not jwk",
        )),
    }
}

/// Verifies a request that a key in it must sign.
pub(crate) async fn of_key(services: &Services, signed: Signed) -> Result<KeyRequest, AcmeError> {
    match either(services, signed).await? {
        EitherRequest::Key(request) => Ok(request),
        EitherRequest::Account(_) => Err(AcmeError::Malformed(
            "the key of the new account must sign this request: the protected header must have jwk, not kid",
        )),
    }
}

/// Verifies a request of an account, or of a key that it contains.
pub(crate) async fn either(services: &Services, signed: Signed) -> Result<EitherRequest, AcmeError> {
    let jws = UnverifiedJws::parse(&signed.body)?;
    jws.require_algorithm()?;
    let urls = Urls(&services.policy.public_url);
    let url = urls.of(&signed.path);
    require_url(&jws.header, &url)?;
    let now = services.clock.now();
    let nonce = jws.header.nonce.clone().ok_or(AcmeError::NoNonce)?;
    let made_at = services.acme.nonces.recognize(&nonce, now)?.order();
    let source = signed.source;
    match (&jws.header.kid, &jws.header.jwk) {
        (Some(kid), None) => {
            let id = urls.account_id(kid).ok_or(AcmeError::UnknownAccount)?;
            let found = acme_accounts::find(&mut *services.store.connection().await?, id).await?;
            let account = found.ok_or(AcmeError::UnknownAccount)?;
            let payload = Payload(jws.verify(&account.key)?);
            source.identify(Identity::AcmeAccount(account.id));
            services.rate_limits.charge_acme_account(account.id)?;
            use_up(services, &nonce, made_at).await?;
            require_valid(&account)?;
            Ok(EitherRequest::Account(AccountRequest {
                account,
                payload,
                source,
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
                source,
                url,
            }))
        }
        _ => Err(AcmeError::Malformed(
            "the protected header must have either kid or jwk, not both",
        )),
    }
}

/// Checks the header of an inner JWS. Only the outer JWS has a nonce.
pub(super) fn require_inner(header: &Header, url: &str) -> Result<(), AcmeError> {
    require_url(header, url)?;
    if header.nonce.is_some() {
        return Err(AcmeError::Malformed("the inner JWS must not have a nonce"));
    }
    Ok(())
}

/// The key in an inner JWS.
pub(super) fn inner_key(header: &Header) -> Result<EcKey, AcmeError> {
    let jwk: Option<&Value> = header.jwk.as_ref();
    let jwk = jwk.ok_or(AcmeError::Malformed("the inner JWS must have the new key as jwk"))?;
    Ok(EcKey::from_jwk(jwk)?)
}

/// A deactivated account authorizes nothing (RFC 8555, section 7.3.6).
pub(super) fn require_valid(account: &Account) -> Result<(), AcmeError> {
    match account.status {
        AccountStatus::Valid => Ok(()),
        AccountStatus::Deactivated => Err(AcmeError::Deactivated),
    }
}

/// Prevents that a request for one resource is sent to another (RFC 8555, section 6.4).
fn require_url(header: &Header, actual: &str) -> Result<(), AcmeError> {
    if header.url == actual {
        return Ok(());
    }
    Err(AcmeError::Url {
        signed: header.url.chars().take(256).collect(),
        actual: actual.to_owned(),
    })
}

/// Uses a nonce up, and deletes some old ones. This runs after the signature check: an unsigned request must not cause
/// writes.
async fn use_up(services: &Services, nonce: &str, made_at: OffsetDateTime) -> Result<(), AcmeError> {
    // A replica whose clock is behind accepts the nonce for that much longer.
    let forget_at = made_at.saturating_add(LIFETIME).saturating_add(GREATEST_REPLICA_SKEW);
    let mut connection = services.store.connection().await?;
    if acme_nonces::use_up(&mut connection, nonce, forget_at, services.clock.now()).await? {
        return Ok(());
    }
    Err(AcmeError::NonceUsed)
}
