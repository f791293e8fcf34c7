//! The verification of machines' certificates in the handshake. A certificate is optional. It must be issued under one
//! of the authority's roots, and be valid now.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use assay_authority::{Authority, IssuingAuthority};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::{TlsError, provider};

/// Verifies client certificates of machines. A root that is added or removed takes effect at the next handshake.
pub struct MachineCertificates {
    authority: Arc<ArcSwap<Authority>>,
    hints: Hints,
    provider: Arc<CryptoProvider>,
    current: ArcSwapOption<Verifier>,
}

/// The CAs that the server names in its request for a certificate. Clients with several certificates choose by them, and
/// Go's offers none whose issuer is not named, so issuing CAs are among them: a client may have the leaf alone.
///
/// The TLS library borrows them, so earlier ones are kept. They change only with a rotation of CAs.
struct Hints {
    subjects: Vec<DistinguishedName>,
    next: OnceLock<Box<Hints>>,
}

/// The verifier for one version of the authority.
struct Verifier {
    authority: Arc<Authority>,
    webpki: Arc<dyn ClientCertVerifier>,
}

impl MachineCertificates {
    /// Verifies against the roots of this authority, and follows its rotation.
    pub fn new(authority: Arc<ArcSwap<Authority>>) -> Result<Self, TlsError> {
        let provider = Arc::new(provider());
        let verifier = Verifier::new(authority.load_full(), &provider).map_err(TlsError::Setup)?;
        Ok(Self {
            authority,
            hints: Hints::new(subjects(&verifier.authority).map_err(TlsError::Setup)?),
            provider,
            current: ArcSwapOption::from_pointee(verifier),
        })
    }

    fn verifier(&self) -> Result<Arc<Verifier>, Error> {
        let authority = self.authority.load_full();
        if let Some(current) = self.current.load_full()
            && Arc::ptr_eq(&current.authority, &authority)
        {
            return Ok(current);
        }
        let verifier = Arc::new(Verifier::new(authority, &self.provider)?);
        self.hints.update(subjects(&verifier.authority)?);
        self.current.store(Some(Arc::clone(&verifier)));
        Ok(verifier)
    }
}

impl Hints {
    fn new(subjects: Vec<DistinguishedName>) -> Self {
        Self {
            subjects,
            next: OnceLock::new(),
        }
    }

    fn latest(&self) -> &Self {
        let mut latest = self;
        while let Some(next) = latest.next.get() {
            latest = next;
        }
        latest
    }

    /// If another thread is faster, its hints are as new.
    fn update(&self, subjects: Vec<DistinguishedName>) {
        let latest = self.latest();
        let bytes = |subject: &DistinguishedName| subject.as_ref().to_vec();
        if !latest.subjects.iter().map(bytes).eq(subjects.iter().map(bytes)) {
            let _ = latest.next.set(Box::new(Self::new(subjects)));
        }
    }
}

/// The subjects of all roots and issuing CAs.
fn subjects(authority: &Authority) -> Result<Vec<DistinguishedName>, Error> {
    let issuing = authority.all_issuing().filter_map(|issuing| issuing.path().next());
    let issuing = issuing.map(|certificate| certificate.as_ref().to_vec());
    let roots = authority.roots().iter().map(|root| root.certificate.clone());
    let mut store = RootCertStore::empty();
    for certificate in roots.chain(issuing) {
        store.add(CertificateDer::from(certificate))?;
    }
    let mut subjects: Vec<DistinguishedName> = Vec::new();
    for subject in store.subjects() {
        if !subjects.iter().any(|known| known.as_ref() == subject.as_ref()) {
            subjects.push(subject);
        }
    }
    Ok(subjects)
}

impl Verifier {
    fn new(authority: Arc<Authority>, provider: &Arc<CryptoProvider>) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        for root in authority.roots() {
            roots.add(CertificateDer::from(root.certificate.as_slice()))?;
        }
        let webpki = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(Self { authority, webpki })
    }
}

impl ClientCertVerifier for MachineCertificates {
    /// Enrollment uses no certificate, and administrators and relying parties have none. Check-in and renewal check for
    /// themselves whether one is required.
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Follows a rotation. If the new CAs cannot be read, the certificate is refused below.
        let _ = self.verifier();
        &self.hints.latest().subjects
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verifier = self.verifier()?;
        // Some clients present only the leaf, without the chain.
        let own = verifier.authority.all_issuing().flat_map(IssuingAuthority::path);
        let own = own.map(|certificate| CertificateDer::from(certificate.as_ref()));
        let intermediates: Vec<_> = intermediates.iter().cloned().chain(own).collect();
        verifier.webpki.verify_client_cert(end_entity, &intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for MachineCertificates {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("MachineCertificates")
    }
}
