//! Checks of issued certificates.

use assay_protocol::{PublicKey, agent_api::IssuedCertificate};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_cert::{
    Certificate,
    der::{Decode, Encode},
};

/// Whether a certificate is for this key.
pub(crate) fn is_certificate_for(certificate: &IssuedCertificate, public_key: &PublicKey) -> bool {
    leaf_key(&certificate.chain).is_some_and(|spki| spki == public_key.spki_der())
}

/// The public key of the first certificate in a chain, as SubjectPublicKeyInfo in DER.
pub(super) fn leaf_key(chain: &str) -> Option<Vec<u8>> {
    let leaf = CertificateDer::from_pem_slice(chain.as_bytes()).ok()?;
    let leaf = Certificate::from_der(&leaf).ok()?;
    leaf.tbs_certificate().subject_public_key_info().to_der().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_the_one_of_the_first_certificate() {
        let chain = include_str!("../../testdata/roots.pem");
        let (_first, second) = chain.split_at(chain.rfind("-----BEGIN").unwrap());
        let key = leaf_key(chain).unwrap();
        assert!(PublicKey::from_spki_der(&key).is_ok());
        assert_ne!(leaf_key(second).unwrap(), key);
        assert_eq!(leaf_key("no certificate"), None);
    }
}
