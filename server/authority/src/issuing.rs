//! Issuing: the root, the issuing CA under it, and the certificates that the issuing CA signs.

use assay_protocol::{PublicKey, sha256};
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use pem::{EncodeConfig, LineEnding, Pem};
use rcgen::{CertificateParams, DnType, Issuer, KeyIdMethod, PublicKeyData, SerialNumber};
use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::{
    AuthorityError, EcKey, Installation, certificate_path,
    certificate_signer::{CertificateSigner, SubjectKey},
    keys::PrivateKey,
    ocsp::{self, OcspIssuer, OcspResponder},
    profile,
    revocation_list::RevocationListSigner,
};

/// A CA's private key with its certificate in DER.
#[derive(Debug, Clone)]
pub struct CertifiedKey {
    /// The private key.
    pub key: PrivateKey,
    /// The certificate in DER.
    pub certificate: Vec<u8>,
}

/// An issuing CA as it is stored, with its private key opened.
#[derive(Debug, Clone)]
pub struct IssuingParts {
    /// The id under which its certificates are recorded.
    pub id: Uuid,
    /// Its key and certificate.
    pub ca: CertifiedKey,
    /// The intermediates between it and its root in DER, the nearest first. Empty if the root is this server's own.
    pub intermediates: Vec<Vec<u8>>,
}

/// An issuing CA that is ready to sign. Immutable; a rotation builds a new one.
pub struct IssuingAuthority {
    id: Uuid,
    issuer: Issuer<'static, CertificateSigner>,
    certificate: CertificateDer<'static>,
    intermediates: Vec<CertificateDer<'static>>,
    path_pem: String,
    ocsp_issuer: OcspIssuer,
    key_identifier: Vec<u8>,
    lists: RevocationListSigner,
    not_after: OffsetDateTime,
    installation: Installation,
    machine_template: CertificateParams,
}

/// What a machine's certificate is issued for. The caller has already authorized it.
#[derive(Debug)]
pub struct MachineCertificateRequest<'a> {
    /// The machine's id, which becomes the subject.
    pub machine_id: Uuid,
    /// The key to certify. The machine has proven possession of it.
    pub public_key: &'a PublicKey,
    /// The current time.
    pub now: OffsetDateTime,
    /// The lifetime of the certificate from `now`. A certificate never outlives its issuing CA.
    pub ttl: Duration,
    /// The serial number, if Apple has attested it. It becomes a PermanentIdentifier.
    pub attested_serial_number: Option<&'a str>,
}

/// What a device's certificate is issued for. Apple has attested that this device has this key.
#[derive(Debug)]
pub struct DeviceCertificateRequest<'a> {
    /// The attested serial number, which becomes the subject.
    pub serial_number: &'a str,
    /// The attested key. The device has proven possession of it.
    pub public_key: &'a EcKey,
    /// The current time.
    pub now: OffsetDateTime,
    /// The lifetime of the certificate from `now`. A certificate never outlives its issuing CA.
    pub ttl: Duration,
}

/// An issued certificate of a machine or a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedClientCertificate {
    /// The serial number in lower-case hex, always 32 digits.
    pub serial_number: String,
    /// The start of its validity, in whole seconds.
    pub not_before: OffsetDateTime,
    /// The end of its validity, in whole seconds.
    pub not_after: OffsetDateTime,
    /// The certificate in DER.
    pub der: Vec<u8>,
    /// The certificate followed by the CAs' certificates in PEM, without the root.
    pub chain_pem: String,
    /// SHA-256 of the DER. It is the fingerprint, and the value of `x5t#S256`.
    pub sha256: [u8; 32],
}

/// A TLS certificate for the server itself, with its key.
#[derive(Debug)]
pub struct IssuedTlsCertificate {
    /// The private key, generated for this certificate alone.
    pub key: PrivateKey,
    /// The certificate followed by the CAs' certificates, without the root, and by cross-certificates.
    pub chain: Vec<CertificateDer<'static>>,
    /// The serial number in lower-case hex.
    pub serial_number: String,
    /// The end of its validity.
    pub not_after: OffsetDateTime,
    /// When to replace it: after two thirds of its lifetime.
    pub renew_at: OffsetDateTime,
}

