//! The machine's certificate as TLS client certificate. The key store signs the handshake, so the key does not leave
//! it.
//!
//! Key and certificate come from one reading of the record. After a renewal or a rotation there is a new
//! [`ClientCertificate`], with its own connections and TLS sessions. A resumed session repeats its original
//! certificate, which a server may no longer accept.

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

/// The client certificate, which is presented until it expires.
#[derive(Debug)]
pub(crate) struct ClientCertificate {
    serial_number: String,
    not_after: OffsetDateTime,
    certified: Arc<CertifiedKey>,
    key: KeyStoreSigner,
    clock: Arc<dyn Clock>,
}

/// What a client presents when a server requests a certificate.
#[derive(Debug)]
pub(crate) enum Identity {
    /// Nothing, because an enrollment uses no certificate.
    None,
    /// Nothing, because the machine's certificate has expired or its key is not usable.
    Withheld,
    /// The machine's certificate.
    Certificate(Arc<ClientCertificate>),
}

/// A signing key in the key store.
#[derive(Debug, Clone)]
struct KeyStoreSigner {
    key: MachineKey,
    sealed: Arc<SealedKey>,
    calls: Arc<Calls>,
}

/// The signing calls of the handshakes. rustls does not return the key store's error to the HTTP client, so it is
/// stored here.
#[derive(Debug, Default)]
struct Calls {
    under_way: AtomicUsize,
    fault: Mutex<Option<KeyFault>>,
}

/// The serial number of the certificate, unless it has expired.
///
/// A certificate that is not yet valid by this machine's clock is presented, because the clock may be behind.
pub(crate) fn presentable(certificate: &IssuedCertificate, now: OffsetDateTime) -> Option<&str> {
    (now < certificate.not_after).then_some(certificate.serial_number.as_str())
}

impl ClientCertificate {
    /// Loads the key of a certificate. `None` if the certificate has expired or is not for this key.
    pub(crate) async fn load(
        certificate: &IssuedCertificate,
        key: &MachineKey,
        clock: Arc<dyn Clock>,
    ) -> Result<Option<Self>, KeyFault> {
        let Some(serial_number) = presentable(certificate, clock.now()).map(ToOwned::to_owned) else {
            return Ok(None);
        };
        let (sealed, public_key) = key.load().await?;
        // The key file was replaced, but not the certificate.
        if leaf_key(&certificate.chain).as_deref() != Some(public_key.spki_der()) {
            tracing::warn!(serial_number, "the certificate on record is not for the machine's key");
            return Ok(None);
        }
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate.chain.as_bytes()).collect();
        let Ok(chain) = chain else { return Ok(None) };
        let key = KeyStoreSigner {
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

    /// The serial number.
    pub(crate) fn serial_number(&self) -> &str {
        &self.serial_number
    }

    /// Takes the last error of the key store in a handshake.
    pub(crate) fn take_fault(&self) -> Option<KeyFault> {
        self.key.calls.fault().take()
    }

    /// Records that a handshake timed out. If a signing call is still running, the key store is the cause.
    pub(crate) fn record_timeout(&self, after: Duration) {
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

    /// Whether a client with this identity can be reused for a machine with this usable certificate, or none.
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

impl SigningKey for KeyStoreSigner {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered
            .contains(&SignatureScheme::ECDSA_NISTP256_SHA256)
            .then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

/// Blocks while the key store signs. [`super::handshake`] therefore runs handshakes on threads that may block.
impl Signer for KeyStoreSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.calls.under_way.fetch_add(1, Ordering::Relaxed);
        let signed = self.key.sign_blocking(&self.sealed, message);
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
