//! A simulated machine. A test or the load generator chooses what it claims and signs.

mod calls;
mod fleet;
mod key;

use std::sync::{Arc, Mutex, PoisonError};

use assay_protocol::dpop::ProofClaims;
use assay_protocol::evidence::PROFILE;
use assay_protocol::machine::{KeyClaim, KeyStoreKind, MachineIdentity, Posture};
use assay_protocol::{EvidenceClaims, KeyThumbprint, PublicKey, Purpose};
use assay_server::clock::{Clock, SystemClock};
use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use pem::{EncodeConfig, LineEnding, Pem};
use serde_json::{Value, json};
use uuid::Uuid;

pub use self::fleet::{FIRST_ID, id_on_record};
use self::key::Key;

/// A machine with a software key of its own. Its claims can be set.
#[derive(Debug)]
pub struct Machine {
    key: Arc<Key>,
    /// The identity that it claims.
    pub identity: MachineIdentity,
    /// The posture that it claims.
    pub posture: Posture,
    /// Whether it sends continuity values, as agents of this version do.
    pub sends_continuity: bool,
    /// The claims about its key.
    pub key_claim: KeyClaim,
    remembered: Mutex<Remembered>,
}

/// What a machine remembers of the responses.
#[derive(Clone, Debug, Default)]
struct Remembered {
    id: Option<Uuid>,
    nonce: Option<String>,
    continuity: Option<String>,
}

impl Machine {
    /// What it claims of its key, unless it is [in an enclave](Self::in_enclave).
    pub const KEY_CLAIM: KeyClaim = KeyClaim {
        store: KeyStoreKind::Software,
        accessibility: None,
    };

    /// A new healthy machine with a unique serial number.
    #[must_use]
    pub fn new() -> Self {
        Self::with_serial_number(&format!("C02{}", Uuid::new_v4().simple()))
    }

    /// A new healthy machine.
    #[must_use]
    pub fn with_serial_number(serial_number: &str) -> Self {
        let identity = MachineIdentity {
            serial_number: Some(serial_number.to_owned()),
            hardware_uuid: Some(format!("UUID-OF-{serial_number}")),
            model_identifier: Some("Mac16,1".to_owned()),
            hostname: Some(format!("{}.example.com", serial_number.to_lowercase())),
        };
        Self::with_key(Key::generate(), identity)
    }

    fn with_key(key: Key, identity: MachineIdentity) -> Self {
        Self {
            key: Arc::new(key),
            identity,
            posture: Posture::healthy(),
            sends_continuity: false,
            key_claim: Self::KEY_CLAIM,
            remembered: Mutex::default(),
        }
    }

    /// The same machine, which claims that its key is in a Secure Enclave.
    #[must_use]
    pub fn in_enclave(mut self) -> Self {
        self.key_claim.store = KeyStoreKind::SecureEnclave;
        self
    }

    /// The same hardware after it was erased and set up again, with another key.
    #[must_use]
    pub fn erased(&self) -> Self {
        Self {
            remembered: Mutex::default(),
            ..self.with_next_key()
        }
    }

    /// The same machine with the key that will replace its current one.
    #[must_use]
    pub fn with_next_key(&self) -> Self {
        Self {
            key: Arc::new(Key::generate()),
            ..self.clone()
        }
    }

    /// This key with the memory of another copy of the machine.
    #[must_use]
    pub fn remembering(self, other: &Self) -> Self {
        let remembered = Mutex::new(other.remembered(|remembered| remembered.clone()));
        Self { remembered, ..self }
    }

    /// Other hardware with this machine's key and memory: a copied disk.
    #[must_use]
    pub fn copied_to(&self, serial_number: &str) -> Self {
        let mut copy = self.clone();
        copy.identity = Self::with_serial_number(serial_number).identity;
        copy
    }

    /// Its serial number.
    #[must_use]
    pub fn serial_number(&self) -> &str {
        self.identity.serial_number.as_deref().unwrap()
    }

