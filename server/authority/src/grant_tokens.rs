//! Grant tokens: short-lived JWTs (RFC 7519) that name a machine's permissions at one audience, bound to its key (RFC
//! 7800).

use assay_protocol::{KeyThumbprint, PublicKey, jws::CriticalExtensions, machine::Assurance};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use super::keys::{KeyError, PrivateKey};

/// The `typ` in the header. RFC 8725 recommends a type of its own, but stock libraries reject unknown types, and SPIFFE
/// allows only `JWT` here. Evidence cannot be mistaken for a grant token: its verifier requires `eat+jwt`.
const TYPE: &str = "JWT";

/// The claims of a grant token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GrantClaims {
    /// The server's public URL, without a trailing slash.
    pub iss: String,
    /// The machine's SPIFFE id, or what the audience has instead.
    pub sub: String,
    /// The one relying party that the token is for.
    pub aud: AudienceClaim,
    /// When it was issued, in seconds since 1970.
    pub iat: i64,
    /// From when it is valid, in seconds since 1970.
    pub nbf: i64,
    /// When it expires, in seconds since 1970.
    pub exp: i64,
    /// The token's own id.
    pub jti: Uuid,
    /// The key that the presenter must hold.
    pub cnf: Confirmation,
    /// The permissions, separated by spaces (RFC 8693).
    pub scope: String,
    /// The permissions.
    pub permissions: Vec<String>,
    /// The machine's id.
    pub machine_id: Uuid,
    /// The machine's assurance level.
    pub assurance: Assurance,
}

/// The audience of a token (RFC 7519, section 4.1.3). Some relying parties read only one of the forms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum AudienceClaim {
    /// A list of one, which is the usual form.
    List([String; 1]),
    /// The text itself.
    Text(String),
}

impl AudienceClaim {
    /// The audience.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::List([audience]) | Self::Text(audience) => audience,
        }
    }
}

/// The key that a token is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Confirmation {
    /// The thumbprint of the machine's key (RFC 7638).
    #[schema(value_type = String)]
    pub jkt: KeyThumbprint,
    /// SHA-256 of the machine's certificate in DER, in base64url (RFC 8705).
    #[serde(rename = "x5t#S256")]
    pub certificate_sha256: String,
}

impl Confirmation {
    /// Binds to a key and to the certificate of that key.
    #[must_use]
    pub fn new(key: KeyThumbprint, certificate_sha256: &[u8; 32]) -> Self {
        Self {
            jkt: key,
            certificate_sha256: URL_SAFE_NO_PAD.encode(certificate_sha256),
        }
    }
}

/// Signs grant tokens.
pub struct GrantSigner {
    pair: EcdsaKeyPair,
    public_key: PublicKey,
    /// The encoded header. It is the same for every token of this key, so it is encoded once.
    header: String,
}

/// The public keys that verify grant tokens: a JWK set (RFC 7517).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JsonWebKeySet {
    /// The keys. The one that signs now is first.
    pub keys: Vec<JsonWebKey>,
}

/// One public key (RFC 7517, RFC 7518 section 6.2.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JsonWebKey {
    /// `EC`.
    pub kty: String,
    /// `P-256`.
    pub crv: String,
    /// The x coordinate, base64url of 32 bytes.
    pub x: String,
    /// The y coordinate, base64url of 32 bytes.
    pub y: String,
    /// `sig`.
    #[serde(rename = "use")]
    pub key_use: String,
    /// `ES256`.
    pub alg: String,
    /// The RFC 7638 thumbprint. Tokens name it in their header.
    pub kid: String,
}

/// Why a token cannot be signed, or is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum GrantTokenError {
    /// The claims cannot be encoded, or the library cannot sign. The claims' values are not the cause.
    #[error("the token cannot be signed")]
    Sign,
    /// Not a JWT, another algorithm or type, a wrong signature or a wrong issuer.
    #[error("not a grant token of this server")]
    Unreadable(#[source] jsonwebtoken::errors::Error),
    /// The header demands extensions that this reader does not understand.
    #[error("not a grant token, by its critical extensions")]
    Critical,
    /// Another kind of token.
    #[error("not a grant token, by its type")]
    Type,
    /// Signed by a key that is not published, or no longer published.
    #[error("signed by an unknown key")]
    UnknownKey,
    /// Not valid yet.
    #[error("not valid yet")]
    NotYet,
    /// Past its end.
    #[error("expired")]
    Expired,
}

