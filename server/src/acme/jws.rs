//! Parses the JWS of a request (RFC 8555, section 6.2; RFC 7515, flattened).

use assay_authority::EcKey;
use assay_protocol::jws::CriticalExtensions;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

/// The signature algorithms for accounts.
pub(crate) const ALGORITHMS: [&str; 2] = ["ES256", "ES384"];

/// A parsed JWS whose signature is not verified yet.
#[derive(Debug)]
pub(crate) struct UnverifiedJws {
    pub(crate) header: Header,
    payload: Vec<u8>,
    signed: String,
    signature: Vec<u8>,
}

/// The protected header. Unknown members can be ignored, unless `crit` names them.
#[derive(Debug, Deserialize)]
pub(crate) struct Header {
    pub(crate) alg: String,
    pub(crate) url: String,
    #[serde(default)]
    pub(crate) nonce: Option<String>,
    #[serde(default)]
    pub(crate) jwk: Option<Value>,
    #[serde(default)]
    pub(crate) kid: Option<String>,
    #[serde(default)]
    crit: CriticalExtensions,
}

/// Exactly one signature, and no unprotected members.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Flattened {
    protected: String,
    payload: String,
    signature: String,
}

/// Why a JWS is rejected.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JwsError {
    #[error("the body must be a JWS in flattened JSON with only the members protected, payload and signature")]
    NotFlattened,
    #[error("{0} is not base64url without padding")]
    NotBase64(&'static str),
    #[error("the protected header must be a JSON object with the strings alg and url")]
    Header,
    #[error("the protected header has crit, but no critical extension is supported")]
    Critical,
    #[error("the JWS is signed with {0:?}; this server accepts {allowed}", allowed = ALGORITHMS.join(" and "))]
    Algorithm(String),
    #[error("the key requires {expected}, but alg is {alg:?}")]
    OtherAlgorithm { expected: &'static str, alg: String },
    #[error("the signature does not match the key")]
    Signature,
}

impl UnverifiedJws {
    /// Parses a body.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, JwsError> {
        Self::from_parts(read_object(body).ok_or(JwsError::NotFlattened)?)
    }

    /// Parses a JWS inside another one's payload.
    pub(crate) fn from_value(value: &Value) -> Result<Self, JwsError> {
        let parts = value.is_object().then(|| Flattened::deserialize(value));
        Self::from_parts(parts.and_then(Result::ok).ok_or(JwsError::NotFlattened)?)
    }

    fn from_parts(parts: Flattened) -> Result<Self, JwsError> {
        let decode = |what, text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| JwsError::NotBase64(what));
        let header = decode("protected", &parts.protected)?;
        let header: Header = read_object(&header).ok_or(JwsError::Header)?;
        if header.crit.is_present() {
            return Err(JwsError::Critical);
        }
        Ok(Self {
            header,
            payload: decode("payload", &parts.payload)?,
            signature: decode("signature", &parts.signature)?,
            signed: format!("{}.{}", parts.protected, parts.payload),
        })
    }

    /// Checks the algorithm first: the error tells a client which algorithms exist.
    pub(super) fn require_algorithm(&self) -> Result<(), JwsError> {
        if ALGORITHMS.contains(&self.header.alg.as_str()) {
            return Ok(());
        }
        Err(JwsError::Algorithm(self.header.alg.clone()))
    }

    /// Verifies the signature with this key and returns the payload. The key determines the algorithm, and `alg` must
    /// match.
    pub(crate) fn verify(self, key: &EcKey) -> Result<Vec<u8>, JwsError> {
        self.require_algorithm()?;
        let expected = key.jws_algorithm();
        if self.header.alg != expected {
            return Err(JwsError::OtherAlgorithm {
                expected,
                alg: self.header.alg,
            });
        }
        key.verify_jws(self.signed.as_bytes(), &self.signature)
            .map_err(|_| JwsError::Signature)?;
        Ok(self.payload)
    }

    /// Verifies the MAC with this key and returns the payload. Only HS256 is accepted.
    pub(super) fn verify_mac(self, key: &[u8; 32]) -> Result<Vec<u8>, JwsError> {
        use aws_lc_rs::hmac;
        if self.header.alg != "HS256" {
            return Err(JwsError::OtherAlgorithm {
                expected: "HS256",
                alg: self.header.alg,
            });
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        hmac::verify(&key, self.signed.as_bytes(), &self.signature).map_err(|_| JwsError::Signature)?;
        Ok(self.payload)
    }
}

