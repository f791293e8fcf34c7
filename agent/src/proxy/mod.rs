//! The proxy: any program of this machine reaches one service with the machine's identity.
//!
//! It answers on a loopback address or a Unix socket, and passes on over TLS with the machine's certificate and, for an
//! audience, with the grant that is current at each request. Certificate and grant are those that the daemon keeps: after
//! a renewal there are new connections with the new certificate.

mod message;
mod upstream;

use std::sync::Arc;

use assay_protocol::Chain;
use http_body_util::BodyExt;
use hyper::{Request, StatusCode, body::Incoming, header::AUTHORIZATION};
use reqwest::header::HeaderValue;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::{
    message::{Misplaced, Site, prepare_answer, prepare_request},
    upstream::{Unreachable, Upstream},
};
use crate::{
    config::GrantSocketSettings,
    exchanges::{Agent, AgentError},
    local::{Answer, Listener, LocalAddress, LocalPeers, LocalService, OwnedSocket, problem, serve},
    state::{GrantError, Record, current_grant},
    trust::{ServerUrl, Trust},
};

/// What is passed on, where to, and for whom.
#[derive(Debug)]
pub(crate) struct ProxyOptions {
    pub(crate) listen: LocalAddress,
    pub(crate) upstream: ServerUrl,
    pub(crate) trust: Trust,
    /// Whose grant goes along as bearer token.
    pub(crate) audience: Option<String>,
    /// Who may use it where it listens on a Unix socket.
    pub(crate) peers: GrantSocketSettings,
}

/// Why the proxy does not serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    #[error("cannot listen on {address}")]
    Listen {
        address: LocalAddress,
        #[source]
        source: std::io::Error,
    },
}

/// A proxy that listens.
pub(crate) struct Proxy {
    listener: Listener,
    address: LocalAddress,
    passing: Passing,
    /// Held while it listens there.
    _socket: Option<OwnedSocket>,
}

struct Passing {
    agent: Agent,
    upstream: Upstream,
    audience: Option<String>,
    site: Site,
}

/// Why a request is not passed on, or brings no answer.
#[derive(Debug, thiserror::Error)]
enum NotPassed {
    #[error(transparent)]
    Misplaced(#[from] Misplaced),
    #[error("the agent cannot read its state")]
    State(#[source] AgentError),
    #[error(transparent)]
    Grant(#[from] GrantError),
    #[error("the grant for {0} is no token")]
    NotAToken(String),
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
}

impl Proxy {
    /// Listens.
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
            passing: Passing {
                agent,
                upstream,
                audience: options.audience,
                site,
            },
            _socket: socket,
        })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> &LocalAddress {
        &self.address
    }

    /// Passes on until it is told to stop.
    pub(crate) async fn run(self, stop: CancellationToken) {
        serve(self.listener, Arc::new(self.passing), stop).await;
    }
}

impl LocalService for Passing {
    const MOST_CONNECTIONS: usize = 256;

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        match self.pass(request).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(error = %Chain(&error), "not passed on");
                error.answer()
            }
        }
    }
}

impl Passing {
    async fn pass(&self, request: Request<Incoming>) -> Result<Answer, NotPassed> {
        let (mut head, body) = request.into_parts();
        let target = prepare_request(&mut head, self.site)?;
        // Read each time: the daemon writes what is current.
        let record = self.agent.record().await.map_err(NotPassed::State)?;
        if let Some(audience) = &self.audience {
            head.headers.insert(AUTHORIZATION, self.bearer(&record, audience)?);
        }
        let answer = self
            .upstream
            .send(self.agent.machine(), &record, head, &target, body)
            .await?;
        let (mut head, body) = answer.into_parts();
        prepare_answer(&mut head);
        Ok(Answer::from_parts(head, body.map_err(Into::into).boxed_unsync()))
    }

    fn bearer(&self, record: &Record, audience: &str) -> Result<HeaderValue, NotPassed> {
        let grant = current_grant(record, audience, self.agent.machine().clock.now())?;
        let bearer = HeaderValue::from_str(&format!("Bearer {}", grant.token));
        let mut bearer = bearer.map_err(|_| NotPassed::NotAToken(audience.to_owned()))?;
        bearer.set_sensitive(true);
        Ok(bearer)
    }
}

impl NotPassed {
    fn answer(&self) -> Answer {
        let (status, reasons) = match self {
            Self::Misplaced(misplaced) => (misplaced.status(), [].as_slice()),
            Self::Grant(GrantError::NotGranted { reasons, .. }) => (StatusCode::FORBIDDEN, reasons.as_slice()),
            Self::Unreachable(unreachable) if unreachable.is_timeout() => (StatusCode::GATEWAY_TIMEOUT, [].as_slice()),
            Self::State(_) | Self::Grant(_) | Self::NotAToken(_) | Self::Unreachable(_) => {
                (StatusCode::BAD_GATEWAY, [].as_slice())
            }
        };
        problem(status, &Chain(self).to_string(), reasons)
    }
}
