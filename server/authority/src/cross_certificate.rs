//! Cross-certificates: a root certifies the subject and key of the root that follows it. Who trusts the earlier root can
//! then verify the later one.

use der::{
    Any, Decode, Encode, Sequence,
    asn1::{BitString, ObjectIdentifier, OctetString},
    oid::AssociatedOid,
};
use rcgen::SigningKey;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use time::OffsetDateTime;
use x509_cert::{
    ext::{
        Extension,
        pkix::{AuthorityKeyIdentifier, BasicConstraints, KeyUsage, KeyUsages, SubjectKeyIdentifier},
    },
    serial_number::SerialNumber,
    spki::AlgorithmIdentifierOwned,
    time::{Time, Validity},
};
use x509_parser::{certificate::X509Certificate, extensions::ParsedExtension};

use super::{AuthorityError, CertifiedKey, certificate_path, certificate_signer::CertificateSigner, profile};
use assay_protocol::text::rfc3339;

const ECDSA_WITH_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
/// Version 3 (RFC 5280, section 4.1.2.1).
const V3: u8 = 2;

/// What an external cross-certificate must satisfy.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// The certificate of the root that must have signed it.
    pub by: &'a [u8],
    /// The certificate of the root that follows.
    pub root: &'a [u8],
    /// How many CAs are between that root and machines' certificates.
    pub cas_below: usize,
    /// The current time.
    pub now: OffsetDateTime,
    /// It must be valid at least until then.
    pub until: OffsetDateTime,
}

/// Why a cross-certificate is rejected.
#[derive(Debug, thiserror::Error)]
pub enum CrossCertificateRefusal {
    /// Not exactly one certificate in PEM.
    #[error("the cross-certificate must be one certificate in PEM")]
    NotOne,
    /// Another subject, or another key.
    #[error("the cross-certificate, {0}, does not have the subject and key of the next root")]
    OtherRoot(String),
    /// Signed by another CA.
    #[error("the present root, {0}, did not sign the cross-certificate (with ECDSA and SHA-256 or SHA-384)")]
    OtherIssuer(String),
    /// Not a CA's certificate.
    #[error("the cross-certificate is not a CA certificate (basicConstraints CA:TRUE is missing)")]
    NotCa,
    /// It does not allow the CAs below it.
    #[error("the path length of the cross-certificate must be absent, or at least {0}")]
    PathLength(usize),
    /// The key usage does not allow to sign certificates.
    #[error("the key usage of the cross-certificate must include keyCertSign")]
    KeyUsage,
    /// Agents refuse a root that is only trusted for some names or purposes.
    #[error(
        "the cross-certificate must have neither name constraints, nor an extended key usage, nor a critical extension \
         besides basicConstraints and keyUsage"
    )]
    Restricted,
    /// Not valid yet.
    #[error("the cross-certificate is not valid before {}", rfc3339(*from))]
    NotYetValid {
        /// The start of its validity.
        from: OffsetDateTime,
    },
    /// It has expired, or expires too soon for machines that are away.
    #[error("the cross-certificate expires at {}, but must be valid until at least {}", rfc3339(*end), rfc3339(*until))]
    EndsTooSoon {
        /// The end of its validity.
        end: OffsetDateTime,
        /// It must be valid at least until then.
        until: OffsetDateTime,
    },
    /// A root's certificate cannot be read.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

#[derive(Sequence)]
struct CertificateMessage {
    to_be_signed: TbsMessage,
    signature_algorithm: AlgorithmIdentifierOwned,
    signature: BitString,
}

#[derive(Sequence)]
struct TbsMessage {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    version: u8,
    serial_number: SerialNumber,
    signature_algorithm: AlgorithmIdentifierOwned,
    issuer: Any,
    validity: Validity,
    subject: Any,
    public_key: Any,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT")]
    extensions: Vec<Extension>,
}

