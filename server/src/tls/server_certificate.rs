//! The server's certificate: issued by its own CA or read from files. It is replaced without closing connections.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{
    TlsError,
    files::{Files, Version},
    provider,
};
use crate::{
    periodic::{Turns, Work},
    store::{
        Store, StoreError,
        server_certificates::{self, ServerCertificateRecord},
    },
};
use arc_swap::ArcSwap;
use assay_authority::Authority;
use rustls::{
    crypto::CryptoProvider,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use tokio::task::{JoinError, spawn_blocking};
use tracing::info;

/// Files may be replaced, a self-issued certificate may be due, and another CA may issue.
pub(crate) const WORK: Work = Work::every(Duration::from_secs(1), "refresh the TLS certificate");

/// How often the record of the present certificate is written again.
const RECORDED_EVERY: time::Duration = time::Duration::MINUTE;

/// Clocks of verifiers may be slow.
const KEPT_AFTER_EXPIRY: time::Duration = time::Duration::DAY;

/// The certificate for new handshakes.
pub struct ServerCertificate {
    current: ArcSwap<CertifiedKey>,
    source: Source,
    provider: CryptoProvider,
}

enum Source {
    SelfIssued {
        authority: Arc<ArcSwap<Authority>>,
        issued: Mutex<Issued>,
        recorded_at: Mutex<Option<OffsetDateTime>>,
    },
    Files {
        files: Files,
        /// The version that was tried last, valid or not. An invalid one is reported only once.
        tried: Mutex<Version>,
    },
}

/// The issuer of a self-issued certificate, and when to renew it.
struct Issued {
    record: ServerCertificateRecord,
    renew_at: OffsetDateTime,
}

/// A certificate that takes the place of the current one.
struct Replacement {
    certified: CertifiedKey,
    /// `None` for a certificate from files.
    issued: Option<Issued>,
}

impl ServerCertificate {
    /// Issues a certificate with the server's own CA. Its key is generated here and stays in memory.
    pub fn self_issued(authority: Arc<ArcSwap<Authority>>, now: OffsetDateTime) -> Result<Self, TlsError> {
        let provider = provider();
        let (certified, issued) = issue(&authority.load(), &provider, now)?;
        Ok(Self {
            current: ArcSwap::from_pointee(certified),
            source: Source::SelfIssued {
                authority,
                issued: Mutex::new(issued),
                recorded_at: Mutex::default(),
            },
            provider,
        })
    }

    /// Reads the certificate from PEM files: the chain, leaf first, and the leaf's private key.
    pub fn from_files(certificate: PathBuf, private_key: PathBuf) -> Result<Self, TlsError> {
        let (files, provider) = (
            Files {
                certificate,
                private_key,
            },
            provider(),
        );
        // The version is read first. A change after that is detected later.
        let version = files.version();
        Ok(Self {
            current: ArcSwap::from_pointee(files.load(&provider)?),
            source: Source::Files {
                files,
                tried: Mutex::new(version),
            },
            provider,
        })
    }

    /// Records the certificate, if the server has issued it: verifiers may ask any replica for its status. Call it
    /// before the first handshake.
    pub(crate) async fn record(&self, store: &Store) -> Result<(), StoreError> {
        let record = match &self.source {
            Source::SelfIssued {
                issued, recorded_at, ..
            } => {
                *recorded_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(store.now());
                let issued = issued.lock().unwrap_or_else(PoisonError::into_inner);
                issued.record.clone()
            }
            Source::Files { .. } => return Ok(()),
        };
        record_issued(store, &record).await
    }

    /// Whether the record may have been lost since it was written. A database that was restored from a backup lacks it, and
    /// OCSP would call the certificate unknown.
    fn may_lack_its_record(&self, now: OffsetDateTime) -> bool {
        let Source::SelfIssued { recorded_at, .. } = &self.source else {
            return false;
        };
        let recorded_at = *recorded_at.lock().unwrap_or_else(PoisonError::into_inner);
        recorded_at.is_none_or(|at| (now - at).abs() >= RECORDED_EVERY)
    }

    /// The next certificate, if two thirds of the validity have passed, another CA issues now, or the files have
    /// changed. On an error the old certificate stays in use; the same files are not tried again until they change.
    fn replacement(&self, now: OffsetDateTime) -> Result<Option<Replacement>, TlsError> {
        let certified = match &self.source {
            Source::SelfIssued { authority, issued, .. } => {
                let issued = issued.lock().unwrap_or_else(PoisonError::into_inner);
                let authority = authority.load();
                if now < issued.renew_at && issued.record.issuer_id == authority.issuing().id() {
                    return Ok(None);
                }
                let (certified, next) = issue(&authority, &self.provider, now)?;
                return Ok(Some(Replacement {
                    certified,
                    issued: Some(next),
                }));
            }
            Source::Files { files, tried } => {
                let mut tried = tried.lock().unwrap_or_else(PoisonError::into_inner);
                let version = files.version();
                if *tried == version {
                    return Ok(None);
                }
                *tried = version;
                files.load(&self.provider)?
            }
        };
        Ok(Some(Replacement {
            certified,
            issued: None,
        }))
    }

    fn install(&self, replacement: Replacement) {
        if let (Source::SelfIssued { issued, .. }, Some(next)) = (&self.source, replacement.issued) {
            *issued.lock().unwrap_or_else(PoisonError::into_inner) = next;
        }
        self.current.store(Arc::new(replacement.certified));
    }

    /// Replaces the certificate when a replacement is due, until the server stops.
    pub(crate) async fn keep_fresh(self: Arc<Self>, store: Store, turns: Turns) {
        turns.repeat(|| Arc::clone(&self).refresh(&store)).await;
    }

    async fn refresh(self: Arc<Self>, store: &Store) -> Result<(), RefreshError> {
        let (certificate, now) = (Arc::clone(&self), store.now());
        // The files may be on a network file system.
        let Some(replacement) = spawn_blocking(move || certificate.replacement(now)).await?? else {
            if self.may_lack_its_record(now) {
                self.record(store).await?;
            }
            return Ok(());
        };
        if let Some(issued) = &replacement.issued {
            record_issued(store, &issued.record).await?;
        }
        self.install(replacement);
        info!("replaced the TLS certificate");
        Ok(())
    }
}

/// Why the old certificate stays.
#[derive(Debug, thiserror::Error)]
enum RefreshError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("the task that refreshes the certificate ended")]
    Task(#[from] JoinError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Also removes the records of expired certificates.
async fn record_issued(store: &Store, record: &ServerCertificateRecord) -> Result<(), StoreError> {
    let (mut connection, now) = (store.connection().await?, store.now());
    server_certificates::remove_expired(&mut connection, now - KEPT_AFTER_EXPIRY).await?;
    server_certificates::insert(&mut connection, record, now).await
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl fmt::Debug for ServerCertificate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self.source {
            Source::SelfIssued { .. } => "ServerCertificate(self-issued)",
            Source::Files { .. } => "ServerCertificate(files)",
        })
    }
}

