//! How the agent authenticates its server: the URL, and the roots of the server's certificate.

mod server_url;

use std::{fmt, str::FromStr, sync::Arc};

use assay_protocol::sha256;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        ResolvesClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs as provider},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use serde::{Deserialize, Serialize};

pub use self::server_url::{ServerUrl, ServerUrlError};

/// How an administrator configures the authentication of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrustAnchor {
    /// The fingerprint of the root. The agent fetches the root from the server, compares it with the fingerprint, and
    /// pins it.
    Fingerprint(Fingerprint),
    /// The content of a CA file: roots in PEM.
    Certificates(String),
    /// The system's roots.
    System,
}

/// How the agent authenticates the server, as the record stores it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Trust {
    /// Only these roots.
    Roots {
        /// The roots, in PEM.
        certificates: String,
        /// The fingerprint that an administrator gave. The roots may have been replaced since by later ones of the
        /// server.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pinned: Option<Fingerprint>,
    },
    /// The system's roots.
    System,
}

/// A server, and how the agent authenticates it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownServer {
    /// The public URL.
    pub url: ServerUrl,
    /// The roots of the server's certificate.
    pub trust: Trust,
}

/// SHA-256 of a certificate in DER.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint([u8; 32]);

/// The text is not a SHA-256 fingerprint.
#[derive(Debug, thiserror::Error)]
#[error("not a SHA-256 fingerprint: 64 hexadecimal digits, with or without colons")]
pub struct NotAFingerprint;

/// Why the server cannot be authenticated.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The CA file contains no certificate, or an invalid one.
    #[error("the CA file contains no valid certificate")]
    NoCertificates,
    /// The system has no roots.
    #[error("this system has no trusted roots: use --ca-fingerprint or --ca-file")]
    NoSystemRoots,
    /// None of the server's roots has the configured fingerprint.
    #[error("none of the server's roots has the fingerprint {0}: this is another server, or its root was replaced")]
    OtherRoot(Fingerprint),
    /// The TLS library rejected the configuration.
    #[error("TLS cannot be configured")]
    Tls(#[source] rustls::Error),
}

impl Trust {
    /// Trusts the roots in the content of a CA file.
    pub(crate) fn from_certificates(pem: &str) -> Result<Self, TrustError> {
        Self::of(pem.to_owned(), None)
    }

    /// Trusts only the root in the bundle that has this fingerprint.
    pub(crate) fn from_pinned_root(bundle: &[u8], fingerprint: Fingerprint) -> Result<Self, TrustError> {
        let mut roots = CertificateDer::pem_slice_iter(bundle).filter_map(Result::ok);
        let root = roots
            .find(|root| Fingerprint::of(root) == fingerprint)
            .ok_or(TrustError::OtherRoot(fingerprint))?;
        Self::of(encode(&root), Some(fingerprint))
    }

    /// The trust after the server's bundle has changed from `before` to `bundle`. If it contains a root of the new
    /// bundle, the new bundle replaces the old one. Roots that were in neither bundle are kept, because another CA may
    /// have issued the server's certificate.
    pub(crate) fn updated(&self, before: &str, bundle: &str) -> Self {
        let Self::Roots { certificates, pinned } = self else {
            return self.clone();
        };
        let [trusted, before, bundle] = [certificates.as_str(), before, bundle].map(certificates_of);
        if !trusted.iter().any(|root| bundle.contains(root)) {
            return self.clone();
        }
        let own = trusted
            .iter()
            .filter(|root| !before.contains(root) && !bundle.contains(root));
        let roots: Vec<_> = bundle.iter().chain(own).collect();
        if roots.len() == trusted.len() && roots.iter().all(|root| trusted.contains(root)) {
            return self.clone();
        }
        Self::Roots {
            certificates: roots.into_iter().map(encode).collect(),
            pinned: *pinned,
        }
    }

    /// Whether this trust was pinned to the root with this fingerprint.
    pub(crate) fn is_pinned_to(&self, fingerprint: Fingerprint) -> bool {
        let Self::Roots { certificates, pinned } = self else {
            return false;
        };
        if pinned.is_some() {
            return *pinned == Some(fingerprint);
        }
        // Records of earlier agents have no `pinned`.
        let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificates.as_bytes()).collect();
        roots.is_ok_and(|roots| matches!(roots.as_slice(), [root] if Fingerprint::of(root) == fingerprint))
    }

    /// A TLS configuration that accepts only these roots, and presents the client certificate if there is one.
    pub(crate) fn tls(&self, certificate: Option<Arc<dyn ResolvesClientCert>>) -> Result<ClientConfig, TrustError> {
        let configuration = ClientConfig::builder_with_provider(Arc::new(provider::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TrustError::Tls)?
            .with_root_certificates(self.roots()?);
        Ok(match certificate {
            Some(certificate) => configuration.with_client_cert_resolver(certificate),
            None => configuration.with_no_client_auth(),
        })
    }

    fn of(certificates: String, pinned: Option<Fingerprint>) -> Result<Self, TrustError> {
        let trust = Self::Roots { certificates, pinned };
        trust.roots()?;
        Ok(trust)
    }

    fn roots(&self) -> Result<RootCertStore, TrustError> {
        let mut roots = RootCertStore::empty();
        match self {
            Self::Roots { certificates, .. } => {
                for certificate in CertificateDer::pem_slice_iter(certificates.as_bytes()) {
                    let certificate = certificate.map_err(|_| TrustError::NoCertificates)?;
                    roots.add(certificate).map_err(|_| TrustError::NoCertificates)?;
                }
                if roots.is_empty() {
                    return Err(TrustError::NoCertificates);
                }
            }
            Self::System => {
                // The system may have roots that the library cannot parse. They are skipped.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    return Err(TrustError::NoSystemRoots);
                }
            }
        }
        Ok(roots)
    }
}

