//! An HTTP server for other programs on this machine, with limits for connections and with problem documents of RFC
//! 9457.

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

/// Time limit for a request's head, from the connection or the previous response on.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The same for a user that is not allowed, who must not occupy a connection for long.
const REFUSED_HEAD_TIMEOUT: Duration = Duration::from_secs(1);
/// Limit for a request's head, in bytes. Browsers and gateways stay far below it.
const MAX_HEAD_BYTES: usize = 64 * 1024;
const MAX_HEADERS: usize = 100;
/// Pause after a failed accept. The usual cause is a lack of file descriptors, and the next accept would fail, too.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(200);
/// Time limit for requests in progress when the server stops.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;
pub(crate) type LocalResponse = Response<Body>;

/// Responds to requests of other programs on this machine.
pub(crate) trait LocalService: Send + Sync + 'static {
    /// Limit for concurrent connections. More connections wait.
    const MAX_CONNECTIONS: usize;

    /// Responds to one request.
    fn respond(&self, request: Request<Incoming>) -> impl Future<Output = LocalResponse> + Send;
}

/// A listener, and the users it serves.
#[derive(Debug)]
pub(crate) enum Listener {
    /// A loopback address, which every user of this machine can reach.
    Loopback(TcpListener),
    /// A Unix socket. The kernel reports the user of each peer.
    Unix(UnixListener, LocalPeers),
}

/// An address that only this machine can reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LocalAddress {
    Loopback(SocketAddr),
    Unix(PathBuf),
}

/// The text is not such an address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LocalAddressError {
    #[error("{0:?} is not an address to listen on; examples are 127.0.0.1:8080, [::1]:8080 and unix:/path/to/socket")]
    Invalid(String),
    #[error(
        "{0} is not a loopback address; the proxy acts with this machine's identity, so other machines must not reach it"
    )]
    NotLoopback(SocketAddr),
}

/// Serves connections until `stop` is cancelled, then completes requests in progress.
pub(crate) async fn serve<S: LocalService>(listener: Listener, service: Arc<S>, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(S::MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    while let Some(Ok(slot)) = stop.run_until_cancelled(Arc::clone(&slots).acquire_owned()).await {
        let (service, ending) = (Arc::clone(&service), stop.clone());
        let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else {
            break;
        };
        match accepted {
            Ok(Accepted::Loopback(stream)) => drop(connections.spawn(async move {
                serve_connection(stream, true, service, ending).await;
                drop(slot);
            })),
            Ok(Accepted::Unix(stream, is_allowed)) => drop(connections.spawn(async move {
                serve_connection(stream, is_allowed.await, service, ending).await;
                drop(slot);
            })),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
    connections.close();
    // Remaining connections end with the process.
    let _ = tokio::time::timeout(SHUTDOWN_GRACE, connections.wait()).await;
}

/// A problem document. Its type is not in the protocol's registry, because the server does not take part.
pub(crate) fn problem(status: StatusCode, detail: &str, reasons: &[String]) -> LocalResponse {
    let title = status.canonical_reason().unwrap_or_default();
    let problem = json!({
        "type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail, "reasons": reasons,
    });
    json_response(status, "application/problem+json", problem.to_string())
}

/// A response that must not be cached.
pub(crate) fn json_response(status: StatusCode, content_type: &'static str, body: String) -> LocalResponse {
    let body = Full::new(Bytes::from(body))
        .map_err(|never| match never {})
        .boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
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
                // Without credentials, the peer has already closed the connection and is not allowed.
                let (credentials, peers) = (stream.peer_cred().ok(), peers.clone());
                Ok(Accepted::Unix(stream, async move {
                    match credentials {
                        Some(credentials) => peers.allows(credentials.uid(), credentials.gid()).await,
                        None => false,
                    }
                }))
            }
        }
    }
}

async fn serve_connection<S: LocalService>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    is_allowed: bool,
    service: Arc<S>,
    stop: CancellationToken,
) {
    let responding = service_fn(move |request| {
        let service = Arc::clone(&service);
        async move {
            Ok::<_, std::convert::Infallible>(match is_allowed {
                true => service.respond(request).await,
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
        .header_read_timeout(if is_allowed { HEAD_TIMEOUT } else { REFUSED_HEAD_TIMEOUT })
        .keep_alive(is_allowed)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), responding));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a local connection ended with an error");
    }
}

impl FromStr for LocalAddress {
    type Err = LocalAddressError;

    fn from_str(text: &str) -> Result<Self, LocalAddressError> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        let address = match text.strip_prefix("localhost:").map(str::parse) {
            Some(Ok(port)) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            _ => text.parse().map_err(|_| LocalAddressError::Invalid(text.to_owned()))?,
        };
        match address.ip().is_loopback() {
            true => Ok(Self::Loopback(address)),
            false => Err(LocalAddressError::NotLoopback(address)),
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
    fn local_addresses_are_accepted(#[case] text: &str, #[case] shown: &str) {
        assert_eq!(text.parse::<LocalAddress>().unwrap().to_string(), shown);
    }

    #[rstest]
    #[case("0.0.0.0:8080", "loopback")]
    #[case("[::]:8080", "loopback")]
    #[case("192.0.2.1:8080", "loopback")]
    #[case("[::ffff:127.0.0.1]:8080", "loopback")]
    #[case("localhost.example.com:8080", "not an address")]
    #[case("127.0.0.1", "not an address")]
    #[case("unix:", "not an address")]
    fn other_addresses_are_rejected(#[case] text: &str, #[case] why: &str) {
        let error = text.parse::<LocalAddress>().unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}