fn issue(
    authority: &Authority,
    provider: &CryptoProvider,
    now: OffsetDateTime,
) -> Result<(CertifiedKey, Issued), TlsError> {
    let issuing = authority.issuing();
    let issued = authority.issue_tls_certificate(now).map_err(TlsError::Issue)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(issued.key.pkcs8_der().to_vec()));
    let certified = CertifiedKey::from_der(issued.chain, key, provider).map_err(TlsError::Setup)?;
    let issued = Issued {
        record: ServerCertificateRecord {
            serial_number: issued.serial_number,
            issuer_id: issuing.id(),
            not_after: issued.not_after,
        },
        renew_at: issued.renew_at,
    };
    Ok((certified, issued))
}

#[cfg(test)]
mod tests {
    use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt, path::Path};

    use assay_authority::{
        AuthorityParts, CertifiedKey as CaKey, InitialSecrets, Installation, IssuingParts, Root, generate_initial,
        issuing,
    };
    use axum::{Router, routing::get};
    use rustls::{
        CipherSuite, ClientConfig, NamedGroup, ProtocolVersion, RootCertStore, client::danger::ServerCertVerifier,
    };
    use rustls_pki_types::{CertificateDer, UnixTime};
    use time::{Duration as Period, macros::datetime};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        task::JoinHandle,
    };
    use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};
    use tokio_util::sync::CancellationToken;
    use uuid::Uuid;

    use super::*;
    use crate::{
        clock::MockClock,
        connections::{ConnectionLimits, Server, serve},
        periodic::BackgroundWork,
        telemetry::Metrics,
        tls::server_config,
    };

    const NOW: OffsetDateTime = datetime!(2026-11-22 10:00:00 UTC);
    const URL: &str = "https://localhost:8443";

    /// Verifies like webpki, but at a given time. The certificates of these tests are valid around [`NOW`].
    #[derive(Debug)]
    struct AtTheTime(Arc<rustls::client::WebPkiServerVerifier>, OffsetDateTime);

    impl ServerCertVerifier for AtTheTime {
        fn verify_server_cert(
            &self,
            end_entity: &CertificateDer<'_>,
            intermediates: &[CertificateDer<'_>],
            server_name: &rustls_pki_types::ServerName<'_>,
            ocsp: &[u8],
            _now: UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            let now = UnixTime::since_unix_epoch(Duration::from_secs(self.1.unix_timestamp().unsigned_abs()));
            self.0
                .verify_server_cert(end_entity, intermediates, server_name, ocsp, now)
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            self.0.verify_tls12_signature(message, certificate, signature)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            self.0.verify_tls13_signature(message, certificate, signature)
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            self.0.supported_verify_schemes()
        }
    }

    fn installation() -> Installation {
        Installation {
            trust_domain: "example.com".to_owned(),
            public_url: URL.parse().unwrap(),
            revocation_url: "http://localhost:8080".parse().unwrap(),
        }
    }

    /// As [`ServerCertificate::refresh`] does, without a database.
    fn refresh(certificate: &ServerCertificate, now: OffsetDateTime) -> Result<bool, TlsError> {
        let replacement = certificate.replacement(now)?;
        let is_due = replacement.is_some();
        replacement.into_iter().for_each(|next| certificate.install(next));
        Ok(is_due)
    }

    fn secrets() -> InitialSecrets {
        generate_initial(&installation(), NOW).unwrap()
    }

    fn authority(secrets: &InitialSecrets) -> Arc<ArcSwap<Authority>> {
        let parts = AuthorityParts {
            version: 1,
            issuing: vec![IssuingParts {
                id: Uuid::from_u128(1),
                ca: secrets.issuing.clone(),
                intermediates: Vec::new(),
            }],
            roots: vec![Root {
                id: Uuid::from_u128(2),
                certificate: secrets.root.certificate.clone(),
                is_ours: true,
            }],
            cross_certificates: Vec::new(),
            withdrawn: Vec::new(),
            grant_key: secrets.grant_key.clone(),
            other_grant_keys: Vec::new(),
        };
        let authority = Authority::from_parts(&parts, &installation()).unwrap();
        Arc::new(ArcSwap::from_pointee(authority))
    }

    fn client(
        root: &CaKey,
        at: OffsetDateTime,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(root.certificate.clone())).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AtTheTime(verifier.build().unwrap(), at)))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config).into()
    }

    struct Running {
        address: SocketAddr,
        metrics: Arc<Metrics>,
        shutdown: CancellationToken,
        serving: JoinHandle<usize>,
    }

    impl Running {
        async fn start(certificate: Arc<ServerCertificate>, limits: ConnectionLimits) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (metrics, shutdown) = (Arc::new(Metrics::new()), CancellationToken::new());
            let server = Server {
                router: Router::new().route("/", get(async || "hello")),
                tls: Some(TlsAcceptor::from(
                    server_config(certificate, None, Arc::new(MockClock::new(NOW))).unwrap(),
                )),
                limits,
                metrics: Arc::clone(&metrics),
            };
            Self {
                address: listener.local_addr().unwrap(),
                serving: tokio::spawn(serve(listener, server, shutdown.clone())),
                metrics,
                shutdown,
            }
        }

        async fn connect(&self, connector: &TlsConnector) -> std::io::Result<TlsStream<TcpStream>> {
            let stream = TcpStream::connect(self.address).await.unwrap();
            connector.connect("localhost".try_into().unwrap(), stream).await
        }

        async fn end(self) {
            self.shutdown.cancel();
            assert_eq!(self.serving.await.unwrap(), 0);
        }
    }

    fn leaf(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
        stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    }

    #[tokio::test]
    async fn a_self_issued_server_negotiates_the_preferred_parameters() {
        let secrets = secrets();
        let certificate = Arc::new(ServerCertificate::self_issued(authority(&secrets), NOW).unwrap());
        let running = Running::start(certificate, ConnectionLimits::default()).await;
        let connector = client(&secrets.root, NOW, &[&rustls::version::TLS13]);
        let stream = running.connect(&connector).await.unwrap();
        let (_, connection) = stream.get_ref();
        assert_eq!(connection.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        let suite = connection.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, CipherSuite::TLS13_AES_128_GCM_SHA256);
        let group = connection.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, NamedGroup::X25519MLKEM768);
        assert_eq!(connection.alpn_protocol(), Some(b"h2".as_slice()));
        drop(stream);
        let old = client(&secrets.root, NOW, &[&rustls::version::TLS12]);
        let stream = running.connect(&old).await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(ProtocolVersion::TLSv1_2));
        drop(stream);
        running.end().await;
    }

    #[tokio::test]
    async fn a_request_over_tls_is_answered_and_garbage_is_counted() {
        let secrets = secrets();
        let certificate = Arc::new(ServerCertificate::self_issued(authority(&secrets), NOW).unwrap());
        let running = Running::start(certificate, ConnectionLimits::default()).await;
        let no_hello = [0x16, 3, 1, 0, 5, 0xff, 0, 0, 1, 0];
        for bytes in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &no_hello, &[0; 600]] {
            let mut stream = TcpStream::connect(running.address).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let mut answer = Vec::new();
            let _alert_or_reset = stream.read_to_end(&mut answer).await;
            assert!(!answer.starts_with(b"HTTP"));
        }
        let mut connector = client(&secrets.root, NOW, rustls::ALL_VERSIONS);
        let config = Arc::new({
            let mut config = ClientConfig::clone(connector.config());
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            config
        });
        connector = config.into();
        let mut stream = running.connect(&connector).await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"),
            "{answer}"
        );
        let text = running.metrics.encode();
        for line in ["{result=\"completed\"} 1", "{result=\"failed\"} 3"] {
            assert!(
                text.contains(&format!("assay_tls_handshakes_total{line}\n")),
                "{line} in {text}"
            );
        }
        running.end().await;
    }

    #[tokio::test]
    async fn a_peer_that_does_not_finish_its_handshake_is_disconnected() {
        let secrets = secrets();
        let certificate = Arc::new(ServerCertificate::self_issued(authority(&secrets), NOW).unwrap());
        let limits = ConnectionLimits {
            handshake_timeout: Duration::from_millis(20),
            ..ConnectionLimits::default()
        };
        let running = Running::start(certificate, limits).await;
        for bytes in [b"".as_slice(), &[0x16, 3, 1, 2, 0, 1]] {
            let mut stream = TcpStream::connect(running.address).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let mut answer = Vec::new();
            let _end_or_reset = stream.read_to_end(&mut answer).await;
            assert!(answer.is_empty());
        }
        let text = running.metrics.encode();
        assert!(
            text.contains("assay_tls_handshakes_total{result=\"timed_out\"} 2\n"),
            "{text}"
        );
        running.end().await;
    }

    #[tokio::test]
    async fn a_self_issued_certificate_is_replaced_at_two_thirds_of_its_life_under_open_connections() {
        let secrets = secrets();
        let certificate = Arc::new(ServerCertificate::self_issued(authority(&secrets), NOW).unwrap());
        let running = Running::start(Arc::clone(&certificate), ConnectionLimits::default()).await;
        let before = running
            .connect(&client(&secrets.root, NOW, rustls::ALL_VERSIONS))
            .await
            .unwrap();
        assert!(!refresh(&certificate, NOW + Period::days(20) - Period::seconds(1)).unwrap());
        assert!(refresh(&certificate, NOW + Period::days(20)).unwrap());
        let late = NOW + Period::days(35);
        let after = running
            .connect(&client(&secrets.root, late, rustls::ALL_VERSIONS))
            .await
            .unwrap();
        assert_ne!(leaf(&before), leaf(&after));
        assert!(!refresh(&certificate, NOW + Period::days(21)).unwrap());
        drop((before, after));
        running.end().await;
    }

    struct OnDisk(tempfile::TempDir);

    impl OnDisk {
        fn certificate(&self) -> PathBuf {
            self.0.path().join("tls.crt")
        }

        fn private_key(&self) -> PathBuf {
            self.0.path().join("tls.key")
        }

        fn open(&self) -> Result<ServerCertificate, TlsError> {
            ServerCertificate::from_files(self.certificate(), self.private_key())
        }

        /// Replaces a file as renewal tools do, by moving another one over it.
        fn replace(&self, path: &Path, contents: &str) {
            let new = self.0.path().join("new");
            fs::write(&new, contents).unwrap();
            fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
            fs::rename(&new, path).unwrap();
        }

        fn replace_both(&self, pair: &(String, String)) {
            self.replace(&self.certificate(), &pair.0);
            self.replace(&self.private_key(), &pair.1);
        }
    }

    fn pair(authority: &Arc<ArcSwap<Authority>>) -> (String, String) {
        let issued = authority.load().issue_tls_certificate(NOW).unwrap();
        let chain = issued.chain.iter().map(|der| issuing::certificate_pem(der)).collect();
        let key = pem::encode(&pem::Pem::new("PRIVATE KEY", issued.key.pkcs8_der()));
        (chain, key)
    }

    #[tokio::test]
    async fn files_are_reloaded_when_they_change_and_a_broken_pair_leaves_the_old_one() {
        let secrets = secrets();
        let (authority, disk) = (authority(&secrets), OnDisk(tempfile::tempdir().unwrap()));
        let (first, second) = (pair(&authority), pair(&authority));
        disk.replace_both(&first);
        let certificate = Arc::new(disk.open().unwrap());
        let running = Running::start(Arc::clone(&certificate), ConnectionLimits::default()).await;
        let served = async || {
            leaf(
                &running
                    .connect(&client(&secrets.root, NOW, rustls::ALL_VERSIONS))
                    .await
                    .unwrap(),
            )
        };
        let old = served().await;
        assert!(!refresh(&certificate, NOW).unwrap());
        // A renewal writes one file after the other: in between they do not match.
        disk.replace(&disk.certificate(), &second.0);
        assert!(matches!(refresh(&certificate, NOW), Err(TlsError::KeyMismatch { .. })));
        assert!(
            !refresh(&certificate, NOW).unwrap(),
            "an invalid version is reported once"
        );
        assert_eq!(served().await, old);
        disk.replace(&disk.private_key(), &second.1);
        assert!(refresh(&certificate, NOW).unwrap());
        let new = served().await;
        assert_ne!(new, old);
        fs::remove_file(disk.certificate()).unwrap();
        assert!(matches!(refresh(&certificate, NOW), Err(TlsError::Read { .. })));
        disk.replace(&disk.certificate(), "garbage");
        assert!(matches!(
            refresh(&certificate, NOW),
            Err(TlsError::NoCertificate { .. })
        ));
        assert_eq!(served().await, new);
        running.end().await;
    }

    #[tokio::test]
    async fn the_task_detects_a_change() {
        let authority = authority(&secrets());
        let disk = OnDisk(tempfile::tempdir().unwrap());
        disk.replace_both(&pair(&authority));
        let certificate = Arc::new(disk.open().unwrap());
        let old = certificate.current.load_full();
        let (clock, shutdown) = (Arc::new(MockClock::new(NOW)), CancellationToken::new());
        let work = Work::every(Duration::from_millis(1), "refresh");
        let turns = BackgroundWork::new(clock.clone(), Arc::default()).register(work, shutdown.clone());
        // A certificate from files needs no database.
        let pool = sqlx::PgPool::connect_lazy("postgres://nowhere.invalid").unwrap();
        let store = Store::new(pool, clock, Arc::new(Metrics::new()));
        let task = tokio::spawn(Arc::clone(&certificate).keep_fresh(store, turns));
        disk.replace_both(&pair(&authority));
        let changed = async {
            while Arc::ptr_eq(&old, &certificate.current.load_full()) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), changed).await.unwrap();
        shutdown.cancel();
        task.await.unwrap();
    }

    #[test]
    fn an_error_at_the_start_is_one_line_that_names_the_file() {
        let authority = authority(&secrets());
        let (one, two) = (pair(&authority), pair(&authority));
        let bad_der = pem::encode(&pem::Pem::new("CERTIFICATE", b"not DER".to_vec()));
        let cases = [
            (
                one.0.as_str(),
                two.1.as_str(),
                "tls.key does not match the certificate in",
            ),
            ("", &one.1, "tls.crt contains no PEM certificate"),
            (&bad_der, &one.1, "tls.crt is not valid"),
            (&one.0, "", "tls.key contains no PEM private key"),
            (&one.0, &one.0, "tls.key contains no PEM private key"),
        ];
        for (certificate, key, expected) in cases {
            let disk = OnDisk(tempfile::tempdir().unwrap());
            disk.replace_both(&(certificate.to_owned(), key.to_owned()));
            let message = disk.open().unwrap_err().to_string();
            // The mismatch names both files, the key's first.
            let expected = expected.replace("tls.", &format!("{}/tls.", disk.0.path().display()));
            assert!(message.contains(&expected) && !message.contains('\n'), "{message}");
        }
        let missing = OnDisk(tempfile::tempdir().unwrap());
        assert!(missing.open().unwrap_err().to_string().ends_with("tls.crt"));
    }
}