impl GrantSigner {
    /// Prepares a key for signing.
    pub fn new(key: &PrivateKey) -> Result<Self, KeyError> {
        let kid = key.public_key().thumbprint();
        Ok(Self {
            pair: key.signing_pair(&ECDSA_P256_SHA256_FIXED_SIGNING)?,
            public_key: key.public_key().clone(),
            header: URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"ES256","typ":"{TYPE}","kid":"{kid}"}}"#)),
        })
    }

    /// The public half. Its thumbprint is the tokens' `kid`.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// Signs a token. `further` are more claims: the members of a JSON object, without its braces. They must not repeat
    /// the names of the others.
    ///
    /// This does not use the JWT library, which parses the private key again for every signature. Every check-in signs
    /// one token per audience.
    pub fn sign(&self, claims: &GrantClaims, further: &str) -> Result<String, GrantTokenError> {
        let mut claims = serde_json::to_vec(claims).map_err(|_| GrantTokenError::Sign)?;
        if !further.is_empty() {
            claims.pop();
            claims.push(b',');
            claims.extend_from_slice(further.as_bytes());
            claims.push(b'}');
        }
        let mut token = self.header.clone();
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = self
            .pair
            .sign(&SystemRandom::new(), token.as_bytes())
            .map_err(|_| GrantTokenError::Sign)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }
}

/// The document with which relying parties verify tokens.
#[must_use]
pub(super) fn json_web_key_set<'a>(keys: impl IntoIterator<Item = &'a PublicKey>) -> JsonWebKeySet {
    let keys = keys.into_iter().map(|key| {
        let (x, y) = key.jwk_coordinates();
        JsonWebKey {
            kty: "EC".to_owned(),
            crv: "P-256".to_owned(),
            x,
            y,
            key_use: "sig".to_owned(),
            alg: "ES256".to_owned(),
            kid: key.thumbprint().to_string(),
        }
    });
    JsonWebKeySet { keys: keys.collect() }
}

/// Verifies that one of `keys` signed a token for `issuer` and that it is valid at `now`, without leeway, since the
/// issuer checks its own tokens. The caller checks the audience.
pub fn verify_grant_token(
    token: &str,
    keys: &[PublicKey],
    issuer: &str,
    now: OffsetDateTime,
) -> Result<GrantClaims, GrantTokenError> {
    let header = jsonwebtoken::decode_header(token).map_err(GrantTokenError::Unreadable)?;
    if header.typ.as_deref() != Some(TYPE) {
        return Err(GrantTokenError::Type);
    }
    require_no_extensions(token)?;
    let kid = header.kid.unwrap_or_default();
    let key = keys
        .iter()
        .find(|key| key.thumbprint().to_string() == kid)
        .ok_or(GrantTokenError::UnknownKey)?;
    let mut validation = Validation::new(Algorithm::ES256);
    validation.set_issuer(&[issuer]);
    validation.validate_aud = false;
    // The library would read the system clock.
    (validation.validate_exp, validation.validate_nbf) = (false, false);
    let decoding_key = DecodingKey::from_ec_der(key.sec1());
    let claims = jsonwebtoken::decode::<GrantClaims>(token, &decoding_key, &validation)
        .map_err(GrantTokenError::Unreadable)?
        .claims;
    match now.unix_timestamp() {
        now if now < claims.nbf => Err(GrantTokenError::NotYet),
        now if now >= claims.exp => Err(GrantTokenError::Expired),
        _ => Ok(claims),
    }
}

