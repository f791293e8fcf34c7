//! One running server: assembled, started, stopped.

pub(crate) mod assembly;
mod metrics_listener;
mod stop_signal;

pub(crate) use self::stop_signal::ordered_to_stop;

use std::{convert::Infallible, future::ready, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use assay_authority::attestation::apple::{AttestationRoots, RootsError};
use assay_protocol::admin_api::api_keys::{CreateApiKey, Role};
use futures_util::{FutureExt, future::BoxFuture};
use secrecy::SecretString;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    administration::api_keys::{self, ApiKeyError},
    audit::sealing,
    changes::Origin,
    clock::Clock,
    config::{ClientCertificates, Config, Tls},
    connections::{self, ConnectionLimits},
    database::{Database, DatabaseError},
    enrollment::expiry,
    events::{announcing, feed},
    http::{self, Peers},
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

/// How often callers that have not called for long are forgotten.
const FORGETTING: Work = Work::every(Duration::from_secs(60), "forget idle callers");

/// A server that serves, until it is told to stop.
pub struct RunningServer {
    address: SocketAddr,
    telemetry_address: SocketAddr,
    services: Arc<Services>,
    serving: JoinHandle<usize>,
    background: TaskTracker,
    shutdown: CancellationToken,
    database: Database,
}

/// Why a server does not start, or does not stop well.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The folder of what is kept outside of the database.
    #[error("data_dir {} cannot be made", path.display())]
    DataDir {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// No database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// No keys.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// Nobody whose attestations of machines could count.
    #[error("the roots of apple.attestation_roots cannot be used")]
    AttestationRoots(#[from] RootsError),
    /// No TLS.
    #[error("TLS cannot be set up")]
    Tls(#[from] TlsError),
    /// The feed of events cannot begin.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nothing to call other servers with.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The key of an MDM.
    #[error("mdm.nanomdm.api_key_file {} cannot be used", path.display())]
    MdmKey {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else listens there, or nobody may.
    #[error("cannot listen on {address} ({key})")]
    Listen {
        /// The configuration's key.
        key: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The task that serves ended in a way of its own.
    #[error("the server ended by itself")]
    Ended(#[from] tokio::task::JoinError),
}

impl RunningServer {
    /// Starts to serve. When this returns, requests are answered.
    pub async fn start(config: &Config, clock: Arc<dyn Clock>) -> Result<Self, RunError> {
        let roots = AttestationRoots::from_file(config.apple.attestation_roots.as_deref())?;
        make_data_dir(&config.data_dir)?;
        let database = Database::open(config).await?;
        match Self::start_on(config, clock, &database, roots).await {
            Ok(parts) => Ok(parts.with(database)),
            Err(error) => {
                // The first error is what is told; the private Postgres must not outlive it all the same.
                let _ = database.close().await;
                Err(error)
            }
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where `/metrics` is.
    #[must_use]
    pub fn telemetry_address(&self) -> SocketAddr {
        self.telemetry_address
    }

    /// The roots in PEM, for agents that have no other way to trust this server.
    #[must_use]
    pub fn roots_pem(&self) -> String {
        self.services.authority.load().roots_pem().to_owned()
    }

    /// Makes an API key, as `api-key create` does.
    pub async fn create_api_key(&self, name: &str, role: Role) -> Result<SecretString, ApiKeyError> {
        let request = CreateApiKey {
            name: name.to_owned(),
            role,
            expires_in_seconds: None,
        };
        let (_key, secret) = api_keys::create(&self.services.store, &Origin::command_line(), &request).await?;
        Ok(secret)
    }

    /// Answers what has begun, then ends.
    pub async fn stop(self) -> Result<(), RunError> {
        self.shutdown.cancel();
        self.background.close();
        let cut_off = self.serving.await?;
        self.background.wait().await;
        tracing::info!(cut_off, "stopped");
        Ok(self.database.close().await?)
    }

    async fn start_on(
        config: &Config,
        clock: Arc<dyn Clock>,
        database: &Database,
        attestation_roots: AttestationRoots,
    ) -> Result<Started, RunError> {
        let shutdown = CancellationToken::new();
        let services = assembly::prepare(config, clock, database, attestation_roots, &shutdown).await?;
        lists::publish_first(&services).await;
        let listener = listen("listen", config.listen).await?;
        let telemetry = listen("telemetry.listen", config.telemetry.listen).await?;
        let certificate = server_certificate(config, &services)?;
        Ok(Started::spawn(
            config,
            services,
            listener,
            telemetry,
            certificate,
            shutdown,
        )?)
    }
}

/// Everything of a running server but the database that it runs on.
struct Started {
    address: SocketAddr,
    telemetry_address: SocketAddr,
    services: Arc<Services>,
    serving: JoinHandle<usize>,
    background: TaskTracker,
    shutdown: CancellationToken,
}

impl Started {
    fn spawn(
        config: &Config,
        services: Arc<Services>,
        listener: (TcpListener, SocketAddr),
        telemetry: (TcpListener, SocketAddr),
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
        let peers = if config.tls == Tls::Upstream {
            Peers::Proxy
        } else {
            Peers::Callers
        };
        let server = connections::Server {
            router: http::router(Arc::clone(&services), peers),
            tls: tls.map(TlsAcceptor::from),
            limits: ConnectionLimits::default(),
            metrics: Arc::clone(&services.metrics),
        };
        spawn_periodic(&background, &services, certificate, &shutdown);
        let ((listener, address), (telemetry, telemetry_address)) = (listener, telemetry);
        let serving = tokio::spawn(connections::serve(listener, server, shutdown.clone()));
        let (metrics, pool) = (Arc::clone(&services.metrics), services.store.pool().clone());
        let sample = move |metrics: &Metrics| metrics.pool.sampled(pool.size(), pool.num_idle());
        background.spawn(metrics_listener::serve_metrics(
            telemetry,
            metrics,
            sample,
            shutdown.clone(),
        ));
        let ca_fingerprint = services.authority.load().root_fingerprint().to_owned();
        tracing::info!(%address, telemetry = %telemetry_address, ca_fingerprint, "listening");
        Ok(Self {
            address,
            telemetry_address,
            services,
            serving,
            background,
            shutdown,
        })
    }

    fn with(self, database: Database) -> RunningServer {
        RunningServer {
            address: self.address,
            telemetry_address: self.telemetry_address,
            services: self.services,
            serving: self.serving,
            background: self.background,
            shutdown: self.shutdown,
            database,
        }
    }
}

/// What recurs as long as the server runs. The work of a new kind is registered here.
fn spawn_periodic(
    background: &TaskTracker,
    services: &Arc<Services>,
    certificate: Option<Arc<ServerCertificate>>,
    shutdown: &CancellationToken,
) {
    let register = |work| services.background_work.register(work, shutdown.clone());
    let run = |work, run: fn(Arc<Services>, Turns) -> BoxFuture<'static, ()>| {
        background.spawn(run(Arc::clone(services), register(work)));
    };
    if let Some(certificate) = certificate {
        background.spawn(certificate.keep_fresh(Arc::clone(&services.clock), register(tls::REFRESH)));
    }
    run(FORGETTING, |services, turns| {
        forget_idle_callers(services, turns).boxed()
    });
    run(sealing::WORK, |services, turns| {
        sealing::run_sealer(services, turns).boxed()
    });
    run(liveness_sweep::WORK, |services, turns| {
        liveness_sweep::run_sweeper(services, turns).boxed()
    });
    run(lapsing::WORK, |services, turns| lapsing::run(services, turns).boxed());
    if services.nano_mdm.is_some() {
        run(asking::WORK, |services, turns| asking::run(services, turns).boxed());
    }
    run(expiry::WORK, |services, turns| expiry::run(services, turns).boxed());
    run(announcing::WORK, |services, turns| {
        announcing::run_announcer(services, turns).boxed()
    });
    run(feed::READING, |services, turns| {
        feed::run_reader(services, turns).boxed()
    });
    run(feed::CHECKING_KEYS, |services, turns| {
        feed::run_key_check(services, turns).boxed()
    });
    run(feed::MEASURING, |services, turns| {
        feed::run_depth_gauge(services, turns).boxed()
    });
    run(delivering::WORK, |services, turns| {
        delivering::run_deliverer(services, turns).boxed()
    });
    run(rotation::WORK, |services, turns| {
        rotation::run_follower(services, turns).boxed()
    });
    run(lists::WORK, |services, turns| {
        lists::keep_published(services, turns).boxed()
    });
    run(retention::WORK, |services, turns| {
        retention::run_retention(services, turns).boxed()
    });
}

fn server_certificate(config: &Config, services: &Services) -> Result<Option<Arc<ServerCertificate>>, TlsError> {
    let certificate = match &config.tls {
        Tls::SelfIssued => ServerCertificate::self_issued(Arc::clone(&services.authority), services.clock.now())?,
        Tls::Files {
            certificate,
            private_key,
        } => ServerCertificate::from_files(certificate.clone(), private_key.clone())?,
        Tls::Upstream => return Ok(None),
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

async fn listen(key: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), RunError> {
    let failed = |source| RunError::Listen { key, address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

fn make_data_dir(path: &std::path::Path) -> Result<(), RunError> {
    std::fs::create_dir_all(path).map_err(|source| RunError::DataDir {
        path: path.to_owned(),
        source,
    })
}

async fn forget_idle_callers(services: Arc<Services>, turns: Turns) {
    let forget = || {
        services.rate_limits.forget_idle();
        ready(Ok::<_, Infallible>(()))
    };
    turns.repeat(forget).await;
}
