//! The checks of a machine's client certificate at each call.
//!
//! The handshake validates only its path. A connection may outlive the certificate's expiry or revocation, a resumed
//! session reuses the result of an earlier handshake, and the certificate may belong to another machine. Each call
//! therefore checks the certificate again.

use assay_protocol::KeyThumbprint;
use time::OffsetDateTime;

use crate::{config::ClientCertificates, machines::client_certificate::ClientCertificate, services::Policy};

/// Why a call is refused for the certificate of its connection.
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
    #[error("the TLS client certificate is for another key than the one that signed the evidence")]
    OtherKey,
    #[error("the TLS client certificate {serial_number} is revoked, or not on record")]
    NotInForce { serial_number: String },
}

/// Compares a presented certificate with the time and with the key that signed the evidence. The caller checks for
/// revocation when it reads the record.
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
    /// Checks that it is valid at this time and is for this key.
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

    /// The error for a certificate that is revoked or was never issued by this server.
    pub(crate) fn not_in_force(&self) -> CertificateRefusal {
        CertificateRefusal::NotInForce {
            serial_number: self.serial_number.clone(),
        }
    }
}
