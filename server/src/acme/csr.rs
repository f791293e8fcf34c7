//! The certificate request (PKCS#10). Only its key is used.

use assay_authority::ec_key::{EcKey, NotAnEcKey, SignatureDigest};
use der::{Decode, Encode, oid::ObjectIdentifier};
use x509_cert::request::CertReq;

const ECDSA_WITH_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const ECDSA_WITH_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
/// The largest request in bytes of DER. Usual ones have about 500.
const MAX_LENGTH: usize = 8 * 1024;

/// Why a request is rejected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CsrError {
    #[error("the CSR is longer than {MAX_LENGTH} bytes")]
    TooLong,
    #[error("the CSR is not a PKCS#10 request in DER")]
    Unreadable(#[source] der::Error),
    #[error("the CSR's key cannot be used")]
    Key(#[from] NotAnEcKey),
    #[error("the CSR must be signed with ecdsa-with-SHA256 or ecdsa-with-SHA384")]
    SignatureAlgorithm,
    #[error("the CSR's signature does not match its key")]
    Signature,
    #[error("the key of the CSR is not the key that Apple attested; only the attested key gets a certificate")]
    OtherKey,
}

/// The key of a request, after its signature proves possession. Subject and extensions are unverified claims, and are
/// ignored.
pub(crate) fn proven_key(csr: &[u8]) -> Result<EcKey, CsrError> {
    if csr.len() > MAX_LENGTH {
        return Err(CsrError::TooLong);
    }
    let request = CertReq::from_der(csr).map_err(CsrError::Unreadable)?;
    let spki = request.info.public_key.to_der().map_err(CsrError::Unreadable)?;
    let key = EcKey::from_spki_der(&spki)?;
    let digest = match request.algorithm.oid {
        ECDSA_WITH_SHA256 => SignatureDigest::Sha256,
        ECDSA_WITH_SHA384 => SignatureDigest::Sha384,
        _ => return Err(CsrError::SignatureAlgorithm),
    };
    let signed = request.info.to_der().map_err(CsrError::Unreadable)?;
    let signature = request.signature.as_bytes().ok_or(CsrError::Signature)?;
    key.verify_der(digest, &signed, signature)
        .map_err(|_| CsrError::Signature)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{
        CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKeyData,
        SignatureAlgorithm,
    };

    use super::*;

    fn csr(algorithm: &'static SignatureAlgorithm) -> (KeyPair, Vec<u8>) {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap();
        let der = csr.der().to_vec();
        (key, der)
    }

    #[test]
    fn keys_on_both_curves_are_proven() {
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384] {
            let (key, csr) = csr(algorithm);
            assert_eq!(proven_key(&csr).unwrap().spki_der(), key.subject_public_key_info());
        }
    }

    #[test]
    fn a_request_that_does_not_prove_its_key_is_refused() {
        assert!(matches!(proven_key(&csr(&PKCS_ED25519).1), Err(CsrError::Key(_))));
        assert!(matches!(proven_key(b"no DER"), Err(CsrError::Unreadable(_))));
        assert!(matches!(proven_key(&[0; MAX_LENGTH + 1]), Err(CsrError::TooLong)));
        let (_key, mut changed) = csr(&PKCS_ECDSA_P384_SHA384);
        *changed.last_mut().unwrap() ^= 1;
        assert!(matches!(proven_key(&changed), Err(CsrError::Signature)));
    }

    proptest! {
        #[test]
        fn bytes_from_outside_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(proven_key(&bytes).is_err());
        }
    }
}
