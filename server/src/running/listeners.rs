//! The listeners of a server: their addresses, what each serves, and how many connections each may have.

use std::{net::SocketAddr, sync::Arc};

use futures_util::{FutureExt, future::join_all};
use tokio::{
    net::{TcpListener, TcpSocket},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{RunError, descriptors};
use crate::{
    config::Config,
    connections::{self, ConnectionLimits},
    http::{self, Scope, TrustedProxies},
    services::Services,
};

/// The most connections to the administrators' API on an address of its own.
const ADMIN_CONNECTIONS: usize = 1000;

/// The most connections to the listener for revocation status. Its callers prove nothing.
const REVOCATION_CONNECTIONS: usize = 2000;
/// The kernel's queue of connections that the listener has not accepted yet.
const BACKLOG: u32 = 1024;
const REVOCATION_LISTEN: &str = "revocation.listen";

/// The listeners and their addresses.
pub(super) struct Listeners {
    pub(super) api: (TcpListener, SocketAddr),
    /// The administrators' API, if it has an address of its own.
    pub(super) admin: Option<(TcpListener, SocketAddr)>,
    /// Revocation status over plain HTTP, unless it is off.
    pub(super) revocation: Option<(TcpListener, SocketAddr)>,
    pub(super) telemetry: (TcpListener, SocketAddr),
}

impl Listeners {
    pub(super) async fn bind(config: &Config, revocation: Option<(TcpSocket, SocketAddr)>) -> Result<Self, RunError> {
        let admin = match config.admin_listen {
            Some(address) => Some(listen("admin.listen", address).await?),
            None => None,
        };
        Ok(Self {
            api: listen("listen", config.listen).await?,
            admin,
            revocation: revocation.map(listen_reserved).transpose()?,
            telemetry: listen("telemetry.listen", config.telemetry.listen).await?,
        })
    }
}

/// The listeners whose requests a shutdown waits for.
pub(super) struct Served {
    pub(super) api: TcpListener,
    pub(super) admin: Option<TcpListener>,
    pub(super) revocation: Option<TcpListener>,
}

/// Serves the API, and the administrators' API and the revocation status on addresses of their own if they have one.
/// The result is the number of connections that were closed before they had finished.
pub(super) fn serve(
    config: &Config,
    services: &Arc<Services>,
    tls: Option<&TlsAcceptor>,
    served: Served,
    shutdown: &CancellationToken,
) -> JoinHandle<usize> {
    let trusted_proxies = TrustedProxies::new(config.tls.trusted_proxies());
    let serve = |listener, scope, limits| {
        let server = connections::Server {
            router: http::router(Arc::clone(services), trusted_proxies.clone(), scope),
            tls: tls.cloned().filter(|_| scope != Scope::RevocationStatus),
            limits,
            metrics: Arc::clone(&services.metrics),
        };
        connections::serve(listener, server, shutdown.clone())
    };
    let mut rest = connection_limits(config);
    let mut take = |connections| {
        let (left, taken) = rest.clone().split(connections);
        rest = left;
        taken
    };
    let mut serving = Vec::new();
    let mut scope = Scope::Everything;
    if let Some(revocation) = served.revocation {
        serving.push(serve(revocation, Scope::RevocationStatus, take(REVOCATION_CONNECTIONS)));
    }
    if let Some(admin) = served.admin {
        scope = Scope::WithoutAdministration;
        serving.push(serve(admin, Scope::Administration, take(ADMIN_CONNECTIONS)));
    }
    serving.push(serve(served.api, scope, rest));
    tokio::spawn(join_all(serving).map(|cut_off| cut_off.into_iter().sum()))
}

fn connection_limits(config: &Config) -> ConnectionLimits {
    let limits = ConnectionLimits::default();
    let descriptors = descriptors::raise_limit();
    let (database_connections, most) = (config.database.max_connections, limits.max_connections);
    ConnectionLimits {
        max_connections: descriptors::connections_within(descriptors, database_connections, most),
        unproven_per_network: config.rate_limit.connections_per_address,
        trusted_proxies: config.tls.trusted_proxies().to_vec(),
        ..limits
    }
}

async fn listen(key: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), RunError> {
    let failed = |source| RunError::Listen { key, address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Reserves a port without listening on it: certificates contain the port, but the server does not answer yet.
pub(super) fn reserve(address: SocketAddr) -> Result<(TcpSocket, SocketAddr), RunError> {
    let reserve = || {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        // As `TcpListener::bind` does: a restarted server takes over the port of connections that are closing.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let address = socket.local_addr()?;
        Ok((socket, address))
    };
    reserve().map_err(|source| not_listening(address, source))
}

fn listen_reserved((socket, address): (TcpSocket, SocketAddr)) -> Result<(TcpListener, SocketAddr), RunError> {
    let listener = socket.listen(BACKLOG);
    Ok((listener.map_err(|source| not_listening(address, source))?, address))
}

fn not_listening(address: SocketAddr, source: std::io::Error) -> RunError {
    RunError::Listen {
        key: REVOCATION_LISTEN,
        address,
        source,
    }
}
