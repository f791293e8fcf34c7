//! Connections to the service behind the proxy, with the machine's current certificate.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::{
    Request, Response, Uri, Version,
    http::{request, uri::InvalidUri},
};
use hyper_util::{
    client::legacy::{Client, Error},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::client::ResolvesClientCert;

use super::body::{RequestBody, ResponseBody};
use crate::{
    connection::{ClientCertificate, Connector, connector, presentable},
    exchanges::{AgentError, Credential, Machine},
    key_store::KeyFault,
    state::Record,
    trust::{ServerUrl, Trust, TrustError},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit for the start of a response, and for each pause within it.
const READ_TIMEOUT: Duration = Duration::from_mins(10);

/// The service, and the connections to it.
#[derive(Debug)]
pub(super) struct Upstream {
    url: ServerUrl,
    trust: Trust,
    open: Mutex<Option<Arc<Open>>>,
}

/// The connections with one certificate.
#[derive(Debug)]
struct Open {
    http: Client<Connector, RequestBody>,
    certificate: Arc<ClientCertificate>,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error("this machine is not enrolled, or its certificate has expired; `assay-agent run` renews it")]
    NoCertificate,
    #[error("the machine's key cannot be used")]
    Key(#[source] KeyFault),
    #[error(transparent)]
    State(AgentError),
    #[error("the service cannot be authenticated")]
    Trust(#[from] TrustError),
    #[error("the request's path is not valid in a URL")]
    BadUrl(#[source] InvalidUri),
    #[error("{upstream} does not answer")]
    NoResponse {
        upstream: ServerUrl,
        #[source]
        source: Error,
    },
    #[error("{upstream} has not answered within {} s", READ_TIMEOUT.as_secs())]
    TimedOut { upstream: ServerUrl },
}

impl UpstreamError {
    pub(crate) fn is_timeout(&self) -> bool {
        matches!(self, Self::TimedOut { .. })
    }
}

impl Upstream {
    pub(super) fn new(url: ServerUrl, trust: Trust) -> Self {
        Self {
            url,
            trust,
            open: Mutex::default(),
        }
    }

    /// The URL of a request with this path and query, which stay as they are.
    ///
    /// They are not normalized: the service that gets them decides what `%2e%2e` and `//` mean.
    pub(super) fn url(&self, target: &str) -> String {
        self.url.endpoint(target)
    }

    /// Sends a request and returns the response. Both bodies are streamed.
    pub(super) async fn send(
        &self,
        machine: &Machine,
        record: &Record,
        mut head: request::Parts,
        url: &str,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        head.uri = url.parse::<Uri>().map_err(UpstreamError::BadUrl)?;
        head.version = Version::HTTP_11;
        head.extensions.clear();
        let open = match self.connections(machine, record).await {
            // A rotation has replaced the key since the record was read.
            Err(UpstreamError::Key(KeyFault::Missing(_))) => {
                let record = machine.record().await.map_err(|_| UpstreamError::NoCertificate)?;
                self.connections(machine, &record).await
            }
            open => open,
        }?;
        let sending = open.http.request(Request::from_parts(head, body));
        match tokio::time::timeout(READ_TIMEOUT, sending).await {
            Ok(Ok(response)) => Ok(response.map(|body| ResponseBody::new(body, READ_TIMEOUT))),
            Ok(Err(source)) => Err(match open.certificate.take_fault() {
                Some(fault) => UpstreamError::Key(fault),
                None => UpstreamError::NoResponse {
                    upstream: self.url.clone(),
                    source,
                },
            }),
            Err(_) => Err(UpstreamError::TimedOut {
                upstream: self.url.clone(),
            }),
        }
    }

    /// The connections with the current certificate. New ones if the certificate has changed.
    async fn connections(&self, machine: &Machine, record: &Record) -> Result<Arc<Open>, UpstreamError> {
        let credential = Credential::current(&machine.key, record).ok_or(UpstreamError::NoCertificate)?;
        let serial_number = presentable(&credential.certificate, machine.clock.now());
        let serial_number = serial_number.ok_or(UpstreamError::NoCertificate)?;
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(open) = open.filter(|open| open.certificate.serial_number() == serial_number) {
            return Ok(open);
        }
        machine.require_own_state(record).await.map_err(UpstreamError::State)?;
        let certificate =
            ClientCertificate::load(&credential.certificate, &credential.key, Arc::clone(&machine.clock)).await;
        let certificate = Arc::new(
            certificate
                .map_err(UpstreamError::Key)?
                .ok_or(UpstreamError::NoCertificate)?,
        );
        let trust = self.trust.clone();
        let presented = Arc::clone(&certificate);
        // Reading the system's roots blocks: they are many files.
        let tls = tokio::task::spawn_blocking(move || trust.tls(Some(presented as Arc<dyn ResolvesClientCert>))).await;
        let tls = tls.map_err(|_| UpstreamError::NoCertificate)??;
        let http = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(connector(tls, &certificate, CONNECT_TIMEOUT));
        let open = Arc::new(Open { http, certificate });
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&open));
        Ok(open)
    }
}
