//! Certificates of OCSP responders.

use rcgen::Issuer;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::OcspResponder;
use crate::{
    AuthorityError, certificate_path,
    certificate_signer::{CertificateSigner, SubjectKey},
    issuing::{CertifiedKey, whole_seconds},
    keys::PrivateKey,
    profile,
};

/// Issues a certificate for an OCSP responder of a root, with a new key. The root's key then need not be kept.
pub fn issue_for_root(root: &CertifiedKey, now: OffsetDateTime) -> Result<OcspResponder, AuthorityError> {
    let certificate = CertificateDer::from(root.certificate.as_slice());
    let issuer = Issuer::from_ca_cert_der(&certificate, CertificateSigner::new(&root.key)?);
    let issuer = issuer.map_err(AuthorityError::Sign)?;
    let key_identifier = certificate_path::key_identifier(&root.certificate)?;
    let end = certificate_path::validity(&root.certificate)?.1;
    issue(&issuer, &key_identifier, end, now)
}

pub(crate) fn issue(
    issuer: &Issuer<'_, CertificateSigner>,
    issuer_key_identifier: &[u8],
    issuer_end: OffsetDateTime,
    now: OffsetDateTime,
) -> Result<OcspResponder, AuthorityError> {
    let key = PrivateKey::generate()?;
    let mut params = profile::ocsp_responder(whole_seconds(now));
    params.key_identifier_method = profile::key_identifier(key.public_key().sec1());
    params.not_after = params.not_after.min(issuer_end);
    if params.not_after <= now {
        return Err(AuthorityError::Expired);
    }
    let renew_at = now + (params.not_after - now) * 2 / 3;
    let certificate = params
        .signed_by(&SubjectKey(key.public_key()), issuer)
        .map_err(AuthorityError::Sign)?;
    let usable = params.not_before..renew_at;
    OcspResponder::new(&key, certificate.der().to_vec(), issuer_key_identifier, usable)
}
