//! `/v1/introspect` (RFC 7662): the current state of a grant token, for relying parties that cannot wait until it
//! expires.

use std::sync::Arc;

use assay_authority::GrantClaims;
use assay_protocol::Problem;
use axum::{Json, extract::State, http::header, response::IntoResponse};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;

use crate::{
    check_in::introspection::introspect,
    http::{
        authentication::{Authorized, RelyingParty},
        extract::Form,
        operation::routes,
        problem::{ApiProblem, ApiResult},
    },
    services::Services,
};

const FORM: &str = "application/x-www-form-urlencoded";

pub(in crate::http) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new().routes(routes!(token))
}

/// The request. Other parameters, such as `token_type_hint`, are ignored.
#[derive(ToSchema)]
#[expect(dead_code, reason = "documents the form, whose parameters are read one by one")]
struct IntrospectionRequest {
    /// The grant token.
    token: String,
}

/// Only `{"active": false}`, or all claims that still apply.
#[derive(Serialize, ToSchema)]
struct Introspection {
    /// Whether the token is valid and grants something now.
    active: bool,
    /// `Bearer` if the token is active. `cnf` names the key that the presenter of the token should prove.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_type: Option<&'static str>,
    /// Without permissions that are no longer granted, and with the machine's current assurance.
    #[serde(flatten)]
    claims: Option<GrantClaims>,
    /// The further claims of the audience, with the machine's current values.
    #[serde(flatten)]
    #[schema(ignore)]
    further: Map<String, Value>,
}

/// Read what a grant token is worth now: what a check-in would give the machine at this moment.
#[utoipa::path(
    post, path = "/v1/introspect", tag = "Relying parties", security(("api_key" = []), ("api_key_as_password" = [])),
    request_body(content = IntrospectionRequest, content_type = FORM),
    responses((status = 200, body = Introspection), (status = "4XX", body = Problem)),
)]
async fn token(
    _caller: Authorized<RelyingParty>,
    State(services): State<Arc<Services>>,
    Form(parameters): Form,
) -> ApiResult<impl IntoResponse> {
    let mut tokens = parameters.iter().filter(|(name, _)| name == "token");
    let (Some((_, token)), None) = (tokens.next(), tokens.next()) else {
        return Err(ApiProblem::malformed("the form must contain the parameter token once"));
    };
    let introspected = introspect(&services, token).await?;
    let active = introspected.is_some();
    let (claims, further) = introspected.map(|found| (found.claims, found.further)).unzip();
    let introspection = Introspection {
        active,
        token_type: active.then_some("Bearer"),
        claims,
        further: further.unwrap_or_default(),
    };
    // The state may change at any time.
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(introspection)))
}
