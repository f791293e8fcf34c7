//! Accepts connections and handles them until they end, within limits that a peer cannot extend.
//!
//! hyper's header timeout also runs while a connection is idle. A single value cannot fit both cases: it must be short
//! for a peer that trickles a head, but longer than the idle timeout of a proxy. `activity` distinguishes them.

mod activity;
mod body;
mod connection;

use std::{future::pending, io, net::SocketAddr, num::NonZeroU32, sync::Arc};

use axum::Router;
use ipnet::IpNet;
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    net::TcpListener,
    select,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Duration, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use self::connection::handle_connection;
use crate::{
    rate_limits::{Network, UnprovenConnection, UnprovenConnections},
    telemetry::Metrics,
};

/// How long to wait after a failed accept. If file descriptors or memory are exhausted, the next accept would fail as
/// well.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(200);

/// Limits on the time and memory that a peer can use.
#[derive(Debug, Clone)]
pub struct ConnectionLimits {
    /// The most simultaneous connections. Further ones wait in the kernel's queue.
    pub max_connections: usize,
    /// Connections of one network that have proved no identity. `None` means no limit.
    pub unproven_per_network: Option<NonZeroU32>,
    /// The peers to which that limit does not apply.
    pub trusted_proxies: Vec<IpNet>,
    /// The time from the accept to the end of the TLS handshake.
    pub handshake_timeout: Duration,
    /// The time to receive the head of a request. For the first request it starts with the connection.
    pub header_timeout: Duration,
    /// The time without a request. It is longer than the 60 s of common proxies, so the proxy closes first and never
    /// reuses a connection that is closing.
    pub idle_timeout: Duration,
    /// The time within a request without a byte in either direction.
    pub stall_timeout: Duration,
    /// The time in which a closing connection must accept more of the remaining output.
    pub flush_timeout: Duration,
    /// How long requests in flight may take after a shutdown starts, before their connections are closed.
    pub shutdown_timeout: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            max_connections: 20_000,
            unproven_per_network: None,
            trusted_proxies: Vec::new(),
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            stall_timeout: Duration::from_secs(60),
            flush_timeout: Duration::from_secs(1),
            shutdown_timeout: Duration::from_secs(20),
        }
    }
}

/// What [`serve`] needs.
pub struct Server {
    /// Handles the requests. Each request has [`ConnectInfo`](axum::extract::ConnectInfo) with the peer's address, and
    /// the client certificate if one was presented.
    pub router: Router,
    /// `None` for plain HTTP.
    pub tls: Option<TlsAcceptor>,
    /// The limits of each connection.
    pub limits: ConnectionLimits,
    /// Counts connections and handshakes.
    pub metrics: Arc<Metrics>,
}

/// Accepts connections until `shutdown`, then waits for requests in flight, at most for the shutdown timeout. Returns
/// the number of connections that it closed before they had finished.
pub async fn serve(listener: TcpListener, server: Server, shutdown: CancellationToken) -> usize {
    let server = Arc::new(server);
    let connections = TaskTracker::new();
    let cut_off = CancellationToken::new();
    accept_connections(listener, &server, &connections, &shutdown, &cut_off).await;
    connections.close();
    if timeout(server.limits.shutdown_timeout, connections.wait())
        .await
        .is_ok()
    {
        return 0;
    }
    let unfinished = connections.len();
    warn!(
        unfinished,
        "closing connections that did not finish before the shutdown timeout"
    );
    cut_off.cancel();
    connections.wait().await;
    unfinished
}

async fn accept_connections(
    listener: TcpListener,
    server: &Arc<Server>,
    connections: &TaskTracker,
    shutdown: &CancellationToken,
    cut_off: &CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(server.limits.max_connections));
    let unproven = Arc::new(UnprovenConnections::default());
    let accept = async || {
        let (stream, peer) = listener.accept().await?;
        let slot = wait_for_slot(&slots, server, &unproven).await?;
        Ok::<_, io::Error>((stream, peer, slot))
    };
    loop {
        let accepted = select! {
            biased;
            () = shutdown.cancelled() => return,
            accepted = accept() => accepted,
        };
        match accepted {
            Ok((stream, peer, slot)) => {
                let (server, shutdown, cut_off) = (Arc::clone(server), shutdown.clone(), cut_off.clone());
                let unproven = server.limits.count_unproven(&unproven, peer);
                connections.spawn(async move {
                    let _open = OpenConnection::new(&server.metrics.connections, slot);
                    select! {
                        () = cut_off.cancelled() => {}
                        () = ended(unproven.as_deref()) => {}
                        () = handle_connection(stream, peer, unproven.as_ref(), &server, &shutdown) => {}
                    }
                });
            }
            // The peer closed the connection before it was accepted.
            Err(error) if is_peer_error(&error) => {}
            Err(error) => {
                warn!(%error, "cannot accept connections");
                select! {
                    () = shutdown.cancelled() => return,
                    () = sleep(ACCEPT_BACKOFF) => {}
                }
            }
        }
    }
}

