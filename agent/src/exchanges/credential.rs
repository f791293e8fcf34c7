//! A key with its certificate. Both come from one reading of the record, so the certificate in TLS always belongs to
//! the key that signs.

use assay_protocol::agent_api::IssuedCertificate;

use crate::{key_store::MachineKey, state::Record};

/// A key with its certificate.
#[derive(Debug, Clone)]
pub(crate) struct Credential {
    pub(crate) key: MachineKey,
    pub(crate) certificate: IssuedCertificate,
}

impl Credential {
    /// The current key.
    pub(crate) fn current(keys: &MachineKey, record: &Record) -> Option<Self> {
        let machine = record.machine.as_ref()?;
        Some(Self {
            key: keys.at(record.key_place),
            certificate: machine.certificate.clone(),
        })
    }

    /// The next key, if it has its certificate.
    pub(crate) fn next(keys: &MachineKey, record: &Record) -> Option<Self> {
        let certificate = record.rotation.as_ref()?.certificate.clone()?;
        Some(Self {
            key: keys.at(record.key_place.other()),
            certificate,
        })
    }
}
