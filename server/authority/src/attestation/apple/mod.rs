//! Managed Device Attestation: a certificate chain in which Apple attests a Mac's properties and a freshness code,
//! which names a key.
//!
//! The chain is `[leaf, intermediate]`, as an MDM receives it for `DevicePropertiesAttestation`. Verifying an
//! [`UnverifiedAttestation`] gives an [`AppleAttestation`]. Binding that to the key and serial number of a record gives
//! a [`BoundAttestation`]. There is no other way to construct one.

mod binding;
mod claims;
mod error;
mod roots;
#[cfg(test)]
mod tests;

use assay_protocol::{
    attestation::{AttestedClaims, FreshnessCode},
    sha256,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;
use webpki::{EndEntityCert, KeyUsage};
use x509_cert::{
    Certificate,
    der::{Decode, Encode},
};

pub use self::{
    binding::{BoundAttestation, Record},
    error::{AttestationError, PathFault},
    roots::{AttestationRoots, RootsError},
};

/// The extended key usage of Apple's attestations, 1.2.840.113635.100.4.24, in DER. Older attestations have none.
const EXTENDED_KEY_USAGE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x63, 0x64, 0x04, 0x18];
/// Leaf, intermediate, and a root that some senders add. Longer chains are rejected before any signature is verified.
const MOST_CERTIFICATES: usize = 4;
/// In bytes of DER. Apple's certificates have about 900.
const LONGEST_CERTIFICATE: usize = 8 * 1024;
/// The longest part of a PEM label that an error quotes, in characters.
const LONGEST_LABEL: usize = 40;

/// A parsed chain. It is not verified, so anyone may have made it.
#[derive(Debug)]
pub struct UnverifiedAttestation {
    chain: Vec<CertificateDer<'static>>,
    certificates: Vec<Certificate>,
}

/// A chain that leads from its leaf to a trusted root, with the leaf's claims. It is not yet bound to a machine or a
/// key.
#[derive(Debug, Clone)]
pub struct AppleAttestation {
    chain: Vec<CertificateDer<'static>>,
    path: Vec<CertificateDescription>,
    claims: AttestedClaims,
    leaf_key: Vec<u8>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

/// The description of a certificate of a chain, for display.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct CertificateDescription {
    /// In the notation of RFC 4514.
    pub subject: String,
    /// In the notation of RFC 4514.
    pub issuer: String,
    /// Lower-case hex, two digits per byte.
    pub serial_number: String,
    /// When it becomes valid.
    #[serde(with = "time::serde::rfc3339")]
    pub not_before: OffsetDateTime,
    /// When it expires.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    /// SHA-256 of the DER, in hex.
    pub sha256: String,
}

impl UnverifiedAttestation {
    /// Parses a chain in DER, leaf first.
    ///
    /// # Errors
    /// Too many certificates, or one that is too long, unreadable or ambiguous.
    pub fn from_der(chain: Vec<Vec<u8>>) -> Result<Self, AttestationError> {
        let chain = chain.into_iter().map(CertificateDer::from).collect();
        Self::from_certificates(chain)
    }

    /// Parses a chain in PEM, leaf first.
    ///
    /// # Errors
    /// Those of [`Self::from_der`], and input that is not PEM.
    pub fn from_pem(pem: &str) -> Result<Self, AttestationError> {
        Self::from_certificates(certificates_in_pem(pem, MOST_CERTIFICATES)?)
    }

    /// Verifies that the chain leads to one of `roots`, that every certificate is valid at `at`, and that the leaf is
    /// for attestation.
    ///
    /// # Errors
    /// Why there is no valid path.
    pub fn verify(self, roots: &AttestationRoots, at: OffsetDateTime) -> Result<AppleAttestation, AttestationError> {
        let (leaf, intermediates) = self.chain.split_first().ok_or(AttestationError::Empty)?;
        // No certificate is valid before 1970.
        let seconds = u64::try_from(at.unix_timestamp()).unwrap_or(0);
        let intermediates_of_path = EndEntityCert::try_from(leaf)
            .and_then(|leaf| {
                leaf.verify_for_usage(
                    &[webpki::aws_lc_rs::ECDSA_P384_SHA384],
                    roots.anchors(),
                    intermediates,
                    UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)),
                    KeyUsage::required_if_present(EXTENDED_KEY_USAGE),
                    None,
                    None,
                )
                .map(|path| {
                    path.intermediate_certificates()
                        .map(|issuer| issuer.der().to_vec())
                        .collect::<Vec<_>>()
                })
            })
            .map_err(AttestationError::of_path)?;
        let path = self.describe_path(&intermediates_of_path);
        // Parses the same bytes that were verified, with a parser that accepts only DER.
        let leaf = self.certificates.first().ok_or(AttestationError::Empty)?;
        let (not_before, not_after) = validity(leaf);
        let leaf_key = leaf.tbs_certificate().subject_public_key_info().to_der();
        let leaf_key = leaf_key.map_err(|source| AttestationError::Unreadable { position: 1, source })?;
        Ok(AppleAttestation {
            leaf_key,
            claims: claims::read(extensions(leaf)),
            chain: self.chain,
            path,
            not_before,
            not_after,
        })
    }

    /// Describes the leaf and these intermediates, in the order of the path. Others that came along are not verified.
    fn describe_path(&self, intermediates: &[Vec<u8>]) -> Vec<CertificateDescription> {
        let described = self.describe();
        let issuers = intermediates.iter().filter_map(|issuer| {
            let place = self.chain.iter().position(|der| der.as_ref() == issuer.as_slice());
            described.get(place?)
        });
        described.first().into_iter().chain(issuers).cloned().collect()
    }

    /// Describes the certificates, leaf first. The descriptions are not verified.
    #[must_use]
    pub fn describe(&self) -> Vec<CertificateDescription> {
        let certificates = self.chain.iter().zip(&self.certificates);
        certificates
            .map(|(der, certificate)| describe(der, certificate))
            .collect()
    }

    fn from_certificates(chain: Vec<CertificateDer<'static>>) -> Result<Self, AttestationError> {
        if chain.is_empty() {
            return Err(AttestationError::Empty);
        }
        if chain.len() > MOST_CERTIFICATES {
            return Err(AttestationError::TooMany {
                most: MOST_CERTIFICATES,
            });
        }
        let parse = |(index, der): (usize, &CertificateDer<'_>)| parse(index + 1, der);
        let certificates = chain.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
        Ok(Self { chain, certificates })
    }
}

