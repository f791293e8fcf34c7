//! Proofs of possession for one request (DPoP, RFC 9449), signed with a machine's key.
//!
//! A proof is a compact JWS (RFC 7515). The algorithm is always ES256, and the type always `dpop+jwt`. The header names
//! the key, which must be the one that the grant token is bound to. Nothing else that a machine's key signs begins with
//! this header: evidence has another type, a CSR is DER, and what a TLS handshake signs begins with spaces or with a
//! handshake message.

mod target;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize, de::IgnoredAny};

pub use self::target::{HttpMethod, NotAMethod, NotATargetUri, TargetUri};
use crate::{
    digest::sha256,
    jws::{self, CriticalExtensions, PartError, numeric_date, read_part},
    key::{BadSignature, KeyThumbprint, PublicKey},
    object::object,
};

/// How far `iat` may be from the verifier's clock, in seconds.
pub const MAX_AGE_SECONDS: i64 = 60;
/// The longest accepted proof in bytes.
pub const LONGEST: usize = 8 * 1024;
/// The longest accepted `jti` in bytes.
const LONGEST_ID: usize = 128;
/// The longest accepted nonce in bytes.
const LONGEST_NONCE: usize = 512;
const ALGORITHM: &str = "ES256";
const TYPE: &str = "dpop+jwt";

/// The claims of a proof on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofClaims {
    /// The proof's own random id. A verifier accepts each once.
    #[serde(deserialize_with = "proof_id")]
    pub jti: String,
    /// The method of the request.
    pub htm: HttpMethod,
    /// The URI of the request without query and fragment.
    pub htu: TargetUri,
    /// The machine's clock in seconds since 1970.
    #[serde(deserialize_with = "numeric_date")]
    pub iat: i64,
    /// [`access_token_hash`] of the token that is sent with the proof.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ath: Option<String>,
    /// The nonce of a service that requires one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<DpopNonce>,
}

/// A nonce that a service gave in `DPoP-Nonce` (RFC 9449, section 8.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DpopNonce(String);

/// The text is not a nonce.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a DPoP nonce: 1 to {LONGEST_NONCE} visible ASCII characters other than quotes and backslashes")]
pub struct NotADpopNonce;

/// A proof that is not verified.
#[derive(Debug)]
pub struct UnverifiedProof<'a> {
    key: PublicKey,
    signed: &'a str,
    signature: Vec<u8>,
    claims: ProofClaims,
}

/// A proof with verified key, signature, request, token and time. The caller must still accept its `jti` only once.
#[derive(Debug, Clone)]
pub struct Proof {
    key: KeyThumbprint,
    claims: ProofClaims,
}

/// What a proof must be for.
#[derive(Debug, Clone, Copy)]
pub struct Expectation<'a> {
    /// The key that the token is bound to: `cnf.jkt`.
    pub key: KeyThumbprint,
    /// The method of the request.
    pub method: &'a HttpMethod,
    /// The URI of the request.
    pub target: &'a TargetUri,
    /// [`access_token_hash`] of the token.
    pub access_token_hash: &'a str,
    /// The nonce, if the service requires one.
    pub nonce: Option<&'a DpopNonce>,
    /// The verifier's clock in seconds since 1970.
    pub now: i64,
}

