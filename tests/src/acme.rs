//! ACME from outside: a transport for a foreign client, a client that signs anything, and a Mac with a key of its
//! operating system.

use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex;

use assay_protocol::attestation::FreshnessCode;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::HeaderMap;
use http_body_util::BodyExt;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rcgen::{
    CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PublicKeyData, SanType,
    SignatureAlgorithm,
};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::apple::{Apple, Attested, FRESHNESS_CODE};
use crate::in_process::{InProcess, PUBLIC_URL};

/// Carries a foreign client's requests to the server of a test.
pub struct Transport(reqwest::Client);

impl Transport {
    /// To this server.
    #[must_use]
    pub fn to(server: &InProcess) -> Box<Self> {
        Box::new(Self(server.http1_client()))
    }
}

impl HttpClient for Transport {
    fn request(
        &self,
        request: http::Request<BodyWrapper<bytes::Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.0.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let request = client.request(parts.method, parts.uri.to_string());
            let response = request.headers(parts.headers).body(body).send().await;
            let response: http::Response<reqwest::Body> = response.map_err(|error| Error::Other(error.into()))?.into();
            Ok(BytesResponse::from(response))
        })
    }
}

/// A Mac with a key that its operating system created on a command of the MDM.
pub struct Mac {
    /// Its serial number.
    pub serial_number: String,
    /// On a real Mac, this key is in the Secure Enclave.
    pub key: KeyPair,
}

impl Mac {
    /// A Mac with a key on P-384, which the configuration profile requests.
    #[must_use]
    pub fn new(serial_number: &str) -> Self {
        Self::with_key_of(serial_number, &PKCS_ECDSA_P384_SHA384)
    }

    /// A Mac with a key on P-256.
    #[must_use]
    pub fn on_p256(serial_number: &str) -> Self {
        Self::with_key_of(serial_number, &PKCS_ECDSA_P256_SHA256)
    }

    fn with_key_of(serial_number: &str, algorithm: &'static SignatureAlgorithm) -> Self {
        Self {
            serial_number: serial_number.to_owned(),
            key: KeyPair::generate_for(algorithm).unwrap(),
        }
    }

    /// Apple's attestation for a challenge with this token.
    #[must_use]
    pub fn attested(&self, token: &str, at: OffsetDateTime) -> Attested {
        Attested::of_device(&self.serial_number, at).with(FRESHNESS_CODE, freshness_of(token).as_bytes())
    }

    /// Its response to a challenge.
    #[must_use]
    pub fn attestation_object(&self, apple: &Apple, attested: &Attested) -> Vec<u8> {
        attestation_object(&apple.attest_key(attested, &self.key))
    }

    /// Its CSR, with names and extensions that the server must ignore.
    #[must_use]
    pub fn csr(&self) -> Vec<u8> {
        let mut wishes = CertificateParams::default();
        wishes.distinguished_name.push(DnType::CommonName, "administrator");
        wishes.subject_alt_names = vec![
            SanType::URI("spiffe://example.com/machine/of-another".try_into().unwrap()),
            SanType::DnsName("assay.example.com".try_into().unwrap()),
        ];
        wishes.serialize_request(&self.key).unwrap().der().to_vec()
    }
}

/// SHA-256 of a challenge's token.
#[must_use]
pub fn freshness_of(token: &str) -> FreshnessCode {
    FreshnessCode::from_bytes(digest(&SHA256, token.as_bytes()).as_ref()).unwrap()
}

/// An attestation object of WebAuthn in CBOR, with a chain in DER.
#[must_use]
pub fn attestation_object(chain: &[Vec<u8>]) -> Vec<u8> {
    let mut object = vec![0xa2, 0x63];
    object.extend(b"fmt\x65apple\x67attStmt\xa1\x63x5c");
    object.push(0x80 + u8::try_from(chain.len()).unwrap());
    for certificate in chain {
        object.push(0x59);
        object.extend(u16::try_from(certificate.len()).unwrap().to_be_bytes());
        object.extend(certificate);
    }
    object
}

/// A key that signs JWS.
pub struct JwsKey {
    pair: EcdsaKeyPair,
    algorithm: &'static str,
    jwk: Value,
}

impl JwsKey {
    /// A new key on P-256.
    #[must_use]
    pub fn new() -> Self {
        Self::of(&KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap())
    }

    /// An existing key.
    #[must_use]
    pub fn of(key: &KeyPair) -> Self {
        let (algorithm, curve, signing) = if key.algorithm() == &PKCS_ECDSA_P384_SHA384 {
            ("ES384", "P-384", &ECDSA_P384_SHA384_FIXED_SIGNING)
        } else {
            ("ES256", "P-256", &ECDSA_P256_SHA256_FIXED_SIGNING)
        };
        let point = &key.der_bytes()[1..];
        let (x, y) = point.split_at(point.len() / 2);
        Self {
            pair: EcdsaKeyPair::from_pkcs8(signing, &key.serialize_der()).unwrap(),
            algorithm,
            jwk: json!({
                "kty": "EC", "crv": curve, "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
            }),
        }
    }