/// Issues the cross-certificate for a root by an earlier root of this server. It is valid as long as both.
///
/// Names are copied byte by byte, because verifiers compare them so, and an external root may encode them differently.
pub fn issue(by: &CertifiedKey, root: &[u8], now: OffsetDateTime) -> Result<Vec<u8>, AuthorityError> {
    let (issuer, subject) = (certificate_path::read(&by.certificate)?, certificate_path::read(root)?);
    let end = certificate_path::validity(&by.certificate)?
        .1
        .min(certificate_path::validity(root)?.1);
    if end <= now {
        return Err(AuthorityError::Expired);
    }
    let signer = CertificateSigner::new(&by.key)?;
    let to_be_signed = to_be_signed(&issuer, &subject, (now - profile::SERVER_BACKDATING, end));
    let to_be_signed = to_be_signed.map_err(AuthorityError::Encode)?;
    let signed = to_be_signed.to_der().map_err(AuthorityError::Encode)?;
    let signature = signer.sign(&signed).map_err(AuthorityError::Sign)?;
    let certificate = CertificateMessage {
        to_be_signed,
        signature_algorithm: algorithm(),
        signature: BitString::from_bytes(&signature).map_err(AuthorityError::Encode)?,
    };
    certificate.to_der().map_err(AuthorityError::Encode)
}

/// Verifies a cross-certificate in PEM that the owner of an external root has issued, as agents and other verifiers will.
pub fn verify(pem: &[u8], terms: &Terms<'_>) -> Result<Vec<u8>, CrossCertificateRefusal> {
    let ders: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let Ok([der]) = ders.as_deref() else {
        return Err(CrossCertificateRefusal::NotOne);
    };
    let certificate = certificate_path::read(der).map_err(|_| CrossCertificateRefusal::NotOne)?;
    let by = certificate_path::read(terms.by)?;
    if !certificate_path::is_same_authority(der, terms.root)? {
        return Err(CrossCertificateRefusal::OtherRoot(name(&certificate)));
    }
    if !certificate_path::is_issued_by(&certificate, &by) {
        return Err(CrossCertificateRefusal::OtherIssuer(name(&by)));
    }
    check_extensions(&certificate, terms.cas_below)?;
    let (from, end) = certificate_path::validity(der)?;
    if terms.now < from {
        return Err(CrossCertificateRefusal::NotYetValid { from });
    }
    // The present root may expire before that.
    let until = terms.until.min(certificate_path::validity(terms.by)?.1);
    if end < until {
        return Err(CrossCertificateRefusal::EndsTooSoon { end, until });
    }
    Ok(der.to_vec())
}

/// Those of the cross-certificates that lead from earlier roots to this one, the nearest first.
pub(crate) fn leading_to(root: &[u8], cross_certificates: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, AuthorityError> {
    let mut names = vec![certificate_path::read(root)?.subject().as_raw().to_vec()];
    let mut leading: Vec<Vec<u8>> = Vec::new();
    let mut next = 0;
    while let Some(name) = names.get(next).cloned() {
        next += 1;
        for der in cross_certificates {
            let certificate = certificate_path::read(der)?;
            if certificate.subject().as_raw() == name && !leading.contains(der) {
                names.push(certificate.issuer().as_raw().to_vec());
                leading.push(der.clone());
            }
        }
    }
    Ok(leading)
}

fn check_extensions(certificate: &X509Certificate<'_>, cas_below: usize) -> Result<(), CrossCertificateRefusal> {
    let constraints = certificate.basic_constraints().ok().flatten();
    let Some(constraints) = constraints.filter(|constraints| constraints.value.ca) else {
        return Err(CrossCertificateRefusal::NotCa);
    };
    let allowed = constraints.value.path_len_constraint.map(usize::try_from);
    if allowed.is_some_and(|allowed| allowed.is_ok_and(|allowed| allowed < cas_below)) {
        return Err(CrossCertificateRefusal::PathLength(cas_below));
    }
    let usage = certificate.key_usage().ok().flatten();
    if !usage.is_some_and(|usage| usage.value.key_cert_sign()) {
        return Err(CrossCertificateRefusal::KeyUsage);
    }
    let is_restricted = certificate
        .extensions()
        .iter()
        .any(|extension| match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(_) | ParsedExtension::KeyUsage(_) => false,
            ParsedExtension::NameConstraints(_) | ParsedExtension::ExtendedKeyUsage(_) => true,
            _ => extension.critical,
        });
    if is_restricted {
        return Err(CrossCertificateRefusal::Restricted);
    }
    Ok(())
}

