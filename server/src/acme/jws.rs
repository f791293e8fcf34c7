//! Reading the JWS that every request is (RFC 8555, section 6.2; RFC 7515, flattened).

use assay_authority::EcKey;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::Value;

/// The algorithms that accounts may sign with.
pub(crate) const ALGORITHMS: [&str; 2] = ["ES256", "ES384"];

/// What a JWS says of itself, and what it would say if its signature verified.
#[derive(Debug)]
pub(super) struct UnverifiedJws {
    pub(super) header: Header,
    payload: Vec<u8>,
    signed: String,
    signature: Vec<u8>,
}

/// The protected header. Members that are not known say nothing that has to be understood, or `crit` names them.
#[derive(Debug, Deserialize)]
pub(super) struct Header {
    pub(super) alg: String,
    pub(super) url: String,
    #[serde(default)]
    pub(super) nonce: Option<String>,
    #[serde(default)]
    pub(super) jwk: Option<Value>,
    #[serde(default)]
    pub(super) kid: Option<String>,
    #[serde(default)]
    crit: Option<Value>,
}

/// One signature, and nothing that is not protected by it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Flattened {
    protected: String,
    payload: String,
    signature: String,
}

/// Why a JWS is not accepted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JwsError {
    #[error("the body is not a JWS in flattened JSON with the members protected, payload and signature alone")]
    NotFlattened,
    #[error("{0} is not base64url without padding")]
    NotBase64(&'static str),
    #[error("the protected header is not a JSON object with the texts alg and url")]
    Header,
    #[error("the protected header has crit, and nothing that it could name is supported")]
    Critical,
    #[error("the JWS is signed with {0:?}, and this takes {allowed}", allowed = ALGORITHMS.join(" and "))]
    Algorithm(String),
    #[error("the key signs with {expected}, and alg says {alg:?}")]
    OtherAlgorithm { expected: &'static str, alg: String },
    #[error("the signature does not verify with the key")]
    Signature,
}

impl UnverifiedJws {
    /// Reads a body.
    pub(super) fn parse(body: &[u8]) -> Result<Self, JwsError> {
        Self::from_parts(serde_json::from_slice(body).map_err(|_| JwsError::NotFlattened)?)
    }

    /// Reads a JWS within another one's payload.
    pub(super) fn from_value(value: &Value) -> Result<Self, JwsError> {
        Self::from_parts(Flattened::deserialize(value).map_err(|_| JwsError::NotFlattened)?)
    }

    fn from_parts(parts: Flattened) -> Result<Self, JwsError> {
        let decode = |what, text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| JwsError::NotBase64(what));
        let header = decode("protected", &parts.protected)?;
        let header: Header = serde_json::from_slice(&header).map_err(|_| JwsError::Header)?;
        if header.crit.is_some() {
            return Err(JwsError::Critical);
        }
        Ok(Self {
            header,
            payload: decode("payload", &parts.payload)?,
            signature: decode("signature", &parts.signature)?,
            signed: format!("{}.{}", parts.protected, parts.payload),
        })
    }

    /// Demands an algorithm of accounts, so that a client learns which there are before anything else is said.
    pub(super) fn demand_algorithm(&self) -> Result<(), JwsError> {
        if ALGORITHMS.contains(&self.header.alg.as_str()) {
            return Ok(());
        }
        Err(JwsError::Algorithm(self.header.alg.clone()))
    }

    /// What was signed with this key. The key decides the algorithm, and `alg` has to say the same.
    pub(super) fn verify(self, key: &EcKey) -> Result<Vec<u8>, JwsError> {
        self.demand_algorithm()?;
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

    /// What was authenticated with this MAC key, by HS256 alone.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    use super::*;

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
    fn what_is_no_jws_of_acme_is_refused(#[case] body: Value, #[case] refusal: JwsError) {
        assert_eq!(UnverifiedJws::parse(body.to_string().as_bytes()).unwrap_err(), refusal);
        assert_eq!(UnverifiedJws::from_value(&body).unwrap_err(), refusal);
    }

    #[test]
    fn a_member_that_is_there_twice_is_refused() {
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
            .demand_algorithm()
            .unwrap_err();
        assert_eq!(refusal, JwsError::Algorithm(alg.to_owned()));
        assert!(refusal.to_string().contains("ES256 and ES384"), "{refusal}");
    }

    #[test]
    fn a_mac_is_hs256_with_the_very_key() {
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
