//! A proxy that gives any program of this machine access to one service, with the machine's identity.
//!
//! It listens on a loopback address or a Unix socket. It forwards requests over TLS with the machine's certificate and,
//! for an audience, the current grant token. The daemon keeps certificate and grants current. After a renewal, the
//! proxy opens new connections with the new certificate.

mod authorization;
mod body;
pub(crate) mod message;
mod upstream;

use std::sync::Arc;

use assay_protocol::Chain;
use http_body_util::BodyExt;
use hyper::{Request, StatusCode, body::Incoming, http::request};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub(crate) use self::authorization::ProofKind;
use self::{
    authorization::Authorization,
    body::{BodyError, ProgramBody, RequestBody},
    message::{RejectedRequest, Site, prepare_request, prepare_response},
    upstream::{Upstream, UpstreamError},
};
use crate::{
    config::GrantSocketSettings,
    exchanges::{Agent, AgentError, PossessionError},
    local::{Listener, LocalAddress, LocalPeers, LocalResponse, LocalService, OwnedSocket, problem, serve},
    state::GrantError,
    trust::{ServerUrl, Trust},
};

/// The options of the proxy.
#[derive(Debug)]
pub(crate) struct ProxyOptions {
    pub(crate) listen: LocalAddress,
    pub(crate) upstream: ServerUrl,
    pub(crate) trust: Trust,
    /// The relying party whose grant token is sent.
    pub(crate) audience: Option<String>,
    /// The proof of possession that is sent with the token. Without one, the token is a bearer token.
    pub(crate) proof: Option<ProofKind>,
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
    authorization: Authorization,
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
    #[error(transparent)]
    Body(BodyError),
    #[error(transparent)]
    Possession(PossessionError),
    #[error("no proof can be signed for this method and URL")]
    NoProof,
    #[error("the grant token is not a valid header value")]
    InvalidToken,
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
        let authorization = Authorization::new(agent.machine(), options.audience, options.proof);
        Ok(Self {
            listener,
            address,
            forwarder: Forwarder {
                agent,
                upstream,
                authorization,
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
        let body = match self.authorization.may_need_a_nonce() {
            true => ProgramBody::keep_if_short(body).await.map_err(ForwardError::Body)?,
            false => ProgramBody::Streamed(body),
        };
        let (body, again) = body.into_request();
        let (mut response, needs_nonce) = self.exchange(head.clone(), &target, body).await?;
        if let Some(body) = again.filter(|_| needs_nonce) {
            (response, _) = self.exchange(head, &target, body).await?;
        }
        Ok(response)
    }

    /// Sends a request. Returns the response, and whether it asks for another proof with its nonce.
    async fn exchange(
        &self,
        mut head: request::Parts,
        target: &str,
        body: RequestBody,
    ) -> Result<(LocalResponse, bool), ForwardError> {
        // Read for each request, because the daemon updates it.
        let record = self.agent.record().await.map_err(ForwardError::State)?;
        let machine = self.agent.machine();
        let url = self.upstream.url(target);
        self.authorization.add(&mut head, &url, machine, &record).await?;
        let response = self.upstream.send(machine, &record, head, &url, body).await?;
        let (mut head, body) = response.into_parts();
        let needs_nonce = self.authorization.keep_nonce(&head);
        prepare_response(&mut head);
        Ok((LocalResponse::from_parts(head, body.boxed_unsync()), needs_nonce))
    }
}

impl From<PossessionError> for ForwardError {
    fn from(error: PossessionError) -> Self {
        match error {
            PossessionError::Grant(error) => Self::Grant(error),
            error => Self::Possession(error),
        }
    }
}

impl ForwardError {
    fn response(&self) -> LocalResponse {
        let (status, reasons) = match self {
            Self::Rejected(rejected) => (rejected.status(), [].as_slice()),
            Self::Grant(GrantError::NotGranted { reasons, .. }) => (StatusCode::FORBIDDEN, reasons.as_slice()),
            Self::Upstream(error) if error.is_timeout() => (StatusCode::GATEWAY_TIMEOUT, [].as_slice()),
            Self::Body(BodyError::Late) => (StatusCode::REQUEST_TIMEOUT, [].as_slice()),
            Self::Body(BodyError::Unreadable(_)) | Self::NoProof | Self::Upstream(UpstreamError::BadUrl(_)) => {
                (StatusCode::BAD_REQUEST, [].as_slice())
            }
            Self::State(_) | Self::Grant(_) | Self::Possession(_) | Self::InvalidToken | Self::Upstream(_) => {
                (StatusCode::BAD_GATEWAY, [].as_slice())
            }
        };
        problem(status, &Chain(self).to_string(), reasons)
    }
}
