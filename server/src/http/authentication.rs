//! Who calls the admin API, and whether its role allows what it asks.

use std::{marker::PhantomData, sync::Arc};

use assay_protocol::{
    ProblemKind,
    admin_api::{
        api_keys::Role,
        audit::{Actor, ActorKind},
    },
};
use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, header, request::Parts},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{problem::ApiProblem, rate_limit, request_id::RequestId};
use crate::{
    changes::Origin,
    secrets::{self, SecretHash},
    services::Services,
    store::api_keys,
};

/// A caller whose role allows what `R` names. In a handler's signature it is the authorization.
pub(crate) struct Authorized<R> {
    /// Who asks, for the audit.
    pub(crate) origin: Origin,
    /// The key that it asks with.
    pub(crate) api_key: Uuid,
    role: PhantomData<R>,
}

/// A role that an endpoint demands.
pub(crate) trait Demand {
    /// Whether a key of this role may call.
    fn allows(role: Role) -> bool;
    /// The lowest role that may, for the refusal.
    const NAME: &'static str;
    /// Whether the key may come as the password of HTTP Basic: for callers that are configured with a URL and nothing else.
    const TAKES_BASIC: bool = false;
}

/// Reads.
pub(crate) struct Viewer;
/// Changes machines, enrollments, tokens.
pub(crate) struct Operator;
/// Changes everything.
pub(crate) struct Admin;
/// Introspects, and nothing else. Nobody else introspects: a key that leaks from a relying party is worth this alone, and
/// an administrator's key has no business there.
pub(crate) struct RelyingParty;
/// Sends the events of an MDM, and nothing else; nobody else does, for the same reasons.
pub(crate) struct Mdm;

impl Demand for Viewer {
    const NAME: &'static str = "viewer";

    fn allows(role: Role) -> bool {
        matches!(role, Role::Viewer | Role::Operator | Role::Admin)
    }
}

impl Demand for Operator {
    const NAME: &'static str = "operator";

    fn allows(role: Role) -> bool {
        matches!(role, Role::Operator | Role::Admin)
    }
}

impl Demand for Admin {
    const NAME: &'static str = "admin";

    fn allows(role: Role) -> bool {
        matches!(role, Role::Admin)
    }
}

impl Demand for RelyingParty {
    const NAME: &'static str = "relying-party";

    fn allows(role: Role) -> bool {
        matches!(role, Role::RelyingParty)
    }
}

impl Demand for Mdm {
    const NAME: &'static str = "mdm";
    const TAKES_BASIC: bool = true;

    fn allows(role: Role) -> bool {
        matches!(role, Role::Mdm)
    }
}

impl<R: Demand> FromRequestParts<Arc<Services>> for Authorized<R> {
    type Rejection = ApiProblem;

    async fn from_request_parts(parts: &mut Parts, services: &Arc<Services>) -> Result<Self, ApiProblem> {
        let secret = presented_key(&parts.headers, R::TAKES_BASIC)?;
        let mut connection = services.store.connection().await?;
        let api_key = api_keys::find_by_secret(&mut connection, SecretHash::of(&secret)).await?;
        drop(connection);
        let Some(api_key) = api_key.filter(|key| secrets::serves(key.expires_at, key.revoked_at, services.clock.now()))
        else {
            return Err(unauthenticated("the API key is unknown, expired or revoked"));
        };
        rate_limit::charge_api_key(services, api_key.id)?;
        if !R::allows(api_key.role) {
            let detail = format!(
                "this needs the role {}, and the key {:?} has another",
                R::NAME,
                api_key.name
            );
            return Err(ApiProblem::new(ProblemKind::Forbidden, detail));
        }
        let Ok(request_id) = RequestId::from_request_parts(parts, services).await;
        Ok(Self {
            origin: Origin {
                actor: Actor {
                    kind: ActorKind::ApiKey,
                    id: Some(api_key.id.to_string()),
                    name: Some(api_key.name),
                },
                request_id: Some(request_id.to_string()),
            },
            api_key: api_key.id,
            role: PhantomData,
        })
    }
}

fn presented_key(headers: &HeaderMap, takes_basic: bool) -> Result<Zeroizing<String>, ApiProblem> {
    let value = headers
        .get(header::AUTHORIZATION)
        .ok_or_else(|| unauthenticated("there is no Authorization: Bearer header"))?;
    let value = value.to_str().ok().and_then(|value| value.split_once(' '));
    let key = match value {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => Some(Zeroizing::new(key.trim().to_owned())),
        Some((scheme, credentials)) if takes_basic && scheme.eq_ignore_ascii_case("basic") => password(credentials),
        _ => None,
    };
    key.ok_or_else(|| {
        unauthenticated(if takes_basic {
            "the Authorization header is neither of the form Bearer API-KEY nor Basic with the API key as the password"
        } else {
            "the Authorization header is not of the form: Bearer API-KEY"
        })
    })
}

/// The password of HTTP Basic (RFC 7617); the user is anybody.
fn password(credentials: &str) -> Option<Zeroizing<String>> {
    let decoded = Zeroizing::new(STANDARD.decode(credentials.trim()).ok()?);
    let (_user, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some(Zeroizing::new(password.to_owned()))
}

fn unauthenticated(detail: &str) -> ApiProblem {
    ApiProblem::new(ProblemKind::Unauthenticated, detail)
}
