//! The grant socket: `GET /grant?audience=`, and `GET /proof?audience=&method=&url=` with a proof of possession for one
//! request (DPoP, RFC 9449), for the users that the configuration names.
//!
//! The socket is in `run` in the state directory. If other users may use it, they get only search permission on the
//! state directory: they can neither list it nor read its files.

use std::{io, sync::Arc};

use assay_protocol::Chain;
use hyper::{Method, Request, StatusCode, body::Incoming, header::ALLOW};
use serde::Serialize;
use time::OffsetDateTime;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use url::form_urlencoded;

use super::{
    peers::{LocalPeers, OwnedSocket},
    server::{Listener, LocalResponse, LocalService, json_response, problem, serve},
};
use crate::{
    clock::Clock,
    config::Settings,
    exchanges::{Machine, PossessionError, ProvenRequest, Prover},
    state::{GrantError, StateDirectory, StateError, current_grant},
};

const SOCKET: &str = "agent.sock";

struct GrantSocket {
    directory: StateDirectory,
    clock: Arc<dyn Clock>,
    prover: Prover,
}

/// A grant, as the response contains it.
#[derive(Serialize)]
struct GrantResponse<'a> {
    audience: &'a str,
    token: &'a str,
    permissions: &'a [String],
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
}

/// A grant token with a proof for one request, as the response contains them.
#[derive(Serialize)]
struct ProofResponse<'a> {
    audience: &'a str,
    token: &'a str,
    proof: &'a str,
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
}

#[derive(Debug, thiserror::Error)]
enum SocketError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("the socket {path} cannot be opened")]
    Io {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("the agent is stopping")]
    Stopped,
}

/// Serves grants until `stop` is cancelled. If the socket cannot be opened, the daemon continues without it, because
/// check-ins are more important.
pub(crate) async fn run(machine: &Machine, settings: &Settings, stop: CancellationToken) {
    let service = GrantSocket {
        directory: machine.directory.clone(),
        clock: Arc::clone(&machine.clock),
        prover: machine.prover(),
    };
    let peers = LocalPeers::new(settings.grant_socket.clone());
    for name in peers.unknown_names() {
        tracing::warn!(name, "this system has no such user or group: grant_socket ignores it");
    }
    let opened = stop
        .run_until_cancelled(open(&service.directory, peers.includes_others()))
        .await;
    match opened.unwrap_or(Err(SocketError::Stopped)) {
        Ok((socket, listener)) => {
            serve(Listener::Unix(listener, peers), Arc::new(service), stop).await;
            drop(socket);
        }
        Err(SocketError::Stopped) => {}
        Err(error) => tracing::warn!(error = %Chain(&error), "the grant socket is not available"),
    }
}

async fn open(
    directory: &StateDirectory,
    is_for_others: bool,
) -> Result<(OwnedSocket, tokio::net::UnixListener), SocketError> {
    let folder = directory.open_run(is_for_others)?;
    let path = folder.join(SOCKET);
    let failed = |source| SocketError::Io {
        path: path.display().to_string(),
        source,
    };
    let (response, result) = oneshot::channel();
    let waited_for = path.clone();
    // Not on a thread of the runtime: another daemon may own the socket for a long time, and this process must still be
    // able to exit.
    std::thread::Builder::new()
        .name("grant-socket".to_owned())
        .spawn(move || drop(response.send(OwnedSocket::wait(waited_for))))
        .map_err(failed)?;
    let socket = result.await.map_err(|_| SocketError::Stopped)?.map_err(failed)?;
    let listener = socket.listen(is_for_others).map_err(failed)?;
    tracing::info!(socket = %path.display(), is_for_others, "serving grants");
    Ok((socket, listener))
}

impl LocalService for GrantSocket {
    const MAX_CONNECTIONS: usize = 64;

    async fn respond(&self, request: Request<Incoming>) -> LocalResponse {
        let path = request.uri().path();
        if !matches!(path, "/grant" | "/proof") {
            return problem(
                StatusCode::NOT_FOUND,
                "not found; the resources are /grant?audience= and /proof?audience=&method=&url=",
                &[],
            );
        }
        if request.method() != Method::GET {
            let mut response = problem(
                StatusCode::METHOD_NOT_ALLOWED,
                "method not allowed; see the Allow header",
                &[],
            );
            response
                .headers_mut()
                .insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
            return response;
        }
        let query = request.uri().query().unwrap_or_default();
        match path {
            "/grant" => self.grant(query).await,
            _ => self.proof(query).await,
        }
    }
}