    /// The public key.
    #[must_use]
    pub fn jwk(&self) -> Value {
        self.jwk.clone()
    }

    /// Signs a payload with a header. Adds the key's algorithm to a header without one.
    #[must_use]
    pub fn sign(&self, mut header: Value, payload: &str) -> Value {
        if header.get("alg").is_none() {
            header["alg"] = self.algorithm.into();
        }
        let [protected, payload] = [header.to_string(), payload.to_owned()].map(|part| URL_SAFE_NO_PAD.encode(part));
        let signed = format!("{protected}.{payload}");
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        json!({"protected": protected, "payload": payload, "signature": URL_SAFE_NO_PAD.encode(signature)})
    }
}

impl Default for JwsKey {
    fn default() -> Self {
        Self::new()
    }
}

/// An external account binding of a key.
#[must_use]
pub fn external_account_binding(key: &JwsKey, key_id: &str, mac_key: &[u8]) -> Value {
    let url = format!("{PUBLIC_URL}/acme/new-account");
    let header = json!({"alg": "HS256", "kid": key_id, "url": url});
    let [protected, payload] = [header, key.jwk()].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    let mac_key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, mac_key);
    let code = aws_lc_rs::hmac::sign(&mac_key, format!("{protected}.{payload}").as_bytes());
    json!({"protected": protected, "payload": payload, "signature": URL_SAFE_NO_PAD.encode(code.as_ref())})
}

/// A client that performs each request only when a test calls it.
pub struct RawClient {
    http: reqwest::Client,
    /// The account's key.
    pub key: JwsKey,
    /// Its account's URL.
    pub account: String,
    nonce: Mutex<Option<String>>,
}

/// A response.
#[derive(Debug)]
pub struct AcmeAnswer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body as JSON, or as a JSON string if it is other text.
    pub body: Value,
}

impl RawClient {
    /// A client without an account.
    #[must_use]
    pub fn stranger(server: &InProcess) -> Self {
        Self {
            http: server.http1_client(),
            key: JwsKey::new(),
            account: String::new(),
            nonce: Mutex::default(),
        }
    }

    /// A client whose account has no external binding, like Apple's client.
    pub async fn with_account(server: &InProcess) -> Self {
        let mut client = Self::stranger(server);
        let opened = client.open(&json!({"termsOfServiceAgreed": true})).await.expect(201);
        client.account = opened.location();
        client
    }

    /// The same account at another server.
    #[must_use]
    pub fn at(self, server: &InProcess) -> Self {
        Self {
            http: server.http1_client(),
            nonce: Mutex::default(),
            ..self
        }
    }

    /// Sends `newAccount`.
    pub async fn open(&self, payload: &Value) -> AcmeAnswer {
        let url = url_of("/acme/new-account");
        let header = json!({"jwk": self.key.jwk(), "nonce": self.nonce().await, "url": url});
        self.send(&url, &self.key.sign(header, &payload.to_string())).await
    }

    /// Signs a payload with the account's key, and sends it.
    pub async fn post(&self, url: &str, payload: &Value) -> AcmeAnswer {
        self.send(url, &self.signed(url, &payload.to_string()).await).await
    }

    /// Reads with POST-as-GET.
    pub async fn read(&self, url: &str) -> AcmeAnswer {
        self.send(url, &self.signed(url, "").await).await
    }

    /// A request that is signed with the account's key, without sending it.
    pub async fn signed(&self, url: &str, payload: &str) -> Value {
        let header = json!({"kid": self.account, "nonce": self.nonce().await, "url": url});
        self.key.sign(header, payload)
    }

    /// Sends a JWS.
    pub async fn send(&self, url: &str, jws: &Value) -> AcmeAnswer {
        self.send_as(url, "application/jose+json", jws.to_string()).await
    }

    /// Sends a body with a media type.
    pub async fn send_as(&self, url: &str, media_type: &str, body: String) -> AcmeAnswer {
        let request = self.http.post(url).header("content-type", media_type).body(body);
        self.answer(request).await
    }

    /// Sends an unsigned GET.
    pub async fn get(&self, path: &str) -> AcmeAnswer {
        self.answer(self.http.get(url_of(path))).await
    }

    /// The nonce of the last response, or a new one.
    pub async fn nonce(&self) -> String {
        let at_hand = self.nonce.lock().unwrap().take();
        match at_hand {
            Some(nonce) => nonce,
            None => {
                let answer = self.get("/acme/new-nonce").await.expect(204);
                answer.header("replay-nonce").unwrap()
            }
        }
    }

    /// Orders a certificate for a device.
    pub async fn order(&self, serial_number: &str) -> AcmeAnswer {
        let identifier = json!({"type": "permanent-identifier", "value": serial_number});
        let url = url_of("/acme/new-order");
        self.post(&url, &json!({"identifiers": [identifier]})).await
    }