/// Waits for a slot for a new connection. If all slots are taken, it ends a connection that has proved no identity.
/// Otherwise a peer could block all others.
async fn wait_for_slot(
    slots: &Arc<Semaphore>,
    server: &Server,
    unproven: &UnprovenConnections,
) -> io::Result<OwnedSemaphorePermit> {
    if let Ok(slot) = Arc::clone(slots).try_acquire_owned() {
        return Ok(slot);
    }
    if server.limits.unproven_per_network.is_some() {
        unproven.end_one();
    }
    Arc::clone(slots).acquire_owned().await.map_err(io::Error::other)
}

impl ConnectionLimits {
    /// Takes connections for another listener out of these: at most so many, and at most half. Returns what remains, and
    /// the limits of the other.
    #[must_use]
    pub fn split(self, connections: usize) -> (Self, Self) {
        let max_connections = connections.min(self.max_connections / 2);
        let rest = Self {
            max_connections: self.max_connections - max_connections,
            ..self.clone()
        };
        let other = Self {
            max_connections,
            ..self
        };
        (rest, other)
    }

    fn count_unproven(&self, all: &Arc<UnprovenConnections>, peer: SocketAddr) -> Option<Arc<UnprovenConnection>> {
        let address = peer.ip().to_canonical();
        if self.trusted_proxies.iter().any(|network| network.contains(&address)) {
            return None;
        }
        let limit = usize::try_from(self.unproven_per_network?.get()).unwrap_or(usize::MAX);
        Some(all.add(Network::of(address), limit))
    }
}

async fn ended(unproven: Option<&UnprovenConnection>) {
    match unproven {
        Some(unproven) => unproven.ended().await,
        None => pending().await,
    }
}

/// Counts a connection while it is open, even if a handler panics.
struct OpenConnection {
    gauge: Gauge,
    _slot: OwnedSemaphorePermit,
}

impl OpenConnection {
    fn new(gauge: &Gauge, slot: OwnedSemaphorePermit) -> Self {
        gauge.inc();
        Self {
            gauge: gauge.clone(),
            _slot: slot,
        }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

fn is_peer_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

#[cfg(test)]
mod tests {
    use axum::{extract::ConnectInfo, routing::get};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        sync::Notify,
        task::JoinHandle,
    };

    use super::*;

    /// A test that waits this long has failed.
    const LONG: Duration = Duration::from_secs(60);

    struct Running {
        address: SocketAddr,
        metrics: Arc<Metrics>,
        shutdown: CancellationToken,
        serving: JoinHandle<usize>,
        /// Notified when a request to `/slow` starts.
        begun: Arc<Notify>,
        /// Lets `/slow` respond.
        go_on: Arc<Notify>,
    }

    fn long_limits() -> ConnectionLimits {
        ConnectionLimits {
            header_timeout: LONG,
            idle_timeout: LONG,
            stall_timeout: LONG,
            handshake_timeout: LONG,
            shutdown_timeout: LONG,
            flush_timeout: Duration::from_millis(50),
            ..ConnectionLimits::default()
        }
    }

    async fn start(limits: ConnectionLimits) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let slow = {
            let (begun, go_on) = (Arc::clone(&begun), Arc::clone(&go_on));
            move |ConnectInfo(peer): ConnectInfo<SocketAddr>| {
                let (begun, go_on) = (Arc::clone(&begun), Arc::clone(&go_on));
                async move {
                    begun.notify_one();
                    go_on.notified().await;
                    peer.ip().to_string()
                }
            }
        };
        let router = Router::new()
            .route("/", get(async || "hello").post(async |body: String| body))
            .route("/slow", get(slow));
        let (metrics, shutdown) = (Arc::new(Metrics::new()), CancellationToken::new());
        let server = Server {
            router,
            tls: None,
            limits,
            metrics: Arc::clone(&metrics),
        };
        Running {
            address: listener.local_addr().unwrap(),
            serving: tokio::spawn(serve(listener, server, shutdown.clone())),
            metrics,
            shutdown,
            begun,
            go_on,
        }
    }

    impl Running {
        async fn send(&self, bytes: &[u8]) -> TcpStream {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            stream
        }

