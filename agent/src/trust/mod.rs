//! How the agent authenticates its server: the URL, and the roots of the server's certificate.

mod following;
mod server_url;
mod withdrawn;

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
use time::OffsetDateTime;

use self::withdrawn::ServerVerifier;
pub use self::{
    server_url::{ServerUrl, ServerUrlError},
    withdrawn::WithdrawnIssuers,
};

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
        /// The root whose fingerprint an administrator gave, in PEM. Later roots of the server may have replaced it
        /// since. It is kept because the server no longer sends a root that has retired.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pinned_root: Option<String>,
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
    /// The issuing CAs of this server that are never accepted again.
    #[serde(default, skip_serializing_if = "WithdrawnIssuers::is_empty")]
    pub withdrawn: WithdrawnIssuers,
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
        Self::pinned(encode(&root))
    }

    /// Trusts only the root with this fingerprint, if the record has it: the root that was pinned, or one that is
    /// trusted now. Whatever else the record trusts is dropped, because it may have come from an impostor.
    pub(crate) fn pinned_again(&self, fingerprint: Fingerprint) -> Option<Self> {
        let Self::Roots {
            certificates,
            pinned_root,
        } = self
        else {
            return None;
        };
        let on_record = [pinned_root.as_deref().unwrap_or_default(), certificates];
        let root = on_record
            .into_iter()
            .flat_map(certificates_of)
            .find(|root| Fingerprint::of(root) == fingerprint)?;
        Self::pinned(encode(&root)).ok()
    }

    /// The trust after the server has sent this bundle. Roots are added only if they are shown to follow a trusted one.
    pub(crate) fn followed(&self, bundle: &str, now: OffsetDateTime) -> Self {
        let Self::Roots {
            certificates,
            pinned_root,
        } = self
        else {
            return self.clone();
        };
        let bundle = certificates_of(bundle);
        if bundle.len() > following::MAX_CERTIFICATES {
            tracing::warn!("the server's trust bundle has too many certificates: keeping the roots");
            return self.clone();
        }
        let trusted = certificates_of(certificates);
        let roots = following::followed(&trusted, &bundle, now);
        if roots == trusted {
            return self.clone();
        }
        Self::Roots {
            certificates: roots.iter().map(encode).collect(),
            pinned_root: pinned_root.clone(),
        }
    }

    /// A TLS configuration that accepts only these roots, and presents the client certificate if there is one.
    pub(crate) fn tls(&self, certificate: Option<Arc<dyn ResolvesClientCert>>) -> Result<ClientConfig, TrustError> {
        self.tls_without(&WithdrawnIssuers::default(), certificate)
    }

    /// The same, and refuses certificates of withdrawn CAs.
    fn tls_without(
        &self,
        withdrawn: &WithdrawnIssuers,
        certificate: Option<Arc<dyn ResolvesClientCert>>,
    ) -> Result<ClientConfig, TrustError> {
        let provider = Arc::new(provider::default_provider());
        let roots = self.roots(withdrawn)?;
        let verifier = ServerVerifier::new(roots, withdrawn.clone(), Arc::clone(&provider))?;
        let configuration = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TrustError::Tls)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        Ok(match certificate {
            Some(certificate) => configuration.with_client_cert_resolver(certificate),
            None => configuration.with_no_client_auth(),
        })
    }

    fn pinned(root: String) -> Result<Self, TrustError> {
        Self::of(root.clone(), Some(root))
    }

    fn of(certificates: String, pinned_root: Option<String>) -> Result<Self, TrustError> {
        let trust = Self::Roots {
            certificates,
            pinned_root,
        };
        trust.roots(&WithdrawnIssuers::default())?;
        Ok(trust)
    }

    fn roots(&self, withdrawn: &WithdrawnIssuers) -> Result<RootCertStore, TrustError> {
        let mut roots = RootCertStore::empty();
        match self {
            Self::Roots { certificates, .. } => {
                for certificate in CertificateDer::pem_slice_iter(certificates.as_bytes()) {
                    let certificate = certificate.map_err(|_| TrustError::NoCertificates)?;
                    // A CA file may have named the issuing CA.
                    if withdrawn.contains(&certificate) {
                        continue;
                    }
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

impl KnownServer {
    /// A TLS configuration that accepts this server alone, and presents the client certificate if there is one.
    pub(crate) fn tls(&self, certificate: Option<Arc<dyn ResolvesClientCert>>) -> Result<ClientConfig, TrustError> {
        self.trust.tls_without(&self.withdrawn, certificate)
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

    /// The fingerprints of the roots that are trusted.
    fn roots(trust: &Trust) -> Vec<Fingerprint> {
        let Trust::Roots { certificates, .. } = trust else {
            return Vec::new();
        };
        certificates_of(certificates).iter().map(Fingerprint::of).collect()
    }

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
        assert_eq!(trust.pinned_again(fingerprints[1]), Some(trust.clone()));
        assert_eq!(trust.pinned_again(fingerprints[0]), None);
        assert_eq!(roots(&trust), fingerprints[1..]);
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

    /// A record in which a thief's root has replaced the pinned one, as earlier agents could write it.
    #[test]
    fn a_fingerprint_does_not_keep_the_root_of_a_thief() {
        let record = serde_json::json!({
            "kind": "roots",
            "certificates": certificates_of(ROOTS).get(1).map(encode),
            "pinned": fingerprints()[0],
        });
        let taken: Trust = serde_json::from_value(record).unwrap();
        assert_eq!(taken.pinned_again(fingerprints()[0]), None);
    }

    #[test]
    fn a_fingerprint_drops_what_was_trusted_beside_its_root_and_the_pinned_root_is_remembered() {
        let [first, second] = fingerprints()[..] else {
            panic!("two roots")
        };
        let pem = |at: usize| encode(&certificates_of(ROOTS)[at]);
        let both = Trust::of(ROOTS.to_owned(), Some(pem(0))).unwrap();
        assert_eq!(roots(&both.pinned_again(first).unwrap()), [first]);
        assert_eq!(roots(&both.pinned_again(second).unwrap()), [second]);
        let followed = Trust::of(pem(1), Some(pem(0))).unwrap();
        assert_eq!(roots(&followed.pinned_again(first).unwrap()), [first]);
        let stored: Trust = serde_json::from_value(serde_json::to_value(&followed).unwrap()).unwrap();
        assert_eq!(stored, followed);
    }

    #[test]
    fn a_bundle_changes_nothing_without_proof_and_never_the_systems_roots() {
        let now = time::macros::datetime!(2026-11-22 10:00 UTC);
        let first = encode(&certificates_of(ROOTS)[0]);
        let trust = Trust::from_pinned_root(ROOTS.as_bytes(), fingerprints()[0]).unwrap();
        for bundle in [ROOTS, &first, "", "no certificate", &ROOTS.repeat(33)] {
            assert_eq!(trust.followed(bundle, now), trust);
        }
        assert_eq!(Trust::System.followed(ROOTS, now), Trust::System);
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
