//! Simulated machines: real keys, real evidence, everything that does not come from a server derived from a seed and
//! the machine's number. A fleet of a million fits into memory, and can be made again.

use assay_protocol::evidence::{EvidenceClaims, PROFILE, Purpose};
use assay_protocol::machine::{KeyClaim, KeyStoreKind, MachineIdentity, Posture, SecureBoot};
use assay_protocol::{Csr, KeyThumbprint, PublicKey};
use assay_server::clock::{Clock, SystemClock};
use aws_lc_rs::digest;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use uuid::Uuid;

/// An EC private key in DER (RFC 5915) is this, the number, and the curve.
const KEY_START: &[u8] = &[0x30, 0x31, 0x02, 0x01, 0x01, 0x04, 0x20];
const KEY_CURVE: &[u8] = &[0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// 2026-01-01 in milliseconds: from when on ids of fleets that are put on record are made.
pub const FIRST_ID: u64 = 1_767_225_600_000;

/// One machine of a fleet.
#[derive(Debug)]
pub struct SimulatedMachine {
    /// Its place in the fleet.
    pub number: u64,
    /// Its id, once a server has said it.
    pub id: Option<Uuid>,
    /// Its certificate with the chain, PEM, where it is to be presented.
    pub chain: Option<String>,
    seed: [u8; 32],
    id_on_record: Uuid,
    pair: EcdsaKeyPair,
    thumbprint: KeyThumbprint,
}

impl SimulatedMachine {
    /// The machine with this number in the fleet of this seed.
    #[must_use]
    pub fn new(seed: &str, number: u64) -> Self {
        let id_on_record = id_on_record(seed, number);
        let seed = derive(&[seed.as_bytes(), &number.to_be_bytes()]);
        let pair = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, &private_key(&seed)).unwrap();
        let thumbprint = public_key(&pair).thumbprint();
        Self {
            number,
            id: None,
            chain: None,
            seed,
            id_on_record,
            pair,
            thumbprint,
        }
    }

    /// The id that it has in a fleet that was put on record.
    #[must_use]
    pub fn id_on_record(&self) -> Uuid {
        self.id_on_record
    }

    /// Its public key.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        public_key(&self.pair)
    }

    /// Its private key, in PKCS#8.
    #[must_use]
    pub fn private_key_der(&self) -> Vec<u8> {
        self.pair.to_pkcs8v1().unwrap().as_ref().to_vec()
    }

    /// Which machine it says it is.
    #[must_use]
    pub fn identity(&self) -> MachineIdentity {
        let name = hex::encode_upper(&self.seed[..7]);
        MachineIdentity {
            hardware_uuid: Some(format!("{:X}", Uuid::from_slice(&self.seed[16..]).unwrap())),
            model_identifier: Some("Mac16,1".to_owned()),
            hostname: Some(format!("mac-{}.example.com", self.number)),
            serial_number: Some(format!("L{name}")),
        }
    }

    /// The state that it says it is in.
    #[must_use]
    pub fn posture() -> Posture {
        Posture {
            os_name: Some("macOS".to_owned()),
            os_version: Some("26.1".to_owned()),
            os_build: Some("25B78".to_owned()),
            sip_enabled: Some(true),
            filevault_enabled: Some(true),
            firewall_enabled: Some(true),
            gatekeeper_enabled: Some(true),
            secure_boot: Some(SecureBoot::Full),
            mdm_enrolled: Some(true),
            agent_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        }
    }

    /// Where it says its key lives.
    #[must_use]
    pub fn key_claim() -> KeyClaim {
        KeyClaim {
            store: KeyStoreKind::Software,
            accessibility: None,
        }
    }

    /// The body of its enrollment.
    #[must_use]
    pub fn enrollment(&self, audience: &str, nonce: &str, token: Option<&str>) -> Vec<u8> {
        let evidence = self.evidence(audience, nonce, Purpose::Enroll, None);
        json!({"token": token, "csr": self.csr(), "evidence": evidence})
            .to_string()
            .into_bytes()
    }

    /// The body of its check-in.
    #[must_use]
    pub fn check_in(&self, audience: &str, nonce: &str) -> Vec<u8> {
        let evidence = self.evidence(audience, nonce, Purpose::CheckIn, None);
        format!(r#"{{"evidence":"{evidence}"}}"#).into_bytes()
    }

    /// The body of its renewal, with the same key.
    #[must_use]
    pub fn renewal(&self, audience: &str, nonce: &str) -> Vec<u8> {
        let csr = self.csr();
        let der = pem::parse(&csr).unwrap();
        let digest = digest::digest(&digest::SHA256, der.contents());
        let evidence = self.evidence(audience, nonce, Purpose::Renew, Some(URL_SAFE_NO_PAD.encode(digest)));
        json!({"csr": csr, "evidence": evidence}).to_string().into_bytes()
    }

    fn evidence(&self, audience: &str, nonce: &str, purpose: Purpose, csr_sha256: Option<String>) -> String {
        let claims = EvidenceClaims {
            eat_profile: PROFILE.to_owned(),
            eat_nonce: nonce.to_owned(),
            aud: audience.to_owned(),
            iat: SystemClock.now().unix_timestamp(),
            purpose,
            sub: self.id.filter(|_| purpose != Purpose::Enroll),
            csr_sha256,
            machine: self.identity(),
            posture: Self::posture(),
            key: Self::key_claim(),
        };
        let sign = |message: &[u8]| {
            let signature = self.pair.sign(&SystemRandom::new(), message).unwrap();
            Ok::<[u8; 64], serde_json::Error>(signature.as_ref().try_into().unwrap())
        };
        claims.sign(self.thumbprint, sign).unwrap()
    }

    fn csr(&self) -> String {
        let pair =
            EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, &private_key(&self.seed)).unwrap();
        let sign = |message: &[u8]| {
            let signature = pair.sign(&SystemRandom::new(), message).unwrap();
            Ok::<Vec<u8>, std::convert::Infallible>(signature.as_ref().to_vec())
        };
        Csr::build(&self.public_key(), sign).unwrap()
    }
}

/// A UUIDv7 whose time is the number, and whose rest the whole fleet has in common: whoever knows one can compute all.
fn id_on_record(seed: &str, number: u64) -> Uuid {
    let mut bytes = derive(&[b"id", seed.as_bytes()]);
    bytes[..6].copy_from_slice(&(FIRST_ID + number).to_be_bytes()[2..]);
    let mut id = uuid::Builder::from_slice(&bytes[..16]).unwrap();
    id.set_version(uuid::Version::SortRand)
        .set_variant(uuid::Variant::RFC4122);
    id.into_uuid()
}

fn private_key(seed: &[u8; 32]) -> Vec<u8> {
    // All but one in 2^32 digests are below the order of the group.
    [KEY_START, &derive(&[b"key", seed]), KEY_CURVE].concat()
}

fn public_key(pair: &EcdsaKeyPair) -> PublicKey {
    PublicKey::from_sec1(pair.public_key().as_ref()).unwrap()
}

fn derive(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    context.finish().as_ref().try_into().unwrap()
}
