//! Grant tokens, as a relying party reads them. The algorithm is always ES256, and the type always `JWT`.

use assay_protocol::{
    KeyThumbprint, PublicKey,
    jws::{CriticalExtensions, PartError, read_part},
    machine::Assurance,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use time::OffsetDateTime;
use uuid::Uuid;

/// The longest accepted token in bytes. An audience's further claims have at most 4 KiB.
pub(crate) const LONGEST: usize = 16 * 1024;

/// A token that is not verified.
#[derive(Debug)]
pub(crate) struct UnverifiedToken<'a> {
    kid: String,
    signed: &'a str,
    signature: Vec<u8>,
    claims: Claims,
}

/// A token with verified signature, issuer and audience. Its time must be checked at each use.
#[derive(Debug)]
pub(crate) struct GrantToken {
    pub(crate) kid: String,
    /// The key that the caller must prove.
    pub(crate) key: KeyThumbprint,
    /// SHA-256 of the certificate that the caller may prove it with.
    pub(crate) certificate: Option<[u8; 32]>,
    pub(crate) machine_id: Uuid,
    pub(crate) permissions: Vec<String>,
    pub(crate) assurance: Assurance,
    not_before: i64,
    expires_at: i64,
}

/// Why a token is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("the token is longer than {LONGEST} bytes")]
    TooLong,
    #[error("the token is not a compact JWS")]
    NotCompactJws,
    #[error("the token cannot be read")]
    Unreadable(#[from] PartError),
    #[error("the token's alg is not ES256")]
    Algorithm,
    #[error("the token's typ is not JWT, so it is another token")]
    Type,
    #[error("the token has a critical header parameter that is not understood")]
    CriticalHeader,
    #[error("the token is of another issuer")]
    Issuer,
    #[error("the token is for another audience")]
    Audience,
    #[error("the token is not valid yet")]
    NotYet,
    #[error("the token has expired")]
    Expired,
    #[error("the token's signature does not verify")]
    Signature,
    #[error("the token's cnf is not a key and a certificate")]
    Confirmation,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    typ: Option<String>,
    kid: String,
    #[serde(default)]
    crit: CriticalExtensions,
}

#[derive(Debug, Deserialize)]
struct Claims {
    iss: String,
    aud: Audience,
    exp: i64,
    nbf: i64,
    cnf: Confirmation,
    permissions: Vec<String>,
    machine_id: Uuid,
    assurance: Assurance,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    Text(String),
    List(Vec<String>),
}

#[derive(Debug, Deserialize)]
struct Confirmation {
    jkt: KeyThumbprint,
    #[serde(default, rename = "x5t#S256")]
    certificate: Option<String>,
}

impl<'a> UnverifiedToken<'a> {
    /// Reads a compact JWS without verifying it.
    pub(crate) fn parse(jws: &'a str) -> Result<Self, TokenError> {
        if jws.len() > LONGEST {
            return Err(TokenError::TooLong);
        }
        let (signed, signature) = jws.rsplit_once('.').ok_or(TokenError::NotCompactJws)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::NotCompactJws)?;
        let header: Header = read_part(header)?;
        if header.alg != "ES256" {
            return Err(TokenError::Algorithm);
        }
        if header.typ.as_deref() != Some("JWT") {
            return Err(TokenError::Type);
        }
        if header.crit.is_present() {
            return Err(TokenError::CriticalHeader);
        }
        Ok(Self {
            kid: header.kid,
            signed,
            signature: URL_SAFE_NO_PAD
                .decode(signature)
                .map_err(|_| TokenError::NotCompactJws)?,
            claims: read_part(claims)?,
        })
    }

    /// The claimed key of the issuer, to look it up.
    pub(crate) fn unverified_kid(&self) -> &str {
        &self.kid
    }

    /// Refuses a token that no signature could make acceptable, before keys are fetched for it.
    pub(crate) fn check(&self, issuer: &str, audience: &str, now: OffsetDateTime) -> Result<(), TokenError> {
        if self.claims.iss != issuer {
            return Err(TokenError::Issuer);
        }
        if !self.claims.aud.contains(audience) {
            return Err(TokenError::Audience);
        }
        check_time(self.claims.nbf, self.claims.exp, now)
    }

    /// Verifies the signature of a token that was checked.
    pub(crate) fn verify(self, key: &PublicKey) -> Result<GrantToken, TokenError> {
        key.verify_fixed(self.signed.as_bytes(), &self.signature)
            .map_err(|_| TokenError::Signature)?;
        let claims = self.claims;
        let certificate = claims.cnf.certificate.as_deref().map(thumbprint).transpose()?;
        Ok(GrantToken {
            kid: self.kid,
            key: claims.cnf.jkt,
            certificate,
            machine_id: claims.machine_id,
            permissions: claims.permissions,
            assurance: claims.assurance,
            not_before: claims.nbf,
            expires_at: claims.exp,
        })
    }
}

impl GrantToken {
    /// Whether the token is valid now.
    pub(crate) fn check_time(&self, now: OffsetDateTime) -> Result<(), TokenError> {
        check_time(self.not_before, self.expires_at, now)
    }
}

impl Audience {
    fn contains(&self, audience: &str) -> bool {
        match self {
            Self::Text(text) => text == audience,
            Self::List(list) => list.iter().any(|other| other == audience),
        }
    }
}

/// The server sets `nbf` 30 seconds into the past, which allows for clocks that differ.
fn check_time(not_before: i64, expires_at: i64, now: OffsetDateTime) -> Result<(), TokenError> {
    match now.unix_timestamp() {
        now if now < not_before => Err(TokenError::NotYet),
        now if now >= expires_at => Err(TokenError::Expired),
        _ => Ok(()),
    }
}

fn thumbprint(base64url: &str) -> Result<[u8; 32], TokenError> {
    let digest = (base64url.len() == 43).then(|| URL_SAFE_NO_PAD.decode(base64url).ok());
    let digest = digest.flatten().ok_or(TokenError::Confirmation)?;
    digest.try_into().map_err(|_| TokenError::Confirmation)
}
