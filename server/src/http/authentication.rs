//! Authenticates callers of the admin API, and checks that their role allows the operation.

use std::{marker::PhantomData, net::IpAddr, sync::Arc};

use assay_protocol::{
    ProblemKind,
    admin_api::{
        api_keys::{ApiKey, Role},
        audit::{Actor, ActorKind},
    },
};
use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, header, request::Parts},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use time::Duration;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{problem::ApiProblem, rate_limit};
use crate::{
    changes::{Identity, Origin, RequestSource},
    networks,
    secrets::{self, SecretHash},
    services::Services,
    store::api_keys,
};

/// The last use of a key is recorded at most once in this time. Otherwise every call would write.
const USE_PRECISION: Duration = Duration::MINUTE;

/// A caller whose role is sufficient for `R`. This parameter in a handler's signature is the handler's authorization.
pub(crate) struct Authorized<R> {
    /// The caller, for the audit log.
    pub(crate) origin: Origin,
    /// The API key of the request.
    pub(crate) api_key: Uuid,
    /// The role of that key.
    pub(crate) role: Role,
    required: PhantomData<R>,
}

/// The role that an endpoint requires.
pub(crate) trait RequiredRole {
    /// The lowest sufficient role, for error messages and for the API document.
    const NAME: &'static str;
    /// The roles whose keys may call the endpoint.
    const ROLES: &'static [Role];
    /// Whether HTTP Basic is accepted, with the key as the password. This is for callers that can be configured only
    /// with a URL, and for those that know only `client_secret_basic` (RFC 6749, section 2.3.1).
    const ACCEPTS_BASIC: bool = false;
}

/// Has an API key of any role.
pub(crate) struct KeyHolder;
/// May read.
pub(crate) struct Viewer;
/// May change machines, enrollments and tokens.
pub(crate) struct Operator;
/// May change everything.
pub(crate) struct Admin;
/// May introspect grant tokens and nothing else. No other role may introspect: a key leaked by a relying party gives
/// access to nothing more, and administrators' keys are not needed there.
pub(crate) struct RelyingParty;
/// May send the events of an MDM and nothing else. No other role may send them, for the same reasons.
pub(crate) struct Mdm;

impl RequiredRole for KeyHolder {
    const NAME: &'static str = "any";
    const ROLES: &'static [Role] = &Role::ALL;
}

impl RequiredRole for Viewer {
    const NAME: &'static str = "viewer";
    const ROLES: &'static [Role] = &[Role::Viewer, Role::Operator, Role::Admin];
}

impl RequiredRole for Operator {
    const NAME: &'static str = "operator";
    const ROLES: &'static [Role] = &[Role::Operator, Role::Admin];
}

impl RequiredRole for Admin {
    const NAME: &'static str = "admin";
    const ROLES: &'static [Role] = &[Role::Admin];
}

impl RequiredRole for RelyingParty {
    const NAME: &'static str = "relying-party";
    const ROLES: &'static [Role] = &[Role::RelyingParty];
    const ACCEPTS_BASIC: bool = true;
}

impl RequiredRole for Mdm {
    const NAME: &'static str = "mdm";
    const ROLES: &'static [Role] = &[Role::Mdm];
    const ACCEPTS_BASIC: bool = true;
}

impl<R: RequiredRole> FromRequestParts<Arc<Services>> for Authorized<R> {
    type Rejection = ApiProblem;

    async fn from_request_parts(parts: &mut Parts, services: &Arc<Services>) -> Result<Self, ApiProblem> {
        let Ok(source) = RequestSource::from_request_parts(parts, services).await;
        let challenge = |problem: ApiProblem| problem.or_basic(R::ACCEPTS_BASIC);
        let secret = presented_key(&parts.headers, R::ACCEPTS_BASIC).map_err(challenge)?;
        let api_key = authenticate(services, &secret, &source).await.map_err(challenge)?;
        if !R::ROLES.contains(&api_key.role) {
            let detail = format!(
                "this requires the role {}; the API key {:?} has another role",
                R::NAME,
                api_key.name
            );
            return Err(ApiProblem::new(ProblemKind::Forbidden, detail));
        }
        Ok(Self {
            origin: Origin {
                actor: Actor {
                    kind: ActorKind::ApiKey,
                    id: Some(api_key.id.to_string()),
                    name: Some(api_key.name),
                },
                request_id: Some(source.request_id.to_string()),
                address: source.address,
            },
            api_key: api_key.id,
            role: api_key.role,
            required: PhantomData,
        })
    }
}

/// Finds the key of a secret, and records its use. A key that may not be used from this address is refused before it is
/// charged: its thief cannot use up its limit.
async fn authenticate(services: &Arc<Services>, secret: &str, source: &RequestSource) -> Result<ApiKey, ApiProblem> {
    let now = services.clock.now();
    let mut connection = services.store.connection().await?;
    let api_key = api_keys::find_by_secret(&mut connection, SecretHash::of(secret)).await?;
    let api_key = api_key
        .filter(|key| secrets::is_valid(key.expires_at, key.revoked_at, now))
        .ok_or_else(|| unauthenticated("the API key is unknown, expired or revoked"))?;
    source.identify(Identity::ApiKey(api_key.id));
    if !may_be_used_from(&api_key, source.address) {
        return Err(unauthenticated("the API key may not be used from this address"));
    }
    rate_limit::charge_api_key(services, api_key.id)?;
    if api_key
        .last_used_at
        .is_none_or(|last| (now - last).abs() >= USE_PRECISION)
    {
        let recorded = api_keys::record_use(&mut connection, &api_key, secret, source.address, now).await;
        // A database that accepts no writes, such as a full one, can still be read.
        if let Err(error) = recorded {
            tracing::warn!(error = &error as &dyn std::error::Error, api_key = %api_key.id, "cannot record the use of an API key");
        }
    }
    Ok(api_key)
}

fn may_be_used_from(api_key: &ApiKey, address: Option<IpAddr>) -> bool {
    let networks = api_key.networks.as_deref();
    networks.is_none_or(|networks| address.is_some_and(|address| networks::contain(networks, address)))
}

pub(crate) fn presented_key(headers: &HeaderMap, accepts_basic: bool) -> Result<Zeroizing<String>, ApiProblem> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values
        .next()
        .ok_or_else(|| unauthenticated("the header Authorization: Bearer is missing"))?;
    // A proxy that checks one of them may not check the one that counts here.
    if values.next().is_some() {
        return Err(ApiProblem::malformed("the header Authorization is there twice"));
    }
    let value = value.to_str().ok().and_then(|value| value.split_once(' '));
    let key = match value {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => Some(Zeroizing::new(key.trim().to_owned())),
        Some((scheme, credentials)) if accepts_basic && scheme.eq_ignore_ascii_case("basic") => password(credentials),
        _ => None,
    };
    key.ok_or_else(|| {
        unauthenticated(if accepts_basic {
            "the Authorization header must have the form Bearer API-KEY, or Basic with the API key as the password"
        } else {
            "the Authorization header must have the form Bearer API-KEY"
        })
    })
}

/// The password of HTTP Basic (RFC 7617). Any user name is accepted.
fn password(credentials: &str) -> Option<Zeroizing<String>> {
    let decoded = Zeroizing::new(STANDARD.decode(credentials.trim()).ok()?);
    let (_user, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some(Zeroizing::new(password.to_owned()))
}

fn unauthenticated(detail: &str) -> ApiProblem {
    ApiProblem::new(ProblemKind::Unauthenticated, detail)
}