/// Why a proof is refused.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// Longer than any honest proof.
    #[error("the proof is longer than {LONGEST} bytes")]
    TooLong,
    /// Not three parts of base64url without padding.
    #[error("the proof is not a compact JWS")]
    NotCompactJws,
    /// The header or the claims do not follow RFC 9449.
    #[error("the proof's {part} cannot be read")]
    Unreadable {
        /// `header` or `claims`
        part: &'static str,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// `alg` is not ES256.
    #[error("the proof's alg is not ES256")]
    Algorithm,
    /// `typ` is not `dpop+jwt`: this is another token.
    #[error("the proof's typ is not dpop+jwt")]
    Type,
    /// There is a critical header parameter; proofs have none (RFC 7515, section 4.1.11).
    #[error("the proof has a critical header parameter that is not understood")]
    CriticalHeader,
    /// The `jwk` is no public key on P-256.
    #[error("the proof's jwk is not a public key on P-256")]
    Jwk,
    /// The `jwk` contains a private key, which is thereby disclosed.
    #[error("the proof's jwk contains a private key")]
    PrivateKey,
    /// The token is bound to another key.
    #[error("the proof is made with another key than the token's")]
    OtherKey,
    /// It is for another method.
    #[error("the proof's htm is not the method of the request")]
    Method,
    /// It is for another URI.
    #[error("the proof's htu is not the URI of the request")]
    Target,
    /// It is for another token, or for none.
    #[error("the proof's ath is not the hash of the token")]
    AccessToken,
    /// Too old, or from a clock that is ahead.
    #[error("the proof's iat is more than {MAX_AGE_SECONDS} s away from now")]
    Time,
    /// It has no nonce, or another one.
    #[error("the proof does not contain the service's nonce")]
    Nonce,
    /// The key did not sign it.
    #[error("the proof's signature does not verify")]
    Signature(#[source] BadSignature),
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    typ: Option<String>,
    #[serde(deserialize_with = "object")]
    jwk: Jwk,
    #[serde(default)]
    crit: CriticalExtensions,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    crv: String,
    x: String,
    y: String,
    #[serde(default)]
    d: Option<IgnoredAny>,
}

/// The hash of an access token in a proof: SHA-256 in base64url.
#[must_use]
pub fn access_token_hash(token: &str) -> String {
    URL_SAFE_NO_PAD.encode(sha256(token.as_bytes()))
}

impl ProofClaims {
    /// Signs these claims and returns the compact JWS.
    ///
    /// `sign` gets the bytes to sign and returns an ECDSA signature with SHA-256 in the fixed form, `r || s`.
    pub fn sign<E, S>(&self, key: &PublicKey, sign: S) -> Result<String, E>
    where
        E: From<serde_json::Error>,
        S: FnOnce(&[u8]) -> Result<[u8; 64], E>,
    {
        let (x, y) = key.jwk_coordinates();
        let header =
            format!(r#"{{"typ":"{TYPE}","alg":"{ALGORITHM}","jwk":{{"kty":"EC","crv":"P-256","x":"{x}","y":"{y}"}}}}"#);
        jws::sign(header.as_bytes(), self, sign)
    }
}

impl<'a> UnverifiedProof<'a> {
    /// Reads a compact JWS and its claims without verifying them.
    pub fn parse(jws: &'a str) -> Result<Self, ProofError> {
        if jws.len() > LONGEST {
            return Err(ProofError::TooLong);
        }
        let (signed, signature) = jws.rsplit_once('.').ok_or(ProofError::NotCompactJws)?;
        let (header, claims) = signed.split_once('.').ok_or(ProofError::NotCompactJws)?;
        let header: Header = read_part(header).map_err(|error| ProofError::of_part("header", error))?;
        if header.alg != ALGORITHM {
            return Err(ProofError::Algorithm);
        }
        if header.typ.as_deref() != Some(TYPE) {
            return Err(ProofError::Type);
        }
        if header.crit.is_present() {
            return Err(ProofError::CriticalHeader);
        }
        Ok(Self {
            key: header.jwk.public_key()?,
            signed,
            signature: URL_SAFE_NO_PAD
                .decode(signature)
                .map_err(|_| ProofError::NotCompactJws)?,
            claims: read_part(claims).map_err(|error| ProofError::of_part("claims", error))?,
        })
    }

    /// Verifies that the token's key signed this for this request and token, and recently.
    ///
    /// The signature is verified last, because it costs the most.
    pub fn verify(self, expected: &Expectation<'_>) -> Result<Proof, ProofError> {
        let claims = &self.claims;
        if self.key.thumbprint() != expected.key {
            return Err(ProofError::OtherKey);
        }
        if claims.htm != *expected.method {
            return Err(ProofError::Method);
        }
        if claims.htu != *expected.target {
            return Err(ProofError::Target);
        }
        if claims.ath.as_deref() != Some(expected.access_token_hash) {
            return Err(ProofError::AccessToken);
        }
        if expected.now.abs_diff(claims.iat) > MAX_AGE_SECONDS.unsigned_abs() {
            return Err(ProofError::Time);
        }
        if expected.nonce.is_some() && claims.nonce.as_ref() != expected.nonce {
            return Err(ProofError::Nonce);
        }
        self.key
            .verify_fixed(self.signed.as_bytes(), &self.signature)
            .map_err(ProofError::Signature)?;
        Ok(Proof {
            key: self.key.thumbprint(),
            claims: self.claims,
        })
    }
}

impl Proof {
    /// The key that signed it.
    #[must_use]
    pub fn key(&self) -> KeyThumbprint {
        self.key
    }

    /// Its claims.
    #[must_use]
    pub fn claims(&self) -> &ProofClaims {
        &self.claims
    }
}

impl Jwk {
    fn public_key(&self) -> Result<PublicKey, ProofError> {
        if self.d.is_some() {
            return Err(ProofError::PrivateKey);
        }
        if self.kty != "EC" || self.crv != "P-256" {
            return Err(ProofError::Jwk);
        }
        PublicKey::from_jwk_coordinates(&self.x, &self.y).map_err(|_| ProofError::Jwk)
    }
}

impl ProofError {
    fn of_part(part: &'static str, error: PartError) -> Self {
        match error {
            PartError::NotBase64Url => Self::NotCompactJws,
            PartError::Unreadable(source) => Self::Unreadable { part, source },
        }
    }
}

impl DpopNonce {
    /// The nonce.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for DpopNonce {
    type Err = NotADpopNonce;

    fn from_str(text: &str) -> Result<Self, NotADpopNonce> {
        let is_valid = text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\'));
        match is_valid && (1..=LONGEST_NONCE).contains(&text.len()) {
            true => Ok(Self(text.to_owned())),
            false => Err(NotADpopNonce),
        }
    }
}

impl TryFrom<String> for DpopNonce {
    type Error = NotADpopNonce;

    fn try_from(text: String) -> Result<Self, NotADpopNonce> {
        text.parse()
    }
}

impl From<DpopNonce> for String {
    fn from(nonce: DpopNonce) -> Self {
        nonce.0
    }
}

fn proof_id<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let id = String::deserialize(deserializer)?;
    match (1..=LONGEST_ID).contains(&id.len()) {
        true => Ok(id),
        false => Err(serde::de::Error::custom("jti must have 1 to 128 bytes")),
    }
}
