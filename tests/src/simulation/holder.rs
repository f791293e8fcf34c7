//! A party that has a machine's key: the Mac itself, or a thief with a copy.

use assay_protocol::machine::{KeyAccessibility, KeyClaim, KeyStoreKind};
use assay_protocol::{EvidenceClaims, KeyThumbprint, Purpose, sha256};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use uuid::Uuid;

use super::replica::Answer;
use crate::in_process::PUBLIC_URL;
use crate::machine::Machine;

const ENCLAVE: KeyClaim = KeyClaim {
    store: KeyStoreKind::SecureEnclave,
    accessibility: Some(KeyAccessibility::Always),
};

/// A key with the state of the agent that uses it.
#[derive(Clone, Debug)]
pub(super) struct Holder {
    pub(super) name: String,
    pub(super) machine: Machine,
    /// The token that it enrolls with.
    pub(super) token: Option<usize>,
    pub(super) id: Option<Uuid>,
    pub(super) nonce: Option<String>,
    pub(super) continuity: Option<String>,
    /// The key that it asked a certificate for.
    pub(super) next: Option<Machine>,
    /// The continuity value in a backup of its state.
    pub(super) backup: Option<Option<String>>,
}

/// What a holder asks for.
#[derive(Clone, Debug)]
pub(super) enum Call {
    Enroll {
        secret: Option<String>,
    },
    CheckIn,
    /// With the CSR of the key that gets the certificate.
    Renew {
        csr: String,
        secret: Option<String>,
    },
}

impl Call {
    pub(super) fn path(&self) -> &'static str {
        match self {
            Self::Enroll { .. } => "/v1/enroll",
            Self::CheckIn => "/v1/check-in",
            Self::Renew { .. } => "/v1/renew",
        }
    }

    fn purpose(&self) -> Purpose {
        match self {
            Self::Enroll { .. } => Purpose::Enroll,
            Self::CheckIn => Purpose::CheckIn,
            Self::Renew { .. } => Purpose::Renew,
        }
    }
}

impl Holder {
    pub(super) fn new(name: String, serial_number: &str, store: KeyStoreKind, token: Option<usize>) -> Self {
        let mut machine = Machine::with_serial_number(serial_number);
        machine.key_claim = Self::key_claim(store);
        Self {
            name,
            machine,
            token,
            id: None,
            nonce: None,
            continuity: None,
            next: None,
            backup: None,
        }
    }

    /// What an agent claims of a key there.
    pub(super) fn key_claim(store: KeyStoreKind) -> KeyClaim {
        match store {
            KeyStoreKind::SecureEnclave => ENCLAVE,
            KeyStoreKind::Software => Machine::KEY_CLAIM,
        }
    }

    pub(super) fn key(&self) -> KeyThumbprint {
        self.machine.thumbprint()
    }

    /// What its evidence says.
    pub(super) fn claims(&self, call: &Call, nonce: &str) -> EvidenceClaims {
        let mut claims = self.machine.claims(PUBLIC_URL, call.purpose(), nonce);
        claims.sub = self.id.filter(|_| call.purpose() != Purpose::Enroll);
        claims.continuity.clone_from(&self.continuity);
        if let Call::Renew { csr, .. } = call {
            let der = pem::parse(csr).unwrap();
            claims.csr_sha256 = Some(URL_SAFE_NO_PAD.encode(sha256(der.contents())));
        }
        claims
    }

    /// The body of a call with these claims.
    pub(super) fn body(&self, call: &Call, claims: &EvidenceClaims) -> Value {
        let evidence = self.machine.sign(claims);
        match call {
            Call::Enroll { secret } => json!({"token": secret, "csr": self.machine.csr(), "evidence": evidence}),
            Call::CheckIn => json!({ "evidence": evidence }),
            Call::Renew { csr, secret } => json!({"csr": csr, "evidence": evidence, "token": secret}),
        }
    }

    /// Keeps what an agent keeps of an answer.
    pub(super) fn keep(&mut self, answer: &Answer) {
        self.nonce.clone_from(&answer.nonce);
        if answer.is_success() {
            if let Some(id) = answer.text("machine_id") {
                self.id = Some(id.parse().unwrap());
            }
            if let Some(value) = answer.text("continuity") {
                self.continuity = Some(value.to_owned());
            }
        }
    }
}
