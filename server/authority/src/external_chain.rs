//! Verifies the chain of an issuing CA that an external root has signed: whether this server can issue under it.

use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;
use webpki::{
    EndEntityCert, KeyUsage, anchor_from_trusted_cert,
    aws_lc_rs::{ECDSA_P256_SHA256, ECDSA_P256_SHA384, ECDSA_P384_SHA256, ECDSA_P384_SHA384},
};
use x509_parser::certificate::X509Certificate;

use super::{
    AuthorityError, CertifiedKey, Installation, IssuingAuthority, IssuingParts, MachineCertificateRequest, PrivateKey,
    certificate_path::{self, Curve},
};
use assay_protocol::text::rfc3339;

/// The most certificates in a chain: issuing CA, root, and up to three intermediates such as policy CAs.
const LONGEST_CHAIN: usize = 5;
/// `keyCertSign` and `cRLSign` (RFC 5280, section 4.2.1.3), as x509-parser numbers the bits.
const CERTIFICATE_AND_LIST_SIGNING: u16 = 0b110_0000;

/// A verified chain.
#[derive(Debug)]
pub struct ExternalChain {
    /// The issuing CA's certificate in DER.
    pub certificate: Vec<u8>,
    /// The intermediates between it and the root, the nearest first.
    pub intermediates: Vec<Vec<u8>>,
    /// The root.
    pub root: Vec<u8>,
}

/// What a chain must satisfy.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// The key of the pending CSR.
    pub key: &'a PrivateKey,
    /// The current time.
    pub now: OffsetDateTime,
    /// Each certificate must be valid at least until then.
    pub until: OffsetDateTime,
    /// What the certificates that would be issued under it say about this installation.
    pub installation: &'a Installation,
}

/// Why a chain is rejected.
#[derive(Debug, thiserror::Error)]
pub enum ChainRefusal {
    /// Not PEM, or a PEM block that is not a certificate.
    #[error("the chain must consist of certificates in PEM, the issuing CA's first and the root's last")]
    NotPem,
    /// Too few or too many certificates.
    #[error(
        "the chain has {0} certificates, but must have 2 to {LONGEST_CHAIN}: the issuing CA's first and the root's last"
    )]
    Length(usize),
    /// Not an X.509 certificate.
    #[error("certificate {0} of the chain cannot be read")]
    Unreadable(usize),
    /// The first certificate is for another key.
    #[error(
        "the first certificate, {0}, is not for the key of the pending CSR (`assay-server ca csr` prints the CSR again)"
    )]
    OtherKey(String),
    /// Not a CA's certificate.
    #[error("{0} is not a CA certificate (basicConstraints CA:TRUE is missing)")]
    NotCa(String),
    /// The path length would allow it to issue other CAs.
    #[error("the path length of {0} must be 0, because its key must not issue other CAs")]
    PathLength(String),
    /// The path length of a CA above it is too short.
    #[error("the path length of {0} does not allow a path this long")]
    PathTooLong(String),
    /// The key usage does not allow what this server signs.
    #[error("the key usage of {0} must include keyCertSign and cRLSign")]
    KeyUsage(String),
    /// Without a subject key identifier its revocation list has no URL.
    #[error("{0} has no subject key identifier")]
    NoKeyIdentifier(String),
    /// The chain does not end at a root.
    #[error("the last certificate, {0}, is not a root: it is not self-signed")]
    NoRoot(String),
    /// Not every relying party can verify signatures of such a key.
    #[error("the key of {0} is neither on P-256 nor on P-384")]
    Curve(String),
    /// The certificates are out of order, or belong to different hierarchies.
    #[error(
        "{certificate} was not issued by the next certificate of the chain, {issuer} (with ECDSA and SHA-256 or SHA-384)"
    )]
    NotIssuedBy {
        /// The certificate.
        certificate: String,
        /// The certificate that should have issued it.
        issuer: String,
    },
    /// A certificate is not valid yet.
    #[error("{certificate} is not valid before {}", rfc3339(*from))]
    NotYetValid {
        /// The certificate.
        certificate: String,
        /// The start of its validity.
        from: OffsetDateTime,
    },
    /// A certificate has expired, or expires too soon.
    #[error(
        "{certificate} expires at {}, but must be valid until at least {}: the overlap plus the lifetime of a machine's \
         certificate from now", rfc3339(*end), rfc3339(*until)
    )]
    EndsTooSoon {
        /// The certificate.
        certificate: String,
        /// The end of its validity.
        end: OffsetDateTime,
        /// It must be valid at least until then.
        until: OffsetDateTime,
    },
    /// A certificate issued under the chain would not be valid, for example because of a name constraint.
    #[error("a certificate that this CA issues to {to} would not be valid: {why}")]
    Trial {
        /// The subject of the trial certificate.
        to: &'static str,
        /// The error of webpki.
        why: webpki::Error,
    },
    /// Issuing a trial certificate failed.
    #[error("no certificate can be issued under this chain")]
    Issue(#[from] AuthorityError),
}

