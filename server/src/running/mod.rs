//! A running server: assembled, started, stopped.

mod assembled;
mod assembly;
mod descriptors;
mod listeners;
mod metrics_listener;
mod stop_signal;

pub use self::assembled::Assembled;
pub(crate) use self::stop_signal::stop_requested;

use std::{convert::Infallible, future::ready, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use assay_authority::attestation::apple::RootsError;
use assay_protocol::admin_api::api_keys::Role;
use secrecy::SecretString;
use tokio::{net::TcpSocket, task::JoinHandle};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::listeners::{Listeners, Served, serve};
use crate::{
    administration::{api_key_expiry, api_keys::ApiKeyError},
    audit::sealing,
    clock::Clock,
    config::{ClientCertificates, Config, Tls},
    database::DatabaseError,
    enrollment::expiry,
    events::{announcing, feed},
    mdm::asking,
    outgoing::ClientError,
    periodic::{Turns, Work},
    registry::{apple_attestations::lapsing, liveness_sweep},
    retention,
    revocation::lists,
    rotation::{self, bootstrap::BootstrapError},
    services::Services,
    store::StoreError,
    telemetry::Metrics,
    tls::{self, MachineCertificates, ServerCertificate, TlsError},
    webhooks::delivering,
};

/// How often idle callers are removed from the rate limits.
const FORGETTING: Work = Work::every(Duration::from_secs(60), "forget idle callers");

/// A server that accepts requests until it is stopped.
pub struct RunningServer {
    assembled: Assembled,
    parts: Started,
}

/// Why a server cannot start, or did not stop cleanly.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The folder for files outside the database cannot be created.
    #[error("data_dir {} cannot be created", path.display())]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// The database cannot be used.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The server's keys cannot be loaded.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The roots of attestations cannot be loaded.
    #[error("the roots of apple.attestation_roots cannot be used")]
    AttestationRoots(#[from] RootsError),
    /// The TLS certificate cannot be loaded or issued.
    #[error("TLS cannot be set up")]
    Tls(#[from] TlsError),
    /// The event feed cannot start.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The HTTP client for outgoing calls cannot be built.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The MDM's API key cannot be read.
    #[error("mdm.nanomdm.api_key_file {} cannot be used", path.display())]
    MdmKey {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// The address is in use, or the process may not listen on it.
    #[error("cannot listen on {address} ({key})")]
    Listen {
        /// The configuration key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// The error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// The task that handles connections ended unexpectedly.
    #[error("the server ended unexpectedly")]
    Ended(#[from] tokio::task::JoinError),
}

impl RunningServer {
    /// Starts the server. It handles requests when this returns.
    pub async fn start(config: &Config, clock: Arc<dyn Clock>) -> Result<Self, RunError> {
        let revocation = config.revocation.listen.map(listeners::reserve).transpose()?;
        let mut config = config.clone();
        if let Some((_, address)) = &revocation {
            config.revocation.url = config.revocation.url.at(*address);
        }
        let assembled = Assembled::new(&config, clock).await?;
        match Started::listen(&config, &assembled, revocation).await {
            Ok(parts) => Ok(Self { assembled, parts }),
            Err(error) => {
                // Report the first error. Closing matters anyway: the private Postgres must not outlive the server.
                let _ = assembled.close().await;
                Err(error)
            }
        }
    }

    /// The address that it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.parts.address
    }

    /// The address of revocation lists, OCSP and CA certificates over plain HTTP, if they have one.
    #[must_use]
    pub fn revocation_address(&self) -> Option<SocketAddr> {
        self.parts.revocation_address
    }

    /// The address of `/metrics`.
    #[must_use]
    pub fn telemetry_address(&self) -> SocketAddr {
        self.parts.telemetry_address
    }

    /// The roots in PEM, for agents that do not trust this server yet.
    #[must_use]
    pub fn roots_pem(&self) -> String {
        self.assembled.roots_pem()
    }

    /// Creates an API key, like `api-key create`, with the longest life.
    pub async fn create_api_key(&self, name: &str, role: Role) -> Result<SecretString, ApiKeyError> {
        self.assembled.create_api_key(name, role).await
    }

    /// Finishes the requests in flight, then stops.
    pub async fn stop(self) -> Result<(), RunError> {
        self.assembled.shutdown.cancel();
        self.parts.background.close();
        let cut_off = self.parts.serving.await?;
        self.parts.background.wait().await;
        tracing::info!(cut_off, "stopped");
        self.assembled.close().await
    }
}

/// The listeners and tasks of a running server.
struct Started {
    address: SocketAddr,
    telemetry_address: SocketAddr,
    revocation_address: Option<SocketAddr>,
    serving: JoinHandle<usize>,
    background: TaskTracker,
}

impl Started {
    async fn listen(
        config: &Config,
        assembled: &Assembled,
        revocation: Option<(TcpSocket, SocketAddr)>,
    ) -> Result<Self, RunError> {
        let listeners = Listeners::bind(config, revocation).await?;
        let certificate = server_certificate(config, &assembled.services)?;
        if let Some(certificate) = &certificate {
            certificate.record(&assembled.services.store).await?;
        }
        let (services, shutdown) = (Arc::clone(&assembled.services), assembled.shutdown.clone());
        Ok(Self::spawn(config, services, listeners, certificate, shutdown)?)
    }

    fn spawn(
        config: &Config,
        services: Arc<Services>,
        listeners: Listeners,
        certificate: Option<Arc<ServerCertificate>>,
        shutdown: CancellationToken,
    ) -> Result<Self, TlsError> {
        let background = TaskTracker::new();
        let tls = certificate
            .as_ref()
            .map(|certificate| {
                let machines = machine_certificates(config, &services)?;
                tls::server_config(Arc::clone(certificate), machines, Arc::clone(&services.clock))
            })
            .transpose()?;
        let tls = tls.map(TlsAcceptor::from);
        spawn_periodic(&background, &services, certificate, &shutdown);
        let ((api, address), (telemetry, telemetry_address)) = (listeners.api, listeners.telemetry);
        let (admin, admin_address) = listeners.admin.unzip();
        let (revocation, revocation_address) = listeners.revocation.unzip();
        let served = Served { api, admin, revocation };
        let serving = serve(config, &services, tls.as_ref(), served, &shutdown);
        let (metrics, pool) = (Arc::clone(&services.metrics), services.store.pool().clone());
        let sample = move |metrics: &Metrics| metrics.pool.sampled(pool.size(), pool.num_idle());
        background.spawn(metrics_listener::serve_metrics(
            telemetry,
            metrics,
            sample,
            shutdown.clone(),
        ));
        let ca_fingerprint = services.authority.load().root_fingerprint().to_owned();
        let [admin, revocation] = [admin_address, revocation_address].map(|at| at.map(tracing::field::display));
        tracing::info!(%address, admin, revocation, telemetry = %telemetry_address, ca_fingerprint, "listening");
        Ok(Self {
            address,
            telemetry_address,
            revocation_address,
            serving,
            background,
        })
    }
}

/// Starts the periodic work of a running server. Register new kinds of work here.
fn spawn_periodic(
    background: &TaskTracker,
    services: &Arc<Services>,
    certificate: Option<Arc<ServerCertificate>>,
    shutdown: &CancellationToken,
) {
    let periodic = Periodic {
        background,
        services,
        shutdown,
    };
    if let Some(certificate) = certificate {
        periodic.spawn(tls::REFRESH, |services, turns| {
            certificate.keep_fresh(services.store.clone(), turns)
        });
    }
    periodic.spawn(FORGETTING, forget_idle_callers);
    periodic.spawn(sealing::WORK, sealing::run_sealer);
    periodic.spawn(liveness_sweep::WORK, liveness_sweep::run_sweeper);
    periodic.spawn(lapsing::WORK, lapsing::run);
    if services.nano_mdm.is_some() {
        periodic.spawn(asking::WORK, asking::run);
    }
    periodic.spawn(expiry::WORK, expiry::run);
    periodic.spawn(api_key_expiry::WORK, api_key_expiry::run);
    periodic.spawn(announcing::WORK, announcing::run_announcer);
    periodic.spawn(feed::READING, feed::run_reader);
    periodic.spawn(feed::CHECKING_KEYS, feed::run_key_check);
    periodic.spawn(feed::MEASURING, feed::run_depth_gauge);
    periodic.spawn(delivering::WORK, delivering::run_deliverer);
    periodic.spawn(rotation::WORK, rotation::run_follower);
    periodic.spawn(lists::WORK, lists::keep_published);
    periodic.spawn(retention::WORK, retention::run_retention);
}

/// Spawns periodic work, each kind as a task.
struct Periodic<'a> {
    background: &'a TaskTracker,
    services: &'a Arc<Services>,
    shutdown: &'a CancellationToken,
}

impl Periodic<'_> {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, work: Work, run: impl FnOnce(Arc<Services>, Turns) -> F) {
        let turns = self.services.background_work.register(work, self.shutdown.clone());
        self.background.spawn(run(Arc::clone(self.services), turns));
    }
}

fn server_certificate(config: &Config, services: &Services) -> Result<Option<Arc<ServerCertificate>>, TlsError> {
    let certificate = match &config.tls {
        Tls::SelfIssued => ServerCertificate::self_issued(Arc::clone(&services.authority), services.clock.now())?,
        Tls::Files {
            certificate,
            private_key,
        } => ServerCertificate::from_files(certificate.clone(), private_key.clone())?,
        Tls::Upstream { .. } => return Ok(None),
    };
    Ok(Some(Arc::new(certificate)))
}

fn machine_certificates(config: &Config, services: &Services) -> Result<Option<MachineCertificates>, TlsError> {
    match config.client_certificates {
        ClientCertificates::Off => Ok(None),
        ClientCertificates::Optional | ClientCertificates::Required => {
            MachineCertificates::new(Arc::clone(&services.authority)).map(Some)
        }
    }
}

async fn forget_idle_callers(services: Arc<Services>, turns: Turns) {
    let forget = || {
        services.rate_limits.forget_idle();
        ready(Ok::<_, Infallible>(()))
    };
    turns.repeat(forget).await;
}
