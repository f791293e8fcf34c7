//! HTTP for programs on this machine: connections within limits, and answers in the form of RFC 9457.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::peers::LocalPeers;

/// For a request's head, from the connection or the answer before on.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The same for a user who is told no, and must not keep others waiting by it.
const STRANGERS_HEAD_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest head, in bytes. Browsers and gateways stay far below.
const LONGEST_HEAD: usize = 64 * 1024;
const MOST_HEADERS: usize = 100;
/// After an accept that failed for want of file descriptors, which the next one would, too.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(200);
/// What is being answered when the program is told to end may take this long.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;
pub(crate) type Answer = Response<Body>;

/// Answers requests of this machine's programs.
pub(crate) trait LocalService: Send + Sync + 'static {
    /// How many connections it has at a time; more wait.
    const MOST_CONNECTIONS: usize;

    /// Answers one.
    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Answer> + Send;
}

/// Where it listens, and to whom.
#[derive(Debug)]
pub(crate) enum Listener {
    /// A loopback address, which every user of this machine reaches.
    Loopback(TcpListener),
    /// A Unix socket, whose peers the kernel names.
    Unix(UnixListener, LocalPeers),
}

/// An address that only this machine reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LocalAddress {
    Loopback(SocketAddr),
    Unix(PathBuf),
}

/// The text names no such address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotLocal {
    #[error("{0:?} is no address to listen on: one looks like 127.0.0.1:8080, [::1]:8080 or unix:/path/to/socket")]
    NoAddress(String),
    #[error(
        "{0} is not a loopback address: whoever reaches the proxy speaks in this machine's name, so it listens to this machine alone"
    )]
    NotLoopback(SocketAddr),
}

/// Answers until it is told to stop, and then what it has begun to.
pub(crate) async fn serve<S: LocalService>(listener: Listener, service: Arc<S>, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(S::MOST_CONNECTIONS));
    let connections = TaskTracker::new();
    while let Some(Ok(slot)) = stop.run_until_cancelled(Arc::clone(&slots).acquire_owned()).await {
        let (service, ending) = (Arc::clone(&service), stop.clone());
        let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else {
            break;
        };
        match accepted {
            Ok(Accepted::Loopback(stream)) => drop(connections.spawn(async move {
                attend(stream, true, service, ending).await;
                drop(slot);
            })),
            Ok(Accepted::Unix(stream, is_allowed)) => drop(connections.spawn(async move {
                attend(stream, is_allowed.await, service, ending).await;
                drop(slot);
            })),
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
    connections.close();
    // What does not end in time is cut off with the process.
    let _ = tokio::time::timeout(LAST_ANSWERS, connections.wait()).await;
}

/// A problem document. It is none of the server's registry: these are between programs of one machine.
pub(crate) fn problem(status: StatusCode, detail: &str, reasons: &[String]) -> Answer {
    let title = status.canonical_reason().unwrap_or_default();
    let problem = json!({
        "type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail, "reasons": reasons,
    });
    json_answer(status, "application/problem+json", problem.to_string())
}

/// An answer that nobody is to keep.
pub(crate) fn json_answer(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    let body = Full::new(Bytes::from(body))
        .map_err(|never| match never {})
        .boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

enum Accepted<F> {
    Loopback(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream, F),
}

impl Listener {
    async fn accept(&self) -> io::Result<Accepted<impl Future<Output = bool> + Send + use<>>> {
        match self {
            Self::Loopback(listener) => Ok(Accepted::Loopback(listener.accept().await?.0)),
            Self::Unix(listener, peers) => {
                let (stream, _) = listener.accept().await?;
                // A peer that is gone already is nobody.
                let (credentials, peers) = (stream.peer_cred().ok(), peers.clone());
                Ok(Accepted::Unix(stream, async move {
                    match credentials {
                        Some(credentials) => peers.admit(credentials.uid(), credentials.gid()).await,
                        None => false,
                    }
                }))
            }
        }
    }
}

async fn attend<S: LocalService>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    is_allowed: bool,
    service: Arc<S>,
    stop: CancellationToken,
) {
    let answering = service_fn(move |request| {
        let service = Arc::clone(&service);
        async move {
            Ok::<_, std::convert::Infallible>(match is_allowed {
                true => service.answer(request).await,
                false => problem(
                    StatusCode::FORBIDDEN,
                    "the agent's configuration does not name this user (grant_socket.users, grant_socket.groups)",
                    &[],
                ),
            })
        }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(if is_allowed {
            HEAD_TIMEOUT
        } else {
            STRANGERS_HEAD_TIMEOUT
        })
        .keep_alive(is_allowed)
        .max_buf_size(LONGEST_HEAD)
        .max_headers(MOST_HEADERS);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), answering));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a local connection ended badly");
    }
}

impl FromStr for LocalAddress {
    type Err = NotLocal;

    fn from_str(text: &str) -> Result<Self, NotLocal> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        let address = match text.strip_prefix("localhost:").map(str::parse) {
            Some(Ok(port)) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            _ => text.parse().map_err(|_| NotLocal::NoAddress(text.to_owned()))?,
        };
        match address.ip().is_loopback() {
            true => Ok(Self::Loopback(address)),
            false => Err(NotLocal::NotLoopback(address)),
        }
    }
}

impl fmt::Display for LocalAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback(address) => write!(formatter, "http://{address}"),
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("127.0.0.1:8080", "http://127.0.0.1:8080")]
    #[case("127.9.9.9:1", "http://127.9.9.9:1")]
    #[case("[::1]:8080", "http://[::1]:8080")]
    #[case("localhost:8080", "http://127.0.0.1:8080")]
    #[case("unix:/run/proxy.sock", "unix:/run/proxy.sock")]
    fn what_only_this_machine_reaches_is_an_address(#[case] text: &str, #[case] shown: &str) {
        assert_eq!(text.parse::<LocalAddress>().unwrap().to_string(), shown);
    }

    #[rstest]
    #[case("0.0.0.0:8080", "loopback")]
    #[case("[::]:8080", "loopback")]
    #[case("192.0.2.1:8080", "loopback")]
    #[case("[::ffff:127.0.0.1]:8080", "loopback")]
    #[case("localhost.example.com:8080", "no address")]
    #[case("127.0.0.1", "no address")]
    #[case("unix:", "no address")]
    fn what_others_reach_is_none(#[case] text: &str, #[case] why: &str) {
        let error = text.parse::<LocalAddress>().unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}