        async fn ends(self) -> usize {
            self.shutdown.cancel();
            let cut_off = timeout(LONG / 2, self.serving).await.unwrap().unwrap();
            assert_eq!(self.metrics.connections.get(), 0);
            TcpStream::connect(self.address).await.unwrap_err();
            cut_off
        }
    }

    async fn rest(mut stream: TcpStream) -> String {
        let mut answer = Vec::new();
        // A reset also ends the connection.
        let _ended = timeout(LONG / 2, stream.read_to_end(&mut answer)).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    async fn answer(stream: &mut TcpStream) -> String {
        let mut bytes = vec![0; 4096];
        let length = stream.read(&mut bytes).await.unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    #[tokio::test]
    async fn what_has_begun_is_answered_before_the_server_ends() {
        let running = start(long_limits()).await;
        let stream = running.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await;
        running.begun.notified().await;
        running.shutdown.cancel();
        // Let the handler continue only after the listener is closed. The server has then seen the shutdown.
        while TcpStream::connect(running.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        assert!(!running.serving.is_finished());
        running.go_on.notify_one();
        let answer = rest(stream).await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("127.0.0.1"),
            "{answer}"
        );
        assert_eq!(running.ends().await, 0);
    }

    #[tokio::test]
    async fn connections_without_a_request_do_not_hold_the_shutdown() {
        let running = start(long_limits()).await;
        let silent = running.send(b"").await;
        let trickling = running.send(b"GET / HT").await;
        let mut idle = running.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer(&mut idle).await.starts_with("HTTP/1.1 200"));
        while running.metrics.connections.get() < 3 {
            tokio::task::yield_now().await;
        }
        assert_eq!(running.ends().await, 0);
        for stream in [silent, trickling, idle] {
            assert_eq!(rest(stream).await, "");
        }
    }

    #[tokio::test]
    async fn a_request_that_never_ends_is_closed_after_the_shutdown_timeout() {
        let limits = ConnectionLimits {
            shutdown_timeout: Duration::from_millis(50),
            ..long_limits()
        };
        let running = start(limits).await;
        let stream = running.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await;
        running.begun.notified().await;
        assert_eq!(running.ends().await, 1);
        assert_eq!(rest(stream).await, "");
    }

    #[tokio::test]
    async fn a_trickled_head_times_out_and_an_idle_connection_does_not() {
        let limits = ConnectionLimits {
            header_timeout: Duration::from_millis(50),
            ..long_limits()
        };
        let running = start(limits).await;
        let mut idle = running.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer(&mut idle).await.starts_with("HTTP/1.1 200"));
        for head in [b"".as_slice(), b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "] {
            assert_eq!(rest(running.send(head).await).await, "");
        }
        // Both connections above waited longer than the header timeout. This one is still open.
        idle.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(answer(&mut idle).await.starts_with("HTTP/1.1 200"));
        // The limit also applies to the second head on a connection.
        idle.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        assert_eq!(rest(idle).await, "");
        assert_eq!(running.ends().await, 0);
    }

    #[tokio::test]
    async fn trickling_the_head_does_not_extend_its_timeout() {
        let limits = ConnectionLimits {
            header_timeout: Duration::from_millis(50),
            flush_timeout: Duration::from_millis(50),
            ..long_limits()
        };
        let running = start(limits).await;
        let (mut reader, mut writer) = running.send(b"GET / HTTP/1.1\r\nX-Slow: ").await.into_split();
        let trickling = tokio::spawn(async move {
            let mut pace = tokio::time::interval(Duration::from_millis(5));
            while writer.write_all(b"x").await.is_ok() {
                pace.tick().await;
            }
        });
        let mut answer = Vec::new();
        let _ended = timeout(LONG / 2, reader.read_to_end(&mut answer)).await.unwrap();
        assert!(answer.is_empty());
        trickling.await.unwrap();
        assert_eq!(running.ends().await, 0);
    }

    #[tokio::test]
    async fn an_idle_connection_and_a_stalled_body_end_by_their_own_limits() {
        let limits = ConnectionLimits {
            idle_timeout: Duration::from_millis(50),
            stall_timeout: Duration::from_millis(50),
            ..long_limits()
        };
        let running = start(limits).await;
        let idle = running.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(rest(idle).await.ends_with("hello"));
        let head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nonly this";
        assert_eq!(rest(running.send(head).await).await, "");
        assert_eq!(running.ends().await, 0);
    }

