//! Refuses requests without a usable `Host` header (RFC 9112, section 3.2). Servers that disagree about the host of a
//! request disagree about what it asks for.

use assay_protocol::ProblemKind;
use axum::{
    extract::Request,
    http::{Version, header},
    response::{IntoResponse, Response},
};

use super::problem::ApiProblem;

/// HTTP/2 names the host in the request itself, and HTTP/1.0 may leave it out.
pub(super) async fn require(request: Request, next: impl AsyncFnOnce(Request) -> Response) -> Response {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    let detail = match (request.version(), hosts) {
        (Version::HTTP_11, 0) => "the header Host is missing",
        (_, 0 | 1) => return next(request).await,
        _ => "the header Host is there twice",
    };
    ApiProblem::new(ProblemKind::Malformed, detail).into_response()
}