/// It has no pointers to revocation lists: its issuer's key is erased when that root retires.
fn to_be_signed(
    issuer: &X509Certificate<'_>,
    subject: &X509Certificate<'_>,
    (from, end): (OffsetDateTime, OffsetDateTime),
) -> Result<TbsMessage, der::Error> {
    let constraints = BasicConstraints {
        ca: true,
        path_len_constraint: None,
    };
    let mut extensions = vec![
        extension(BasicConstraints::OID, true, &constraints)?,
        extension(
            KeyUsage::OID,
            true,
            &KeyUsage(KeyUsages::KeyCertSign | KeyUsages::CRLSign),
        )?,
    ];
    // An external root may have no key identifier.
    if let Some(identifier) = certificate_path::subject_key_identifier(subject) {
        let identifier = SubjectKeyIdentifier(OctetString::new(identifier)?);
        extensions.push(extension(SubjectKeyIdentifier::OID, false, &identifier)?);
    }
    if let Some(identifier) = certificate_path::subject_key_identifier(issuer) {
        let identifier = AuthorityKeyIdentifier {
            key_identifier: Some(OctetString::new(identifier)?),
            ..AuthorityKeyIdentifier::default()
        };
        extensions.push(extension(AuthorityKeyIdentifier::OID, false, &identifier)?);
    }
    Ok(TbsMessage {
        version: V3,
        serial_number: SerialNumber::new(&profile::random_serial())?,
        signature_algorithm: algorithm(),
        issuer: Any::from_der(issuer.subject().as_raw())?,
        validity: Validity::new(time(from)?, time(end)?),
        subject: Any::from_der(subject.subject().as_raw())?,
        public_key: Any::from_der(subject.public_key().raw)?,
        extensions,
    })
}

fn extension(id: ObjectIdentifier, critical: bool, value: &impl Encode) -> Result<Extension, der::Error> {
    Ok(Extension {
        extn_id: id,
        critical,
        extn_value: OctetString::new(value.to_der()?)?,
    })
}

fn algorithm() -> AlgorithmIdentifierOwned {
    AlgorithmIdentifierOwned {
        oid: ECDSA_WITH_SHA256,
        parameters: None,
    }
}

/// UTCTime until 2049, as RFC 5280 demands.
fn time(time: OffsetDateTime) -> Result<Time, der::Error> {
    let seconds = u64::try_from(time.unix_timestamp()).map_err(|_| der::ErrorKind::DateTime)?;
    Time::try_from(std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds))
}