/// Reads a struct from a JSON object. serde also reads an array as a struct, member by member (RFC 7515, section 4).
pub(super) fn read_object<T: DeserializeOwned>(json: &[u8]) -> Option<T> {
    let is_object = json.trim_ascii_start().starts_with(b"{");
    is_object.then(|| serde_json::from_slice(json).ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_array_is_neither_a_jws_nor_a_header() {
        let parts = json!([URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","url":"u"}"#), "", "AAAA"]);
        assert_eq!(UnverifiedJws::from_value(&parts).unwrap_err(), JwsError::NotFlattened);
        let body = parts.to_string();
        assert_eq!(
            UnverifiedJws::parse(body.as_bytes()).unwrap_err(),
            JwsError::NotFlattened
        );
        let header = jws(&json!(["ES256", "u"]));
        assert_eq!(UnverifiedJws::from_value(&header).unwrap_err(), JwsError::Header);
    }

    fn jws(header: &Value) -> Value {
        let protected = URL_SAFE_NO_PAD.encode(header.to_string());
        json!({"protected": protected, "payload": "", "signature": "AAAA"})
    }

    #[rstest]
    #[case(json!([]), JwsError::NotFlattened)]
    #[case(json!({"protected": "", "payload": ""}), JwsError::NotFlattened)]
    #[case(json!({"protected": "", "payload": "", "signature": "", "header": {}}), JwsError::NotFlattened)]
    #[case(json!({"payload": "", "signatures": []}), JwsError::NotFlattened)]
    #[case(json!({"protected": "e30=", "payload": "", "signature": ""}), JwsError::NotBase64("protected"))]
    #[case(json!({"protected": "e30", "payload": "", "signature": ""}), JwsError::Header)]
    #[case(jws(&json!({"alg": "ES256", "url": 1})), JwsError::Header)]
    #[case(jws(&json!({"alg": "ES256", "url": "u", "crit": ["b64"], "b64": false})), JwsError::Critical)]
    #[case(jws(&json!({"alg": "ES256", "url": "u", "crit": []})), JwsError::Critical)]
    #[case(jws(&json!({"alg": "ES256", "url": "u", "crit": null})), JwsError::Critical)]
    #[case(jws(&json!({"alg": "ES256", "url": "u", "crit": "b64"})), JwsError::Critical)]
    fn a_body_that_is_not_an_acme_jws_is_refused(#[case] body: Value, #[case] refusal: JwsError) {
        assert_eq!(UnverifiedJws::parse(body.to_string().as_bytes()).unwrap_err(), refusal);
        assert_eq!(UnverifiedJws::from_value(&body).unwrap_err(), refusal);
    }

    #[test]
    fn a_repeated_member_is_refused() {
        let twice = br#"{"protected":"e30","payload":"","payload":"AA","signature":""}"#;
        assert_eq!(UnverifiedJws::parse(twice).unwrap_err(), JwsError::NotFlattened);
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","url":"one","url":"two"}"#);
        let body = json!({"protected": header, "payload": "", "signature": ""}).to_string();
        assert_eq!(UnverifiedJws::parse(body.as_bytes()).unwrap_err(), JwsError::Header);
    }

    #[rstest]
    #[case("none")]
    #[case("HS256")]
    #[case("RS256")]
    #[case("es256")]
    fn other_algorithms_are_refused_by_name(#[case] alg: &str) {
        let body = jws(&json!({"alg": alg, "url": "u"})).to_string();
        let refusal = UnverifiedJws::parse(body.as_bytes())
            .unwrap()
            .require_algorithm()
            .unwrap_err();
        assert_eq!(refusal, JwsError::Algorithm(alg.to_owned()));
        assert!(refusal.to_string().contains("ES256 and ES384"), "{refusal}");
    }

    #[test]
    fn a_mac_requires_hs256_and_the_same_key() {
        let jws = |alg: &str, key: &[u8; 32]| {
            let protected = URL_SAFE_NO_PAD.encode(json!({"alg": alg, "url": "u"}).to_string());
            let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key);
            let code = aws_lc_rs::hmac::sign(&key, format!("{protected}.e30").as_bytes());
            let signature = URL_SAFE_NO_PAD.encode(code.as_ref());
            let value = json!({"protected": protected, "payload": "e30", "signature": signature});
            UnverifiedJws::from_value(&value).unwrap()
        };
        assert_eq!(jws("HS256", &[7; 32]).verify_mac(&[7; 32]).unwrap(), b"{}");
        assert_eq!(jws("HS256", &[7; 32]).verify_mac(&[8; 32]), Err(JwsError::Signature));
        assert!(jws("HS512", &[7; 32]).verify_mac(&[7; 32]).is_err());
    }

    proptest! {
        #[test]
        fn bytes_from_outside_never_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(UnverifiedJws::parse(&body).is_err());
        }

        #[test]
        fn headers_from_outside_never_panic(header in ".{0,200}") {
            let protected = URL_SAFE_NO_PAD.encode(header);
            let body = json!({"protected": protected, "payload": "", "signature": ""}).to_string();
            prop_assert!(UnverifiedJws::parse(body.as_bytes()).is_err());
        }
    }
}