/// Generates a root CA: a key and its self-signed certificate.
pub fn generate_root(trust_domain: &str, now: OffsetDateTime) -> Result<CertifiedKey, AuthorityError> {
    let key = PrivateKey::generate()?;
    let signer = CertificateSigner::new(&key)?;
    let mut params = profile::root(trust_domain, now);
    // The usual method (RFC 5280, section 4.2.1.2). Another CA that certifies this root then uses the same identifier.
    let identifier = digest(&SHA1_FOR_LEGACY_USE_ONLY, key.public_key().sec1());
    params.key_identifier_method = KeyIdMethod::PreSpecified(identifier.as_ref().to_vec());
    let certificate = params.self_signed(&signer).map_err(AuthorityError::Sign)?;
    Ok(CertifiedKey {
        key,
        certificate: certificate.der().to_vec(),
    })
}

/// A PKCS#10 request in PEM for an issuing CA's certificate, for an external root to sign.
pub fn issuing_request(key: &PrivateKey, trust_domain: &str) -> Result<String, AuthorityError> {
    let request = profile::issuing_request(trust_domain, key.public_key());
    request
        .serialize_request(&CertificateSigner::new(key)?)
        .and_then(|request| request.pem())
        .map_err(AuthorityError::Sign)
}

/// A PKCS#10 request in PEM for a certificate of this root's subject and key, for an external root to sign.
pub fn root_request(root: &CertifiedKey, trust_domain: &str) -> Result<String, AuthorityError> {
    let serial = certificate_path::serial_number(&root.certificate)?;
    profile::root_request(trust_domain, &serial)
        .serialize_request(&CertificateSigner::new(&root.key)?)
        .and_then(|request| request.pem())
        .map_err(AuthorityError::Sign)
}

/// The end of the validity of an issuing CA that is issued at `made_at`, unless its root expires earlier.
#[must_use]
pub fn full_life_end(made_at: OffsetDateTime) -> OffsetDateTime {
    made_at + profile::ISSUING_LIFE
}

/// Generates an issuing CA under `root`: a key and its certificate.
pub fn generate_issuing(
    root: &CertifiedKey,
    installation: &Installation,
    now: OffsetDateTime,
) -> Result<CertifiedKey, AuthorityError> {
    let key = PrivateKey::generate()?;
    let root_der = CertificateDer::from(root.certificate.as_slice());
    let issuer =
        Issuer::from_ca_cert_der(&root_der, CertificateSigner::new(&root.key)?).map_err(AuthorityError::Sign)?;
    let root_key_identifier = certificate_path::key_identifier(&root.certificate)?;
    let mut params = profile::issuing(installation, &root_key_identifier, now)?;
    params.key_identifier_method = profile::key_identifier(key.public_key().sec1());
    params.not_after = params.not_after.min(certificate_path::validity(&root.certificate)?.1);
    let certificate = params
        .signed_by(&SubjectKey(key.public_key()), &issuer)
        .map_err(AuthorityError::Sign)?;
    Ok(CertifiedKey {
        key,
        certificate: certificate.der().to_vec(),
    })
}

/// The subject of a certificate.
struct CertificateSubject<'a> {
    common_name: String,
    spiffe_id: String,
    serial_number: Option<&'a str>,
}

