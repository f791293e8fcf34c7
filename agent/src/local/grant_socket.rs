//! The grant socket: `GET /grant?audience=` for the users of this machine that the configuration names.
//!
//! It is in `run` under the state directory. Where others may use it, they may pass through the state directory, and
//! neither list it nor read anything in it.

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
    server::{Answer, Listener, LocalService, json_answer, problem, serve},
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

/// A grant as it is handed out.
#[derive(Serialize)]
struct HandedOut<'a> {
    audience: &'a str,
    token: &'a str,
    permissions: &'a [String],
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
}

#[derive(Debug, thiserror::Error)]
enum NoSocket {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("no socket at {path}")]
    Io {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("the agent is being stopped")]
    Stopped,
}

/// Hands grants out until it is told to stop. Without a socket the daemon goes on: checking in counts more.
pub(crate) async fn run(machine: &Machine, settings: &Settings, stop: CancellationToken) {
    let service = GrantSocket {
        directory: machine.directory.clone(),
        clock: Arc::clone(&machine.clock),
    };
    let peers = LocalPeers::new(settings.grant_socket.clone());
    for name in peers.unknown_names() {
        tracing::warn!(name, "this system has no such user or group; nobody gets grants by it");
    }
    let opened = stop
        .run_until_cancelled(open(&service.directory, peers.includes_others()))
        .await;
    match opened.unwrap_or(Err(NoSocket::Stopped)) {
        Ok((socket, listener)) => {
            serve(Listener::Unix(listener, peers), Arc::new(service), stop).await;
            drop(socket);
        }
        Err(NoSocket::Stopped) => {}
        Err(error) => tracing::warn!(error = %Chain(&error), "grants are not handed out on a socket"),
    }
}

async fn open(
    directory: &StateDirectory,
    is_for_others: bool,
) -> Result<(OwnedSocket, tokio::net::UnixListener), NoSocket> {
    let folder = directory.open_run(is_for_others)?;
    let path = folder.join(SOCKET);
    let failed = |source| NoSocket::Io {
        path: path.display().to_string(),
        source,
    };
    let (answer, answered) = oneshot::channel();
    let waited_for = path.clone();
    // Not a thread of the runtime's: another daemon may be in its place for long, and this one must be able to end.
    std::thread::Builder::new()
        .name("grant-socket".to_owned())
        .spawn(move || drop(answer.send(OwnedSocket::wait(waited_for))))
        .map_err(failed)?;
    let socket = answered.await.map_err(|_| NoSocket::Stopped)?.map_err(failed)?;
    let listener = socket.listen(is_for_others).map_err(failed)?;
    tracing::info!(socket = %path.display(), is_for_others, "grants are handed out");
    Ok((socket, listener))
}

impl LocalService for GrantSocket {
    const MOST_CONNECTIONS: usize = 64;

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        if request.uri().path() != "/grant" {
            return problem(StatusCode::NOT_FOUND, "there is /grant?audience= alone", &[]);
        }
        if request.method() != Method::GET {
            let mut answer = problem(StatusCode::METHOD_NOT_ALLOWED, "a grant is read with GET", &[]);
            answer
                .headers_mut()
                .insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
            return answer;
        }
        let query = request.uri().query().unwrap_or_default().as_bytes();
        let mut audiences = form_urlencoded::parse(query).filter(|(name, _)| name == "audience");
        let (Some((_, audience)), None) = (audiences.next(), audiences.next()) else {
            return problem(StatusCode::BAD_REQUEST, "name one audience: /grant?audience=A", &[]);
        };
        let (directory, audience, now) = (self.directory.clone(), audience.into_owned(), self.clock.now());
        let answer = tokio::task::spawn_blocking(move || grant(&directory, &audience, now)).await;
        answer.unwrap_or_else(|_| problem(StatusCode::SERVICE_UNAVAILABLE, "the agent is being stopped", &[]))
    }
}

fn grant(directory: &StateDirectory, audience: &str, now: OffsetDateTime) -> Answer {
    let record = match directory.record() {
        Ok(record) => record,
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "a grant cannot be handed out");
            return problem(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the agent cannot read its state",
                &[],
            );
        }
    };
    match current_grant(&record, audience, now) {
        Ok(grant) => {
            let handed_out = HandedOut {
                audience: &grant.audience,
                token: &grant.token,
                permissions: &grant.permissions,
                expires_at: grant.expires_at,
            };
            let body = serde_json::to_string(&handed_out).unwrap_or_default();
            json_answer(StatusCode::OK, "application/json", body)
        }
        Err(error) => error.answer(),
    }
}

impl GrantError {
    /// What a program that asked for a grant is told.
    fn answer(&self) -> Answer {
        let detail = self.to_string();
        match self {
            Self::NotGranted { reasons, .. } if !reasons.is_empty() => problem(StatusCode::FORBIDDEN, &detail, reasons),
            Self::NotGranted { .. } | Self::NotEnrolled => problem(StatusCode::NOT_FOUND, &detail, &[]),
            // The daemon has not reached the server for too long, and goes on trying.
            Self::Expired { .. } => problem(StatusCode::SERVICE_UNAVAILABLE, &detail, &[]),
        }
    }
}
