//! One connection: its TLS handshake, its requests, and its deadlines.

use std::{
    future::poll_fn,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
};

use axum::{body::Body, extract::ConnectInfo, response::Response};
use http::{Request, Version};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulConnection},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    select,
    time::{Instant, Sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::debug;

use super::{
    ConnectionLimits, Server,
    activity::{Activity, Monitored},
    body::MonitoredBody,
};
use crate::{
    machines::client_certificate::ClientCertificate, rate_limits::UnprovenConnection, telemetry::metrics::Handshake,
};

/// Handles a connection until it ends, exceeds a limit, or the server shuts down.
pub(super) async fn handle_connection(
    stream: TcpStream,
    peer: SocketAddr,
    unproven: Option<&Arc<UnprovenConnection>>,
    server: &Server,
    shutdown: &CancellationToken,
) {
    // Responses are single small writes, and delaying them to fill a packet would only add latency.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "the connection closed immediately");
        return;
    }
    let Some(tls) = &server.tls else {
        return serve_http(
            stream,
            Peer {
                address: peer,
                certificate: None,
                unproven: unproven.cloned(),
            },
            server,
            shutdown,
        )
        .await;
    };
    let handshake = select! {
        // No request has started, so close without a response.
        () = shutdown.cancelled() => return,
        handshake = timeout(server.limits.handshake_timeout, tls.accept(stream)) => handshake,
    };
    match handshake {
        Ok(Ok(stream)) => {
            server.metrics.handshake_ended(Handshake::Completed);
            let presented = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let certificate = presented.map(|leaf| ClientCertificate::parse(leaf).map(Arc::new));
            // Our roots signed the certificate, but it is not a machine's. Revocation could not be checked for it, so
            // reject it.
            if certificate == Some(None) {
                debug!(%peer, "the client certificate is not a machine's certificate");
                return;
            }
            let certificate = certificate.flatten();
            // The handshake has proved that the peer has the certificate's key.
            if let Some(unproven) = unproven.filter(|_| certificate.is_some()) {
                unproven.prove();
            }
            let peer = Peer {
                address: peer,
                certificate,
                unproven: unproven.cloned(),
            };
            serve_http(stream, peer, server, shutdown).await;
        }
        Ok(Err(error)) => {
            server.metrics.handshake_ended(Handshake::Failed);
            debug!(%peer, %error, "the TLS handshake failed");
        }
        Err(_) => server.metrics.handshake_ended(Handshake::TimedOut),
    }
}

/// The peer of a connection.
struct Peer {
    address: SocketAddr,
    certificate: Option<Arc<ClientCertificate>>,
    unproven: Option<Arc<UnprovenConnection>>,
}

enum Interruption {
    Ended,
    ShuttingDown,
    TimedOut,
}

async fn serve_http<S>(stream: S, peer: Peer, server: &Server, shutdown: &CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Arc::new(Activity::new());
    let service = {
        let (activity, router) = (Arc::clone(&activity), server.router.clone());
        service_fn(move |mut request: Request<Incoming>| {
            let in_flight = activity.begin(request.version() == Version::HTTP_2);
            request.extensions_mut().insert(ConnectInfo(peer.address));
            if let Some(certificate) = &peer.certificate {
                request.extensions_mut().insert(Arc::clone(certificate));
            }
            if let Some(unproven) = &peer.unproven {
                request.extensions_mut().insert(Arc::clone(unproven));
            }
            let answer = router.clone().oneshot(request.map(Body::new));
            let activity = Arc::clone(&activity);
            async move {
                let answer = answer.await;
                drop(in_flight);
                answer.map(|answer: Response| answer.map(|body| MonitoredBody::new(body, activity)))
            }
        })
    };
    let monitored = Monitored {
        stream,
        activity: Arc::clone(&activity),
    };
    let builder = http_builder();
    let connection = pin!(builder.serve_connection(TokioIo::new(monitored), service));
    drive(connection, &activity, &server.limits, shutdown).await;
}

/// Drives a connection until it ends, exceeds a limit, or the server shuts down. In the last two cases it then finishes
/// the requests in flight and sends the remaining output.
async fn drive<C: GracefulConnection>(
    mut connection: Pin<&mut C>,
    activity: &Activity,
    limits: &ConnectionLimits,
    shutdown: &CancellationToken,
) {
    let mut alarm = pin!(sleep_until(activity.deadline(limits)));
    let mut shutting_down = pin!(shutdown.cancelled());
    let interruption = poll_fn(|context| {
        if connection.as_mut().poll(context).is_ready() {
            return Poll::Ready(Interruption::Ended);
        }
        if shutting_down.as_mut().poll(context).is_ready() {
            return Poll::Ready(Interruption::ShuttingDown);
        }
        // Bytes received or sent move the deadline.
        set(alarm.as_mut(), activity.deadline(limits));
        alarm.as_mut().poll(context).map(|()| Interruption::TimedOut)
    })
    .await;
    match interruption {
        Interruption::Ended => return,
        // Stalled within a request, so there is nothing to finish.
        Interruption::TimedOut if activity.is_answering() => return,
        Interruption::TimedOut | Interruption::ShuttingDown => connection.as_mut().graceful_shutdown(),
    }
    activity.record_use();
    poll_fn(|context| {
        if connection.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        set(alarm.as_mut(), activity.closing_deadline(limits));
        alarm.as_mut().poll(context)
    })
    .await;
}

fn set(alarm: Pin<&mut Sleep>, until: Instant) {
    if alarm.deadline() != until {
        alarm.reset(until);
    }
}

fn http_builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(64 * 1024)
        .max_headers(64);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(200)
        .max_header_list_size(16 * 1024);
    builder
}
