//! Managed Device Attestation: a chain of certificates in which Apple vouches for a Mac, and for which key it was asked.
//!
//! The chain is `[leaf, intermediate]`, as an MDM gets it for `DevicePropertiesAttestation`. An
//! [`UnverifiedAttestation`] can do nothing but be verified, which makes it an [`AppleAttestation`]; that says nothing of
//! any machine until it is bound to a record's key and serial number, which makes it a [`BoundAttestation`]. There is no
//! other way to one.

mod binding;
mod claims;
mod error;
mod roots;
#[cfg(test)]
mod tests;

use assay_protocol::attestation::{AttestedClaims, FreshnessCode};
use rustls_pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;
use webpki::{EndEntityCert, KeyUsage};
use x509_cert::{
    Certificate,
    der::{Decode, Encode},
};

pub use self::{
    binding::{BoundAttestation, Record},
    error::AttestationError,
    roots::{AttestationRoots, RootsError},
};

/// The extended key usage of Apple's attestations, 1.2.840.113635.100.4.24, as DER has it. Older ones have none.
const EXTENDED_KEY_USAGE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x63, 0x64, 0x04, 0x18];
/// Leaf, intermediate, and a root that some add. What is longer is not worth a signature check.
const MOST_CERTIFICATES: usize = 4;
/// In bytes of DER: Apple's have about 900.
const LONGEST_CERTIFICATE: usize = 8 * 1024;
/// What is quoted of a PEM block's label, in characters.
const LONGEST_LABEL: usize = 40;

/// A chain that was read and not verified: anybody may have made it.
#[derive(Debug)]
pub struct UnverifiedAttestation {
    chain: Vec<CertificateDer<'static>>,
    certificates: Vec<Certificate>,
}

/// A chain that leads from its leaf to a trusted root, with what the leaf says. For which machine and key it stands is
/// another question.
#[derive(Debug, Clone)]
pub struct AppleAttestation {
    chain: Vec<CertificateDer<'static>>,
    claims: AttestedClaims,
    leaf_key: Vec<u8>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

/// What is shown of a certificate of a chain.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct CertificateDescription {
    /// As RFC 4514 writes it.
    pub subject: String,
    /// As RFC 4514 writes it.
    pub issuer: String,
    /// Lower-case hex, two digits a byte.
    pub serial_number: String,
    /// When it becomes valid.
    #[serde(with = "time::serde::rfc3339")]
    pub not_before: OffsetDateTime,
    /// When it expires.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    /// Of the DER, in hex.
    pub sha256: String,
}

impl UnverifiedAttestation {
    /// Reads a chain in DER, leaf first.
    ///
    /// # Errors
    /// What is too many, too long, unreadable or ambiguous.
    pub fn from_der(chain: Vec<Vec<u8>>) -> Result<Self, AttestationError> {
        let chain = chain.into_iter().map(CertificateDer::from).collect();
        Self::from_certificates(chain)
    }

    /// Reads a chain in PEM, leaf first.
    ///
    /// # Errors
    /// Those of [`Self::from_der`], and what is not PEM.
    pub fn from_pem(pem: &str) -> Result<Self, AttestationError> {
        Self::from_certificates(certificates_in_pem(pem, MOST_CERTIFICATES)?)
    }

    /// Verifies that the chain leads to one of `roots` with every certificate valid at `at`, and is meant for
    /// attestation.
    ///
    /// # Errors
    /// What the path lacks.
    pub fn verify(self, roots: &AttestationRoots, at: OffsetDateTime) -> Result<AppleAttestation, AttestationError> {
        let (leaf, intermediates) = self.chain.split_first().ok_or(AttestationError::Empty)?;
        // Before 1970 nothing is valid.
        let seconds = u64::try_from(at.unix_timestamp()).unwrap_or(0);
        EndEntityCert::try_from(leaf)
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
                .map(|_path| ())
            })
            .map_err(AttestationError::of_path)?;
        // What was verified is read: the very bytes that this was parsed from, by a parser that takes nothing but DER.
        let leaf = self.certificates.first().ok_or(AttestationError::Empty)?;
        let (not_before, not_after) = validity(leaf);
        let leaf_key = leaf.tbs_certificate().subject_public_key_info().to_der();
        let leaf_key = leaf_key.map_err(|source| AttestationError::Unreadable { position: 1, source })?;
        Ok(AppleAttestation {
            leaf_key,
            claims: claims::read(extensions(leaf)),
            chain: self.chain,
            not_before,
            not_after,
        })
    }

    /// What the certificates say of themselves, leaf first. Not verified.
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
    /// What Apple says.
    #[must_use]
    pub fn claims(&self) -> &AttestedClaims {
        &self.claims
    }

    /// The key that the leaf certifies, a `SubjectPublicKeyInfo` in DER: with ACME, the key that was attested.
    #[must_use]
    pub fn attested_key(&self) -> &[u8] {
        &self.leaf_key
    }

    /// When Apple signed it: the leaf is made for each attestation.
    #[must_use]
    pub fn attested_at(&self) -> OffsetDateTime {
        self.not_before
    }

    /// When the leaf expires.
    #[must_use]
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// The chain in DER, leaf first, as it came.
    pub fn chain(&self) -> impl Iterator<Item = &[u8]> {
        self.chain.iter().map(AsRef::as_ref)
    }

    /// Whether it was asked for with this nonce.
    ///
    /// # Errors
    /// `Stale`: a freshness code that is missing is not fresh.
    pub fn require_freshness(&self, expected: FreshnessCode) -> Result<(), AttestationError> {
        let attested = self.claims.freshness_code;
        if attested == Some(expected) {
            return Ok(());
        }
        Err(AttestationError::Stale { attested, expected })
    }
}

/// The certificates of a PEM file that holds nothing else.
fn certificates_in_pem(pem: &str, most: usize) -> Result<Vec<CertificateDer<'static>>, AttestationError> {
    // Base64 and line breaks take less than twice the room of what they hold.
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
        sha256: hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der)),
    }
}

/// A time of a certificate, all of which are before the year 10000.
fn from_seconds(seconds: u64) -> OffsetDateTime {
    let time = i64::try_from(seconds).ok().map(OffsetDateTime::from_unix_timestamp);
    time.and_then(Result::ok).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
