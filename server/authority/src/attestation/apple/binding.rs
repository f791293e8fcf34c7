//! Binds an attestation by Apple to the key and serial number of one machine's record.

use assay_protocol::{PublicKey, attestation::FreshnessCode};
use time::OffsetDateTime;

use super::{AppleAttestation, AttestationError};

/// What an attestation must match: the machine's record.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// The machine's current key.
    pub key: &'a PublicKey,
    /// Its serial number.
    pub serial_number: Option<&'a str>,
    /// Attestations that Apple signed at or before this time are too old.
    pub attested_since: OffsetDateTime,
}

/// An attestation about this machine and this key. Only [`AppleAttestation::bind`] constructs it, so having one proves
/// the binding.
#[derive(Debug, Clone)]
pub struct BoundAttestation {
    attestation: AppleAttestation,
    key: PublicKey,
    serial_number: String,
}

impl AppleAttestation {
    /// Binds the attestation to a machine.
    ///
    /// # Errors
    /// What does not match. `SerialNumberMismatch` comes before `Stale`, because requesting a new attestation would not
    /// help.
    pub fn bind(self, record: Record<'_>) -> Result<BoundAttestation, AttestationError> {
        let attested = self
            .claims
            .serial_number
            .clone()
            .ok_or(AttestationError::NoSerialNumber)?;
        let on_record = record.serial_number.ok_or(AttestationError::NoSerialNumberOnRecord)?;
        if attested != on_record {
            return Err(AttestationError::SerialNumberMismatch {
                attested,
                on_record: on_record.to_owned(),
            });
        }
        self.require_freshness(FreshnessCode::of(record.key))?;
        if self.not_before <= record.attested_since {
            return Err(AttestationError::TooOld {
                attested_at: self.not_before,
            });
        }
        Ok(BoundAttestation {
            attestation: self,
            key: record.key.clone(),
            serial_number: attested,
        })
    }
}

impl BoundAttestation {
    /// The attestation itself.
    #[must_use]
    pub fn attestation(&self) -> &AppleAttestation {
        &self.attestation
    }

    /// Whether this attestation has this leaf, in DER.
    #[must_use]
    pub fn has_leaf(&self, leaf: Option<&[u8]>) -> bool {
        self.attestation.chain().next() == leaf
    }

    /// Checks that it is newer than the one on record.
    ///
    /// # Errors
    /// `NotNewer`.
    pub fn require_newer_than(&self, on_record: OffsetDateTime) -> Result<(), AttestationError> {
        let attested_at = self.attestation.attested_at();
        if attested_at > on_record {
            return Ok(());
        }
        Err(AttestationError::NotNewer { attested_at, on_record })
    }

    /// The key that it is bound to.
    #[must_use]
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// The machine's serial number, as Apple attests it.
    #[must_use]
    pub fn serial_number(&self) -> &str {
        &self.serial_number
    }
}
