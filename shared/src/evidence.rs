//! Evidence: what a machine claims, signed with its key.
//!
//! An Entity Attestation Token (RFC 9711) as a compact JWS (RFC 7515). The algorithm is always ES256, the type always
//! `eat+jwt`, and the key always one that the verifier already knows.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{
    jws::{self, CriticalExtensions, PartError, numeric_date, read_part},
    key::{BadSignature, KeyThumbprint, PublicKey},
    machine::{KeyClaim, MachineIdentity, Posture},
    object::object,
    words,
};

/// The only profile of this version.
pub const PROFILE: &str = "urn:assay:evidence:1";
/// The longest accepted evidence in bytes.
const LONGEST: usize = 32 * 1024;
/// The longest continuity value, in bytes.
pub const LONGEST_CONTINUITY: usize = 64;
const ALGORITHM: &str = "ES256";
const TYPE: &str = "eat+jwt";

words! {
    /// What evidence is for. Evidence for one purpose is refused for another.
    pub enum Purpose {
        /// `POST /v1/enroll`
        Enroll = "enroll",
        /// `POST /v1/check-in`
        CheckIn = "check-in",
        /// `POST /v1/renew`
        Renew = "renew",
    }
}

/// The claims of evidence on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceClaims {
    /// Always [`PROFILE`].
    pub eat_profile: String,
    /// The server's nonce, the only proof of freshness.
    pub eat_nonce: String,
    /// The server's `public_url` without a trailing slash. It stops evidence from being relayed to another server.
    pub aud: String,
    /// The machine's clock in seconds since 1970. Any number is recorded, and none is trusted.
    #[serde(deserialize_with = "numeric_date")]
    pub iat: i64,
    /// What the evidence is for.
    pub purpose: Purpose,
    /// The machine id. Absent at enrollment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub: Option<Uuid>,
    /// SHA-256 of the CSR's DER in base64url. Only at renewal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub csr_sha256: Option<String>,
    /// The member of this name in the last answer that the machine got. Older agents send none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "continuity")]
    pub continuity: Option<String>,
    /// The claimed identity.
    #[serde(deserialize_with = "object")]
    pub machine: MachineIdentity,
    /// The claimed posture.
    #[serde(deserialize_with = "object")]
    pub posture: Posture,
    /// The claimed place of the key.
    #[serde(deserialize_with = "object")]
    pub key: KeyClaim,
}

/// Evidence that is not verified. Use the `unverified_…` accessors only to find the key and to refuse early.
#[derive(Debug)]
pub struct UnverifiedEvidence<'a> {
    kid: KeyThumbprint,
    signed: &'a str,
    signature: Vec<u8>,
    claims: EvidenceClaims,
}

/// Evidence with verified signature, audience, purpose and subject. The server must still spend its nonce.
#[derive(Debug, Clone)]
pub struct Evidence {
    key: KeyThumbprint,
    claims: EvidenceClaims,
}

/// What the evidence must be for.
#[derive(Debug, Clone, Copy)]
pub struct Expectation<'a> {
    /// The server's `public_url` as configured, without a trailing slash.
    pub audience: &'a str,
    /// The endpoint's purpose.
    pub purpose: Purpose,
    /// The machine with the key. `None` at enrollment, where evidence has no subject.
    pub subject: Option<Uuid>,
}

