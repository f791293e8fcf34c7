//! What a call demands of the certificate that a machine presents in TLS.
//!
//! The handshake has validated its path. That is not enough: a connection outlives an expiry and a revocation, a resumed
//! session repeats what an earlier handshake saw, and a certificate of one machine says nothing for another. So every
//! call looks again.

use assay_protocol::KeyThumbprint;
use time::OffsetDateTime;

use crate::{config::ClientCertificates, machines::client_certificate::ClientCertificate, services::Policy};

/// Why a call does not count, by the certificate of its connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CertificateRefusal {
    #[error(
        "this server takes check-ins and renewals only with the machine's certificate as TLS client certificate, and none was presented; a machine without one that is in force enrolls again"
    )]
    Missing,
    #[error("the TLS client certificate is valid from {not_before} to {not_after}")]
    NotValidNow {
        not_before: OffsetDateTime,
        not_after: OffsetDateTime,
    },
    #[error("the TLS client certificate holds another key than the one that signed the evidence")]
    OtherKey,
    #[error("the TLS client certificate {serial_number} is revoked, or not on record")]
    NotInForce { serial_number: String },
}

/// Holds what was presented, if anything, against the call: its time, and the key that signed the evidence. Whether it is
/// revoked is for whoever reads the record.
pub(crate) fn appraise(
    presented: Option<&ClientCertificate>,
    policy: &Policy,
    key: KeyThumbprint,
    now: OffsetDateTime,
) -> Result<(), CertificateRefusal> {
    let Some(certificate) = presented else {
        return match policy.client_certificates {
            ClientCertificates::Required => Err(CertificateRefusal::Missing),
            ClientCertificates::Off | ClientCertificates::Optional => Ok(()),
        };
    };
    certificate.appraise(key, now)
}

impl ClientCertificate {
    /// Whether it is for this time and this key.
    pub(crate) fn appraise(&self, key: KeyThumbprint, now: OffsetDateTime) -> Result<(), CertificateRefusal> {
        if now < self.not_before || now >= self.not_after {
            return Err(CertificateRefusal::NotValidNow {
                not_before: self.not_before,
                not_after: self.not_after,
            });
        }
        if self.key != key {
            return Err(CertificateRefusal::OtherKey);
        }
        Ok(())
    }

    /// That it is revoked, or was never issued here.
    pub(crate) fn not_in_force(&self) -> CertificateRefusal {
        CertificateRefusal::NotInForce {
            serial_number: self.serial_number.clone(),
        }
    }
}
