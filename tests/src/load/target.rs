//! The servers to call, and the verification of their certificates.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use aws_lc_rs::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde_json::Value;
use tokio::net::lookup_host;
use url::Url;

use super::connection::{Address, Connection, Traffic};
use super::options::{ConnectionUse, Options};
use crate::machine::Machine;

/// How many TLS sessions one machine or one lane keeps.
const SESSIONS: usize = 8;

/// Why the servers cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Not `http(s)://host[:port]`.
    #[error("--server {0} is not https://host:port or http://host:port")]
    Url(String),
    /// The name has no address, or no server answers.
    #[error("cannot reach {server}")]
    Unreachable {
        /// The server.
        server: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The text has no certificates in PEM.
    #[error("the roots are not certificates in PEM")]
    Roots,
    /// No root of the server has the fingerprint.
    #[error("{server} has no root with the fingerprint of --ca-fingerprint")]
    Fingerprint {
        /// The server.
        server: String,
    },
    /// The response is not that of an Assay server.
    #[error("{server} does not say what it calls itself: it is no Assay server")]
    NoIssuer {
        /// The server.
        server: String,
    },
    /// The TLS library rejects a certificate.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
}

/// The servers to call.
#[derive(Debug)]
pub struct Target {
    /// The replicas.
    pub addresses: Vec<Address>,
    /// The `aud` of evidence.
    pub audience: String,
    /// The traffic on the wire.
    pub traffic: Arc<Traffic>,
    tls: Arc<ClientConfig>,
    connection: ConnectionUse,
}

impl Target {
    /// Resolves the servers, and asks the first one for its audience.
    pub async fn find(options: &Options) -> Result<Self, TargetError> {
        let mut addresses = Vec::new();
        for server in &options.servers {
            addresses.push(resolve(server).await?);
        }
        let pem = match (&options.ca_file, &options.ca_fingerprint) {
            (Some(path), _) => std::fs::read(path).map_err(|source| TargetError::Read {
                path: path.clone(),
                source,
            })?,
            (None, fingerprint) => {
                let fingerprint = fingerprint.as_deref().unwrap_or_default();
                fetch_roots(&options.servers[0], &addresses[0], fingerprint).await?
            }
        };
        let tls = Arc::new(config(Arc::new(FirstOnly::new(&pem)?))?);
        let audience = issuer(&options.servers[0], &addresses[0], &tls).await?;
        Ok(Self {
            addresses,
            audience,
            traffic: Arc::default(),
            tls,
            connection: options.connection,
        })
    }

    /// The TLS configuration for one lane, or for one machine with this chain. Each has TLS sessions of its own.
    pub fn tls(&self, presented: Option<(&Machine, &str)>) -> Result<Arc<ClientConfig>, TargetError> {
        let mut tls = ClientConfig::clone(&self.tls);
        tls.resumption = match self.connection {
            ConnectionUse::Resumed => Resumption::in_memory_sessions(SESSIONS),
            ConnectionUse::KeepAlive | ConnectionUse::Full => Resumption::disabled(),
        };
        if let Some((machine, chain)) = presented {
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(machine.private_key_der()));
            let key = rustls::sign::CertifiedKey::from_der(certificates(chain.as_bytes())?, key, &crypto())?;
            tls.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(key));
        }
        Ok(Arc::new(tls))
    }
}

async fn resolve(server: &str) -> Result<Address, TargetError> {
    let wrong = || TargetError::Url(server.to_owned());
    let url = Url::parse(server).map_err(|_| wrong())?;
    let (host, port) = url.host_str().zip(url.port_or_known_default()).ok_or_else(wrong)?;
    let name = match url.scheme() {
        "https" => Some(ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|_| wrong())?),
        "http" => None,
        _ => return Err(wrong()),
    };
    let unreachable = |source| TargetError::Unreachable {
        server: server.to_owned(),
        source,
    };
    let mut sockets = lookup_host((host.trim_matches(['[', ']']), port))
        .await
        .map_err(unreachable)?;
    let socket = sockets.next();
    Ok(Address {
        socket: socket.ok_or_else(|| unreachable(io::ErrorKind::NotFound.into()))?,
        name,
        host: format!("{host}:{port}"),
    })
}

async fn get(server: &str, address: &Address, tls: &Arc<ClientConfig>, path: &str) -> Result<Vec<u8>, TargetError> {
    let call = async {
        let mut connection = Connection::open(address, tls, &Arc::default()).await?;
        connection.call(path, None).await
    };
    let answer = call.await.map_err(|source| TargetError::Unreachable {
        server: server.to_owned(),
        source,
    })?;
    Ok(answer.body)
}

async fn issuer(server: &str, address: &Address, tls: &Arc<ClientConfig>) -> Result<String, TargetError> {
    let document = get(server, address, tls, "/.well-known/openid-configuration").await?;
    let document: Value = serde_json::from_slice(&document).unwrap_or_default();
    document["issuer"]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| TargetError::NoIssuer {
            server: server.to_owned(),
        })
}

/// Fetches the roots over an unverified connection. The fingerprint shows whether these are the roots.
async fn fetch_roots(server: &str, address: &Address, fingerprint: &str) -> Result<Vec<u8>, TargetError> {
    let unverified = Arc::new(config(Arc::new(FirstOnly::unverified()))?);
    let roots = get(server, address, &unverified, "/v1/ca/bundle.pem").await?;
    let wanted = fingerprint.replace(':', "").to_lowercase();
    let found = certificates(&roots)?
        .iter()
        .any(|root| hex::encode(digest::digest(&digest::SHA256, root)) == wanted);
    if found {
        Ok(roots)
    } else {
        Err(TargetError::Fingerprint {
            server: server.to_owned(),
        })
    }
}

fn config(verifier: Arc<FirstOnly>) -> Result<ClientConfig, TargetError> {
    Ok(ClientConfig::builder_with_provider(crypto())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

fn crypto() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(provider::default_provider())))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TargetError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    certificates
        .ok()
        .filter(|certificates| !certificates.is_empty())
        .ok_or(TargetError::Roots)
}

/// Verifies a server's certificate once, and then compares. Verifying each time would take CPU time from the server on
/// the same computer.
#[derive(Debug)]
struct FirstOnly {
    /// `None` accepts any certificate.
    thorough: Option<Arc<WebPkiServerVerifier>>,
    /// The certificates that were verified, at most one for each replica.
    known: RwLock<Vec<Vec<u8>>>,
}

impl FirstOnly {
    fn new(roots_pem: &[u8]) -> Result<Self, TargetError> {
        let mut roots = RootCertStore::empty();
        for root in certificates(roots_pem)? {
            roots.add(root)?;
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), crypto()).build();
        Ok(Self {
            thorough: Some(verifier.map_err(|_| TargetError::Roots)?),
            known: RwLock::default(),
        })
    }

    fn unverified() -> Self {
        Self {
            thorough: None,
            known: RwLock::default(),
        }
    }

    fn knows(&self, certificate: &[u8]) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.iter().any(|known| known == certificate)
    }
}

impl ServerCertVerifier for FirstOnly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(thorough) = &self.thorough
            && !self.knows(end_entity)
        {
            thorough.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            known.push(end_entity.to_vec());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crypto().signature_verification_algorithms.supported_schemes()
    }
}
