//! `/v1/introspect` (RFC 7662): the current state of a grant token, for relying parties that cannot wait until it
//! expires.

use std::sync::Arc;

use assay_authority::GrantClaims;
use assay_protocol::Problem;
use axum::{Json, extract::State, http::header, response::IntoResponse};
use serde::Serialize;
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
}

/// Read what a grant token is worth now: what a check-in would give the machine at this moment.
#[utoipa::path(
    post, path = "/v1/introspect", tag = "Relying parties", security(("api_key" = [])),
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
    let claims = introspect(&services, token).await?;
    let introspection = Introspection {
        active: claims.is_some(),
        token_type: claims.as_ref().map(|_| "Bearer"),
        claims,
    };
    // The state may change at any time.
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(introspection)))
}