impl GrantSocket {
    async fn grant(&self, query: &str) -> LocalResponse {
        let Some(audience) = parameter(query, "audience") else {
            return problem(
                StatusCode::BAD_REQUEST,
                "exactly one audience is required: /grant?audience=A",
                &[],
            );
        };
        let (directory, now) = (self.directory.clone(), self.clock.now());
        let response = tokio::task::spawn_blocking(move || grant(&directory, &audience, now)).await;
        response.unwrap_or_else(|_| problem(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping", &[]))
    }

    async fn proof(&self, query: &str) -> LocalResponse {
        let (audience, request) = match proven_request(query) {
            Ok(asked) => asked,
            Err(detail) => return problem(StatusCode::BAD_REQUEST, &detail, &[]),
        };
        match self.prover.prove(&audience, &request).await {
            Ok(proven) => {
                let body = ProofResponse {
                    audience: &proven.grant.audience,
                    token: &proven.grant.token,
                    proof: &proven.proof,
                    expires_at: proven.grant.expires_at,
                };
                let body = serde_json::to_string(&body).unwrap_or_default();
                json_response(StatusCode::OK, "application/json", body)
            }
            Err(PossessionError::Grant(error)) => error.response(),
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "cannot sign a proof");
                problem(StatusCode::SERVICE_UNAVAILABLE, &Chain(&error).to_string(), &[])
            }
        }
    }
}

/// The audience, and the request that the proof is for.
fn proven_request(query: &str) -> Result<(String, ProvenRequest), String> {
    let required = |name| {
        parameter(query, name)
            .ok_or_else(|| format!("exactly one {name} is required: /proof?audience=A&method=M&url=U"))
    };
    let (audience, method, url) = (required("audience")?, required("method")?, required("url")?);
    let nonce = match form_urlencoded::parse(query.as_bytes()).any(|(name, _)| name == "nonce") {
        true => Some(parameter(query, "nonce").ok_or("at most one nonce is allowed")?),
        false => None,
    };
    let invalid = |name, error: &dyn std::error::Error| format!("{name}: {error}");
    let request = ProvenRequest {
        method: method.parse().map_err(|error| invalid("method", &error))?,
        target: url.parse().map_err(|error| invalid("url", &error))?,
        nonce: match nonce {
            Some(nonce) => Some(nonce.parse().map_err(|error| invalid("nonce", &error))?),
            None => None,
        },
    };
    Ok((audience, request))
}

/// The value of a parameter that is in the query exactly once.
fn parameter(query: &str, name: &str) -> Option<String> {
    let mut values = form_urlencoded::parse(query.as_bytes()).filter(|(other, _)| other == name);
    match (values.next(), values.next()) {
        (Some((_, value)), None) => Some(value.into_owned()),
        _ => None,
    }
}

fn grant(directory: &StateDirectory, audience: &str, now: OffsetDateTime) -> LocalResponse {
    let record = match directory.record() {
        Ok(record) => record,
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "cannot serve a grant");
            return problem(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the agent cannot read its state",
                &[],
            );
        }
    };
    match current_grant(&record, audience, now) {
        Ok(grant) => {
            let body = GrantResponse {
                audience: &grant.audience,
                token: &grant.token,
                permissions: &grant.permissions,
                expires_at: grant.expires_at,
            };
            let body = serde_json::to_string(&body).unwrap_or_default();
            json_response(StatusCode::OK, "application/json", body)
        }
        Err(error) => error.response(),
    }
}

impl GrantError {
    /// The response for a program that requested a grant.
    fn response(&self) -> LocalResponse {
        let detail = self.to_string();
        match self {
            Self::NotGranted { reasons, .. } if !reasons.is_empty() => problem(StatusCode::FORBIDDEN, &detail, reasons),
            Self::NotGranted { .. } | Self::NotEnrolled => problem(StatusCode::NOT_FOUND, &detail, &[]),
            // The daemon has not reached the server for too long, and retries.
            Self::Expired { .. } => problem(StatusCode::SERVICE_UNAVAILABLE, &detail, &[]),
        }
    }
}
