//! The trusted roots of attestations: Apple's, or those that an operator configures instead.

use std::{fs, io, path::Path};

use rustls_pki_types::{CertificateDer, TrustAnchor};
use webpki::anchor_from_trusted_cert;

use super::{AttestationError, certificates_in_pem};

/// Apple Enterprise Attestation Root CA, valid until 2047. Macs do not send it.
const APPLE: &str = include_str!("enterprise_attestation_root.pem");
/// More roots than any installation needs.
const MOST_ROOTS: usize = 16;

/// The trusted roots of attestations.
#[derive(Debug, Clone)]
pub struct AttestationRoots(Vec<TrustAnchor<'static>>);

/// Why the roots cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootsError {
    /// The file does not exist or cannot be read.
    #[error("the file of roots cannot be read")]
    Read(#[source] io::Error),
    /// Not PEM, a PEM block that is not a certificate, or an empty file.
    #[error("the roots are not a PEM file of certificates")]
    Unreadable(#[source] AttestationError),
    /// One of the certificates cannot be a trust anchor.
    #[error("root {position} is not a certificate that can be a root")]
    NotARoot {
        /// Its position, counted from 1.
        position: usize,
        /// The error of webpki.
        #[source]
        source: webpki::Error,
    },
}

impl AttestationRoots {
    /// Apple's root.
    ///
    /// # Errors
    /// None in practice: the root is compiled in, and a test parses it.
    pub fn apple() -> Result<Self, RootsError> {
        Self::from_pem(APPLE)
    }

    /// The roots of a file, parsed by [`Self::from_pem`]; Apple's root without a path.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn from_file(path: Option<&Path>) -> Result<Self, RootsError> {
        match path {
            Some(path) => Self::from_pem(&fs::read_to_string(path).map_err(RootsError::Read)?),
            None => Self::apple(),
        }
    }

    /// Trusts each certificate of a PEM file. Their own signatures and validity are not checked: the operator who
    /// configures them decides to trust them.
    ///
    /// # Errors
    /// What is wrong with the file, or with one of its certificates.
    pub fn from_pem(pem: &str) -> Result<Self, RootsError> {
        let certificates = certificates_in_pem(pem, MOST_ROOTS).map_err(RootsError::Unreadable)?;
        let anchor = |(index, certificate): (usize, CertificateDer<'static>)| {
            let anchor = anchor_from_trusted_cert(&certificate).map_err(|source| RootsError::NotARoot {
                position: index + 1,
                source,
            })?;
            Ok(anchor.to_owned())
        };
        certificates
            .into_iter()
            .enumerate()
            .map(anchor)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub(super) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest::{SHA256, digest};
    use rstest::rstest;

    use super::*;

    /// The fingerprint that Apple publishes.
    const SHA256_OF_APPLES: &str = "ccf59ef8fcb3017d97f8b5fa6fa90e7a3f9283f76b55ac6cf6eda8b8b949f05b";
    const PUBLIC_KEY_OF_APPLES: &str = "04fa26282af8fb3d4380a84fcb7cabe52739eda9a13f6745a51f1a10536e0bea4865cf8d591b62521660efb5ccf9364b3f61439a33ce62eb3e64c18045917078c0dbfcbbec6122729b3dc27dad8fe1bcf65dc834d0ca11377148f3c86693e3f159";

    #[test]
    fn apples_root_is_the_published_one() {
        let [certificate] = certificates_in_pem(APPLE, MOST_ROOTS).unwrap().try_into().unwrap();
        assert_eq!(hex::encode(digest(&SHA256, &certificate)), SHA256_OF_APPLES);
        let roots = AttestationRoots::apple().unwrap();
        let [anchor] = roots.anchors() else { panic!("{roots:?}") };
        assert!(hex::encode(&anchor.subject_public_key_info).ends_with(PUBLIC_KEY_OF_APPLES));
    }

    #[rstest]
    #[case("")]
    #[case("no PEM")]
    #[case("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")]
    #[case("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")]
    fn what_holds_no_root_is_refused(#[case] pem: &str) {
        AttestationRoots::from_pem(pem).unwrap_err();
    }

    #[test]
    fn a_file_with_one_bad_root_is_refused() {
        let with_bad = format!("{APPLE}-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n");
        let error = AttestationRoots::from_pem(&with_bad).unwrap_err();
        assert!(matches!(error, RootsError::NotARoot { position: 2, .. }), "{error:?}");
        assert!(AttestationRoots::from_pem(&APPLE.repeat(MOST_ROOTS + 1)).is_err());
        assert_eq!(AttestationRoots::from_pem(&APPLE.repeat(2)).unwrap().anchors().len(), 2);
    }
}
