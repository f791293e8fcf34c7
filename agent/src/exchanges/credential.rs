//! What a machine shows of itself: one of its keys, with the certificate for it. Chosen together from one reading of the
//! record, so that the certificate in TLS is always the one for the key that signs.

use assay_protocol::agent_api::IssuedCertificate;

use crate::{key_store::MachineKey, state::Record};

/// A key with its certificate.
#[derive(Debug, Clone)]
pub(crate) struct Credential {
    pub(crate) key: MachineKey,
    pub(crate) certificate: IssuedCertificate,
}

impl Credential {
    /// The key that the server knows this machine by.
    pub(crate) fn current(keys: &MachineKey, record: &Record) -> Option<Self> {
        let machine = record.machine.as_ref()?;
        Some(Self {
            key: keys.at(record.key_place),
            certificate: machine.certificate.clone(),
        })
    }

    /// The key that is to replace it, once it is certified.
    pub(crate) fn next(keys: &MachineKey, record: &Record) -> Option<Self> {
        let certificate = record.rotation.as_ref()?.certificate.clone()?;
        Some(Self {
            key: keys.at(record.key_place.other()),
            certificate,
        })
    }
}