impl IssuingAuthority {
    /// Builds the signer of an issuing CA. Fails if the key does not match the certificate, or if the path does not
    /// lead to `root`.
    pub fn new(
        parts: &IssuingParts,
        root_certificate: &[u8],
        installation: &Installation,
    ) -> Result<Self, AuthorityError> {
        let ca = &parts.ca;
        let parsed = certificate_path::read(&ca.certificate)?;
        if parsed.public_key().raw != ca.key.public_key().spki_der() {
            return Err(AuthorityError::KeyMismatch);
        }
        let certificate = CertificateDer::from(ca.certificate.clone());
        let signer = CertificateSigner::new(&ca.key)?;
        let key_identifier = certificate_path::key_identifier(&ca.certificate)?;
        let path = || std::iter::once(&ca.certificate).chain(&parts.intermediates);
        Ok(Self {
            id: parts.id,
            not_after: path_end(path().map(Vec::as_slice), root_certificate)?,
            issuer: Issuer::from_ca_cert_der(&certificate, signer).map_err(AuthorityError::Sign)?,
            path_pem: path().map(|certificate| certificate_pem(certificate)).collect(),
            intermediates: parts.intermediates.iter().cloned().map(Into::into).collect(),
            ocsp_issuer: OcspIssuer::new(parts.id, &ca.certificate)?,
            lists: RevocationListSigner::new(&ca.key, &ca.certificate)?,
            certificate,
            installation: installation.clone(),
            machine_template: profile::machine_template(installation, &key_identifier)?,
            key_identifier,
        })
    }

    /// The id under which this CA's certificates are recorded.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Issues a machine's certificate. The caller must record it before it leaves the server.
    pub fn issue_machine_certificate(
        &self,
        request: &MachineCertificateRequest<'_>,
    ) -> Result<IssuedClientCertificate, AuthorityError> {
        let subject = CertificateSubject {
            common_name: request.machine_id.to_string(),
            spiffe_id: profile::spiffe_id(&self.installation.trust_domain, request.machine_id),
            serial_number: request.attested_serial_number,
        };
        self.issue(&subject, &SubjectKey(request.public_key), request.now, request.ttl)
    }

    /// Issues a device's certificate. The caller must record it before it leaves the server.
    pub fn issue_device_certificate(
        &self,
        request: &DeviceCertificateRequest<'_>,
    ) -> Result<IssuedClientCertificate, AuthorityError> {
        let spiffe_id = profile::device_spiffe_id(&self.installation.trust_domain, request.serial_number);
        let subject = CertificateSubject {
            common_name: request.serial_number.to_owned(),
            spiffe_id: spiffe_id.ok_or(AuthorityError::SerialNumber)?,
            serial_number: Some(request.serial_number),
        };
        self.issue(&subject, request.public_key, request.now, request.ttl)
    }

    fn issue(
        &self,
        subject: &CertificateSubject<'_>,
        public_key: &impl PublicKeyData,
        now: OffsetDateTime,
        ttl: Duration,
    ) -> Result<IssuedClientCertificate, AuthorityError> {
        let not_before = whole_seconds(now) - profile::MACHINE_BACKDATING;
        let not_after = whole_seconds(now.saturating_add(ttl)).min(self.not_after);
        if not_after <= now {
            return Err(AuthorityError::Expired);
        }
        let serial = profile::random_serial();
        let mut params = self.machine_template.clone();
        params.key_identifier_method = profile::key_identifier(public_key.der_bytes());
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params
            .distinguished_name
            .push(DnType::CommonName, subject.common_name.as_str());
        let names = profile::machine_names(&subject.spiffe_id, subject.serial_number);
        params.custom_extensions.push(names.map_err(AuthorityError::Names)?);
        (params.not_before, params.not_after) = (not_before, not_after);
        let certificate = params
            .signed_by(public_key, &self.issuer)
            .map_err(AuthorityError::Sign)?;
        let der = certificate.der().to_vec();
        Ok(IssuedClientCertificate {
            serial_number: hex::encode(serial),
            not_before,
            not_after,
            chain_pem: self.chain_pem(&der),
            sha256: sha256(&der),
            der,
        })
    }

    /// A certificate of this CA, followed by the CA's path, in PEM, without the root.
    #[must_use]
    pub fn chain_pem(&self, leaf: &[u8]) -> String {
        certificate_pem(leaf) + &self.path_pem
    }

    /// The CA's own certificate and its intermediates, in PEM, without the root.
    #[must_use]
    pub fn path_pem(&self) -> &str {
        &self.path_pem
    }

    /// The CA's own certificate and its intermediates in DER, without the root.
    pub fn path(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        std::iter::once(&self.certificate).chain(&self.intermediates)
    }