    /// Its id, once it is enrolled.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.remembered(|remembered| remembered.id)
            .expect("this machine has no id yet")
    }

    /// Sets an id that no response has given it.
    pub fn set_id(&self, id: Uuid) {
        self.remembered(|remembered| remembered.id = Some(id));
    }

    /// Its path under the admin API.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/v1/admin/machines/{}", self.id())
    }

    /// Its private key in PKCS#8.
    #[must_use]
    pub fn private_key_der(&self) -> Vec<u8> {
        self.key.pkcs8_der()
    }

    /// Its private key, as a TLS client reads it.
    #[must_use]
    pub fn private_key_pem(&self) -> String {
        let pem = Pem::new("PRIVATE KEY", self.private_key_der());
        pem::encode_config(&pem, EncodeConfig::new().set_line_ending(LineEnding::LF))
    }

    /// Its public key.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.key.public_key()
    }

    /// The thumbprint of its key.
    #[must_use]
    pub fn thumbprint(&self) -> KeyThumbprint {
        self.key.thumbprint
    }

    /// A CSR for its key.
    #[must_use]
    pub fn csr(&self) -> String {
        self.key.csr()
    }

    /// The claims of its evidence for the server `audience`.
    #[must_use]
    pub fn claims(&self, audience: &str, purpose: Purpose, nonce: &str) -> EvidenceClaims {
        let (id, continuity) = self.remembered(|remembered| (remembered.id, remembered.continuity.clone()));
        EvidenceClaims {
            eat_profile: PROFILE.to_owned(),
            eat_nonce: nonce.to_owned(),
            aud: audience.to_owned(),
            iat: SystemClock.now().unix_timestamp(),
            purpose,
            sub: id.filter(|_| purpose != Purpose::Enroll),
            csr_sha256: None,
            continuity: continuity.filter(|_| self.sends_continuity),
            machine: self.identity.clone(),
            posture: self.posture.clone(),
            key: self.key_claim,
        }
    }

    /// Evidence: these claims, signed.
    #[must_use]
    pub fn sign(&self, claims: &EvidenceClaims) -> String {
        let sign = |message: &[u8]| Ok::<_, serde_json::Error>(self.key.sign(message));
        claims.sign(self.thumbprint(), sign).unwrap()
    }

    /// A proof of possession (DPoP) with these claims.
    #[must_use]
    pub fn prove(&self, claims: &ProofClaims) -> String {
        let sign = |message: &[u8]| Ok::<_, serde_json::Error>(self.key.sign(message));
        claims.sign(&self.public_key(), sign).unwrap()
    }

    /// Evidence with any payload, a valid header and a valid signature.
    #[must_use]
    pub fn sign_payload(&self, payload: &[u8]) -> String {
        let header = json!({"alg": "ES256", "typ": "eat+jwt", "kid": self.thumbprint()}).to_string();
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }

    /// The body of an honest enrollment.
    #[must_use]
    pub fn enroll_body(&self, audience: &str, token: Option<&str>, nonce: &str) -> Value {
        let evidence = self.sign(&self.claims(audience, Purpose::Enroll, nonce));
        json!({"token": token, "csr": self.csr(), "evidence": evidence})
    }

    /// The body of an honest check-in.
    #[must_use]
    pub fn check_in_body(&self, audience: &str, nonce: &str) -> Value {
        json!({"evidence": self.sign(&self.claims(audience, Purpose::CheckIn, nonce))})
    }

    /// The body of a renewal with this CSR; an honest renewal sends [`csr`](Self::csr).
    #[must_use]
    pub fn renew_body(&self, audience: &str, csr: &str, nonce: &str) -> Value {
        let mut claims = self.claims(audience, Purpose::Renew, nonce);
        let der = pem::parse(csr).unwrap();
        let digest = digest::digest(&digest::SHA256, der.contents());
        claims.csr_sha256 = Some(URL_SAFE_NO_PAD.encode(digest));
        json!({"csr": csr, "evidence": self.sign(&claims)})
    }

    fn remembered<T>(&self, with: impl FnOnce(&mut Remembered) -> T) -> T {
        with(&mut self.remembered.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for Machine {
    fn clone(&self) -> Self {
        Self {
            key: Arc::clone(&self.key),
            identity: self.identity.clone(),
            posture: self.posture.clone(),
            sends_continuity: self.sends_continuity,
            key_claim: self.key_claim,
            remembered: Mutex::new(self.remembered(|remembered| remembered.clone())),
        }
    }
}
