//! The only form of request: a POST of a JWS.

use std::sync::Arc;

use assay_protocol::ProblemKind;
use axum::extract::{FromRequest, FromRequestParts, Request};

use crate::{
    acme::Signed,
    changes::RequestSource,
    http::{
        extract::{media_type, read_body},
        problem::ApiProblem,
    },
    services::Services,
};

impl FromRequest<Arc<Services>> for Signed {
    type Rejection = ApiProblem;

    async fn from_request(request: Request, services: &Arc<Services>) -> Result<Self, ApiProblem> {
        let (mut parts, body) = request.into_parts();
        // RFC 8555, section 6.2.
        if media_type(&parts.headers).as_deref() != Some("application/jose+json") {
            return Err(ApiProblem::new(
                ProblemKind::UnsupportedMediaType,
                "the body must be application/jose+json",
            ));
        }
        let Ok(source) = RequestSource::from_request_parts(&mut parts, services).await;
        let path = parts.uri.path_and_query().map_or("", |path| path.as_str()).to_owned();
        let body = read_body(Request::from_parts(parts, body)).await?;
        Ok(Self {
            path,
            body: body.to_vec(),
            source,
        })
    }
}
