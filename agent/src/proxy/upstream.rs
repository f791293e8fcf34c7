//! Connections to the service behind the proxy, with the machine's current certificate.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::{Response, body::Incoming, http::request};
use rustls::client::ResolvesClientCert;

use crate::{
    connection::{ClientCertificate, configure_connections, presentable},
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
    http: reqwest::Client,
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
    #[error("{upstream} does not answer")]
    NoResponse {
        upstream: ServerUrl,
        #[source]
        source: reqwest::Error,
    },
}

impl UpstreamError {
    pub(crate) fn is_timeout(&self) -> bool {
        matches!(self, Self::NoResponse { source, .. } if source.is_timeout())
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

    /// Sends a request and returns the response. Both bodies are streamed.
    pub(super) async fn send(
        &self,
        machine: &Machine,
        record: &Record,
        head: request::Parts,
        target: &str,
        body: Incoming,
    ) -> Result<Response<reqwest::Body>, UpstreamError> {
        let open = match self.connections(machine, record).await {
            // A rotation has replaced the key since the record was read.
            Err(UpstreamError::Key(KeyFault::Missing(_))) => {
                let record = machine.record().await.map_err(|_| UpstreamError::NoCertificate)?;
                self.connections(machine, &record).await
            }
            open => open,
        }?;
        let request = open.http.request(head.method, self.url.endpoint(target));
        let request = request.headers(head.headers).body(reqwest::Body::wrap(body));
        match request.send().await {
            Ok(response) => Ok(response.into()),
            Err(error) => Err(match open.certificate.take_fault() {
                Some(fault) => UpstreamError::Key(fault),
                None => self.no_response(error),
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
        let http = configure_connections(reqwest::Client::builder(), tls, Some(&certificate), CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .build()
            .map_err(|error| self.no_response(error))?;
        let open = Arc::new(Open { http, certificate });
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&open));
        Ok(open)
    }

    fn no_response(&self, error: reqwest::Error) -> UpstreamError {
        UpstreamError::NoResponse {
            upstream: self.url.clone(),
            source: error.without_url(),
        }
    }
}