fn name(certificate: &X509Certificate<'_>) -> String {
    format!("{:?}", certificate.subject().to_string())
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use rcgen::{
        CertificateParams, DnType, DnValue, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair,
        KeyUsagePurpose, NameConstraints,
    };
    use rstest::rstest;
    use rustls_pki_types::UnixTime;
    use time::{Duration, macros::datetime};
    use webpki::{EndEntityCert, anchor_from_trusted_cert};

    use super::*;
    use crate::{
        Authority, InitialSecrets, Installation, Root, generate_initial,
        issuing::{certificate_pem, generate_issuing, generate_root},
    };

    const NOW: OffsetDateTime = datetime!(2026-11-22 10:00 UTC);

    fn new_root() -> CertifiedKey {
        generate_root("example.com", NOW).unwrap()
    }

    /// The authority after so many rotations of the root, and all of its roots.
    fn rotated(times: usize) -> (Authority, Vec<CertifiedKey>) {
        let InitialSecrets {
            root,
            issuing,
            grant_key,
            nonce_key,
        } = generate_initial(&Installation::example(), NOW).unwrap();
        let mut roots = vec![root.clone()];
        let mut secrets = InitialSecrets {
            root,
            issuing,
            grant_key,
            nonce_key,
        };
        let mut cross_certificates = Vec::new();
        for _ in 0..times {
            let next = generate_root("example.com", NOW).unwrap();
            cross_certificates.push(issue(roots.last().unwrap(), &next.certificate, NOW).unwrap());
            roots.push(next);
        }
        secrets.root = roots.last().unwrap().clone();
        secrets.issuing = generate_issuing(&secrets.root, &Installation::example(), NOW).unwrap();
        let mut parts = secrets.parts();
        parts.cross_certificates = cross_certificates;
        parts.roots.push(Root {
            id: uuid::Uuid::from_u128(9),
            certificate: roots[0].certificate.clone(),
            is_ours: true,
        });
        (Authority::from_parts(&parts, &Installation::example()).unwrap(), roots)
    }

    /// Whether the TLS chain leads to this root.
    fn is_valid(chain: &[CertificateDer<'static>], root: &CertifiedKey, now: OffsetDateTime) -> bool {
        let root = CertificateDer::from(root.certificate.as_slice());
        let anchor = anchor_from_trusted_cert(&root).unwrap();
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.unix_timestamp().unsigned_abs()));
        let leaf = EndEntityCert::try_from(&chain[0]).unwrap();
        let usage = webpki::KeyUsage::server_auth();
        leaf.verify_for_usage(
            &[webpki::aws_lc_rs::ECDSA_P256_SHA256],
            &[anchor],
            &chain[1..],
            now,
            usage,
            None,
            None,
        )
        .is_ok()
    }

    #[test]
    fn the_tls_chain_leads_to_every_earlier_root() {
        let (authority, roots) = rotated(3);
        let issued = authority.issue_tls_certificate(NOW).unwrap();
        assert_eq!(issued.chain.len(), 2 + 3);
        for root in &roots {
            assert!(is_valid(&issued.chain, root, NOW));
        }
        assert!(!is_valid(&issued.chain, &new_root(), NOW));
    }

    #[test]
    fn the_trust_bundle_has_the_roots_and_then_every_cross_certificate() {
        let (authority, roots) = rotated(2);
        let bundle = authority.trust_bundle();
        assert!(bundle.starts_with(authority.roots_pem()));
        assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 2 + 2);
        assert_eq!(authority.roots_pem().matches("BEGIN CERTIFICATE").count(), 2);
        assert!(
            authority
                .chain_pem()
                .ends_with(bundle.trim_start_matches(authority.roots_pem()))
        );
        assert!(
            !bundle.contains(&certificate_pem(&roots[1].certificate)),
            "it has retired"
        );
        let digest = assay_protocol::sha256(bundle.as_bytes());
        use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
        assert_eq!(authority.trust_bundle_digest(), URL_SAFE_NO_PAD.encode(digest));
    }

    #[test]
    fn openssl_accepts_a_chain_over_two_rotations() {
        let (authority, roots) = rotated(2);
        let chain = authority.issue_tls_certificate(NOW).unwrap().chain;
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: String| {
            let path = folder.path().join(name);
            fs::write(&path, content).unwrap();
            path
        };
        let root = write("root.pem", certificate_pem(&roots[0].certificate));
        let others = write(
            "others.pem",
            chain[1..].iter().map(|der| certificate_pem(der)).collect(),
        );
        let leaf = write("leaf.pem", certificate_pem(&chain[0]));
        let mut verify = Command::new("openssl");
        verify.args(["verify", "-x509_strict", "-purpose", "sslserver", "-attime"]);
        verify.arg(NOW.unix_timestamp().to_string());
        verify.arg("-CAfile").arg(root).arg("-untrusted").arg(others).arg(leaf);
        let output = verify.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn a_cross_certificate_ends_with_the_first_of_both_roots() {
        let (old, next) = (
            new_root(),
            generate_root("example.com", NOW + Duration::days(100)).unwrap(),
        );
        let cross = issue(&old, &next.certificate, NOW + Duration::days(100)).unwrap();
        let (from, end) = certificate_path::validity(&cross).unwrap();
        assert_eq!(from, NOW + Duration::days(100) - profile::SERVER_BACKDATING);
        assert_eq!(end, certificate_path::validity(&old.certificate).unwrap().1);
        let late = NOW + profile::ROOT_LIFE + Duration::SECOND;
        let next = generate_root("example.com", late).unwrap();
        assert!(matches!(
            issue(&old, &next.certificate, late),
            Err(AuthorityError::Expired)
        ));
    }

    /// The names of an external root, in an encoding that this server does not use.
    fn external() -> (KeyPair, CertificateParams) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CountryName, "DE");
        params.distinguished_name.push(
            DnType::CommonName,
            DnValue::TeletexString("External".try_into().unwrap()),
        );
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        (params.not_before, params.not_after) = (NOW - Duration::DAY, NOW + Duration::days(3650));
        (KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(), params)
    }

    #[test]
    fn an_external_root_is_certified_under_its_exact_name() {
        let (key, params) = external();
        let next = params.self_signed(&key).unwrap().der().to_vec();
        let present = new_root();
        let cross = issue(&present, &next, NOW).unwrap();
        assert!(certificate_path::is_same_authority(&cross, &next).unwrap());
        let terms = Terms {
            by: &present.certificate,
            root: &next,
            cas_below: 2,
            now: NOW,
            until: NOW + Duration::days(37),
        };
        assert_eq!(verify(certificate_pem(&cross).as_bytes(), &terms).unwrap(), cross);
    }

    type Change = Box<dyn Fn(&mut CertificateParams)>;

    fn path_length(most: u8) -> Change {
        Box::new(move |params| params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(most)))
    }

    /// What the owner of an external root may return for the CSR of the next root.
    #[rstest]
    #[case::unchanged(Box::new(|_: &mut _| ()) as Change, "")]
    #[case::enough_cas(path_length(2), "")]
    #[case::too_few_cas(path_length(1), "at least 2")]
    #[case::no_ca_below(path_length(0), "at least 2")]
    #[case::no_ca(Box::new(|params: &mut CertificateParams| params.is_ca = IsCa::ExplicitNoCa) as Change, "not a CA certificate")]
    #[case::no_key_usage(Box::new(|params: &mut CertificateParams| params.key_usages.clear()) as Change, "keyCertSign")]
    #[case::one_purpose(Box::new(|params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    }) as Change, "extended key usage")]
    #[case::some_names(Box::new(|params: &mut CertificateParams| {
        let permitted_subtrees = vec![GeneralSubtree::DnsName("example.com".to_owned())];
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
    }) as Change, "name constraints")]
    #[case::other_name(Box::new(|params: &mut CertificateParams| {
        params.distinguished_name.push(DnType::CommonName, "another");
    }) as Change, "subject and key of the next root")]
    #[case::later(Box::new(|params: &mut CertificateParams| params.not_before = NOW + Duration::DAY) as Change, "not valid before")]
    #[case::too_short(Box::new(|params: &mut CertificateParams| params.not_after = NOW + Duration::DAY) as Change, "must be valid until")]
    fn an_external_cross_certificate_is_checked(#[case] change: Change, #[case] said: &str) {
        let (present_key, present) = external();
        let (next_key, mut next) = (KeyPair::generate().unwrap(), present.clone());
        next.distinguished_name.push(DnType::CommonName, "Next");
        let (by, root) = (
            present.self_signed(&present_key).unwrap(),
            next.self_signed(&next_key).unwrap(),
        );
        let terms = Terms {
            by: by.der(),
            root: root.der(),
            cas_below: 2,
            now: NOW,
            until: NOW + Duration::days(37),
        };
        change(&mut next);
        let cross = next
            .signed_by(&next_key, &Issuer::from_params(&present, &present_key))
            .unwrap();
        match verify(cross.pem().as_bytes(), &terms) {
            Ok(der) => assert!(said.is_empty() && der == cross.der().to_vec()),
            Err(refusal) => assert!(!said.is_empty() && refusal.to_string().contains(said), "{refusal}"),
        }
        // Signed by the next root itself, twice, or not at all.
        for pem in [root.pem(), cross.pem().repeat(2), String::new()] {
            assert!(verify(pem.as_bytes(), &terms).is_err());
        }
    }

    #[test]
    fn only_the_certificates_on_the_way_are_in_the_chain() {
        let roots = [(); 4].map(|()| new_root());
        let cross = |by: usize, root: usize| issue(&roots[by], &roots[root].certificate, NOW).unwrap();
        let (first, second, aside, loops) = (cross(0, 1), cross(1, 2), cross(1, 3), cross(2, 1));
        let all = [first.clone(), second.clone(), aside, loops.clone()];
        assert_eq!(leading_to(&roots[2].certificate, &all).unwrap(), [second, first, loops]);
        assert!(leading_to(&roots[0].certificate, &all).unwrap().is_empty());
    }
}