impl AppleAttestation {
    /// The attested claims.
    #[must_use]
    pub fn claims(&self) -> &AttestedClaims {
        &self.claims
    }

    /// The certificates that were verified, leaf first and without the root.
    #[must_use]
    pub fn path(&self) -> &[CertificateDescription] {
        &self.path
    }

    /// The public key of the leaf, a `SubjectPublicKeyInfo` in DER. In ACME it is the attested key.
    #[must_use]
    pub fn attested_key(&self) -> &[u8] {
        &self.leaf_key
    }

    /// When Apple signed it. Apple issues a new leaf for each attestation.
    #[must_use]
    pub fn attested_at(&self) -> OffsetDateTime {
        self.not_before
    }

    /// When the leaf expires.
    #[must_use]
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// The chain in DER, leaf first, unchanged.
    pub fn chain(&self) -> impl Iterator<Item = &[u8]> {
        self.chain.iter().map(AsRef::as_ref)
    }

    /// Checks that the attestation was requested with this nonce.
    ///
    /// # Errors
    /// `Stale`, also if the freshness code is missing.
    pub fn require_freshness(&self, expected: FreshnessCode) -> Result<(), AttestationError> {
        let attested = self.claims.freshness_code;
        if attested == Some(expected) {
            return Ok(());
        }
        Err(AttestationError::Stale { attested, expected })
    }
}

/// Parses the certificates of a PEM file. Any other PEM block is an error.
fn certificates_in_pem(pem: &str, most: usize) -> Result<Vec<CertificateDer<'static>>, AttestationError> {
    // PEM is less than twice as long as the DER in it.
    if pem.len() > most * LONGEST_CERTIFICATE * 2 {
        return Err(AttestationError::TooMany { most });
    }
    let blocks = ::pem::parse_many(pem).map_err(AttestationError::NotPem)?;
    if blocks.is_empty() {
        return Err(AttestationError::Empty);
    }
    if blocks.len() > most {
        return Err(AttestationError::TooMany { most });
    }
    let certificate = |(index, block): (usize, ::pem::Pem)| match block.tag() {
        "CERTIFICATE" => Ok(CertificateDer::from(block.into_contents())),
        label => Err(AttestationError::NotACertificate {
            position: index + 1,
            label: label.chars().take(LONGEST_LABEL).collect(),
        }),
    };
    blocks.into_iter().enumerate().map(certificate).collect()
}

fn parse(position: usize, der: &[u8]) -> Result<Certificate, AttestationError> {
    if der.len() > LONGEST_CERTIFICATE {
        return Err(AttestationError::TooLong { position });
    }
    let certificate = Certificate::from_der(der).map_err(|source| AttestationError::Unreadable { position, source })?;
    let mut oids: Vec<_> = extensions(&certificate)
        .iter()
        .map(|extension| extension.extn_id)
        .collect();
    oids.sort_unstable();
    let repeated = oids.array_windows().find(|[one, next]| one == next);
    match repeated {
        Some(&[oid, _]) => Err(AttestationError::RepeatedExtension { position, oid }),
        None => Ok(certificate),
    }
}

fn extensions(certificate: &Certificate) -> &[x509_cert::ext::Extension] {
    certificate.tbs_certificate().extensions().map_or(&[], Vec::as_slice)
}

fn validity(certificate: &Certificate) -> (OffsetDateTime, OffsetDateTime) {
    let validity = certificate.tbs_certificate().validity();
    let time = |time: x509_cert::time::Time| from_seconds(time.to_unix_duration().as_secs());
    (time(validity.not_before), time(validity.not_after))
}

fn describe(der: &[u8], certificate: &Certificate) -> CertificateDescription {
    let contents = certificate.tbs_certificate();
    let (not_before, not_after) = validity(certificate);
    CertificateDescription {
        subject: contents.subject().to_string(),
        issuer: contents.issuer().to_string(),
        serial_number: hex::encode(contents.serial_number().as_bytes()),
        not_before,
        not_after,
        sha256: hex::encode(sha256(der)),
    }
}

/// Converts the time of a certificate. All such times are before the year 10000.
fn from_seconds(seconds: u64) -> OffsetDateTime {
    let time = i64::try_from(seconds).ok().map(OffsetDateTime::from_unix_timestamp);
    time.and_then(Result::ok).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
