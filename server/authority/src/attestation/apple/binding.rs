//! From Apple's word on some Mac and some key to a fact about one machine on record.

use assay_protocol::{PublicKey, attestation::FreshnessCode};
use time::OffsetDateTime;

use super::{AppleAttestation, AttestationError};

/// What an attestation has to match: the machine as it is on record.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// The machine's current key.
    pub key: &'a PublicKey,
    /// Its serial number.
    pub serial_number: Option<&'a str>,
    /// An attestation that Apple signed then or earlier is too old to stand for it.
    pub attested_since: OffsetDateTime,
}

/// An attestation of this very machine for this very key. To have one is the proof: it is made by
/// [`AppleAttestation::bind`] alone.
#[derive(Debug, Clone)]
pub struct BoundAttestation {
    attestation: AppleAttestation,
    key: PublicKey,
    serial_number: String,
}

impl AppleAttestation {
    /// Binds it to a machine.
    ///
    /// # Errors
    /// What does not match. Another machine's attestation is told before one that is stale: asking again would not help.
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
    /// What Apple said.
    #[must_use]
    pub fn attestation(&self) -> &AppleAttestation {
        &self.attestation
    }

    /// Whether this is the very attestation with this leaf, in DER.
    #[must_use]
    pub fn is(&self, leaf: Option<&[u8]>) -> bool {
        self.attestation.chain().next() == leaf
    }

    /// Demands that it is newer than the one on record.
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

    /// The machine's serial number, for which Apple vouches.
    #[must_use]
    pub fn serial_number(&self) -> &str {
        &self.serial_number
    }
}
