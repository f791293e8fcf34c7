//! TLS as the server speaks it: versions, cipher suites and key exchange, and where its certificate comes from.

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

use crate::clock::Clock;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// No certificate in the file.
    #[error("{} holds no certificate in PEM", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The first certificate in the file does not parse.
    #[error("the certificate in {} cannot be used", path.display())]
    BadCertificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rustls::Error,
    },
    /// No private key in the file. The reason is left out: it could quote a piece of the key.
    #[error("{} holds no private key in PEM (PKCS#8, SEC 1 or PKCS#1, not encrypted)", path.display())]
    NoPrivateKey {
        /// The file.
        path: PathBuf,
    },
    /// The two files do not belong together.
    #[error("the private key in {} does not belong to the certificate in {}", private_key.display(), certificate.display())]
    KeyMismatch {
        /// The file with the certificate.
        certificate: PathBuf,
        /// The file with the private key.
        private_key: PathBuf,
    },
    /// The server's own CA issued none.
    #[error("the server's own CA issues no TLS certificate")]
    Issue(#[source] AuthorityError),
    /// The TLS library refuses the settings or the self-issued certificate.
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
}

/// The configuration of all connections. A certificate that is replaced later shows in new handshakes alone. Without
/// `machines` nobody is asked for a certificate.
pub fn server_config(
    certificate: Arc<ServerCertificate>,
    machines: Option<MachineCertificates>,
    clock: Arc<dyn Clock>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier: Arc<dyn ClientCertVerifier> = match machines {
        Some(machines) => Arc::new(machines),
        None => Arc::new(NoClientAuth),
    };
    let mut config = ServerConfig::builder_with_details(Arc::new(provider()), Arc::new(ServersTime(clock)))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(TlsError::Setup)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Our order: both sides have AES instructions, and 128 bits are what the P-256 certificates are worth, too.
    config.ignore_client_order = true;
    // A machine comes back every few minutes on a new connection: with a ticket that costs no signature, and the server
    // keeps nothing for it. One ticket, since it makes one connection at a time.
    config.ticketer = Ticketer::new().map_err(TlsError::Setup)?;
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

/// A certificate's validity is judged by the clock that issued it.
struct ServersTime(Arc<dyn Clock>);

impl TimeProvider for ServersTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().unix_timestamp()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

impl fmt::Debug for ServersTime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ServersTime")
    }
}

/// AWS-LC, with the hybrid key exchange first: traffic recorded today must not be readable to a later quantum computer.
fn provider() -> CryptoProvider {
    let mut provider = default_provider();
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != TLS13_AES_128_GCM_SHA256.suite());
    provider.kx_groups = vec![X25519MLKEM768, X25519, SECP256R1, SECP384R1];
    provider
}
