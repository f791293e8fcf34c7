//! The trust bundle in SPIFFE's format (SPIFFE Trust Domain and Bundle, section 4): the roots for X.509-SVIDs, and the
//! keys of grant tokens, which are JWT-SVIDs.

use assay_protocol::PublicKey;
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    AuthorityError,
    certificate_path::{self, Curve},
};

/// The bundle's document.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SpiffeBundle {
    /// The roots, then the keys of grant tokens.
    pub keys: Vec<SpiffeKey>,
    /// Increases with every change.
    pub spiffe_sequence: i64,
    /// After how many seconds to fetch the bundle again.
    pub spiffe_refresh_hint: u64,
}

/// One key of a bundle (RFC 7517).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct SpiffeKey {
    /// `EC`.
    pub kty: &'static str,
    /// `P-256`, or `P-384` for an external root.
    pub crv: &'static str,
    /// The x coordinate in base64url.
    pub x: String,
    /// The y coordinate in base64url.
    pub y: String,
    /// `x509-svid` or `jwt-svid`.
    #[serde(rename = "use")]
    pub key_use: &'static str,
    /// The `kid` in the header of grant tokens; only for a grant key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    /// Only for a root: its certificate, in DER and base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x5c: Option<[String; 1]>,
}

impl SpiffeKey {
    /// A root, given its certificate in DER.
    pub(super) fn root(certificate: &[u8]) -> Result<Self, AuthorityError> {
        let parsed = certificate_path::read(certificate)?;
        let key = parsed.public_key();
        let curve = Curve::of(key).ok_or(AuthorityError::Certificate)?;
        // SEC 1: the first byte of an uncompressed point is 4.
        let Some((4, coordinates)) = key.subject_public_key.data.split_first() else {
            return Err(AuthorityError::Certificate);
        };
        let (x, y) = coordinates.split_at(coordinates.len() / 2);
        Ok(Self {
            kty: "EC",
            crv: curve.name(),
            x: URL_SAFE_NO_PAD.encode(x),
            y: URL_SAFE_NO_PAD.encode(y),
            key_use: "x509-svid",
            kid: None,
            x5c: Some([STANDARD.encode(certificate)]),
        })
    }

    /// A key of grant tokens.
    pub(super) fn grant_key(key: &PublicKey) -> Self {
        let (x, y) = key.jwk_coordinates();
        Self {
            kty: "EC",
            crv: Curve::P256.name(),
            x,
            y,
            key_use: "jwt-svid",
            kid: Some(key.thumbprint().to_string()),
            x5c: None,
        }
    }
}
