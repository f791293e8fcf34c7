//! The contents of each kind of certificate (RFC 5280; SPIFFE X.509-SVID for machines): names, lifetimes and
//! extensions.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use assay_protocol::{PublicKey, sha256};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyIdMethod, KeyUsagePurpose, SanType, SerialNumber, string::Ia5String,
};
use time::{Duration, OffsetDateTime};
use url::{Host, Url};
use uuid::Uuid;
use x509_cert::{
    der::{
        self, Any, Encode, Tag,
        asn1::{Ia5String as Asn1Ia5String, Utf8StringRef},
        oid::ObjectIdentifier,
    },
    ext::pkix::{
        SubjectAltName,
        name::{GeneralName, OtherName},
    },
};

use super::{AuthorityError, Installation};
use crate::random_bytes;

/// Every machine pins the root, so replacing it means an update of every machine.
pub(super) const ROOT_LIFE: Duration = Duration::days(20 * 365);
/// Short enough that rotation stays routine, and that a stolen issuing key expires. Long enough that a server left
/// alone for a year can still issue certificates that live for months.
pub(super) const ISSUING_LIFE: Duration = Duration::days(2 * 365);
/// The server's own TLS certificate. It is replaced after two thirds of this, 20 days.
pub(super) const TLS_SERVER_LIFE: Duration = Duration::days(30);
/// The OCSP responder's certificate. It cannot be revoked, so it is short-lived. Every replica issues its own, and
/// replaces it after two thirds of this.
pub(super) const OCSP_RESPONDER_LIFE: Duration = Duration::days(7);
/// How far the server's certificates are backdated. A Mac whose clock is hours slow must still connect, because it
/// learns of its clock skew only from the server's response.
pub(super) const SERVER_BACKDATING: Duration = Duration::days(1);
/// How far a machine's certificate is backdated: the clocks of relying parties may be seconds slow.
pub(super) const MACHINE_BACKDATING: Duration = Duration::seconds(60);

const OCSP_NO_CHECK: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 48, 1, 5];
const DER_NULL: [u8; 2] = [5, 0];
const SUBJECT_ALT_NAME: &[u64] = &[2, 5, 29, 17];
/// `id-on-permanentIdentifier` (RFC 4043).
const PERMANENT_IDENTIFIER: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.8.3");
const KEY_IDENTIFIER_BYTES: usize = 20;
/// `ub-organization-name` of RFC 5280, appendix A.1. A SPIFFE trust domain may be longer.
const LONGEST_ORGANIZATION: usize = 64;

/// The SPIFFE id of a machine, as in its certificates and grant tokens.
#[must_use]
pub fn spiffe_id(trust_domain: &str, machine_id: Uuid) -> String {
    format!("spiffe://{trust_domain}/machine/{machine_id}")
}

/// The SPIFFE id of a device, for a key that macOS itself holds. The ids of agents start with `machine` instead. `None`
/// if the serial number cannot be a segment of the path (SPIFFE-ID, section 2.2).
#[must_use]
pub fn device_spiffe_id(trust_domain: &str, serial_number: &str) -> Option<String> {
    let is_segment = |text: &str| {
        !matches!(text, "" | "." | "..")
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
    };
    is_segment(serial_number).then(|| format!("spiffe://{trust_domain}/device/{serial_number}"))
}

/// The subject key identifier of a new certificate: the first 160 bits of the SHA-256 of the public key, without its
/// algorithm (RFC 7093, section 2, method 1).
pub(super) fn key_identifier(public_key: &[u8]) -> KeyIdMethod {
    KeyIdMethod::PreSpecified(sha256(public_key).into_iter().take(KEY_IDENTIFIER_BYTES).collect())
}

/// A random serial number of 128 bits. The first bits are `01`, so it is positive and always 16 bytes long.
pub(super) fn random_serial() -> [u8; 16] {
    let mut serial = random_bytes::<16>();
    let [first, ..] = &mut serial;
    *first = (*first & 0x7f) | 0x40;
    serial
}

/// The self-signed root.
pub(super) fn root(trust_domain: &str, now: OffsetDateTime) -> CertificateParams {
    let serial = random_serial();
    let mut params = root_request(trust_domain, &serial);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    (params.not_before, params.not_after) = (now - SERVER_BACKDATING, now + ROOT_LIFE);
    params
}

