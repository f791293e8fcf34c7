//! The issuing CAs that the server has withdrawn, and the verification of a server that refuses them.

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};
use x509_cert::{Certificate, der::Decode, ext::pkix::SubjectKeyIdentifier};

use super::{TrustError, certificates_of};

/// Limit for the recorded withdrawals. A server has a few in its life.
const MAX_WITHDRAWN: usize = 1_000;
/// Limit for a key identifier in bytes. The usual ones have 20.
const MAX_KEY_IDENTIFIER: usize = 64;

/// Withdrawn issuing CAs, by their subject key identifiers in lower-case hex. None is ever accepted again, even if a
/// later response leaves it out: the server may have been restored from a backup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WithdrawnIssuers(Vec<String>);

impl WithdrawnIssuers {
    /// Adds those of a response. Over the limit, the new ones are left out: a response under a stolen TLS key must not
    /// remove a recorded withdrawal.
    pub(crate) fn add(&mut self, named: &[String]) {
        let mut all: Vec<String> = Vec::new();
        let named = named.iter().filter_map(|name| key_identifier(name));
        for name in std::mem::take(&mut self.0).into_iter().chain(named) {
            if all.len() < MAX_WITHDRAWN && !all.contains(&name) {
                all.push(name);
            }
        }
        self.0 = all;
    }

    /// Whether no issuing CA is recorded as withdrawn.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a chain in PEM has the certificate of a withdrawn CA.
    pub(crate) fn issued(&self, chain: &str) -> bool {
        certificates_of(chain)
            .iter()
            .skip(1)
            .any(|certificate| self.contains(certificate))
    }

    /// Whether this is the certificate of a withdrawn CA. A certificate that cannot be read counts as one.
    pub(super) fn contains(&self, certificate: &CertificateDer<'_>) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let Ok(certificate) = Certificate::from_der(certificate) else {
            return true;
        };
        match certificate.tbs_certificate().get_extension::<SubjectKeyIdentifier>() {
            Ok(Some((_, identifier))) => self.0.contains(&hex::encode(identifier.0.as_bytes())),
            Ok(None) => false,
            Err(_) => true,
        }
    }
}

/// A key identifier in lower-case hex; `None` if the text is no such identifier.
fn key_identifier(text: &str) -> Option<String> {
    let bytes = hex::decode(text).ok()?;
    (1..=MAX_KEY_IDENTIFIER)
        .contains(&bytes.len())
        .then(|| hex::encode(bytes))
}

/// Verifies a server like webpki, but finds no path through a withdrawn CA.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    webpki: Arc<WebPkiServerVerifier>,
    withdrawn: WithdrawnIssuers,
}

impl ServerVerifier {
    pub(super) fn new(
        roots: RootCertStore,
        withdrawn: WithdrawnIssuers,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, TrustError> {
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| TrustError::Tls(Error::General(error.to_string())))?;
        Ok(Self { webpki, withdrawn })
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let accepted: Vec<CertificateDer<'_>> = intermediates
            .iter()
            .filter(|certificate| !self.withdrawn.contains(certificate))
            .cloned()
            .collect();
        self.webpki
            .verify_server_cert(end_entity, &accepted, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(range: std::ops::Range<usize>) -> Vec<String> {
        range.map(|number| format!("{number:040x}")).collect()
    }

    #[test]
    fn a_full_list_keeps_the_recorded_withdrawals_and_leaves_out_new_ones() {
        let mut withdrawn = WithdrawnIssuers::default();
        withdrawn.add(&names(0..MAX_WITHDRAWN - 1));
        withdrawn.add(&names(MAX_WITHDRAWN - 1..2 * MAX_WITHDRAWN));
        assert_eq!(withdrawn.0, names(0..MAX_WITHDRAWN));
    }

    #[test]
    fn repeated_and_malformed_identifiers_take_no_place() {
        let mut withdrawn = WithdrawnIssuers::default();
        let too_long = "ab".repeat(MAX_KEY_IDENTIFIER + 1);
        withdrawn.add(&["ABCD".into(), "abcd".into(), String::new(), "xyz".into(), too_long]);
        withdrawn.add(&["abcd".into()]);
        assert_eq!(withdrawn.0, ["abcd"]);
    }
}