    /// The challenge of an order.
    pub async fn challenge(&self, order: &AcmeAnswer) -> Value {
        let authorization = order.body["authorizations"][0].as_str().unwrap();
        let authorization = self.read(authorization).await.expect(200).body;
        authorization["challenges"][0].clone()
    }

    /// Responds to a challenge with an attestation object.
    pub async fn attest(&self, challenge: &Value, object: &[u8]) -> AcmeAnswer {
        let payload = json!({"attObj": URL_SAFE_NO_PAD.encode(object)});
        self.post(challenge["url"].as_str().unwrap(), &payload).await
    }

    /// Finalizes an order.
    pub async fn finalize(&self, order: &AcmeAnswer, csr: &[u8]) -> AcmeAnswer {
        let payload = json!({"csr": URL_SAFE_NO_PAD.encode(csr)});
        self.post(order.body["finalize"].as_str().unwrap(), &payload).await
    }

    /// Performs all steps, and returns the certificate's chain.
    pub async fn obtain(&self, mac: &Mac, apple: &Apple, at: OffsetDateTime) -> String {
        let (_order, chain) = self.obtain_with_order(mac, apple, at).await;
        chain
    }

    /// Performs all steps, and returns the order and the certificate's chain.
    pub async fn obtain_with_order(&self, mac: &Mac, apple: &Apple, at: OffsetDateTime) -> (AcmeAnswer, String) {
        let order = self.order(&mac.serial_number).await.expect(201);
        let challenge = self.challenge(&order).await;
        let attested = mac.attested(challenge["token"].as_str().unwrap(), at);
        let answered = self.attest(&challenge, &mac.attestation_object(apple, &attested)).await;
        assert_eq!(answered.expect(200).body["status"], "valid");
        let finalized = self.finalize(&order, &mac.csr()).await.expect(200);
        let chain = self.read(finalized.body["certificate"].as_str().unwrap()).await;
        (finalized, chain.expect(200).body.as_str().unwrap().to_owned())
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> AcmeAnswer {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        let answer = AcmeAnswer { status, headers, body };
        answer.check();
        *self.nonce.lock().unwrap() = answer.header("replay-nonce");
        answer
    }
}

impl AcmeAnswer {
    /// Returns this response if it has this status.
    ///
    /// # Panics
    /// With the response, if it has another status.
    #[must_use]
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }

    /// The detail of this error.
    ///
    /// # Panics
    /// With the response, if it is anything else.
    #[track_caller]
    pub fn expect_error(&self, status: u16, kind: &str) -> String {
        let expected = format!("urn:ietf:params:acme:error:{kind}");
        assert_eq!(
            (self.status, &self.body["type"]),
            (status, &expected.into()),
            "{self:?}"
        );
        self.body["detail"].as_str().unwrap().to_owned()
    }

    /// The detail of this error of a challenge. The call itself succeeds.
    ///
    /// # Panics
    /// With the response, if it is anything else.
    #[track_caller]
    pub fn expect_challenge_error(&self, kind: &str) -> String {
        let expected = format!("urn:ietf:params:acme:error:{kind}");
        assert_eq!(
            (self.status, &self.body["status"]),
            (200, &"invalid".into()),
            "{self:?}"
        );
        assert_eq!(self.body["error"]["type"], expected, "{self:?}");
        self.body["error"]["detail"].as_str().unwrap().to_owned()
    }

    /// A header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<String> {
        let value = self.headers.get(name)?;
        Some(value.to_str().unwrap().to_owned())
    }

    /// The URL of the created resource.
    #[must_use]
    #[track_caller]
    pub fn location(&self) -> String {
        self.header("location")
            .unwrap_or_else(|| panic!("no Location: {self:?}"))
    }

    /// Checks the conventions of every response.
    fn check(&self) {
        assert_eq!(self.header("replay-nonce").unwrap().len(), 54, "{self:?}");
        assert_eq!(self.header("cache-control").as_deref(), Some("no-store"), "{self:?}");
        assert!(self.header("x-request-id").is_some(), "{self:?}");
        let index = format!("<{PUBLIC_URL}/acme/directory>;rel=\"index\"");
        let mut links = self.headers.get_all("link").iter();
        assert!(links.any(|link| link.to_str().unwrap() == index), "{self:?}");
        if self.status >= 400 {
            let media_type = self.header("content-type");
            assert_eq!(media_type.as_deref(), Some("application/problem+json"), "{self:?}");
            assert_eq!(self.body["status"], self.status, "{self:?}");
            let kind = self.body["type"].as_str().unwrap();
            assert!(kind.starts_with("urn:ietf:params:acme:error:"), "{self:?}");
            assert!(!self.body["detail"].as_str().unwrap().is_empty(), "{self:?}");
        }
    }
}

/// The URL of a path on the server.
#[must_use]
pub fn url_of(path: &str) -> String {
    format!("{PUBLIC_URL}{path}")
}
