//! The service behind the proxy: connections with the machine's certificate of the moment.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::{Response, body::Incoming, http::request};
use rustls::client::ResolvesClientCert;

use crate::{
    connection::{ClientCertificate, connecting, presentable},
    exchanges::{Credential, Machine},
    key_store::KeyFault,
    state::Record,
    trust::{ServerUrl, Trust, TrustError},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Until an answer begins, and for each pause within it.
const SILENCE: Duration = Duration::from_mins(10);

/// The service, and the connections to it.
#[derive(Debug)]
pub(super) struct Upstream {
    url: ServerUrl,
    trust: Trust,
    open: Mutex<Option<Arc<Open>>>,
}

/// Connections with one certificate.
#[derive(Debug)]
struct Open {
    http: reqwest::Client,
    certificate: Arc<ClientCertificate>,
}

/// Why a request did not reach the service, or its answer not us.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreachable {
    #[error("this machine is not enrolled, or its certificate has expired; `assay-agent run` renews it")]
    NoCertificate,
    #[error("the machine's key cannot be used")]
    Key(#[source] KeyFault),
    #[error("the service cannot be recognized")]
    Trust(#[from] TrustError),
    #[error("{upstream} does not answer")]
    NoAnswer {
        upstream: ServerUrl,
        #[source]
        source: reqwest::Error,
    },
}

impl Unreachable {
    pub(crate) fn is_timeout(&self) -> bool {
        matches!(self, Self::NoAnswer { source, .. } if source.is_timeout())
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

    /// Sends a request and returns the head of its answer; both bodies go by as they come.
    pub(super) async fn send(
        &self,
        machine: &Machine,
        record: &Record,
        head: request::Parts,
        target: &str,
        body: Incoming,
    ) -> Result<Response<reqwest::Body>, Unreachable> {
        let open = match self.connections(machine, record).await {
            // Replaced and let go since the record was read.
            Err(Unreachable::Key(KeyFault::Missing(_))) => {
                let record = machine.record().await.map_err(|_| Unreachable::NoCertificate)?;
                self.connections(machine, &record).await
            }
            open => open,
        }?;
        let request = open.http.request(head.method, self.url.endpoint(target));
        let request = request.headers(head.headers).body(reqwest::Body::wrap(body));
        match request.send().await {
            Ok(answer) => Ok(answer.into()),
            Err(error) => Err(match open.certificate.take_fault() {
                Some(fault) => Unreachable::Key(fault),
                None => self.no_answer(error),
            }),
        }
    }

    /// The connections with the certificate of now: those that are open, unless it is another one by now.
    async fn connections(&self, machine: &Machine, record: &Record) -> Result<Arc<Open>, Unreachable> {
        let credential = Credential::current(&machine.key, record).ok_or(Unreachable::NoCertificate)?;
        let serial_number = presentable(&credential.certificate, machine.clock.now());
        let serial_number = serial_number.ok_or(Unreachable::NoCertificate)?;
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(open) = open.filter(|open| open.certificate.serial_number() == serial_number) {
            return Ok(open);
        }
        let certificate =
            ClientCertificate::load(&credential.certificate, &credential.key, Arc::clone(&machine.clock)).await;
        let certificate = Arc::new(
            certificate
                .map_err(Unreachable::Key)?
                .ok_or(Unreachable::NoCertificate)?,
        );
        let trust = self.trust.clone();
        let presented = Arc::clone(&certificate);
        // The system's roots are many files.
        let tls = tokio::task::spawn_blocking(move || trust.tls(Some(presented as Arc<dyn ResolvesClientCert>))).await;
        let tls = tls.map_err(|_| Unreachable::NoCertificate)??;
        let http = connecting(reqwest::Client::builder(), tls, Some(&certificate), CONNECT_TIMEOUT)
            .read_timeout(SILENCE)
            .build()
            .map_err(|error| self.no_answer(error))?;
        let open = Arc::new(Open { http, certificate });
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&open));
        Ok(open)
    }

    fn no_answer(&self, error: reqwest::Error) -> Unreachable {
        Unreachable::NoAnswer {
            upstream: self.url.clone(),
            source: error.without_url(),
        }
    }
}