/// The request to an external root for a certificate of the root with this serial number. A root has no path length: it
/// certifies the next root, which has issuing CAs below it.
pub(super) fn root_request(trust_domain: &str, serial: &[u8]) -> CertificateParams {
    let mut params = authority(BasicConstraints::Unconstrained);
    params.distinguished_name = authority_name("Assay Root CA", trust_domain, serial);
    params
}

/// The CA under the root that signs machines' certificates.
pub(super) fn issuing(
    installation: &Installation,
    root_key_identifier: &[u8],
    now: OffsetDateTime,
) -> Result<CertificateParams, AuthorityError> {
    let serial = random_serial();
    let mut params = authority(BasicConstraints::Constrained(0));
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = authority_name("Assay Issuing CA", &installation.trust_domain, &serial);
    params.use_authority_key_identifier_extension = true;
    installation.add_revocation_urls(&mut params, root_key_identifier)?;
    (params.not_before, params.not_after) = (now - SERVER_BACKDATING, now + ISSUING_LIFE);
    Ok(params)
}

/// The request to an external root. The name contains the key's thumbprint instead of a serial number, so a repeated
/// request for the same key has the same name.
pub(super) fn issuing_request(trust_domain: &str, key: &PublicKey) -> CertificateParams {
    let thumbprint = key.thumbprint();
    let mut params = authority(BasicConstraints::Constrained(0));
    params.distinguished_name = authority_name("Assay Issuing CA", trust_domain, thumbprint.as_bytes());
    params
}

/// The common part of all machines' certificates. The issuer adds subject, SAN, serial number and validity.
pub(super) fn machine_template(
    installation: &Installation,
    key_identifier: &[u8],
) -> Result<CertificateParams, AuthorityError> {
    let mut params = end_entity(ExtendedKeyUsagePurpose::ClientAuth);
    installation.add_revocation_urls(&mut params, key_identifier)?;
    Ok(params)
}

/// The names of a machine: its SPIFFE id, and its serial number if that is attested. rcgen does not support
/// PermanentIdentifier.
pub(super) fn machine_names(spiffe_id: &str, serial_number: Option<&str>) -> Result<CustomExtension, der::Error> {
    let mut names = vec![GeneralName::UniformResourceIdentifier(Asn1Ia5String::new(spiffe_id)?)];
    if let Some(serial_number) = serial_number {
        // Without an assigner, the identifier belongs to the issuing CA (RFC 4043, section 2).
        let identifier = Utf8StringRef::new(serial_number)?.to_der()?;
        names.push(GeneralName::OtherName(OtherName {
            type_id: PERMANENT_IDENTIFIER,
            value: Any::new(Tag::Sequence, identifier)?,
        }));
    }
    Ok(CustomExtension::from_oid_content(
        SUBJECT_ALT_NAME,
        SubjectAltName(names).to_der()?,
    ))
}

/// The server's own TLS certificate.
pub(super) fn tls_server(
    installation: &Installation,
    key_identifier: &[u8],
    now: OffsetDateTime,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = end_entity(ExtendedKeyUsagePurpose::ServerAuth);
    params.serial_number = Some(SerialNumber::from_slice(&random_serial()));
    params.distinguished_name.push(DnType::CommonName, "Assay server");
    params.subject_alt_names = server_names(&installation.public_url)?;
    installation.add_revocation_urls(&mut params, key_identifier)?;
    (params.not_before, params.not_after) = (now - SERVER_BACKDATING, now + TLS_SERVER_LIFE);
    Ok(params)
}

/// The OCSP responder of the issuing CA (RFC 6960, section 4.2.2.2). It has `id-pkix-ocsp-nocheck`, because only the
/// responder itself could answer whether it is revoked.
pub(super) fn ocsp_responder(now: OffsetDateTime) -> CertificateParams {
    let mut params = end_entity(ExtendedKeyUsagePurpose::OcspSigning);
    params.serial_number = Some(SerialNumber::from_slice(&random_serial()));
    params
        .distinguished_name
        .push(DnType::CommonName, "Assay OCSP responder");
    params.custom_extensions = vec![CustomExtension::from_oid_content(OCSP_NO_CHECK, DER_NULL.to_vec())];
    (params.not_before, params.not_after) = (now - SERVER_BACKDATING, now + OCSP_RESPONDER_LIFE);
    params
}

