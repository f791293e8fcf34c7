//! The HTTP interface: routes, authorization, and error responses. HTTP status codes are used only here.

mod acme_api;
mod admin_api;
mod agent_api;
pub(crate) mod authentication;
mod caller_address;
mod deadline;
mod description;
mod extract;
mod guard;
mod host;
mod layers;
mod mdm_api;
mod operation;
pub(crate) mod page;
mod problem;
mod rate_limit;
mod relying_party_api;
mod request_id;
mod request_source;
mod unread_body;

use std::sync::Arc;

use axum::{Extension, Router, middleware};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        Components,
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};
use utoipa_axum::router::OpenApiRouter;

pub(crate) use self::caller_address::TrustedProxies;
use self::layers::OuterLayer;
use self::operation::{MACHINE, PUBLIC, describe_others};
use self::relying_party_api::Published;
use crate::services::Services;

#[derive(OpenApi)]
#[openapi(info(title = "Assay", description = "Machine identity for fleets of Macs"), modifiers(&ApiKeys))]
struct Document;

/// Describes how callers with an API key authenticate.
struct ApiKeys;

impl Modify for ApiKeys {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_with(Components::new);
        for (name, scheme) in [
            ("api_key", HttpAuthScheme::Bearer),
            // Any user name is accepted.
            ("api_key_as_password", HttpAuthScheme::Basic),
        ] {
            components.add_security_scheme(name, SecurityScheme::Http(Http::new(scheme)));
        }
    }
}

/// Which routes to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Everything,
    /// What remains if the administrators' API has an address of its own.
    WithoutAdministration,
    Administration,
    /// What verifiers of certificates read over plain HTTP: all of it is signed.
    RevocationStatus,
}

/// The routes of one address.
pub(crate) fn router(services: Arc<Services>, trusted_proxies: TrustedProxies, scope: Scope) -> Router {
    let administration =
        || routes(admin_routes()).layer(middleware::from_fn_with_state(Arc::clone(&services), layers::api_keys));
    let router = match scope {
        Scope::Everything => others(&services).merge(administration()),
        Scope::WithoutAdministration => others(&services),
        Scope::Administration => administration(),
        Scope::RevocationStatus => revocation_status(&services),
    };
    let outer = OuterLayer {
        services: Arc::clone(&services),
        trusted_proxies,
    };
    router
        .fallback(problem::no_such_path)
        .layer(middleware::from_fn_with_state(outer, layers::everything))
        .with_state(services)
}

/// All routes but those of the administrators' API.
fn others(services: &Arc<Services>) -> Router<Arc<Services>> {
    let document = Published(serde_json::to_string(&document()).unwrap_or_default().into());
    let state = || Arc::clone(services);
    let api_keys = middleware::from_fn_with_state(state(), layers::api_keys);
    let applicants = middleware::from_fn_with_state(state(), layers::applicants);
    let machines = middleware::from_fn_with_state(state(), layers::machines);
    let nonces = middleware::from_fn_with_state(state(), layers::nonces);
    let public = middleware::from_fn_with_state(state(), layers::public);
    let router = routes(mdm_routes())
        .merge(routes(relying_party_api::introspection()))
        .layer(api_keys)
        .merge(routes(relying_party_api::health()).layer(middleware::from_fn(layers::health)))
        .merge(
            routes(relying_party_api::router())
                .layer(public)
                .layer(Extension(document)),
        )
        .merge(routes(agent_api::enrollment()).layer(applicants))
        .merge(routes(agent_api::machines()).layer(machines))
        .merge(routes(agent_api::nonces()).layer(nonces));
    with_acme(router, services)
}

/// The routes of the listener for revocation status. There is no trust anchor among them: a path could replace it.
fn revocation_status(services: &Arc<Services>) -> Router<Arc<Services>> {
    let layer = middleware::from_fn_with_state(Arc::clone(services), layers::revocation);
    routes(relying_party_api::revocation_status())
        .layer(Extension(extract::OCSP_BODY_LIMIT))
        .layer(layer)
}

/// The OpenAPI document as formatted JSON.
pub(crate) fn openapi() -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(&document())
}

fn document() -> utoipa::openapi::OpenApi {
    let machines = agent_api::enrollment().merge(agent_api::machines()).into_openapi();
    let public = agent_api::nonces()
        .merge(relying_party_api::router())
        .merge(relying_party_api::health())
        .into_openapi();
    let document = Document::openapi()
        .merge_from(describe_others(public, PUBLIC))
        .merge_from(describe_others(machines, MACHINE))
        .merge_from(relying_party_api::introspection().into_openapi())
        .merge_from(mdm_routes().into_openapi())
        .merge_from(admin_routes().into_openapi());
    description::complete(document)
}

fn admin_routes() -> OpenApiRouter<Arc<Services>> {
    admin_api::router().layer(Extension(extract::ADMIN_BODY_LIMIT))
}

fn mdm_routes() -> OpenApiRouter<Arc<Services>> {
    mdm_api::router().layer(Extension(extract::MDM_BODY_LIMIT))
}

/// The document does not describe ACME: RFC 8555 does, and ACME's directory lists its URLs.
fn with_acme(router: Router<Arc<Services>>, services: &Arc<Services>) -> Router<Arc<Services>> {
    if !services.policy.acme_enabled {
        return router;
    }
    let public = middleware::from_fn_with_state(Arc::clone(services), layers::public);
    let finish = middleware::from_fn_with_state(Arc::clone(services), acme_api::finish);
    router.merge(known_methods(acme_api::router()).layer(public).layer(finish))
}

fn routes(routes: OpenApiRouter<Arc<Services>>) -> Router<Arc<Services>> {
    let (router, _document) = routes.split_for_parts();
    known_methods(router)
}

fn known_methods(router: Router<Arc<Services>>) -> Router<Arc<Services>> {
    router.method_not_allowed_fallback(problem::no_such_method)
}
