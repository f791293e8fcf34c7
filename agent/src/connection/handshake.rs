//! TLS connections whose handshake runs on a thread of its own.
//!
//! A handshake with the machine's key blocks while the key store signs: milliseconds in the Secure Enclave, and for
//! ever if the enclave hangs. On a thread of the runtime, this would block all other work. On its own thread it blocks
//! only one connection, which times out.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use reqwest::{ClientBuilder, redirect};
use rustls::{AlertDescription, CertificateError, ClientConfig};
use tokio::{runtime::Handle, sync::oneshot, time::timeout};
use tower::{Layer, Service};

use super::client_certificate::ClientCertificate;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Configures connections with this TLS configuration and time limit. With a client certificate, each handshake runs on
/// its own thread.
///
/// Proxies and redirects are disabled: requests go only to the server that was named.
pub(crate) fn configure_connections(
    builder: ClientBuilder,
    tls: ClientConfig,
    certificate: Option<&Arc<ClientCertificate>>,
    limit: Duration,
) -> ClientBuilder {
    let builder = builder
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(redirect::Policy::none());
    match certificate {
        Some(certificate) => builder.connector_layer(ThreadLayer::new(Arc::clone(certificate), limit)),
        None => builder.connect_timeout(limit),
    }
}

/// Connections of [`connector`].
pub(crate) type Connector = ThreadConnector<HttpsConnector<HttpConnector>>;

/// A connector for hyper with this TLS configuration and time limit, which presents a client certificate.
pub(crate) fn connector(tls: ClientConfig, certificate: &Arc<ClientCertificate>, limit: Duration) -> Connector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_all_versions()
        .wrap_connector(tcp);
    ThreadLayer::new(Arc::clone(certificate), limit).layer(connector)
}

/// Whether the server presents a certificate of a CA as its own.
pub(crate) fn is_ca_certificate(error: &reqwest::Error) -> bool {
    matches!(
        tls_error(error),
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(other)))
            if matches!(other.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
    )
}

/// The error of the TLS library among the causes.
fn tls_error(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        // An error of the TLS library is in an error of a read, which may be in another one.
        let mut read = error.downcast_ref::<std::io::Error>();
        while let Some(inner) = read.and_then(std::io::Error::get_ref) {
            if let Some(error) = inner.downcast_ref() {
                return Some(error);
            }
            read = inner.downcast_ref();
        }
        source = error.source();
    }
    None
}

/// Whether the server's TLS library rejected the client certificate.
pub(crate) fn is_certificate_rejection(error: &reqwest::Error) -> bool {
    matches!(
        tls_error(error),
        Some(rustls::Error::AlertReceived(
            AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied
                // The server's CA has the issuer's name, but another key.
                | AlertDescription::DecryptError
        ))
    )
}

/// A connector layer: each connection is made on a thread of its own, with a time limit.
#[derive(Debug, Clone)]
struct ThreadLayer {
    certificate: Arc<ClientCertificate>,
    limit: Duration,
}

/// A connector that is wrapped by the layer.
#[derive(Debug, Clone)]
pub(crate) struct ThreadConnector<S> {
    connector: S,
    layer: ThreadLayer,
}

/// Why a connection failed.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("the connection was not made within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    #[error("a thread for the connection cannot be created")]
    Thread(#[source] std::io::Error),
    #[error("the connection's thread ended without a result")]
    Ended,
}

impl ThreadLayer {
    fn new(certificate: Arc<ClientCertificate>, limit: Duration) -> Self {
        Self { certificate, limit }
    }
}

impl<S> Layer<S> for ThreadLayer {
    type Service = ThreadConnector<S>;

    fn layer(&self, connector: S) -> ThreadConnector<S> {
        ThreadConnector {
            connector,
            layer: self.clone(),
        }
    }
}

impl<S, R> Service<R> for ThreadConnector<S>
where
    S: Service<R, Error = BoxError>,
    S::Future: Send + 'static,
    S::Response: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let connecting = self.connector.call(request);
        let ThreadLayer { certificate, limit } = self.layer.clone();
        Box::pin(async move {
            match timeout(limit, on_own_thread(connecting)).await {
                Ok(connection) => connection,
                Err(_) => {
                    certificate.record_timeout(limit);
                    Err(ConnectionError::TimedOut(limit).into())
                }
            }
        })
    }
}

