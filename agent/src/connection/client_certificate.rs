//! The machine's certificate as TLS client certificate, with the key where it lives: the key store signs the handshake.
//!
//! Key and certificate are chosen together, from one reading of the state, and stay together: after a renewal or a
//! rotation there is another [`ClientCertificate`], with connections and TLS sessions of its own. A session that is
//! resumed repeats the certificate it began with, which a server may have stopped to accept.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use assay_protocol::agent_api::IssuedCertificate;
use rustls::{
    Error, OtherError, SignatureAlgorithm, SignatureScheme,
    client::ResolvesClientCert,
    sign::{CertifiedKey, Signer, SigningKey},
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use time::OffsetDateTime;

use super::certificate::leaf_key;
use crate::{
    clock::Clock,
    key_store::{KeyFault, MachineKey, SealedKey},
};

/// What is presented to servers that ask for it, until it expires.
#[derive(Debug)]
pub(crate) struct ClientCertificate {
    serial_number: String,
    not_after: OffsetDateTime,
    certified: Arc<CertifiedKey>,
    key: StoredKey,
    clock: Arc<dyn Clock>,
}

/// What a client presents where a server asks for a certificate.
#[derive(Debug)]
pub(crate) enum Identity {
    /// Nothing: an enrollment takes no certificate.
    None,
    /// Nothing, though the machine has a certificate: it has expired, or its key cannot be used.
    Withheld,
    /// The machine's certificate.
    Certificate(Arc<ClientCertificate>),
}

/// A key that signs where it lives.
#[derive(Debug, Clone)]
struct StoredKey {
    key: MachineKey,
    sealed: Arc<SealedKey>,
    calls: Arc<Calls>,
}

/// What became of the calls into the key store: TLS tells its peers' faults from ours, but not to whom it is told.
#[derive(Debug, Default)]
struct Calls {
    under_way: AtomicUsize,
    fault: Mutex<Option<KeyFault>>,
}

/// The serial number of the certificate, if it is to be presented now: it has not expired.
///
/// One that is not valid yet by this machine's clock is presented: the clock is behind, and the server's counts.
pub(crate) fn presentable(certificate: &IssuedCertificate, now: OffsetDateTime) -> Option<&str> {
    (now < certificate.not_after).then_some(certificate.serial_number.as_str())
}

impl ClientCertificate {
    /// Takes a certificate and the key that it is for; `None` where it is not to be presented now.
    pub(crate) async fn load(
        certificate: &IssuedCertificate,
        key: &MachineKey,
        clock: Arc<dyn Clock>,
    ) -> Result<Option<Self>, KeyFault> {
        let Some(serial_number) = presentable(certificate, clock.now()).map(ToOwned::to_owned) else {
            return Ok(None);
        };
        let (sealed, public_key) = key.load().await?;
        // Somebody replaced the one and not yet the other.
        if leaf_key(&certificate.chain).as_deref() != Some(public_key.spki_der()) {
            tracing::warn!(serial_number, "the certificate on record is not for this machine's key");
            return Ok(None);
        }
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate.chain.as_bytes()).collect();
        let Ok(chain) = chain else { return Ok(None) };
        let key = StoredKey {
            key: key.clone(),
            sealed: Arc::new(sealed),
            calls: Arc::default(),
        };
        Ok(Some(Self {
            serial_number,
            not_after: certificate.not_after,
            certified: Arc::new(CertifiedKey::new(chain, Arc::new(key.clone()))),
            key,
            clock,
        }))
    }

    /// Names it.
    pub(crate) fn serial_number(&self) -> &str {
        &self.serial_number
    }

    /// What the key store last refused within a handshake, once.
    pub(crate) fn take_fault(&self) -> Option<KeyFault> {
        self.key.calls.fault().take()
    }

    /// Notes that a handshake was given up, which may be the key store's fault.
    pub(crate) fn gave_up(&self, after: Duration) {
        if self.key.calls.under_way.load(Ordering::Relaxed) > 0 {
            *self.key.calls.fault() = Some(KeyFault::TimedOut(after));
        }
    }
}

impl Identity {
    pub(crate) fn certificate(&self) -> Option<&Arc<ClientCertificate>> {
        match self {
            Self::Certificate(certificate) => Some(certificate),
            Self::None | Self::Withheld => None,
        }
    }

    pub(crate) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Whether this is still what a machine presents whose certificate is this one, or none.
    pub(crate) fn is_presenting(&self, serial_number: Option<&str>) -> bool {
        match self {
            Self::None => false,
            Self::Withheld => serial_number.is_none(),
            Self::Certificate(certificate) => serial_number == Some(certificate.serial_number()),
        }
    }
}

impl ResolvesClientCert for ClientCertificate {
    fn resolve(&self, _root_hint_subjects: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        (self.clock.now() < self.not_after).then(|| Arc::clone(&self.certified))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl SigningKey for StoredKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered
            .contains(&SignatureScheme::ECDSA_NISTP256_SHA256)
            .then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

/// Waits for the key store: whoever drives the handshake must be allowed to, as [`super::handshake`] sees to.
impl Signer for StoredKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.calls.under_way.fetch_add(1, Ordering::Relaxed);
        let signed = self.key.sign_here(&self.sealed, message);
        self.calls.under_way.fetch_sub(1, Ordering::Relaxed);
        signed.map_err(|fault| {
            let error = Error::Other(OtherError(Arc::new(std::io::Error::other(fault.to_string()))));
            *self.calls.fault() = Some(fault);
            error
        })
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

impl Calls {
    fn fault(&self) -> std::sync::MutexGuard<'_, Option<KeyFault>> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
