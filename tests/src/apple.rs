//! A stand-in for Apple's attestation authority. It attests anything that a test asks for.

use std::fs;

use assay_protocol::PublicKey;
use assay_protocol::attestation::FreshnessCode;
use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P384_SHA384, PublicKeyData,
};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use time::{Duration, OffsetDateTime};

use crate::machine::Machine;

/// 1.2.840.113635.100, the arc of Apple's extensions and key usages.
const APPLE: [u64; 6] = [1, 2, 840, 113_635, 100, 8];

/// Of an extension, behind 1.2.840.113635.100.8.
pub const SERIAL_NUMBER: [u64; 2] = [9, 1];
/// Of an extension, behind 1.2.840.113635.100.8.
pub const UDID: [u64; 2] = [9, 2];
/// The attribute of this name.
pub const OS_VERSION: [u64; 2] = [10, 1];
/// Of an extension, behind 1.2.840.113635.100.8.
pub const FRESHNESS_CODE: [u64; 2] = [11, 1];
/// Of an extension, behind 1.2.840.113635.100.8.
pub const SIP: [u64; 2] = [13, 1];
/// Of an extension, behind 1.2.840.113635.100.8.
pub const SECURE_BOOT: [u64; 2] = [13, 2];

/// An authority that attests machines.
pub struct Apple {
    root: CertifiedIssuer<'static, KeyPair>,
    intermediate: CertifiedIssuer<'static, KeyPair>,
    roots: NamedTempFile,
}

/// What to attest about a machine. It is healthy unless a test changes it.
#[derive(Debug, Clone)]
pub struct Attested {
    extensions: Vec<([u64; 2], Vec<u8>)>,
    critical: bool,
    not_before: OffsetDateTime,
}

impl Default for Apple {
    fn default() -> Self {
        Self::new()
    }
}

impl Apple {
    /// An authority with new keys. Only a server with its [`setting`](Self::setting) trusts it.
    #[must_use]
    pub fn new() -> Self {
        let root = CertifiedIssuer::self_signed(authority("Synthetic Attestation Root CA"), key()).unwrap();
        let intermediate = authority("Synthetic Attestation Sub CA 1");
        let intermediate = CertifiedIssuer::signed_by(intermediate, key(), &root).unwrap();
        let roots = NamedTempFile::new().unwrap();
        fs::write(roots.path(), root.pem()).unwrap();
        Self {
            root,
            intermediate,
            roots,
        }
    }

    /// The setting that makes a server trust it.
    #[must_use]
    pub fn setting(&self) -> (&'static str, &str) {
        ("apple.attestation_roots", self.roots.path().to_str().unwrap())
    }

    /// Its root certificate, PEM.
    #[must_use]
    pub fn roots_pem(&self) -> String {
        self.root.pem()
    }

    /// The chain in DER, leaf first.
    #[must_use]
    pub fn attest(&self, attested: &Attested) -> Vec<Vec<u8>> {
        self.attest_key(attested, &key())
    }

    /// A chain whose leaf has this key, as with ACME.
    #[must_use]
    pub fn attest_key(&self, attested: &Attested, key: &impl PublicKeyData) -> Vec<Vec<u8>> {
        let mut leaf = CertificateParams::default();
        leaf.distinguished_name.push(DnType::CommonName, "a machine");
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.not_before = attested.not_before;
        leaf.not_after = attested.not_before + Duration::days(91);
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(vec![1, 2, 840, 113_635, 100, 4, 24])];
        let extension = |(oid, value): &([u64; 2], Vec<u8>)| {
            let mut extension = CustomExtension::from_oid_content(&[APPLE.as_slice(), oid].concat(), value.clone());
            extension.set_criticality(attested.critical);
            extension
        };
        leaf.custom_extensions = attested.extensions.iter().map(extension).collect();
        let leaf = leaf.signed_by(key, &self.intermediate).unwrap();
        vec![leaf.der().to_vec(), self.intermediate.der().to_vec()]
    }

    /// The body of a request with the chain.
    #[must_use]
    pub fn body(&self, attested: &Attested) -> Value {
        body_of(&self.attest(attested))
    }
}

impl Attested {
    /// A healthy machine with this serial number and key, at this time.
    #[must_use]
    pub fn of(serial_number: &str, key: &PublicKey, at: OffsetDateTime) -> Self {
        Self::of_device(serial_number, at).and(FRESHNESS_CODE, FreshnessCode::of(key).as_bytes())
    }

    /// A healthy machine's current key, an hour before `now`.
    #[must_use]
    pub fn an_hour_ago(machine: &Machine, now: OffsetDateTime) -> Self {
        Self::of(machine.serial_number(), &machine.public_key(), now - Duration::hours(1))
    }

    /// The same without a freshness code.
    #[must_use]
    pub fn of_device(serial_number: &str, at: OffsetDateTime) -> Self {
        Self {
            extensions: vec![
                (SERIAL_NUMBER, serial_number.as_bytes().to_vec()),
                (OS_VERSION, b"26.1".to_vec()),
                (SIP, vec![2, 1, 0]),
                (SECURE_BOOT, b"Full Security".to_vec()),
            ],
            critical: false,
            not_before: at.replace_nanosecond(0).unwrap(),
        }
    }

    /// Sets the time of the signature.
    #[must_use]
    pub fn at(mut self, at: OffsetDateTime) -> Self {
        self.not_before = at.replace_nanosecond(0).unwrap();
        self
    }

    /// Replaces the value of an extension.
    #[must_use]
    pub fn with(self, oid: [u64; 2], value: &[u8]) -> Self {
        self.without(oid).and(oid, value)
    }

    /// Adds an extension, even if one with this OID exists.
    #[must_use]
    pub fn and(mut self, oid: [u64; 2], value: &[u8]) -> Self {
        self.extensions.push((oid, value.to_vec()));
        self
    }

    /// Removes an extension.
    #[must_use]
    pub fn without(mut self, oid: [u64; 2]) -> Self {
        self.extensions.retain(|(other, _)| *other != oid);
        self
    }

    /// Marks its extensions as critical, which Apple's are not.
    #[must_use]
    pub fn critical(mut self) -> Self {
        self.critical = true;
        self
    }
}

/// The body of a request with a chain.
#[must_use]
pub fn body_of(chain: &[Vec<u8>]) -> Value {
    json!({"x5c": chain.iter().map(|der| STANDARD.encode(der)).collect::<Vec<_>>()})
}

/// A Mac's response to the MDM command `DeviceInformation`, with this attestation, as a property list in XML.
#[must_use]
pub fn device_information(udid: &str, chain: Option<&[Vec<u8>]>) -> String {
    let attestation = chain.map_or_else(String::new, |chain| {
        let data = chain
            .iter()
            .map(|der| format!("<data>\n\t{}\n</data>", STANDARD.encode(der)));
        format!(
            "<key>DevicePropertiesAttestation</key><array>{}</array>",
            data.collect::<String>()
        )
    });
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n\
         <plist version=\"1.0\"><dict><key>CommandUUID</key><string>0001</string><key>QueryResponses</key><dict>\
         {attestation}</dict><key>Status</key><string>Acknowledged</string><key>UDID</key><string>{udid}</string>\
         </dict></plist>\n"
    )
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap()
}

fn authority(name: &str) -> CertificateParams {
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, name);
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    authority
}