    /// Issues a TLS certificate for the host of the server's public URL, with a new key.
    pub(crate) fn issue_tls_certificate(&self, now: OffsetDateTime) -> Result<IssuedTlsCertificate, AuthorityError> {
        let key = PrivateKey::generate()?;
        let mut params = profile::tls_server(&self.installation, &self.key_identifier, whole_seconds(now))?;
        params.key_identifier_method = profile::key_identifier(key.public_key().sec1());
        params.not_after = params.not_after.min(self.not_after);
        if params.not_after <= now {
            return Err(AuthorityError::Expired);
        }
        let certificate = params
            .signed_by(&SubjectKey(key.public_key()), &self.issuer)
            .map_err(AuthorityError::Sign)?;
        Ok(IssuedTlsCertificate {
            key,
            serial_number: hex::encode(certificate_path::serial_number(certificate.der())?),
            chain: std::iter::once(certificate.into())
                .chain(self.path().cloned())
                .collect(),
            not_after: params.not_after,
            renew_at: now + (params.not_after - now) * 2 / 3,
        })
    }

    /// Issues a certificate for an OCSP responder of this CA, with a new key.
    pub fn issue_ocsp_responder(&self, now: OffsetDateTime) -> Result<OcspResponder, AuthorityError> {
        ocsp::certificate::issue(&self.issuer, &self.key_identifier, self.not_after, now)
    }

    /// Signs this CA's revocation lists.
    #[must_use]
    pub fn revocation_lists(&self) -> &RevocationListSigner {
        &self.lists
    }

    /// The CA as OCSP requests name it.
    #[must_use]
    pub fn ocsp_issuer(&self) -> &OcspIssuer {
        &self.ocsp_issuer
    }

    /// The CA's subject key identifier. Certificates that it issued name it as their authority key identifier.
    #[must_use]
    pub fn key_identifier(&self) -> &[u8] {
        &self.key_identifier
    }

    /// The issuing CA's certificate in DER.
    #[must_use]
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate
    }

    /// The end of the validity of the CA's path. Nothing that the CA signs outlives it.
    #[must_use]
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }
}

/// A certificate in PEM, ending with a newline.
#[must_use]
pub fn certificate_pem(der: &[u8]) -> String {
    let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_config(&Pem::new("CERTIFICATE", der), config)
}

/// X.509 times are whole seconds. What the server reports about a certificate must equal what the certificate contains.
pub(crate) fn whole_seconds(time: OffsetDateTime) -> OffsetDateTime {
    time - Duration::nanoseconds(i64::from(time.nanosecond()))
}