fn authority(path_length: BasicConstraints) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(path_length);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn end_entity(purpose: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![purpose];
    params.use_authority_key_identifier_extension = true;
    params
}

/// Names differ between generations, because some verifiers look up issuers by name alone.
fn authority_name(common_name: &str, trust_domain: &str, distinction: &[u8]) -> DistinguishedName {
    let distinction = distinction.get(..4).unwrap_or(distinction);
    let mut name = DistinguishedName::new();
    if trust_domain.len() <= LONGEST_ORGANIZATION {
        name.push(DnType::OrganizationName, trust_domain);
    }
    name.push(
        DnType::CommonName,
        format!("{common_name} {}", hex::encode(distinction)),
    );
    name
}

/// The host of the public URL. A server on a loopback address gets all names of the loopback.
fn server_names(public_url: &Url) -> Result<Vec<SanType>, AuthorityError> {
    const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let dns = |name: &str| {
        Ia5String::try_from(name)
            .map(SanType::DnsName)
            .map_err(AuthorityError::Sign)
    };
    let (own, loopback) = match public_url.host() {
        Some(Host::Domain(name)) => (dns(name)?, name == "localhost"),
        Some(Host::Ipv4(address)) => (SanType::IpAddress(address.into()), address.is_loopback()),
        Some(Host::Ipv6(address)) => (SanType::IpAddress(address.into()), address.is_loopback()),
        None => return Err(AuthorityError::NoHost),
    };
    let mut names = vec![own];
    if loopback {
        let others = [dns("localhost")?].into_iter().chain(LOOPBACK.map(SanType::IpAddress));
        for name in others {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_are_positive_sixteen_bytes_long_and_differ() {
        let serials: std::collections::HashSet<_> = (0..1_000).map(|_| random_serial()).collect();
        assert_eq!(serials.len(), 1_000);
        assert!(serials.iter().all(|serial| serial[0] & 0xc0 == 0x40));
    }

    #[test]
    fn a_loopback_server_has_all_loopback_names() {
        let all = |url: &str| server_names(&url.parse().unwrap()).unwrap();
        let localhost = SanType::DnsName("localhost".try_into().unwrap());
        let (v4, v6) = (
            SanType::IpAddress("127.0.0.1".parse().unwrap()),
            SanType::IpAddress("::1".parse().unwrap()),
        );
        assert_eq!(
            all("https://localhost:8443"),
            [localhost.clone(), v4.clone(), v6.clone()]
        );
        assert_eq!(
            all("https://127.0.0.1:8443"),
            [v4.clone(), localhost.clone(), v6.clone()]
        );
        assert_eq!(all("https://[::1]"), [v6, localhost, v4]);
        assert_eq!(
            all("https://assay.example.com/"),
            [SanType::DnsName("assay.example.com".try_into().unwrap())]
        );
        assert_eq!(
            all("https://192.0.2.7"),
            [SanType::IpAddress("192.0.2.7".parse().unwrap())]
        );
    }

    #[test]
    fn a_device_id_needs_a_serial_number_that_is_one_path_segment() {
        let named = device_spiffe_id("example.com", "C02XG0-FDH.05_N");
        assert_eq!(named.as_deref(), Some("spiffe://example.com/device/C02XG0-FDH.05_N"));
        for serial_number in ["", ".", "..", "a/b", "../machine/1", "a b", "a%2fb", "é", "a\0"] {
            assert_eq!(
                device_spiffe_id("example.com", serial_number),
                None,
                "{serial_number:?}"
            );
        }
    }

    #[test]
    fn a_trust_domain_too_long_for_an_organization_is_left_out() {
        let name = authority_name("Assay Root CA", &"d".repeat(65), &[0x41; 16]);
        assert!(name.get(&DnType::OrganizationName).is_none());
        assert_eq!(
            name.get(&DnType::CommonName),
            Some(&rcgen::DnValue::Utf8String("Assay Root CA 41414141".to_owned()))
        );
    }
}