/// The certificates in a PEM text. Those that cannot be parsed are skipped.
fn certificates_of(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .filter_map(Result::ok)
        .collect()
}

fn encode(certificate: &CertificateDer<'_>) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", certificate.as_ref()))
}

/// A TLS configuration without server authentication. It is only for fetching the roots, which the fingerprint then
/// authenticates, and for servers on loopback addresses.
pub(crate) fn unverified_tls() -> Result<ClientConfig, TrustError> {
    let provider = Arc::new(provider::default_provider());
    let configuration = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(TrustError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    Ok(configuration)
}

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl Fingerprint {
    /// The fingerprint of a certificate.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(sha256(certificate))
    }
}

impl FromStr for Fingerprint {
    type Err = NotAFingerprint;

    fn from_str(text: &str) -> Result<Self, NotAFingerprint> {
        let mut bytes = [0; 32];
        let digits: String = text.trim().chars().filter(|character| *character != ':').collect();
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| NotAFingerprint)?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = NotAFingerprint;

    fn try_from(text: String) -> Result<Self, NotAFingerprint> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex::encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use rustls::NamedGroup;

    use super::*;

    const ROOTS: &str = include_str!("../../testdata/roots.pem");

    fn fingerprints() -> Vec<Fingerprint> {
        CertificateDer::pem_slice_iter(ROOTS.as_bytes())
            .map(|root| Fingerprint::of(&root.unwrap()))
            .collect()
    }

    #[test]
    fn the_post_quantum_key_exchange_comes_first() {
        let tls = Trust::from_certificates(ROOTS).unwrap().tls(None).unwrap();
        assert_eq!(tls.crypto_provider().kx_groups[0].name(), NamedGroup::X25519MLKEM768);
    }

    #[test]
    fn only_the_root_with_the_fingerprint_is_trusted() {
        let fingerprints = fingerprints();
        assert_eq!(fingerprints.len(), 2);
        let trust = Trust::from_pinned_root(ROOTS.as_bytes(), fingerprints[1]).unwrap();
        assert!(trust.is_pinned_to(fingerprints[1]));
        assert!(!trust.is_pinned_to(fingerprints[0]));
        assert_eq!(trust.roots().unwrap().len(), 1);
        assert!(!Trust::from_certificates(ROOTS).unwrap().is_pinned_to(fingerprints[0]));
    }

    #[test]
    fn a_bundle_without_the_root_is_not_trusted() {
        let other = Fingerprint([7; 32]);
        assert!(matches!(
            Trust::from_pinned_root(ROOTS.as_bytes(), other),
            Err(TrustError::OtherRoot(_))
        ));
        assert!(matches!(
            Trust::from_pinned_root(b"<html>", other),
            Err(TrustError::OtherRoot(_))
        ));
    }

    #[test]
    fn trust_is_updated_by_a_bundle_that_shares_a_root_and_keeps_other_roots() {
        let pems: Vec<String> = certificates_of(ROOTS).iter().map(encode).collect();
        let (first, second) = (pems[0].as_str(), pems[1].as_str());
        let fingerprint = fingerprints()[0];
        let pinned = Trust::from_pinned_root(ROOTS.as_bytes(), fingerprint).unwrap();
        assert_eq!(pinned.updated("", first), pinned, "nothing has changed");
        assert_eq!(pinned.updated(first, second), pinned, "it has none of these roots");
        let both = pinned.updated(first, ROOTS);
        assert_eq!(both.roots().unwrap().len(), 2);
        assert!(
            both.is_pinned_to(fingerprint),
            "an agent that is set up by this fingerprint knows it still"
        );
        let moved = both.updated(ROOTS, second);
        assert_eq!(moved.roots().unwrap().len(), 1);
        assert!(moved.is_pinned_to(fingerprint));
        assert_eq!(moved.updated(second, first), moved);
        // Another CA may have issued the server's certificate.
        let file = Trust::from_certificates(ROOTS).unwrap();
        assert_eq!(file.updated("", first), file);
        assert_eq!(file.updated(first, second).roots().unwrap().len(), 1);
        assert_eq!(Trust::System.updated(first, second), Trust::System);
        let kept: Trust = serde_json::from_value(serde_json::to_value(&moved).unwrap()).unwrap();
        assert_eq!(kept, moved);
    }

    #[rstest]
    #[case("")]
    #[case("no certificate")]
    #[case("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")]
    fn a_ca_file_without_certificates_is_refused(#[case] pem: &str) {
        assert!(matches!(Trust::from_certificates(pem), Err(TrustError::NoCertificates)));
    }

    #[test]
    fn a_fingerprint_is_read_in_any_case_with_or_without_colons() {
        let plain = "ab".repeat(32);
        let colons = ["AB"; 32].join(":");
        assert_eq!(plain.parse::<Fingerprint>().unwrap(), Fingerprint([0xab; 32]));
        assert_eq!(colons.parse::<Fingerprint>().unwrap(), Fingerprint([0xab; 32]));
        assert_eq!(Fingerprint([0xab; 32]).to_string(), plain);
        for text in ["", "ab", &"ab".repeat(33), &"xy".repeat(32)] {
            assert!(text.parse::<Fingerprint>().is_err(), "{text}");
        }
    }
}