/// The end of the validity of a path to this root: the earliest end among its certificates.
fn path_end<'a>(path: impl Iterator<Item = &'a [u8]>, root: &'a [u8]) -> Result<OffsetDateTime, AuthorityError> {
    let certificates: Vec<&[u8]> = path.chain([root]).collect();
    let mut end = certificate_path::validity(root)?.1;
    for (certificate, issuer) in certificates.iter().zip(certificates.iter().skip(1)) {
        if !certificate_path::is_issued_by(&certificate_path::read(certificate)?, &certificate_path::read(issuer)?) {
            return Err(AuthorityError::NotUnderRoot);
        }
        end = end.min(certificate_path::validity(certificate)?.1);
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, process::Command};

    use rustls_pki_types::UnixTime;
    use time::macros::datetime;
    use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
    use x509_parser::{
        certificate::X509Certificate,
        extensions::{DistributionPointName, GeneralName, ParsedExtension},
        oid_registry::asn1_rs::Oid,
    };

    use super::{
        super::certificate_path::{read as read_certificate, validity},
        *,
    };

    const NOW: OffsetDateTime = datetime!(2026-11-22 10:00:00.654321 UTC);
    const MACHINE: Uuid = Uuid::from_u128(0x0191_0000_0000_7000_8000_0000_0000_0001);

    struct Hierarchy {
        root: CertifiedKey,
        issuing: CertifiedKey,
        authority: IssuingAuthority,
        machine_key: PrivateKey,
    }

    fn kept(ca: &CertifiedKey) -> IssuingParts {
        IssuingParts {
            id: Uuid::from_u128(7),
            ca: ca.clone(),
            intermediates: Vec::new(),
        }
    }

    fn hierarchy() -> Hierarchy {
        let root = generate_root("example.com", NOW).unwrap();
        let issuing = generate_issuing(&root, &Installation::example(), NOW).unwrap();
        Hierarchy {
            authority: IssuingAuthority::new(&kept(&issuing), &root.certificate, &Installation::example()).unwrap(),
            machine_key: PrivateKey::generate().unwrap(),
            root,
            issuing,
        }
    }

    /// Also returns the URL of the issuing CA's revocation list.
    fn hierarchy_and_list() -> (Hierarchy, String) {
        let made = hierarchy();
        let key_identifier = hex::encode(made.authority.key_identifier());
        (
            made,
            format!("http://assay.example.com:8080/v1/ca/crl/{key_identifier}"),
        )
    }

    impl Hierarchy {
        fn issue(&self, now: OffsetDateTime, ttl: Duration) -> Result<IssuedClientCertificate, AuthorityError> {
            self.authority.issue_machine_certificate(&MachineCertificateRequest {
                machine_id: MACHINE,
                public_key: self.machine_key.public_key(),
                now,
                ttl,
                attested_serial_number: None,
            })
        }
    }

    /// The object identifiers of the extensions in order, with their criticality.
    fn extensions(certificate: &X509Certificate<'_>) -> Vec<(String, bool)> {
        let mut all: Vec<_> = certificate
            .extensions()
            .iter()
            .map(|extension| (extension.oid.to_id_string(), extension.critical))
            .collect();
        all.sort();
        all
    }

    fn listed(all: &[(&str, bool)]) -> Vec<(String, bool)> {
        all.iter()
            .map(|(oid, critical)| ((*oid).to_owned(), *critical))
            .collect()
    }

    fn key_ids(certificate: &X509Certificate<'_>) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
        let (mut subject, mut authority) = (None, None);
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => subject = Some(id.0.to_vec()),
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    assert!(id.authority_cert_issuer.is_none() && id.authority_cert_serial.is_none());
                    authority = id.key_identifier.as_ref().map(|id| id.0.to_vec());
                }
                _ => {}
            }
        }
        (subject, authority)
    }

    #[test]
    fn the_root_and_the_issuing_ca_satisfy_rfc_5280() {
        let made = hierarchy();
        let root = read_certificate(&made.root.certificate).unwrap();
        let issuing = read_certificate(&made.issuing.certificate).unwrap();
        for (certificate, path_length, name) in [
            (&root, None, "Assay Root CA "),
            (&issuing, Some(0), "Assay Issuing CA "),
        ] {
            let constraints = certificate.basic_constraints().unwrap().unwrap();
            assert!(constraints.critical && constraints.value.ca);
            assert_eq!(constraints.value.path_len_constraint, path_length);
            let usage = certificate.key_usage().unwrap().unwrap();
            assert!(usage.critical);
            assert_eq!(usage.value.flags, 0b110_0000, "keyCertSign and cRLSign alone");
            let subject = certificate.subject().to_string();
            assert!(subject.starts_with(&format!("O=example.com, CN={name}")), "{subject}");
            assert_eq!(certificate.raw_serial().len(), 16);
        }
        assert_eq!(
            extensions(&root),
            listed(&[("2.5.29.14", false), ("2.5.29.15", true), ("2.5.29.19", true)])
        );
        assert_eq!(
            extensions(&issuing),
            listed(&[
                ("1.3.6.1.5.5.7.1.1", false),
                ("2.5.29.14", false),
                ("2.5.29.15", true),
                ("2.5.29.19", true),
                ("2.5.29.31", false),
                ("2.5.29.35", false)
            ])
        );
        assert_eq!(key_ids(&issuing).1, key_ids(&root).0);
        assert_ne!(key_ids(&issuing).0, key_ids(&root).0);
        assert_eq!(
            validity(&made.root.certificate).unwrap().1,
            whole_seconds(NOW + profile::ROOT_LIFE)
        );
        assert_eq!(made.authority.not_after(), whole_seconds(NOW + profile::ISSUING_LIFE));
    }

    #[test]
    fn a_machine_certificate_contains_exactly_the_documented_fields() {
        let made = hierarchy();
        let issued = made.issue(NOW, Duration::days(7)).unwrap();
        let certificate = read_certificate(&issued.der).unwrap();
        assert_eq!(certificate.version().0, 2);
        assert_eq!(certificate.subject().to_string(), format!("CN={MACHINE}"));
        assert_eq!(
            certificate.issuer().as_raw(),
            read_certificate(&made.issuing.certificate).unwrap().subject().as_raw()
        );
        assert_eq!(certificate.public_key().raw, made.machine_key.public_key().spki_der());
        assert_eq!(
            certificate.signature_algorithm.algorithm.to_id_string(),
            "1.2.840.10045.4.3.2"
        );
        assert_eq!(certificate.raw_serial().len(), 16);
        assert_eq!(hex::encode(certificate.raw_serial()), issued.serial_number);
        assert_eq!(issued.not_before, datetime!(2026-11-22 09:59:00 UTC));
        assert_eq!(issued.not_after, datetime!(2026-11-29 10:00:00 UTC));
        assert_eq!(
            certificate.validity().not_before.timestamp(),
            issued.not_before.unix_timestamp()
        );
        assert_eq!(validity(&issued.der).unwrap().1, issued.not_after);
        assert_eq!(issued.sha256, sha256(&issued.der));
        assert_eq!(
            issued.chain_pem,
            certificate_pem(&issued.der) + made.authority.path_pem()
        );
        assert_eq!(
            extensions(&certificate),
            listed(&[
                ("1.3.6.1.5.5.7.1.1", false),
                ("2.5.29.14", false),
                ("2.5.29.15", true),
                ("2.5.29.17", false),
                ("2.5.29.19", true),
                ("2.5.29.31", false),
                ("2.5.29.35", false),
                ("2.5.29.37", false),
            ])
        );
        assert_eq!(
            key_ids(&certificate).1,
            key_ids(&read_certificate(&made.issuing.certificate).unwrap()).0
        );
    }

    #[test]
    fn a_machine_certificates_extensions_have_the_documented_values() {
        let (made, list) = hierarchy_and_list();
        let issuer = list.replace("/crl/", "/issuer/");
        let issued = made.issue(NOW, Duration::days(7)).unwrap();
        let certificate = read_certificate(&issued.der).unwrap();
        let constraints = certificate.basic_constraints().unwrap().unwrap().value;
        assert!(!constraints.ca && constraints.path_len_constraint.is_none());
        assert_eq!(
            certificate.key_usage().unwrap().unwrap().value.flags,
            1,
            "digitalSignature alone"
        );
        let purposes = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(purposes.client_auth && !purposes.server_auth && !purposes.any && purposes.other.is_empty());
        let names = &certificate
            .subject_alternative_name()
            .unwrap()
            .unwrap()
            .value
            .general_names;
        let spiffe_id = format!("spiffe://example.com/machine/{MACHINE}");
        assert_eq!(names.as_slice(), [GeneralName::URI(&spiffe_id)]);
        let mut seen = 0;
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::CRLDistributionPoints(points) => {
                    let [point] = points.points.as_slice() else {
                        panic!("one point")
                    };
                    let uri = GeneralName::URI(&list);
                    assert_eq!(
                        point.distribution_point,
                        Some(DistributionPointName::FullName(vec![uri]))
                    );
                    seen += 1;
                }
                ParsedExtension::AuthorityInfoAccess(access) => {
                    let found: Vec<_> = access
                        .accessdescs
                        .iter()
                        .map(|access| (access.access_method.to_id_string(), access.access_location.clone()))
                        .collect();
                    let expected = [
                        (
                            "1.3.6.1.5.5.7.48.1".to_owned(),
                            GeneralName::URI("http://assay.example.com:8080/v1/ca/ocsp"),
                        ),
                        ("1.3.6.1.5.5.7.48.2".to_owned(), GeneralName::URI(&issuer)),
                    ];
                    assert_eq!(found, expected);
                    seen += 1;
                }
                _ => {}
            }
        }
        assert_eq!(seen, 2);
    }

    #[test]
    fn nothing_outlives_the_issuing_ca_and_an_expired_one_issues_nothing() {
        let made = hierarchy();
        let issued = made.issue(NOW, Duration::days(20_000)).unwrap();
        assert_eq!(issued.not_after, made.authority.not_after());
        let late = made.authority.not_after() - Duration::seconds(1);
        assert_eq!(
            made.issue(late, Duration::days(7)).unwrap().not_after,
            made.authority.not_after()
        );
        for expired in [
            made.authority.not_after(),
            made.authority.not_after() + Duration::days(1),
        ] {
            assert!(matches!(
                made.issue(expired, Duration::days(7)),
                Err(AuthorityError::Expired)
            ));
            assert!(matches!(
                made.authority.issue_tls_certificate(expired),
                Err(AuthorityError::Expired)
            ));
        }
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        let (made, other) = (hierarchy(), hierarchy());
        let mixed = CertifiedKey {
            key: other.issuing.key.clone(),
            certificate: made.issuing.certificate.clone(),
        };
        let new = |issuing, root: &CertifiedKey| {
            IssuingAuthority::new(&kept(issuing), &root.certificate, &Installation::example()).map(|_| ())
        };
        assert!(matches!(new(&mixed, &made.root), Err(AuthorityError::KeyMismatch)));
        assert!(matches!(
            new(&made.issuing, &other.root),
            Err(AuthorityError::NotUnderRoot)
        ));
        assert!(new(&made.issuing, &made.root).is_ok());
        let mut trailing = made.issuing.clone();
        trailing.certificate.push(0);
        assert!(matches!(new(&trailing, &made.root), Err(AuthorityError::Certificate)));
    }

    #[test]
    fn an_attested_serial_number_becomes_a_permanent_identifier_beside_the_one_uri() {
        let made = hierarchy();
        let request = MachineCertificateRequest {
            machine_id: MACHINE,
            public_key: made.machine_key.public_key(),
            now: NOW,
            ttl: Duration::days(7),
            attested_serial_number: Some("C02XYZ"),
        };
        let issued = made.authority.issue_machine_certificate(&request).unwrap();
        let certificate = read_certificate(&issued.der).unwrap();
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        assert!(!names.critical);
        let spiffe_id = profile::spiffe_id("example.com", MACHINE);
        // [0] { SEQUENCE { UTF8String } }, without an assigner.
        let identifier = [&[0xa0, 10, 0x30, 8, 0x0c, 6], b"C02XYZ".as_slice()].concat();
        let oid = Oid::from(&[1, 3, 6, 1, 5, 5, 7, 8, 3]).unwrap();
        assert_eq!(
            names.value.general_names.as_slice(),
            [GeneralName::URI(&spiffe_id), GeneralName::OtherName(oid, &identifier)]
        );
        let root = CertificateDer::from(made.root.certificate.as_slice());
        EndEntityCert::try_from(&CertificateDer::from(issued.der.as_slice()))
            .unwrap()
            .verify_for_usage(
                &[webpki::aws_lc_rs::ECDSA_P256_SHA256],
                &[anchor_from_trusted_cert(&root).unwrap()],
                std::slice::from_ref(&made.authority.certificate),
                UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW.unix_timestamp().unsigned_abs())),
                KeyUsage::client_auth(),
                None,
                None,
            )
            .unwrap();
    }

    #[test]
    fn webpki_accepts_machines_only_as_clients_and_the_server_only_as_a_server() {
        let made = hierarchy();
        let issued = made.issue(NOW, Duration::days(7)).unwrap();
        let tls = made.authority.issue_tls_certificate(NOW).unwrap();
        let root = CertificateDer::from(made.root.certificate.as_slice());
        let anchor = anchor_from_trusted_cert(&root).unwrap();
        let verify = |leaf: &CertificateDer<'_>, usage: KeyUsage, at: OffsetDateTime| {
            let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(at.unix_timestamp().unsigned_abs()));
            EndEntityCert::try_from(leaf)
                .unwrap()
                .verify_for_usage(
                    &[webpki::aws_lc_rs::ECDSA_P256_SHA256],
                    std::slice::from_ref(&anchor),
                    std::slice::from_ref(&made.authority.certificate),
                    at,
                    usage,
                    None,
                    None,
                )
                .map(|_| ())
        };
        let machine = CertificateDer::from(issued.der.as_slice());
        verify(&machine, KeyUsage::client_auth(), NOW).unwrap();
        verify(&machine, KeyUsage::server_auth(), NOW).unwrap_err();
        verify(
            &machine,
            KeyUsage::client_auth(),
            issued.not_after + Duration::seconds(1),
        )
        .unwrap_err();
        verify(&tls.chain[0], KeyUsage::server_auth(), NOW).unwrap();
        verify(&tls.chain[0], KeyUsage::server_auth(), NOW - Duration::hours(12)).unwrap();
        verify(&tls.chain[0], KeyUsage::client_auth(), NOW).unwrap_err();
        let name = "assay.example.com".try_into().unwrap();
        EndEntityCert::try_from(&tls.chain[0])
            .unwrap()
            .verify_is_valid_for_subject_name(&name)
            .unwrap();
        assert_eq!(tls.renew_at, NOW + (tls.not_after - NOW) * 2 / 3);
        assert!(tls.not_after - NOW <= Duration::days(30));
    }

    fn openssl(folder: &Path, arguments: &[&str]) -> String {
        let output = Command::new("openssl")
            .args(arguments)
            .current_dir(folder)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success(),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    #[test]
    fn openssl_verifies_the_path_strictly_and_reads_the_same_criticality() {
        let made = hierarchy();
        let issued = made.issue(NOW, Duration::days(7)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let at = NOW.unix_timestamp().to_string();
        for (name, der) in [
            ("root", &made.root.certificate),
            ("issuing", &made.issuing.certificate),
            ("machine", &issued.der),
        ] {
            fs::write(folder.path().join(name), certificate_pem(der)).unwrap();
        }
        let verify = [
            "verify",
            "-x509_strict",
            "-attime",
            &at,
            "-purpose",
            "sslclient",
            "-CAfile",
            "root",
            "-untrusted",
            "issuing",
            "machine",
        ];
        assert_eq!(openssl(folder.path(), &verify), "machine: OK\n");
        let text = openssl(folder.path(), &["x509", "-in", "machine", "-noout", "-text"]);
        for line in [
            "X509v3 Basic Constraints: critical\n                CA:FALSE\n",
            "X509v3 Key Usage: critical\n                Digital Signature\n",
            "X509v3 Extended Key Usage: \n                TLS Web Client Authentication\n",
            &format!("X509v3 Subject Alternative Name: \n                URI:spiffe://example.com/machine/{MACHINE}\n"),
            "OCSP - URI:http://assay.example.com:8080/v1/ca/ocsp\n",
            "CA Issuers - URI:http://assay.example.com:8080/v1/ca/issuer/",
            "URI:http://assay.example.com:8080/v1/ca/crl/",
        ] {
            assert!(text.contains(line), "{line:?} in\n{text}");
        }
    }

    #[test]
    fn a_certificate_is_for_the_requested_key_on_p256() {
        // The key's parameters name P-256, so the certificate cannot be for another curve.
        let made = hierarchy();
        let issued = made.issue(NOW, Duration::days(7)).unwrap();
        let certificate = read_certificate(&issued.der).unwrap();
        let curve = certificate
            .public_key()
            .algorithm
            .parameters
            .as_ref()
            .unwrap()
            .as_oid()
            .unwrap();
        assert_eq!(curve, Oid::from(&[1, 2, 840, 10045, 3, 1, 7]).unwrap());
        let second = made.issue(NOW, Duration::days(7)).unwrap();
        assert_ne!(issued.serial_number, second.serial_number);
    }
}
