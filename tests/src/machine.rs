//! A machine without an agent: it says what a test wants it to say, and signs that.

mod calls;

use std::sync::{Mutex, PoisonError};

use assay_protocol::evidence::PROFILE;
use assay_protocol::machine::{KeyClaim, KeyStoreKind, MachineIdentity, Posture, SecureBoot};
use assay_protocol::{Csr, EvidenceClaims, KeyThumbprint, PublicKey, Purpose};
use assay_server::clock::{Clock, SystemClock};
use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use p256::ecdsa::{Signature, SigningKey, signature::Signer};
use p256::pkcs8::{EncodePrivateKey, LineEnding};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::Called;

/// A machine with a software key of its own. What it says of itself can be set.
#[derive(Debug)]
pub struct Machine {
    key: SigningKey,
    /// Which machine it says it is.
    pub identity: MachineIdentity,
    /// The state that it says it is in.
    pub posture: Posture,
    remembered: Mutex<Remembered>,
}

/// What a machine keeps of the answers.
#[derive(Clone, Debug, Default)]
struct Remembered {
    id: Option<Uuid>,
    nonce: Option<String>,
}

impl Machine {
    /// A new machine in good order, with a serial number that no other machine of the tests has.
    #[must_use]
    pub fn new() -> Self {
        Self::with_serial_number(&format!("C02{}", Uuid::new_v4().simple()))
    }

    /// A new machine in good order.
    #[must_use]
    pub fn with_serial_number(serial_number: &str) -> Self {
        let identity = MachineIdentity {
            serial_number: Some(serial_number.to_owned()),
            hardware_uuid: Some(format!("UUID-OF-{serial_number}")),
            model_identifier: Some("Mac16,1".to_owned()),
            hostname: Some(format!("{}.example.com", serial_number.to_lowercase())),
        };
        let posture = Posture {
            os_name: Some("macOS".to_owned()),
            os_version: Some("26.1".to_owned()),
            os_build: Some("25B78".to_owned()),
            sip_enabled: Some(true),
            filevault_enabled: Some(true),
            firewall_enabled: Some(true),
            gatekeeper_enabled: Some(true),
            secure_boot: Some(SecureBoot::Full),
            mdm_enrolled: Some(true),
            agent_version: Some("1.0.0".to_owned()),
        };
        Self {
            key: new_key(),
            identity,
            posture,
            remembered: Mutex::default(),
        }
    }

    /// The same hardware with another key: erased and set up again.
    #[must_use]
    pub fn erased(&self) -> Self {
        Self {
            key: new_key(),
            remembered: Mutex::default(),
            ..self.clone()
        }
    }

    /// The same machine with the key that is to replace its present one.
    #[must_use]
    pub fn with_next_key(&self) -> Self {
        Self {
            key: new_key(),
            ..self.clone()
        }
    }

    /// Other hardware with this machine's key and all that it remembers: a copied disk.
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

    /// Takes an id that it did not get from a server.
    pub fn pretend_to_be(&self, id: Uuid) {
        self.remembered(|remembered| remembered.id = Some(id));
    }

    /// Its path under the admin API.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/v1/admin/machines/{}", self.id())
    }

    /// Its private key, as a TLS client reads it.
    #[must_use]
    pub fn private_key_pem(&self) -> String {
        self.key.to_pkcs8_pem(LineEnding::LF).unwrap().to_string()
    }

    /// The thumbprint of its key.
    #[must_use]
    pub fn thumbprint(&self) -> KeyThumbprint {
        self.public_key().thumbprint()
    }

    /// A CSR for its key.
    #[must_use]
    pub fn csr(&self) -> String {
        let sign = |message: &[u8]| {
            let signature: Signature = self.key.sign(message);
            Ok::<Vec<u8>, std::convert::Infallible>(signature.to_der().as_bytes().to_vec())
        };
        Csr::build(&self.public_key(), sign).unwrap()
    }

    /// What it says to this server at this nonce.
    #[must_use]
    pub fn claims(&self, server: &impl Called, purpose: Purpose, nonce: &str) -> EvidenceClaims {
        let id = self.remembered(|remembered| remembered.id);
        EvidenceClaims {
            eat_profile: PROFILE.to_owned(),
            eat_nonce: nonce.to_owned(),
            aud: server.api().audience().to_owned(),
            iat: SystemClock.now().unix_timestamp(),
            purpose,
            sub: id.filter(|_| purpose != Purpose::Enroll),
            csr_sha256: None,
            machine: self.identity.clone(),
            posture: self.posture.clone(),
            key: KeyClaim {
                store: KeyStoreKind::Software,
                accessibility: None,
            },
        }
    }

    /// Evidence: these claims, signed.
    #[must_use]
    pub fn sign(&self, claims: &EvidenceClaims) -> String {
        let sign = |message: &[u8]| {
            let signature: Signature = self.key.sign(message);
            Ok::<[u8; 64], serde_json::Error>(signature.to_bytes().into())
        };
        claims.sign(self.thumbprint(), sign).unwrap()
    }

    /// Evidence with any payload, honest in everything but that.
    #[must_use]
    pub fn sign_payload(&self, payload: &[u8]) -> String {
        let header = json!({"alg": "ES256", "typ": "eat+jwt", "kid": self.thumbprint()}).to_string();
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        let signature: Signature = self.key.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
    }

    /// The body of an honest enrollment.
    #[must_use]
    pub fn enroll_body(&self, server: &impl Called, token: Option<&str>, nonce: &str) -> Value {
        let evidence = self.sign(&self.claims(server, Purpose::Enroll, nonce));
        json!({"token": token, "csr": self.csr(), "evidence": evidence})
    }

    /// The body of an honest check-in.
    #[must_use]
    pub fn check_in_body(&self, server: &impl Called, nonce: &str) -> Value {
        json!({"evidence": self.sign(&self.claims(server, Purpose::CheckIn, nonce))})
    }

    /// The body of a renewal with this CSR; an honest one has its own.
    #[must_use]
    pub fn renew_body(&self, server: &impl Called, csr: &str, nonce: &str) -> Value {
        let mut claims = self.claims(server, Purpose::Renew, nonce);
        let der = pem::parse(csr).unwrap();
        let digest = digest::digest(&digest::SHA256, der.contents());
        claims.csr_sha256 = Some(URL_SAFE_NO_PAD.encode(digest));
        json!({"csr": csr, "evidence": self.sign(&claims)})
    }

    /// Its key.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        PublicKey::from_sec1(&self.key.verifying_key().to_sec1_bytes()).unwrap()
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
            key: self.key.clone(),
            identity: self.identity.clone(),
            posture: self.posture.clone(),
            remembered: Mutex::new(self.remembered(|remembered| remembered.clone())),
        }
    }
}

fn new_key() -> SigningKey {
    // All but one in 2^32 draws is below the order of the group.
    SigningKey::from_slice(&rand::random::<[u8; 32]>()).unwrap()
}
