//! The HTTP side: routes, who may call them, and what is said when something is refused. The only place with status codes.

mod acme_api;
mod admin_api;
mod agent_api;
mod authentication;
mod caller_address;
mod deadline;
mod extract;
mod guard;
mod mdm_api;
mod operation;
mod page;
mod problem;
mod rate_limit;
mod relying_party_api;
mod request_id;
mod surround;
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

pub(crate) use self::caller_address::Peers;
use self::operation::{ANYBODY, MACHINE, describe_others};
use self::relying_party_api::Published;
use self::surround::Surroundings;
use crate::services::Services;

#[derive(OpenApi)]
#[openapi(info(title = "Assay", description = "Machine identity for fleets of Macs"), modifiers(&ApiKeys))]
struct Document;

/// Says how whoever has an API key authenticates.
struct ApiKeys;

impl Modify for ApiKeys {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_with(Components::new);
        for (name, scheme) in [
            ("api_key", HttpAuthScheme::Bearer),
            // With any user.
            ("api_key_as_password", HttpAuthScheme::Basic),
        ] {
            components.add_security_scheme(name, SecurityScheme::Http(Http::new(scheme)));
        }
    }
}

/// Everything that is served. `peers` says whom the peer's address stands for.
pub(crate) fn router(services: Arc<Services>, peers: Peers) -> Router {
    let document = Published(serde_json::to_string(&document()).unwrap_or_default().into());
    let agents = middleware::from_fn_with_state(Arc::clone(&services), surround::agents);
    let nonces = middleware::from_fn_with_state(Arc::clone(&services), surround::nonces);
    let anybody = middleware::from_fn_with_state(Arc::clone(&services), surround::anybody);
    let surroundings = Surroundings {
        services: Arc::clone(&services),
        peers,
    };
    let router = guarded(&services, admin_routes())
        .merge(guarded(&services, mdm_routes()))
        .merge(guarded(&services, relying_party_api::introspection()))
        .merge(guarded(&services, relying_party_api::health()))
        .merge(
            guarded(&services, relying_party_api::router())
                .layer(anybody)
                .layer(Extension(document)),
        )
        .merge(routes(agent_api::router()).layer(agents))
        .merge(guarded(&services, agent_api::nonces()).layer(nonces));
    with_acme(router, &services)
        .fallback(problem::no_such_path)
        .layer(middleware::from_fn_with_state(surroundings, surround::everything))
        .with_state(services)
}

/// The OpenAPI document, as JSON for people.
pub(crate) fn openapi() -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(&document())
}

fn document() -> utoipa::openapi::OpenApi {
    let machines = agent_api::router().into_openapi();
    let anybody = agent_api::nonces()
        .merge(relying_party_api::router())
        .merge(relying_party_api::health())
        .into_openapi();
    Document::openapi()
        .merge_from(describe_others(anybody, ANYBODY))
        .merge_from(describe_others(machines, MACHINE))
        .merge_from(relying_party_api::introspection().into_openapi())
        .merge_from(mdm_routes().into_openapi())
        .merge_from(admin_routes().into_openapi())
}

fn admin_routes() -> OpenApiRouter<Arc<Services>> {
    admin_api::router().layer(Extension(extract::ADMIN_BODY_LIMIT))
}

fn mdm_routes() -> OpenApiRouter<Arc<Services>> {
    mdm_api::router().layer(Extension(extract::MDM_BODY_LIMIT))
}

/// ACME is RFC 8555's, and says of itself where everything is: the document has nothing of it.
fn with_acme(router: Router<Arc<Services>>, services: &Arc<Services>) -> Router<Arc<Services>> {
    if !services.policy.acme_enabled {
        return router;
    }
    let anybody = middleware::from_fn_with_state(Arc::clone(services), surround::anybody);
    let finish = middleware::from_fn_with_state(Arc::clone(services), acme_api::finish);
    router.merge(guard_routes(services, acme_api::router()).layer(anybody).layer(finish))
}

fn guarded(services: &Arc<Services>, routes: OpenApiRouter<Arc<Services>>) -> Router<Arc<Services>> {
    let (router, _document) = routes.split_for_parts();
    guard_routes(services, router)
}

fn guard_routes(services: &Arc<Services>, router: Router<Arc<Services>>) -> Router<Arc<Services>> {
    known_methods(router).layer(middleware::from_fn_with_state(Arc::clone(services), surround::guarded))
}

fn routes(routes: OpenApiRouter<Arc<Services>>) -> Router<Arc<Services>> {
    let (router, _document) = routes.split_for_parts();
    known_methods(router)
}

fn known_methods(router: Router<Arc<Services>>) -> Router<Arc<Services>> {
    router.method_not_allowed_fallback(problem::no_such_method)
}
