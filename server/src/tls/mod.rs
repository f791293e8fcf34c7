//! The server's TLS: versions, cipher suites and key exchange, and its certificate.

mod files;
mod machine_certificates;
mod server_certificate;

use std::{fmt, io, path::PathBuf, sync::Arc, time::Duration};

use rustls::{
    ServerConfig,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{
            Ticketer,
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            default_provider,
            kx_group::{SECP256R1, SECP384R1, X25519, X25519MLKEM768},
        },
    },
    server::{NoClientAuth, danger::ClientCertVerifier},
    time_provider::TimeProvider,
    version::{TLS12, TLS13},
};
use rustls_pki_types::UnixTime;

use assay_authority::AuthorityError;
pub use machine_certificates::MachineCertificates;
pub use server_certificate::ServerCertificate;
pub(crate) use server_certificate::WORK as REFRESH;

use crate::clock::Clock;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The file contains no certificate.
    #[error("{} contains no PEM certificate", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The first certificate in the file cannot be parsed.
    #[error("the certificate in {} is not valid", path.display())]
    BadCertificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with the certificate.
        #[source]
        source: rustls::Error,
    },
    /// The file contains no private key. The cause is omitted, because it could quote a part of the key.
    #[error("{} contains no PEM private key (PKCS#8, SEC 1 or PKCS#1, unencrypted)", path.display())]
    NoPrivateKey {
        /// The file.
        path: PathBuf,
    },
    /// The key and the certificate do not match.
    #[error("the private key in {} does not match the certificate in {}", private_key.display(), certificate.display())]
    KeyMismatch {
        /// The file with the certificate.
        certificate: PathBuf,
        /// The file with the private key.
        private_key: PathBuf,
    },
    /// The server's CA could not issue a certificate.
    #[error("the server's CA cannot issue a TLS certificate")]
    Issue(#[source] AuthorityError),
    /// The TLS library rejects the settings or the self-issued certificate.
    #[error("cannot set up TLS")]
    Setup(#[source] rustls::Error),
}

/// The TLS configuration of all connections. A replaced certificate is used in new handshakes. Without `machines`,
/// clients are not asked for a certificate.
pub fn server_config(
    certificate: Arc<ServerCertificate>,
    machines: Option<MachineCertificates>,
    clock: Arc<dyn Clock>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier: Arc<dyn ClientCertVerifier> = match machines {
        Some(machines) => Arc::new(machines),
        None => Arc::new(NoClientAuth),
    };
    let mut config = ServerConfig::builder_with_details(Arc::new(provider()), Arc::new(ServerTime(clock)))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(TlsError::Setup)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // The server's order decides. Both sides have AES instructions, and 128 bits match the strength of the P-256
    // certificates.
    config.ignore_client_order = true;
    // A machine reconnects every few minutes. A ticket saves the signature, and the server stores nothing for it. One
    // ticket is enough, because a machine makes one connection at a time.
    config.ticketer = Ticketer::new().map_err(TlsError::Setup)?;
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

/// Certificates are validated with the same clock that issues them.
struct ServerTime(Arc<dyn Clock>);

impl TimeProvider for ServerTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().unix_timestamp()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

impl fmt::Debug for ServerTime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ServerTime")
    }
}

/// AWS-LC, with the hybrid key exchange first. A future quantum computer must not be able to decrypt traffic recorded
/// today.
fn provider() -> CryptoProvider {
    let mut provider = default_provider();
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != TLS13_AES_128_GCM_SHA256.suite());
    provider.kx_groups = vec![X25519MLKEM768, X25519, SECP256R1, SECP384R1];
    provider
}
