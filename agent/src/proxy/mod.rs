//! A proxy that gives any program of this machine access to one service, with the machine's identity.
//!
//! It listens on a loopback address or a Unix socket. It forwards requests over TLS with the machine's certificate and,
//! for an audience, the current grant token. The daemon keeps certificate and grants current. After a renewal, the
//! proxy opens new connections with the new certificate.

pub(crate) mod message;
mod upstream;

use std::sync::Arc;

use assay_protocol::Chain;
use http_body_util::BodyExt;
use hyper::{Request, StatusCode, body::Incoming, header::AUTHORIZATION};
use reqwest::header::HeaderValue;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::{
    message::{RejectedRequest, Site, prepare_request, prepare_response},
    upstream::{Upstream, UpstreamError},
};
use crate::{
    config::GrantSocketSettings,
    exchanges::{Agent, AgentError},
    local::{Listener, LocalAddress, LocalPeers, LocalResponse, LocalService, OwnedSocket, problem, serve},
    state::{GrantError, Record, current_grant},
    trust::{ServerUrl, Trust},
};

/// The options of the proxy.
#[derive(Debug)]
pub(crate) struct ProxyOptions {
    pub(crate) listen: LocalAddress,
    pub(crate) upstream: ServerUrl,
    pub(crate) trust: Trust,
    /// The relying party whose grant token is sent as bearer token.
    pub(crate) audience: Option<String>,
    /// The users that may use the proxy's Unix socket.
    pub(crate) peers: GrantSocketSettings,
}

/// Why the proxy cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    #[error("cannot listen on {address}")]
    Listen {
        address: LocalAddress,
        #[source]
        source: std::io::Error,
    },
}

/// A listening proxy.
pub(crate) struct Proxy {
    listener: Listener,
    address: LocalAddress,
    forwarder: Forwarder,
    /// Owned while the proxy listens.
    _socket: Option<OwnedSocket>,
}

struct Forwarder {
    agent: Agent,
    upstream: Upstream,
    audience: Option<String>,
    site: Site,
}

/// Why a request is not forwarded, or has no response.
#[derive(Debug, thiserror::Error)]
enum ForwardError {
    #[error(transparent)]
    Rejected(#[from] RejectedRequest),
    #[error("the agent cannot read its state")]
    State(#[source] AgentError),
    #[error(transparent)]
    Grant(#[from] GrantError),
    #[error("the grant token for {0} is not a valid header value")]
    InvalidToken(String),
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
}

impl Proxy {
    /// Opens the listener.
    pub(crate) async fn open(agent: Agent, options: ProxyOptions) -> Result<Self, ProxyError> {
        let failed = |source| ProxyError::Listen {
            address: options.listen.clone(),
            source,
        };
        let (listener, address, site, socket) = match &options.listen {
            LocalAddress::Loopback(address) => {
                let listener = TcpListener::bind(address).await.map_err(failed)?;
                let address = LocalAddress::Loopback(listener.local_addr().map_err(failed)?);
                (Listener::Loopback(listener), address, Site::Loopback, None)
            }
            LocalAddress::Unix(path) => {
                let socket = OwnedSocket::take(path.clone()).map_err(failed)?;
                let peers = LocalPeers::new(options.peers.clone());
                let listener = socket.listen(peers.includes_others()).map_err(failed)?;
                let listener = Listener::Unix(listener, peers);
                (listener, options.listen.clone(), Site::UnixSocket, Some(socket))
            }
        };
        let upstream = Upstream::new(options.upstream, options.trust);
        Ok(Self {
            listener,
            address,
            forwarder: Forwarder {
                agent,
                upstream,
                audience: options.audience,
                site,
            },
            _socket: socket,
        })
    }

    /// The address that it listens on.
    pub(crate) fn address(&self) -> &LocalAddress {
        &self.address
    }

    /// Forwards requests until `stop` is cancelled.
    pub(crate) async fn run(self, stop: CancellationToken) {
        serve(self.listener, Arc::new(self.forwarder), stop).await;
    }
}

impl LocalService for Forwarder {
    const MAX_CONNECTIONS: usize = 256;

    async fn respond(&self, request: Request<Incoming>) -> LocalResponse {
        match self.forward(request).await {
            Ok(response) => response,
            Err(error) => {
                tracing::debug!(error = %Chain(&error), "request not forwarded");
                error.response()
            }
        }
    }
}

impl Forwarder {
    async fn forward(&self, request: Request<Incoming>) -> Result<LocalResponse, ForwardError> {
        let (mut head, body) = request.into_parts();
        let target = prepare_request(&mut head, self.site)?;
        // Read for each request, because the daemon updates it.
        let record = self.agent.record().await.map_err(ForwardError::State)?;
        if let Some(audience) = &self.audience {
            head.headers.insert(AUTHORIZATION, self.bearer(&record, audience)?);
        }
        let response = self
            .upstream
            .send(self.agent.machine(), &record, head, &target, body)
            .await?;
        let (mut head, body) = response.into_parts();
        prepare_response(&mut head);
        Ok(LocalResponse::from_parts(head, body.map_err(Into::into).boxed_unsync()))
    }

    fn bearer(&self, record: &Record, audience: &str) -> Result<HeaderValue, ForwardError> {
        let grant = current_grant(record, audience, self.agent.machine().clock.now())?;
        let bearer = HeaderValue::from_str(&format!("Bearer {}", grant.token));
        let mut bearer = bearer.map_err(|_| ForwardError::InvalidToken(audience.to_owned()))?;
        bearer.set_sensitive(true);
        Ok(bearer)
    }
}

impl ForwardError {
    fn response(&self) -> LocalResponse {
        let (status, reasons) = match self {
            Self::Rejected(rejected) => (rejected.status(), [].as_slice()),
            Self::Grant(GrantError::NotGranted { reasons, .. }) => (StatusCode::FORBIDDEN, reasons.as_slice()),
            Self::Upstream(error) if error.is_timeout() => (StatusCode::GATEWAY_TIMEOUT, [].as_slice()),
            Self::State(_) | Self::Grant(_) | Self::InvalidToken(_) | Self::Upstream(_) => {
                (StatusCode::BAD_GATEWAY, [].as_slice())
            }
        };
        problem(status, &Chain(self).to_string(), reasons)
    }
}