/// Polls the future on a new thread. The thread ends when the caller drops the returned future, unless a call hangs.
/// Sockets belong to the current runtime.
async fn on_own_thread<T: Send + 'static>(
    connecting: impl Future<Output = Result<T, BoxError>> + Send + 'static,
) -> Result<T, BoxError> {
    let (mut sender, receiver) = oneshot::channel();
    let runtime = Handle::current();
    std::thread::Builder::new()
        .name("tls-handshake".to_owned())
        .spawn(move || {
            let connection = runtime.block_on(async {
                tokio::select! {
                    connection = connecting => Some(connection),
                    () = sender.closed() => None,
                }
            });
            if let Some(connection) = connection {
                // The caller has stopped waiting.
                let _ = sender.send(connection);
            }
        })
        .map_err(ConnectionError::Thread)?;
    receiver.await.unwrap_or_else(|_| Err(ConnectionError::Ended.into()))
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        sync::{Mutex, mpsc},
    };

    use assay_protocol::{
        Chain, PublicKey,
        agent_api::IssuedCertificate,
        machine::{KeyAccessibility, KeyStoreKind},
    };
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SubjectPublicKeyInfo,
    };
    use rstest::rstest;
    use rustls::{
        NamedGroup, ProtocolVersion, RootCertStore, ServerConfig, SupportedProtocolVersion,
        client::ResolvesClientCert,
        server::WebPkiClientVerifier,
        version::{TLS12, TLS13},
    };
    use time::OffsetDateTime;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        sync::mpsc as events,
    };
    use tokio_rustls::TlsAcceptor;

    use super::{
        super::{Client, ClientError, Identity},
        *,
    };
    use crate::{
        clock::{Clock, SystemClock},
        key_store::{KeyFault, KeyStore, KeyStoreError, MachineKey, SealedKey, SoftwareKeyStore},
        state::StateDirectory,
        trust::{KnownServer, Trust, WithdrawnIssuers},
    };

    /// One handshake, as the server saw it.
    #[derive(Debug, PartialEq)]
    struct Seen {
        version: ProtocolVersion,
        group: NamedGroup,
        client: Option<Vec<u8>>,
    }

    /// A CA for both sides, and a server that requires a client certificate and responds with 204.
    struct Ground {
        issuer: Issuer<'static, KeyPair>,
        root_pem: String,
        url: String,
        seen: events::UnboundedReceiver<Seen>,
        key: MachineKey,
        directory: StateDirectory,
        _folder: tempfile::TempDir,
    }

    fn authority() -> (Issuer<'static, KeyPair>, rcgen::Certificate) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap();
        (Issuer::new(params, key), root)
    }

    async fn ground(store: Arc<dyn KeyStore>, version: &'static SupportedProtocolVersion) -> Ground {
        let (issuer, root) = authority();
        let server_key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&server_key, &issuer).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(root.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(vec![leaf.der().clone()], server_key.into())
            .unwrap();
        let (tell, seen) = events::unbounded_channel();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, tell) = (acceptor.clone(), tell.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let connection = stream.get_ref().1;
                    let client = connection.peer_certificates().map(|chain| chain[0].to_vec());
                    let seen = Seen {
                        version: connection.protocol_version().unwrap(),
                        group: connection.negotiated_key_exchange_group().unwrap().name(),
                        client,
                    };
                    tell.send(seen).unwrap();
                    let mut head = [0; 4096];
                    let _length = stream.read(&mut head).await;
                    let answer = b"HTTP/1.1 204 X\r\nreplay-nonce: n\r\nconnection: close\r\n\r\n";
                    let _ = stream.write_all(answer).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let directory = StateDirectory::create(folder.path().to_owned()).unwrap();
        let key = MachineKey::new(store, directory.clone());
        let lock = Arc::new(directory.lock().unwrap());
        let _kept = key.save(lock, key.create().await.unwrap()).await.unwrap();
        Ground {
            issuer,
            root_pem: root.pem(),
            url,
            seen,
            key,
            directory,
            _folder: folder,
        }
    }

    impl Ground {
        /// Issues a certificate for the machine's key, or for `other`.
        async fn issue(&self, not_after: OffsetDateTime, other: Option<&PublicKey>) -> IssuedCertificate {
            let own = self.key.public_key().await.unwrap().unwrap();
            let public_key = SubjectPublicKeyInfo::from_der(other.unwrap_or(&own).spki_der()).unwrap();
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            IssuedCertificate {
                serial_number: "0a".into(),
                not_before: OffsetDateTime::UNIX_EPOCH,
                not_after,
                chain: params.signed_by(&public_key, &self.issuer).unwrap().pem(),
            }
        }

        async fn certificate(&self) -> Arc<ClientCertificate> {
            let issued = self.issue(tomorrow(), None).await;
            let loaded = ClientCertificate::load(&issued, &self.key, Arc::new(SystemClock)).await;
            Arc::new(loaded.unwrap().unwrap())
        }

        fn client(&self, certificate: Arc<ClientCertificate>) -> Client {
            let server = KnownServer {
                url: self.url.parse().unwrap(),
                trust: Trust::from_certificates(&self.root_pem).unwrap(),
                withdrawn: WithdrawnIssuers::default(),
            };
            Client::new(server, Identity::Certificate(certificate), Arc::new(SystemClock)).unwrap()
        }

        /// A client as in production, with its own time limit.
        fn http(&self, certificate: &Arc<ClientCertificate>, limit: Duration) -> reqwest::Client {
            let tls = Trust::from_certificates(&self.root_pem).unwrap();
            let tls = tls
                .tls(Some(Arc::clone(certificate) as Arc<dyn ResolvesClientCert>))
                .unwrap();
            configure_connections(reqwest::Client::builder(), tls, Some(certificate), limit)
                .build()
                .unwrap()
        }
    }

    fn tomorrow() -> OffsetDateTime {
        SystemClock.now() + time::Duration::days(1)
    }

    const PATIENT: Duration = Duration::from_secs(60);

    #[rstest]
    #[case(&TLS12, ProtocolVersion::TLSv1_2)]
    #[case(&TLS13, ProtocolVersion::TLSv1_3)]
    #[tokio::test]
    async fn the_key_store_signs_the_handshake(
        #[case] offered: &'static SupportedProtocolVersion,
        #[case] version: ProtocolVersion,
    ) {
        let mut ground = ground(Arc::new(SoftwareKeyStore), offered).await;
        let certificate = ground.certificate().await;
        assert_eq!(ground.client(certificate).nonce().await.unwrap(), "n");
        let seen = ground.seen.recv().await.unwrap();
        assert_eq!(seen.version, version);
        assert!(seen.client.is_some());
        // Only TLS 1.3 has the hybrid key exchange.
        let is_hybrid = seen.group == NamedGroup::X25519MLKEM768;
        assert_eq!(is_hybrid, version == ProtocolVersion::TLSv1_3, "{:?}", seen.group);
    }

    #[tokio::test]
    async fn a_certificate_that_expired_or_is_for_another_key_is_not_presented() {
        let ground = ground(Arc::new(SoftwareKeyStore), &TLS13).await;
        let load = async |issued: IssuedCertificate| {
            let loaded = ClientCertificate::load(&issued, &ground.key, Arc::new(SystemClock)).await;
            loaded.unwrap().is_some()
        };
        assert!(load(ground.issue(tomorrow(), None).await).await);
        assert!(!load(ground.issue(SystemClock.now(), None).await).await);
        let other = SoftwareKeyStore.create().unwrap();
        let other = SoftwareKeyStore.public_key(&other).unwrap();
        assert!(!load(ground.issue(tomorrow(), Some(&other)).await).await);
    }

    /// What the store does at each signing call. After the last entry, it signs.
    #[derive(Debug)]
    enum Call {
        /// Reports the call, and waits until the other end is dropped.
        Hang(events::UnboundedSender<()>, mpsc::Receiver<()>),
        Locked,
    }

    #[derive(Debug)]
    struct Script(Mutex<VecDeque<Call>>);

    impl KeyStore for Script {
        fn kind(&self) -> KeyStoreKind {
            KeyStoreKind::Software
        }

        fn accessibility(&self, _key: &SealedKey) -> Option<KeyAccessibility> {
            None
        }

        fn create(&self) -> Result<SealedKey, KeyStoreError> {
            SoftwareKeyStore.create()
        }

        fn public_key(&self, key: &SealedKey) -> Result<PublicKey, KeyStoreError> {
            SoftwareKeyStore.public_key(key)
        }

        fn sign(&self, key: &SealedKey, message: &[u8]) -> Result<Vec<u8>, KeyStoreError> {
            let call = self.0.lock().unwrap().pop_front();
            match call {
                Some(Call::Hang(tell, hang)) => {
                    tell.send(()).unwrap();
                    let _ = hang.recv();
                }
                Some(Call::Locked) => return Err(KeyStoreError::Locked),
                None => {}
            }
            SoftwareKeyStore.sign(key, message)
        }
    }

    fn script(calls: impl IntoIterator<Item = Call>) -> Arc<Script> {
        Arc::new(Script(Mutex::new(calls.into_iter().collect())))
    }

    #[tokio::test]
    async fn a_hanging_key_store_blocks_only_one_connection() {
        let (tell, mut hangs) = events::unbounded_channel();
        let (release, hang) = mpsc::channel();
        let ground = ground(script([Call::Hang(tell, hang)]), &TLS13).await;
        let certificate = ground.certificate().await;
        let http = ground.http(&certificate, PATIENT);
        let first = tokio::spawn(http.get(&ground.url).send());
        hangs.recv().await.unwrap();
        // The test's runtime has one thread. The hanging call runs on another.
        assert_eq!(http.get(&ground.url).send().await.unwrap().status(), 204);
        assert!(!first.is_finished());
        drop(release);
        assert_eq!(first.await.unwrap().unwrap().status(), 204);
    }

    #[tokio::test]
    async fn a_hanging_key_store_times_out() {
        let (tell, _hangs) = events::unbounded_channel();
        let (_release, hang) = mpsc::channel();
        let ground = ground(script([Call::Hang(tell, hang)]), &TLS13).await;
        let certificate = ground.certificate().await;
        let limit = Duration::from_millis(500);
        let error = ground
            .http(&certificate, limit)
            .get(&ground.url)
            .send()
            .await
            .unwrap_err();
        assert!(error.is_connect(), "{error:?}");
        assert!(matches!(certificate.take_fault(), Some(KeyFault::TimedOut(after)) if after == limit));
        assert!(certificate.take_fault().is_none());
        let http = ground.http(&certificate, PATIENT);
        assert_eq!(http.get(&ground.url).send().await.unwrap().status(), 204);
    }

    #[tokio::test]
    async fn a_locked_key_is_not_reported_as_an_unreachable_server() {
        let ground = ground(script([Call::Locked]), &TLS13).await;
        let client = ground.client(ground.certificate().await);
        let error = client.nonce().await.unwrap_err();
        let is_locked = matches!(
            error,
            ClientError::Key {
                fault: KeyFault::Store(KeyStoreError::Locked),
                ..
            }
        );
        assert!(is_locked, "{error:?}");
        assert_eq!(client.nonce().await.unwrap(), "n");
    }

    #[tokio::test]
    async fn a_rejected_certificate_is_not_presented_again() {
        let ground = ground(Arc::new(SoftwareKeyStore), &TLS13).await;
        // Issued by another CA, and valid by this machine's clock.
        let stranger = Ground {
            issuer: authority().0,
            directory: ground.directory.clone(),
            ..ground
        };
        let client = stranger.client(stranger.certificate().await);
        // This server requires a certificate, so the second attempt fails for that reason.
        let error = Chain(&client.nonce().await.unwrap_err()).to_string();
        assert!(error.contains("CertificateRequired"), "{error}");
    }
}