/// Verifies a chain in PEM.
pub fn verify(pem: &[u8], terms: &Terms<'_>) -> Result<ExternalChain, ChainRefusal> {
    let ders: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|_| ChainRefusal::NotPem)?;
    if !(2..=LONGEST_CHAIN).contains(&ders.len()) {
        return Err(ChainRefusal::Length(ders.len()));
    }
    let mut certificates = Vec::with_capacity(ders.len());
    for (index, der) in ders.iter().enumerate() {
        certificates.push(certificate_path::read(der).map_err(|_| ChainRefusal::Unreadable(index + 1))?);
    }
    let length = ChainRefusal::Length(ders.len());
    let (Some((issuing, _)), Some((root, below))) = (certificates.split_first(), certificates.split_last()) else {
        return Err(length);
    };
    check_issuing(issuing, terms)?;
    if !certificate_path::is_issued_by(root, root) {
        return Err(ChainRefusal::NoRoot(name(root)));
    }
    for (depth, (certificate, issuer)) in below.iter().zip(certificates.iter().skip(1)).enumerate() {
        check_issuer(certificate, issuer, depth)?;
    }
    for (certificate, der) in certificates.iter().zip(&ders) {
        check_certificate(certificate, der, terms)?;
    }
    let mut ders = ders.into_iter().map(|der| der.to_vec());
    let (Some(certificate), Some(root)) = (ders.next(), ders.next_back()) else {
        return Err(length);
    };
    let chain = ExternalChain {
        certificate,
        intermediates: ders.collect(),
        root,
    };
    issue_trial_certificates(&chain, terms)?;
    Ok(chain)
}

fn check_issuing(issuing: &X509Certificate<'_>, terms: &Terms<'_>) -> Result<(), ChainRefusal> {
    if issuing.public_key().raw != terms.key.public_key().spki_der() {
        return Err(ChainRefusal::OtherKey(name(issuing)));
    }
    let constraints = issuing.basic_constraints().ok().flatten();
    let Some(constraints) = constraints.filter(|constraints| constraints.value.ca) else {
        return Err(ChainRefusal::NotCa(name(issuing)));
    };
    if constraints.value.path_len_constraint != Some(0) {
        return Err(ChainRefusal::PathLength(name(issuing)));
    }
    let usage = issuing.key_usage().ok().flatten().map_or(0, |usage| usage.value.flags);
    if usage & CERTIFICATE_AND_LIST_SIGNING != CERTIFICATE_AND_LIST_SIGNING {
        return Err(ChainRefusal::KeyUsage(name(issuing)));
    }
    match certificate_path::subject_key_identifier(issuing) {
        Some(_) => Ok(()),
        None => Err(ChainRefusal::NoKeyIdentifier(name(issuing))),
    }
}

