//! The grant socket: `GET /grant?audience=` for the users that the configuration names.
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
    exchanges::Machine,
    state::{GrantError, StateDirectory, StateError, current_grant},
};

const SOCKET: &str = "agent.sock";

struct GrantSocket {
    directory: StateDirectory,
    clock: Arc<dyn Clock>,
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
        if request.uri().path() != "/grant" {
            return problem(
                StatusCode::NOT_FOUND,
                "not found; the only resource is /grant?audience=",
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
        let query = request.uri().query().unwrap_or_default().as_bytes();
        let mut audiences = form_urlencoded::parse(query).filter(|(name, _)| name == "audience");
        let (Some((_, audience)), None) = (audiences.next(), audiences.next()) else {
            return problem(
                StatusCode::BAD_REQUEST,
                "exactly one audience is required: /grant?audience=A",
                &[],
            );
        };
        let (directory, audience, now) = (self.directory.clone(), audience.into_owned(), self.clock.now());
        let response = tokio::task::spawn_blocking(move || grant(&directory, &audience, now)).await;
        response.unwrap_or_else(|_| problem(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping", &[]))
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