/// Why evidence is refused.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// Longer than any honest evidence.
    #[error("the evidence is longer than {LONGEST} bytes")]
    TooLong,
    /// Not three parts of base64url without padding.
    #[error("the evidence is not a compact JWS")]
    NotCompactJws,
    /// The header or the claims do not follow the protocol.
    #[error("the evidence's {part} cannot be read")]
    Unreadable {
        /// `header` or `claims`
        part: &'static str,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// `alg` is not ES256.
    #[error("the evidence's alg is not ES256")]
    Algorithm,
    /// `typ` is not `eat+jwt`: this is another token.
    #[error("the evidence's typ is not eat+jwt")]
    Type,
    /// There is a critical header parameter; this protocol has none (RFC 7515, section 4.1.11).
    #[error("the evidence has a critical header parameter that is not understood")]
    CriticalHeader,
    /// The `kid` is not the thumbprint of the key.
    #[error("the evidence's kid is not the thumbprint of the machine's key")]
    KeyId,
    /// The key did not sign it.
    #[error("the evidence's signature does not verify")]
    Signature(#[source] BadSignature),
    /// It has another profile.
    #[error("the evidence's eat_profile is not {PROFILE}")]
    Profile,
    /// It is for another server.
    #[error("the evidence's aud is not this server's public_url")]
    Audience,
    /// It is for another endpoint.
    #[error("the evidence's purpose is not that of this endpoint")]
    Purpose,
    /// It is for another machine.
    #[error("the evidence's sub is not the machine of this key")]
    Subject,
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    typ: Option<String>,
    kid: String,
    #[serde(default, skip_serializing)]
    crit: CriticalExtensions,
}

impl EvidenceClaims {
    /// Signs these claims and returns the compact JWS.
    ///
    /// `sign` gets the bytes to sign and returns an ECDSA signature with SHA-256 in the fixed form, `r || s`.
    pub fn sign<E, S>(&self, key: KeyThumbprint, sign: S) -> Result<String, E>
    where
        E: From<serde_json::Error>,
        S: FnOnce(&[u8]) -> Result<[u8; 64], E>,
    {
        let header = Header {
            alg: ALGORITHM.into(),
            typ: Some(TYPE.into()),
            kid: key.to_string(),
            crit: CriticalExtensions::default(),
        };
        jws::sign(&serde_json::to_vec(&header)?, self, sign)
    }
}

impl<'a> UnverifiedEvidence<'a> {
    /// Reads a compact JWS and its claims without verifying them.
    pub fn parse(jws: &'a str) -> Result<Self, EvidenceError> {
        if jws.len() > LONGEST {
            return Err(EvidenceError::TooLong);
        }
        let (signed, signature) = jws.rsplit_once('.').ok_or(EvidenceError::NotCompactJws)?;
        let (header, claims) = signed.split_once('.').ok_or(EvidenceError::NotCompactJws)?;
        let header: Header = decode("header", header)?;
        if header.alg != ALGORITHM {
            return Err(EvidenceError::Algorithm);
        }
        if header.typ.as_deref() != Some(TYPE) {
            return Err(EvidenceError::Type);
        }
        if header.crit.is_present() {
            return Err(EvidenceError::CriticalHeader);
        }
        let claims: EvidenceClaims = decode("claims", claims)?;
        if claims.eat_profile != PROFILE {
            return Err(EvidenceError::Profile);
        }
        Ok(Self {
            kid: header.kid.parse().map_err(|_| EvidenceError::KeyId)?,
            signed,
            signature: URL_SAFE_NO_PAD
                .decode(signature)
                .map_err(|_| EvidenceError::NotCompactJws)?,
            claims,
        })
    }

    /// The claimed key, to look it up. [`Self::verify`] checks it.
    #[must_use]
    pub fn unverified_key(&self) -> KeyThumbprint {
        self.kid
    }

    /// The claimed machine, to distinguish an unknown machine from a wrong key.
    #[must_use]
    pub fn unverified_subject(&self) -> Option<Uuid> {
        self.claims.sub
    }

    /// The nonce, to refuse a forged or stale one before the signature is verified.
    #[must_use]
    pub fn unverified_nonce(&self) -> &str {
        &self.claims.eat_nonce
    }

    /// Verifies that `key` signed this for this audience, purpose and subject.
    pub fn verify(self, key: &PublicKey, expected: &Expectation<'_>) -> Result<Evidence, EvidenceError> {
        if self.kid != key.thumbprint() {
            return Err(EvidenceError::KeyId);
        }
        key.verify_fixed(self.signed.as_bytes(), &self.signature)
            .map_err(EvidenceError::Signature)?;
        if self.claims.aud != expected.audience {
            return Err(EvidenceError::Audience);
        }
        if self.claims.purpose != expected.purpose {
            return Err(EvidenceError::Purpose);
        }
        if self.claims.sub != expected.subject {
            return Err(EvidenceError::Subject);
        }
        Ok(Evidence {
            key: self.kid,
            claims: self.claims,
        })
    }
}

impl Evidence {
    /// The key that signed it.
    #[must_use]
    pub fn key(&self) -> KeyThumbprint {
        self.key
    }

    /// What the machine claimed.
    #[must_use]
    pub fn claims(&self) -> &EvidenceClaims {
        &self.claims
    }

    /// What the machine claimed, owned.
    #[must_use]
    pub fn into_claims(self) -> EvidenceClaims {
        self.claims
    }
}

fn continuity<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let value = Option::<String>::deserialize(deserializer)?;
    if value.as_ref().is_some_and(|value| value.len() > LONGEST_CONTINUITY) {
        return Err(serde::de::Error::custom("continuity is longer than 64 characters"));
    }
    Ok(value)
}

fn decode<T: DeserializeOwned>(part: &'static str, base64url: &str) -> Result<T, EvidenceError> {
    read_part(base64url).map_err(|error| match error {
        PartError::NotBase64Url => EvidenceError::NotCompactJws,
        PartError::Unreadable(source) => EvidenceError::Unreadable { part, source },
    })
}