/// Also checks the root's constraints: some relying parties enforce them, others ignore them for a trust anchor.
fn check_issuer(
    certificate: &X509Certificate<'_>,
    issuer: &X509Certificate<'_>,
    depth: usize,
) -> Result<(), ChainRefusal> {
    if !certificate_path::is_issued_by(certificate, issuer) {
        return Err(ChainRefusal::NotIssuedBy {
            certificate: name(certificate),
            issuer: name(issuer),
        });
    }
    let constraints = issuer.basic_constraints().ok().flatten();
    let Some(constraints) = constraints.filter(|constraints| constraints.value.ca) else {
        return Err(ChainRefusal::NotCa(name(issuer)));
    };
    let allowed = constraints.value.path_len_constraint.map(usize::try_from);
    match allowed {
        // The number of CAs between this one and a machine's certificate.
        Some(allowed) if allowed.is_ok_and(|allowed| allowed <= depth) => Err(ChainRefusal::PathTooLong(name(issuer))),
        _ => Ok(()),
    }
}

fn check_certificate(certificate: &X509Certificate<'_>, der: &[u8], terms: &Terms<'_>) -> Result<(), ChainRefusal> {
    if Curve::of(certificate.public_key()).is_none() {
        return Err(ChainRefusal::Curve(name(certificate)));
    }
    let (from, end) = certificate_path::validity(der)?;
    if terms.now < from {
        return Err(ChainRefusal::NotYetValid {
            certificate: name(certificate),
            from,
        });
    }
    if end < terms.until {
        return Err(ChainRefusal::EndsTooSoon {
            certificate: name(certificate),
            end,
            until: terms.until,
        });
    }
    Ok(())
}

/// Issues a certificate for a machine and one for this server, and validates both as their recipients do. Otherwise a
/// constraint in the chain would fail only after the CA is in use.
fn issue_trial_certificates(chain: &ExternalChain, terms: &Terms<'_>) -> Result<(), ChainRefusal> {
    let parts = IssuingParts {
        id: Uuid::nil(),
        ca: CertifiedKey {
            key: terms.key.clone(),
            certificate: chain.certificate.clone(),
        },
        intermediates: chain.intermediates.clone(),
    };
    let authority = IssuingAuthority::new(&parts, &chain.root, terms.installation)?;
    let key = PrivateKey::generate().map_err(AuthorityError::from)?;
    let machine = authority.issue_machine_certificate(&MachineCertificateRequest {
        machine_id: Uuid::nil(),
        public_key: key.public_key(),
        now: terms.now,
        ttl: Duration::HOUR,
        attested_serial_number: None,
    })?;
    let server = authority.issue_tls_certificate(terms.now)?;
    let server = server.chain.first().ok_or(AuthorityError::Certificate)?;
    let seconds = terms.now.unix_timestamp().unsigned_abs();
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    let root = CertificateDer::from(chain.root.as_slice());
    let path: Vec<_> = authority.path().cloned().collect();
    for (to, leaf, usage) in [
        ("machines", &CertificateDer::from(machine.der), KeyUsage::client_auth()),
        ("this server", server, KeyUsage::server_auth()),
    ] {
        validate(leaf, &path, &root, now, usage).map_err(|why| ChainRefusal::Trial { to, why })?;
    }
    Ok(())
}

fn validate(
    leaf: &CertificateDer<'_>,
    path: &[CertificateDer<'_>],
    root: &CertificateDer<'_>,
    now: UnixTime,
    usage: KeyUsage,
) -> Result<(), webpki::Error> {
    let anchor = anchor_from_trusted_cert(root)?;
    let algorithms = [
        ECDSA_P256_SHA256,
        ECDSA_P256_SHA384,
        ECDSA_P384_SHA256,
        ECDSA_P384_SHA384,
    ];
    let leaf = EndEntityCert::try_from(leaf)?;
    leaf.verify_for_usage(&algorithms, &[anchor], path, now, usage, None, None)?;
    Ok(())
}

fn name(certificate: &X509Certificate<'_>) -> String {
    format!("{:?}", certificate.subject().to_string())
}