/// The library ignores `crit`.
fn require_no_extensions(token: &str) -> Result<(), GrantTokenError> {
    #[derive(Deserialize)]
    struct Header {
        #[serde(default)]
        crit: CriticalExtensions,
    }
    let (header, _) = token.split_once('.').ok_or(GrantTokenError::Critical)?;
    let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| GrantTokenError::Critical)?;
    match serde_json::from_slice(&header) {
        Ok(Header { crit }) if !crit.is_present() => Ok(()),
        _ => Err(GrantTokenError::Critical),
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::jwk::JwkSet;
    use time::{Duration, macros::datetime};

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-22 10:00:00 UTC);
    const ISSUER: &str = "https://assay.example.com";

    fn claims(machine: &PrivateKey) -> GrantClaims {
        let machine_id = Uuid::from_u128(7);
        GrantClaims {
            iss: ISSUER.to_owned(),
            sub: format!("spiffe://example.com/machine/{machine_id}"),
            aud: AudienceClaim::List(["https://repository.example.com".to_owned()]),
            iat: NOW.unix_timestamp(),
            nbf: NOW.unix_timestamp(),
            exp: NOW.unix_timestamp() + 600,
            jti: Uuid::new_v4(),
            cnf: Confirmation::new(machine.public_key().thumbprint(), &[7; 32]),
            scope: "read write".to_owned(),
            permissions: vec!["read".to_owned(), "write".to_owned()],
            machine_id,
            assurance: Assurance::Verified,
        }
    }

    fn signer() -> (PrivateKey, GrantSigner) {
        let key = PrivateKey::generate().unwrap();
        let signer = GrantSigner::new(&key).unwrap();
        (key, signer)
    }

    #[test]
    fn a_stock_library_verifies_a_token_with_only_the_published_keys() {
        let (key, signer) = signer();
        let other = PrivateKey::generate().unwrap();
        let claims = claims(&other);
        let token = signer.sign(&claims, "").unwrap();
        let published = serde_json::to_string(&json_web_key_set([other.public_key(), key.public_key()])).unwrap();
        let keys: JwkSet = serde_json::from_str(&published).unwrap();
        let header = jsonwebtoken::decode_header(&token).unwrap();
        assert_eq!((header.alg, header.typ.as_deref()), (Algorithm::ES256, Some("JWT")));
        let jwk = keys.find(&header.kid.unwrap()).unwrap();
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&["https://repository.example.com"]);
        validation.set_issuer(&[ISSUER]);
        validation.validate_exp = false;
        let decoded =
            jsonwebtoken::decode::<serde_json::Value>(&token, &DecodingKey::from_jwk(jwk).unwrap(), &validation);
        let decoded = decoded.unwrap().claims;
        assert_eq!(decoded["cnf"]["jkt"], other.public_key().thumbprint().to_string());
        assert_eq!(decoded["cnf"]["x5t#S256"], URL_SAFE_NO_PAD.encode([7; 32]));
        assert_eq!(decoded["aud"], serde_json::json!(["https://repository.example.com"]));
        assert_eq!(decoded["permissions"], serde_json::json!(["read", "write"]));
    }

    #[test]
    fn a_token_is_accepted_only_between_its_start_and_its_end() {
        let (key, signer) = signer();
        let claims = claims(&key);
        let token = signer.sign(&claims, "").unwrap();
        let verify = |at| verify_grant_token(&token, &[key.public_key().clone()], ISSUER, at);
        assert_eq!(verify(NOW).unwrap(), claims);
        assert_eq!(verify(NOW + Duration::seconds(599)).unwrap(), claims);
        assert!(matches!(
            verify(NOW + Duration::seconds(600)),
            Err(GrantTokenError::Expired)
        ));
        assert!(matches!(
            verify(NOW - Duration::seconds(1)),
            Err(GrantTokenError::NotYet)
        ));
    }

    #[test]
    fn a_token_with_critical_extensions_is_refused() {
        let (key, _) = signer();
        let kid = key.public_key().thumbprint();
        for critical in ["null", "[]", r#""exp""#, r#"["exp"]"#] {
            let header = format!(r#"{{"alg":"ES256","typ":"JWT","kid":"{kid}","crit":{critical}}}"#);
            let signer = GrantSigner {
                header: URL_SAFE_NO_PAD.encode(header),
                ..GrantSigner::new(&key).unwrap()
            };
            let token = signer.sign(&claims(&key), "").unwrap();
            let verified = verify_grant_token(&token, &[key.public_key().clone()], ISSUER, NOW);
            assert!(verified.is_err(), "{critical}");
        }
    }

    #[test]
    fn another_issuer_key_type_or_byte_is_refused() {
        let (key, signer) = signer();
        let token = signer.sign(&claims(&key), "").unwrap();
        let keys = [key.public_key().clone()];
        let other = [PrivateKey::generate().unwrap().public_key().clone()];
        let verify = |token: &str| verify_grant_token(token, &keys, ISSUER, NOW);
        assert!(matches!(
            verify_grant_token(&token, &other, ISSUER, NOW),
            Err(GrantTokenError::UnknownKey)
        ));
        assert!(matches!(
            verify_grant_token(&token, &keys, "https://elsewhere.example.com", NOW),
            Err(GrantTokenError::Unreadable(_))
        ));
        let (_, rest) = token.split_once('.').unwrap();
        let kid = key.public_key().thumbprint();
        for header in [
            format!(r#"{{"alg":"ES256","typ":"eat+jwt","kid":"{kid}"}}"#),
            format!(r#"{{"alg":"ES256","kid":"{kid}"}}"#),
            format!(r#"{{"alg":"none","typ":"JWT","kid":"{kid}"}}"#),
            format!(r#"{{"alg":"HS256","typ":"JWT","kid":"{kid}"}}"#),
        ] {
            let forged = format!("{}.{rest}", URL_SAFE_NO_PAD.encode(&header));
            assert!(verify(&forged).is_err(), "{header}");
        }
        let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
        parts[1] = URL_SAFE_NO_PAD.encode(
            String::from_utf8(URL_SAFE_NO_PAD.decode(&parts[1]).unwrap())
                .unwrap()
                .replace("read write", "root write"),
        );
        assert!(matches!(verify(&parts.join(".")), Err(GrantTokenError::Unreadable(_))));
        assert!(verify("").is_err());
    }
}
