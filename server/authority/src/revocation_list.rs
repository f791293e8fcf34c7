//! Certificate revocation lists (RFC 5280, section 5). A list covers all certificates of its CA. It has no issuing
//! distribution point, so it is valid from whichever URL it is fetched.

use assay_protocol::admin_api::certificates::RevocationReason;
use rcgen::{
    CertificateRevocationListParams, Issuer, KeyIdMethod, RevocationReason as ReasonCode, RevokedCertParams,
    SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::{AuthorityError, certificate_path, certificate_signer::CertificateSigner, keys::PrivateKey};

/// The contents of one list.
#[derive(Debug)]
pub struct RevocationList {
    /// Greater than the number of every earlier list of this CA.
    pub number: u64,
    /// When it is signed.
    pub this_update: OffsetDateTime,
    /// When the next list is published at the latest.
    pub next_update: OffsetDateTime,
    /// The revoked certificates.
    pub revoked: Vec<RevokedCertificate>,
}

/// An entry of a list.
#[derive(Debug, Clone)]
pub struct RevokedCertificate {
    /// The serial number, big endian.
    pub serial_number: Vec<u8>,
    /// When it was revoked.
    pub revoked_at: OffsetDateTime,
    /// Why it was revoked.
    pub reason: RevocationReason,
}

/// Signs the lists of one CA.
pub struct RevocationListSigner {
    issuer: Issuer<'static, CertificateSigner>,
    key_identifier: Vec<u8>,
    not_after: OffsetDateTime,
}

impl RevocationListSigner {
    /// Builds the signer of the CA with this key and certificate.
    pub fn new(key: &PrivateKey, certificate: &[u8]) -> Result<Self, AuthorityError> {
        Ok(Self {
            key_identifier: certificate_path::key_identifier(certificate)?,
            not_after: certificate_path::validity(certificate)?.1,
            issuer: Issuer::from_ca_cert_der(&CertificateDer::from(certificate), CertificateSigner::new(key)?)
                .map_err(AuthorityError::Sign)?,
        })
    }

    /// Signs a list. Its `nextUpdate` is never after the end of the CA's validity.
    pub fn sign(&self, list: RevocationList) -> Result<Vec<u8>, AuthorityError> {
        let params = CertificateRevocationListParams {
            this_update: list.this_update,
            next_update: list.next_update.min(self.not_after),
            crl_number: SerialNumber::from(list.number),
            issuing_distribution_point: None,
            revoked_certs: list.revoked.into_iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::PreSpecified(self.key_identifier.clone()),
        };
        let signed = params.signed_by(&self.issuer).map_err(AuthorityError::Sign)?;
        Ok(signed.der().to_vec())
    }
}

fn entry(revoked: RevokedCertificate) -> RevokedCertParams {
    RevokedCertParams {
        serial_number: SerialNumber::from(revoked.serial_number),
        revocation_time: revoked.revoked_at,
        reason_code: Some(match revoked.reason {
            RevocationReason::Unspecified => ReasonCode::Unspecified,
            RevocationReason::KeyCompromise => ReasonCode::KeyCompromise,
            RevocationReason::CaCompromise => ReasonCode::CaCompromise,
            RevocationReason::AffiliationChanged => ReasonCode::AffiliationChanged,
            RevocationReason::Superseded => ReasonCode::Superseded,
            RevocationReason::CessationOfOperation => ReasonCode::CessationOfOperation,
            RevocationReason::PrivilegeWithdrawn => ReasonCode::PrivilegeWithdrawn,
            RevocationReason::AaCompromise => ReasonCode::AaCompromise,
        }),
        invalidity_date: None,
    }
}
