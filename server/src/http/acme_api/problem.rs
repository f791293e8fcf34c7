//! Error responses as RFC 8555, section 6.7 defines them.

use assay_protocol::{Chain, ProblemKind};
use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use uuid::Uuid;

use crate::{
    acme::{AcmeError, jws, jws::JwsError, urls::Urls},
    http::problem::ApiProblem,
    services::Services,
    store::StoreError,
};

/// The prefix of error types.
const NAMESPACE: &str = "urn:ietf:params:acme:error:";
const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");
const SERVER_INTERNAL: &str = "serverInternal";

/// An error response of ACME.
#[derive(Debug)]
pub(super) struct AcmeProblem {
    status: StatusCode,
    kind: &'static str,
    detail: String,
    retry_after_seconds: Option<u64>,
    with_algorithms: bool,
    location: Option<Uuid>,
}

/// An error as JSON: as a problem document, or inside an order or a challenge.
#[derive(Serialize)]
pub(super) struct ErrorDocument {
    #[serde(rename = "type")]
    kind: String,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    algorithms: Option<&'static [&'static str; 2]>,
}

pub(super) type AcmeResult<T> = Result<T, AcmeProblem>;

impl AcmeProblem {
    fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            detail: detail.into(),
            retry_after_seconds: None,
            with_algorithms: false,
            location: None,
        }
    }

    pub(super) fn no_such_resource() -> Self {
        AcmeError::NotFound.into()
    }

    /// Adds the URL of the account that has the key (RFC 8555, section 7.3.5).
    pub(super) fn located(self, services: &Services) -> Response {
        let location = self.location.map(|id| Urls(&services.policy.public_url).account(id));
        let mut response = self.into_response();
        if let Some(Ok(location)) = location.map(|url| HeaderValue::from_str(&url)) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }
}

impl From<AcmeError> for AcmeProblem {
    fn from(error: AcmeError) -> Self {
        let detail = Chain(&error).to_string();
        let (status, kind) = match error {
            AcmeError::Malformed(_) | AcmeError::NoNonce | AcmeError::Expired | AcmeError::CertificateExpired => {
                (StatusCode::BAD_REQUEST, "malformed")
            }
            AcmeError::Jws(JwsError::Algorithm(_)) => {
                return Self {
                    with_algorithms: true,
                    ..Self::new(StatusCode::BAD_REQUEST, "badSignatureAlgorithm", detail)
                };
            }
            AcmeError::Jws(_) => (StatusCode::BAD_REQUEST, "malformed"),
            AcmeError::Nonce(_) | AcmeError::NonceUsed => (StatusCode::BAD_REQUEST, "badNonce"),
            AcmeError::PublicKey(_) => (StatusCode::BAD_REQUEST, "badPublicKey"),
            AcmeError::UnknownAccount => (StatusCode::BAD_REQUEST, "accountDoesNotExist"),
            AcmeError::Url { .. } | AcmeError::Deactivated | AcmeError::ExternalAccount(_) => {
                (StatusCode::UNAUTHORIZED, "unauthorized")
            }
            AcmeError::OtherAccount | AcmeError::NotTheCertificatesKey => (StatusCode::FORBIDDEN, "unauthorized"),
            AcmeError::Inadmissible(_) => (StatusCode::FORBIDDEN, "rejectedIdentifier"),
            AcmeError::UnsupportedIdentifier => (StatusCode::BAD_REQUEST, "unsupportedIdentifier"),
            AcmeError::NotReady(_) => (StatusCode::FORBIDDEN, "orderNotReady"),
            AcmeError::Csr(_) => (StatusCode::BAD_REQUEST, "badCSR"),
            AcmeError::AlreadyRevoked => (StatusCode::BAD_REQUEST, "alreadyRevoked"),
            AcmeError::RevocationReason => (StatusCode::BAD_REQUEST, "badRevocationReason"),
            AcmeError::NotFound | AcmeError::UnknownCertificate => (StatusCode::NOT_FOUND, "malformed"),
            AcmeError::KeyInUse(holder) => {
                return Self {
                    location: Some(holder),
                    ..Self::new(StatusCode::CONFLICT, "malformed", detail)
                };
            }
            AcmeError::RateLimited(exceeded) => {
                return Self {
                    retry_after_seconds: Some(exceeded.retry_after_seconds),
                    ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rateLimited", detail)
                };
            }
            AcmeError::Contended => {
                return Self {
                    retry_after_seconds: Some(1),
                    ..Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER_INTERNAL, detail)
                };
            }
            AcmeError::Store(error) => return of_api_problem(&error.into()),
            AcmeError::Issue(cause) => return of_api_problem(&ApiProblem::internal(&cause)),
        };
        Self::new(status, kind, detail)
    }
}

impl From<StoreError> for AcmeProblem {
    fn from(error: StoreError) -> Self {
        of_api_problem(&error.into())
    }
}

/// The problem in a response, for the log.
#[derive(Debug, Clone)]
pub(in crate::http) struct RefusedByAcme {
    pub(in crate::http) kind: &'static str,
    pub(in crate::http) detail: String,
}

impl IntoResponse for AcmeProblem {
    fn into_response(self) -> Response {
        let body = ErrorDocument {
            status: Some(self.status.as_u16()),
            algorithms: self.with_algorithms.then_some(&jws::ALGORITHMS),
            ..ErrorDocument::new(self.kind, &self.detail)
        };
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = (self.status, [(header::CONTENT_TYPE, MEDIA_TYPE)], body).into_response();
        if let Some(seconds) = self.retry_after_seconds {
            let seconds = HeaderValue::from(seconds);
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response.extensions_mut().insert(RefusedByAcme {
            kind: self.kind,
            detail: self.detail,
        });
        response
    }
}

impl ErrorDocument {
    pub(super) fn new(kind: &str, detail: &str) -> Self {
        Self {
            kind: format!("{NAMESPACE}{kind}"),
            detail: detail.to_owned(),
            status: None,
            algorithms: None,
        }
    }
}

/// Converts an error of a layer that is not specific to ACME. Its headers are kept.
pub(super) fn into_acme_problem(mut response: Response) -> Response {
    let Some(problem) = response.extensions_mut().remove::<ApiProblem>() else {
        return response;
    };
    let translated = of_api_problem(&problem).into_response();
    let headers = std::mem::take(response.headers_mut());
    let (mut parts, body) = translated.into_parts();
    for (name, value) in headers {
        if let Some(name) = name.filter(|name| name != header::CONTENT_TYPE && name != header::CONTENT_LENGTH) {
            parts.headers.insert(name, value);
        }
    }
    Response::from_parts(parts, Body::new(body))
}

fn of_api_problem(problem: &ApiProblem) -> AcmeProblem {
    let kind = match problem.kind() {
        ProblemKind::RateLimited => "rateLimited",
        ProblemKind::Unavailable | ProblemKind::Internal => SERVER_INTERNAL,
        _ => "malformed",
    };
    let status = StatusCode::from_u16(problem.kind().status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    AcmeProblem {
        retry_after_seconds: problem.seconds_to_wait(),
        ..AcmeProblem::new(status, kind, problem.detail())
    }
}