    #[tokio::test]
    async fn connections_over_the_limit_wait_for_a_slot() {
        let limits = ConnectionLimits {
            max_connections: 1,
            ..long_limits()
        };
        let running = start(limits).await;
        let first = running
            .send(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await;
        running.begun.notified().await;
        let second = running
            .send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await;
        assert_eq!(running.metrics.connections.get(), 1);
        running.go_on.notify_one();
        assert!(rest(first).await.ends_with("127.0.0.1"));
        assert!(rest(second).await.ends_with("hello"));
        assert_eq!(running.ends().await, 0);
    }

    /// An HTTP/2 frame: type, flags, stream, payload.
    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        let head = [0, 0, length, kind, flags, 0, 0, 0, stream];
        [head.as_slice(), payload].concat()
    }

    /// `GET path` with the static table (RFC 7541, appendix A), as the only request on a stream.
    fn http2_get(stream: u8, path: &str) -> Vec<u8> {
        let length = u8::try_from(path.len()).unwrap();
        let block = [&[0x82, 0x86, 0x41, 1, b'x', 0x04, length], path.as_bytes()].concat();
        frame(1, 0x05, stream, &block)
    }

    async fn read_until(stream: &mut TcpStream, expected: &str) {
        let mut bytes = Vec::new();
        while !bytes
            .windows(expected.len())
            .any(|window| window == expected.as_bytes())
        {
            let read = timeout(LONG / 2, stream.read_buf(&mut bytes)).await.unwrap().unwrap();
            assert!(read > 0, "ended before {expected:?}");
        }
    }

    #[tokio::test]
    async fn http2_pings_start_no_head_and_shutdown_waits_for_streams() {
        let limits = ConnectionLimits {
            header_timeout: Duration::from_millis(50),
            ..long_limits()
        };
        let running = start(limits).await;
        let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[])].concat();
        let mut stream = running.send(&preface).await;
        stream.write_all(&http2_get(1, "/")).await.unwrap();
        read_until(&mut stream, "hello").await;
        stream.write_all(&frame(6, 0, 0, b"pingping")).await.unwrap();
        read_until(&mut stream, "pingping").await;
        // When this connection is closed, the header timeout has also passed for the other one.
        assert_eq!(rest(running.send(b"GET / HTTP/1.1\r\n").await).await, "");
        stream.write_all(&http2_get(3, "/slow")).await.unwrap();
        running.begun.notified().await;
        running.shutdown.cancel();
        while TcpStream::connect(running.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        running.go_on.notify_one();
        read_until(&mut stream, "127.0.0.1").await;
        drop(stream);
        assert_eq!(running.ends().await, 0);
    }

    #[tokio::test]
    async fn http2_pings_do_not_keep_an_idle_connection_open() {
        let limits = ConnectionLimits {
            idle_timeout: Duration::from_millis(200),
            ..long_limits()
        };
        let running = start(limits).await;
        let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[])].concat();
        let mut stream = running.send(&preface).await;
        stream.write_all(&http2_get(1, "/")).await.unwrap();
        read_until(&mut stream, "hello").await;
        let pinging = async {
            let mut bytes = [0; 1024];
            while stream.write_all(&frame(6, 0, 0, b"pingping")).await.is_ok() {
                if stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {
                    continue;
                }
                return;
            }
        };
        timeout(LONG / 2, pinging).await.unwrap();
        assert_eq!(running.ends().await, 0);
    }

    #[tokio::test]
    async fn a_new_connection_of_a_network_over_its_limit_ends_the_oldest() {
        let limits = ConnectionLimits {
            unproven_per_network: NonZeroU32::new(2),
            ..long_limits()
        };
        let running = start(limits).await;
        let mut silent = Vec::new();
        for _ in 0..5 {
            silent.push(running.send(b"").await);
        }
        let mut next = running.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer(&mut next).await.starts_with("HTTP/1.1 200"));
        for oldest in silent.drain(..4) {
            assert_eq!(rest(oldest).await, "");
        }
        while running.metrics.connections.get() != 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(running.ends().await, 0);
    }

    #[tokio::test]
    async fn a_trusted_proxy_has_no_limit_of_its_own() {
        let limits = ConnectionLimits {
            unproven_per_network: NonZeroU32::new(2),
            trusted_proxies: vec!["127.0.0.0/8".parse().unwrap()],
            ..long_limits()
        };
        let running = start(limits).await;
        let mut open = Vec::new();
        for _ in 0..5 {
            let mut stream = running.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert!(answer(&mut stream).await.starts_with("HTTP/1.1 200"));
            open.push(stream);
        }
        assert_eq!(running.metrics.connections.get(), 5);
        assert_eq!(running.ends().await, 0);
    }
}
