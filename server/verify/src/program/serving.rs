//! The HTTP server for the proxy's questions.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, header::CACHE_CONTROL, header::HeaderValue};
use http_body_util::Empty;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    listener::{Accepted, Listener},
    question::TrustedHeaders,
};
use crate::{access::Access, clock::now, refusal::Refusal, verifier::Verifier};

/// Limit for concurrent connections; more connections wait.
const MAX_CONNECTIONS: usize = 4096;
/// Time limit for a request's head. A connection without a request is closed after this time, too.
const HEAD_TIMEOUT: Duration = Duration::from_mins(2);
/// Limits for a request's head. The proxy passes the client's headers on, whose limits are lower.
const MAX_HEAD_BYTES: usize = 128 * 1024;
const MAX_HEADERS: usize = 256;
/// Pause after a failed accept. The usual cause is a lack of file descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(200);
/// Time limit for requests in progress when the server stops.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// What answers a question.
#[derive(Debug)]
pub(super) struct Answering {
    pub(super) verifier: Arc<Verifier>,
    pub(super) trusted: TrustedHeaders,
}

/// Serves connections until `stop` is cancelled, then completes requests in progress.
pub(super) async fn serve(listener: Listener, answering: Answering, stop: CancellationToken) {
    let answering = Arc::new(answering);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    while let Some(Ok(slot)) = stop.run_until_cancelled(Arc::clone(&slots).acquire_owned()).await {
        let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else {
            break;
        };
        let (answering, stop) = (Arc::clone(&answering), stop.clone());
        match accepted {
            Ok(accepted) => drop(connections.spawn(async move {
                match accepted {
                    Accepted::Loopback(stream) => serve_connection(stream, answering, stop).await,
                    Accepted::Unix(stream) => serve_connection(stream, answering, stop).await,
                }
                drop(slot);
            })),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
    connections.close();
    let _ = tokio::time::timeout(SHUTDOWN_GRACE, connections.wait()).await;
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    answering: Arc<Answering>,
    stop: CancellationToken,
) {
    let service = service_fn(move |request| {
        let answering = Arc::clone(&answering);
        async move { Ok::<_, Infallible>(answering.answer(request).await) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended with an error");
    }
}

impl Answering {
    async fn answer(&self, request: Request<Incoming>) -> Response<Empty<Bytes>> {
        let (head, _body) = request.into_parts();
        let mut response = Response::new(Empty::new());
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let written = match self.verify(&head).await {
            Ok(access) => access
                .write(headers)
                .map_err(|error| Refusal::InvalidToken(error.to_string())),
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = written {
            match refusal {
                Refusal::Misconfigured(_) => tracing::error!(%refusal, "the proxy's configuration is wrong"),
                _ => tracing::debug!(%refusal, "refused"),
            }
            refusal.write(self.verifier.proof(), headers);
            *response.status_mut() = refusal.status();
        }
        response
    }

    async fn verify(&self, head: &http::request::Parts) -> Result<Access, Refusal> {
        let question = self.trusted.read(head)?;
        self.verifier.verify(&question.presented(head), now()).await
    }
}
