//! Verification of requests, with an issuer of the test's own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed, and says where"
)]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use assay_authority::{AudienceClaim, Confirmation, GrantClaims, GrantSigner, PrivateKey};
use assay_protocol::{
    PublicKey,
    dpop::{ProofClaims, access_token_hash},
    machine::Assurance,
    sha256,
};
use assay_verify::{
    Access, ClientCertificate, IntrospectionOptions, Presented, Refusal, RequiredProof, Roots, Verifier,
    VerifierOptions, VerifyLayer, WhenAway,
};
use axum::{Extension, Router, body::Body, extract::State, http::StatusCode, response::IntoResponse, routing};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderValue, Request, header::AUTHORIZATION};
use p256::ecdsa::{Signature, SigningKey, signature::Signer};
use rstest::rstest;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tower::{Layer, ServiceExt};
use uuid::Uuid;

const AUDIENCE: &str = "https://wiki.example.com";
const URL: &str = "https://wiki.example.com/a";
const CERTIFICATE: &[u8] = b"a certificate";
const NOW: OffsetDateTime = time::macros::datetime!(2026-11-22 10:00 UTC);

/// A server that publishes keys and introspects tokens. Its answers can be changed.
struct Issuer {
    url: String,
    answers: Arc<Mutex<Answers>>,
    key: PrivateKey,
}

struct Answers {
    keys: Vec<PublicKey>,
    introspection: (StatusCode, Value),
    /// How often it was asked for keys, and about tokens.
    asked: [usize; 2],
    is_away: bool,
}

impl Issuer {
    async fn start() -> Self {
        let key = PrivateKey::generate().unwrap();
        let answers = Arc::new(Mutex::new(Answers {
            keys: vec![key.public_key().clone()],
            introspection: (StatusCode::OK, json!({"active": false})),
            asked: [0; 2],
            is_away: false,
        }));
        let router = Router::new()
            .route("/.well-known/jwks.json", routing::get(published))
            .route("/v1/introspect", routing::post(introspected))
            .with_state(Arc::clone(&answers));
        let listener = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
            .await
            .unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, answers, key }
    }

    fn claims(&self, machine: &Machine) -> GrantClaims {
        let machine_id = Uuid::from_u128(7);
        GrantClaims {
            iss: self.url.clone(),
            sub: format!("spiffe://example.com/machine/{machine_id}"),
            aud: AudienceClaim::List([AUDIENCE.to_owned()]),
            iat: NOW.unix_timestamp() - 30,
            nbf: NOW.unix_timestamp() - 30,
            exp: NOW.unix_timestamp() + 600,
            jti: Uuid::new_v4(),
            cnf: Confirmation::new(machine.public().thumbprint(), &sha256(CERTIFICATE)),
            scope: "read write".to_owned(),
            permissions: vec!["read".to_owned(), "write".to_owned()],
            machine_id,
            assurance: Assurance::Verified,
        }
    }

    fn token(&self, machine: &Machine) -> String {
        sign(&self.key, &self.claims(machine))
    }

    fn verifier(&self, proof: RequiredProof, introspection: Option<WhenAway>) -> Verifier {
        let options = VerifierOptions {
            issuer: self.url.parse().unwrap(),
            roots: Roots::System,
            audience: AUDIENCE.to_owned(),
            proof,
            introspection: introspection.map(|when_away| IntrospectionOptions {
                api_key: "a-key".to_owned().into(),
                lifetime: Duration::from_secs(30),
                when_away,
            }),
        };
        Verifier::new(options, NOW - Duration::from_secs(3600)).unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut Answers)) {
        change(&mut self.answers.lock().unwrap());
    }

    fn asked(&self) -> [usize; 2] {
        self.answers.lock().unwrap().asked
    }
}

async fn published(State(answers): State<Arc<Mutex<Answers>>>) -> impl IntoResponse {
    let mut answers = answers.lock().unwrap();
    answers.asked[0] += 1;
    if answers.is_away {
        return (StatusCode::BAD_GATEWAY, String::new());
    }
    let keys = answers.keys.iter().map(|key| {
        let (x, y) = key.jwk_coordinates();
        json!({"kty": "EC", "crv": "P-256", "x": x, "y": y, "use": "sig", "alg": "ES256", "kid": key.thumbprint()})
    });
    // Keys of other kinds are ignored.
    let keys: Vec<_> = keys.chain([json!({"kty": "RSA", "n": "", "e": ""})]).collect();
    (StatusCode::OK, json!({"keys": keys}).to_string())
}

async fn introspected(State(answers): State<Arc<Mutex<Answers>>>, headers: HeaderMap) -> impl IntoResponse {
    let mut answers = answers.lock().unwrap();
    answers.asked[1] += 1;
    assert_eq!(headers[AUTHORIZATION], "Bearer a-key");
    let (status, body) = &answers.introspection;
    (*status, body.to_string())
}

fn sign(key: &PrivateKey, claims: &GrantClaims) -> String {
    GrantSigner::new(key).unwrap().sign(claims, "").unwrap()
}

struct Machine(SigningKey);

impl Machine {
    fn new(seed: u8) -> Self {
        Self(SigningKey::from_slice(&[seed; 32]).unwrap())
    }

    fn public(&self) -> PublicKey {
        PublicKey::from_sec1(&self.0.verifying_key().to_sec1_bytes()).unwrap()
    }

    fn proof_claims(&self, token: &str) -> ProofClaims {
        ProofClaims {
            jti: Uuid::new_v4().to_string(),
            htm: "GET".parse().unwrap(),
            htu: URL.parse().unwrap(),
            iat: NOW.unix_timestamp(),
            ath: Some(access_token_hash(token)),
            nonce: None,
        }
    }

    fn sign(&self, claims: &ProofClaims) -> String {
        let sign = |message: &[u8]| {
            let signature: Signature = self.0.sign(message);
            Ok::<[u8; 64], serde_json::Error>(signature.to_bytes().into())
        };
        claims.sign(&self.public(), sign).unwrap()
    }
}

fn headers(scheme: &str, token: &str, proof: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(
        AUTHORIZATION,
        HeaderValue::from_str(&format!("{scheme} {token}")).unwrap(),
    );
    if let Some(proof) = proof {
        headers.insert("dpop", HeaderValue::from_str(proof).unwrap());
    }
    headers
}

async fn ask(
    verifier: &Verifier,
    headers: &HeaderMap,
    certificate: Option<&[u8]>,
    now: OffsetDateTime,
) -> Result<Access, Refusal> {
    let presented = Presented {
        headers,
        certificate: certificate.map(sha256),
        request: Some(("GET".parse().unwrap(), URL.parse().unwrap())),
        required: &["read".to_owned()],
    };
    verifier.verify(&presented, now).await
}

fn is_token_refused(result: &Result<Access, Refusal>) -> bool {
    matches!(result, Err(Refusal::InvalidToken(_)))
}

#[tokio::test]
async fn a_bearer_token_needs_the_certificate_that_it_is_bound_to() {
    let (issuer, machine) = (Issuer::start().await, Machine::new(1));
    let verifier = issuer.verifier(RequiredProof::Certificate, None);
    let bearer = headers("bearer", &issuer.token(&machine), None);
    // The second time, the token comes from the cache.
    for _ in 0..2 {
        let access = ask(&verifier, &bearer, Some(CERTIFICATE), NOW).await.unwrap();
        assert_eq!(access.machine_id, Uuid::from_u128(7));
        assert_eq!(
            (access.permissions, access.assurance),
            (vec!["read".into(), "write".into()], Assurance::Verified)
        );
        assert!(is_token_refused(&ask(&verifier, &bearer, None, NOW).await));
        assert!(is_token_refused(&ask(&verifier, &bearer, Some(b"another"), NOW).await));
    }
    assert_eq!(issuer.asked(), [1, 0]);
    let token = issuer.token(&machine);
    let proof = machine.sign(&machine.proof_claims(&token));
    let refused = ask(
        &verifier,
        &headers("DPoP", &token, Some(&proof)),
        Some(CERTIFICATE),
        NOW,
    )
    .await;
    assert!(matches!(refused, Err(Refusal::InvalidRequest(_))), "{refused:?}");
}

#[tokio::test]
async fn with_dpop_a_token_needs_a_proof_for_its_request_and_each_proof_is_used_once() {
    let (issuer, machine) = (Issuer::start().await, Machine::new(1));
    let verifier = issuer.verifier(RequiredProof::Dpop, None);
    let (token, other) = (issuer.token(&machine), issuer.token(&machine));
    let good = machine.proof_claims(&token);
    let send = async |proof: &str, now| ask(&verifier, &headers("DPoP", &token, Some(proof)), None, now).await;

    let proof = machine.sign(&good);
    send(&proof, NOW).await.unwrap();
    for later in [0, 1, 60] {
        let refused = send(&proof, NOW + Duration::from_secs(later)).await;
        assert_eq!(
            refused,
            Err(Refusal::InvalidProof("the proof was used before".to_owned()))
        );
    }
    let fresh = || machine.proof_claims(&token);
    let changes: [(&str, ProofClaims); 6] = [
        (
            "htm",
            ProofClaims {
                htm: "POST".parse().unwrap(),
                ..fresh()
            },
        ),
        (
            "htu",
            ProofClaims {
                htu: "https://wiki.example.com/b".parse().unwrap(),
                ..fresh()
            },
        ),
        (
            "htu",
            ProofClaims {
                htu: "https://vault.example.com/a".parse().unwrap(),
                ..fresh()
            },
        ),
        (
            "ath",
            ProofClaims {
                ath: Some(access_token_hash(&other)),
                ..fresh()
            },
        ),
        ("ath", ProofClaims { ath: None, ..fresh() }),
        (
            "iat",
            ProofClaims {
                iat: NOW.unix_timestamp() - 61,
                ..fresh()
            },
        ),
    ];
    for (claim, claims) in changes {
        match send(&machine.sign(&claims), NOW).await {
            Err(Refusal::InvalidProof(why)) => assert!(why.contains(claim), "{why}"),
            other => panic!("{claim}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn with_dpop_a_token_without_a_proof_of_its_own_key_is_refused() {
    let (issuer, machine, thief) = (Issuer::start().await, Machine::new(1), Machine::new(2));
    let verifier = issuer.verifier(RequiredProof::Dpop, None);
    let token = issuer.token(&machine);
    let send = async |proof: &str, now| ask(&verifier, &headers("DPoP", &token, Some(proof)), None, now).await;
    let fresh = || machine.proof_claims(&token);
    for proof in [thief.sign(&fresh()), "a.b.c".to_owned(), String::new(), token.clone()] {
        let refused = send(&proof, NOW).await;
        assert!(matches!(refused, Err(Refusal::InvalidProof(_))), "{refused:?}");
    }
    let without = ask(&verifier, &headers("DPoP", &token, None), Some(CERTIFICATE), NOW).await;
    assert!(matches!(without, Err(Refusal::InvalidProof(_))), "{without:?}");
    // A certificate is no proof here, and a bearer token is refused even with a proof beside it.
    let bearer = headers("Bearer", &token, Some(&machine.sign(&fresh())));
    let refused = ask(&verifier, &bearer, Some(CERTIFICATE), NOW).await;
    assert!(matches!(refused, Err(Refusal::InvalidRequest(_))), "{refused:?}");
    let mut twice = headers("DPoP", &token, Some(&machine.sign(&fresh())));
    twice.append("dpop", HeaderValue::from_str(&machine.sign(&fresh())).unwrap());
    let refused = ask(&verifier, &twice, None, NOW).await;
    assert!(matches!(refused, Err(Refusal::InvalidRequest(_))), "{refused:?}");
}

#[tokio::test]
async fn either_proof_is_enough_and_without_proof_only_what_is_declared_unbound() {
    let (issuer, machine) = (Issuer::start().await, Machine::new(1));
    let token = issuer.token(&machine);
    let dpop = || headers("DPoP", &token, Some(&machine.sign(&machine.proof_claims(&token))));
    let bearer = headers("Bearer", &token, None);
    let either = issuer.verifier(RequiredProof::Either, None);
    ask(&either, &dpop(), None, NOW).await.unwrap();
    ask(&either, &bearer, Some(CERTIFICATE), NOW).await.unwrap();
    assert!(is_token_refused(&ask(&either, &bearer, None, NOW).await));
    let unbound = issuer.verifier(RequiredProof::Unbound, None);
    ask(&unbound, &bearer, None, NOW).await.unwrap();
    let without = ask(&unbound, &headers("DPoP", &token, None), None, NOW).await;
    assert!(matches!(without, Err(Refusal::InvalidProof(_))));
}

#[tokio::test]
async fn only_tokens_of_this_issuer_for_this_audience_and_time_are_accepted() {
    let (issuer, machine) = (Issuer::start().await, Machine::new(1));
    let verifier = issuer.verifier(RequiredProof::Certificate, None);
    let send = async |token: &str, now| ask(&verifier, &headers("Bearer", token, None), Some(CERTIFICATE), now).await;
    let good = issuer.claims(&machine);
    let token = sign(&issuer.key, &good);
    send(&token, NOW).await.unwrap();
    // From the cache, too, a token is accepted only in its time.
    for now in [NOW - Duration::from_secs(31), NOW + Duration::from_secs(600)] {
        assert!(is_token_refused(&send(&token, now).await));
    }
    let text = GrantClaims {
        aud: AudienceClaim::Text(AUDIENCE.to_owned()),
        ..good.clone()
    };
    send(&sign(&issuer.key, &text), NOW).await.unwrap();
    for claims in [
        GrantClaims {
            iss: "https://elsewhere.example.com".to_owned(),
            ..good.clone()
        },
        GrantClaims {
            aud: AudienceClaim::List([format!("{AUDIENCE}/")]),
            ..good.clone()
        },
        GrantClaims {
            exp: NOW.unix_timestamp(),
            ..good.clone()
        },
        GrantClaims {
            nbf: NOW.unix_timestamp() + 1,
            ..good.clone()
        },
    ] {
        assert!(
            is_token_refused(&send(&sign(&issuer.key, &claims), NOW).await),
            "{claims:?}"
        );
    }
}

#[tokio::test]
async fn tokens_with_another_header_or_form_are_refused() {
    let (issuer, machine) = (Issuer::start().await, Machine::new(1));
    let verifier = issuer.verifier(RequiredProof::Certificate, None);
    let send = async |token: &str, now| ask(&verifier, &headers("Bearer", token, None), Some(CERTIFICATE), now).await;
    let token = issuer.token(&machine);
    let (header, rest) = token.split_once('.').unwrap();
    let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).unwrap()).unwrap();
    for (member, value) in [
        ("alg", json!("none")),
        ("alg", json!("HS256")),
        ("typ", json!("eat+jwt")),
        ("typ", json!("dpop+jwt")),
        ("crit", json!([])),
        ("kid", json!("another")),
        ("jwk", json!({})),
    ] {
        let mut header = header.clone();
        header[member] = value;
        let forged = format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header.to_string()));
        assert!(is_token_refused(&send(&forged, NOW).await), "{member}");
    }
    for forged in ["a.b.c", "a", &"A".repeat(20_000)] {
        assert!(is_token_refused(&send(forged, NOW).await));
    }
    for (scheme, token, expected) in [
        ("Basic", token.as_str(), Refusal::NoToken),
        ("Token", "", Refusal::NoToken),
    ] {
        let refused = ask(&verifier, &headers(scheme, token, None), Some(CERTIFICATE), NOW).await;
        assert_eq!(refused, Err(expected));
    }
    assert_eq!(
        ask(&verifier, &HeaderMap::new(), Some(CERTIFICATE), NOW).await,
        Err(Refusal::NoToken)
    );
}

#[tokio::test]
async fn a_lacking_permission_is_named() {
    let (issuer, machine) = (Issuer::start().await, Machine::new(1));
    let verifier = issuer.verifier(RequiredProof::Certificate, None);
    let bearer = headers("Bearer", &issuer.token(&machine), None);
    for (required, expected) in [
        (vec![], Ok(())),
        (vec!["write", "read"], Ok(())),
        (
            vec!["read", "delete"],
            Err(Refusal::InsufficientScope("delete".to_owned())),
        ),
        (vec!["rea"], Err(Refusal::InsufficientScope("rea".to_owned()))),
    ] {
        let required: Vec<_> = required.into_iter().map(ToOwned::to_owned).collect();
        let presented = Presented {
            headers: &bearer,
            certificate: Some(sha256(CERTIFICATE)),
            request: None,
            required: &required,
        };
        assert_eq!(verifier.verify(&presented, NOW).await.map(|_| ()), expected);
    }
}

/// A time this many seconds after [`NOW`].
fn after(seconds: u64) -> OffsetDateTime {
    NOW + Duration::from_secs(seconds)
}

#[tokio::test]
async fn an_unknown_key_is_fetched_once_in_ten_seconds_and_a_withdrawn_one_is_refused() {
    let (issuer, machine, next) = (Issuer::start().await, Machine::new(1), PrivateKey::generate().unwrap());
    let verifier = issuer.verifier(RequiredProof::Certificate, None);
    let send = async |token: &str, now| ask(&verifier, &headers("Bearer", token, None), Some(CERTIFICATE), now).await;
    let (old, new) = (issuer.token(&machine), sign(&next, &issuer.claims(&machine)));
    send(&old, NOW).await.unwrap();
    for _ in 0..20 {
        let forged = sign(&PrivateKey::generate().unwrap(), &issuer.claims(&machine));
        assert!(is_token_refused(&send(&forged, after(9)).await));
    }
    assert!(is_token_refused(&send(&new, after(9)).await));
    assert_eq!(issuer.asked()[0], 1);

    issuer.change(|answers| answers.keys = vec![next.public_key().clone()]);
    send(&new, after(10)).await.unwrap();
    assert_eq!(issuer.asked()[0], 2);
    // The old key is withdrawn: its token is no longer accepted from the cache.
    assert!(is_token_refused(&send(&old, after(10)).await));
    assert_eq!(issuer.asked()[0], 2);
}

#[tokio::test]
async fn keys_are_used_for_an_hour_while_the_server_is_away() {
    let (issuer, machine) = (Issuer::start().await, Machine::new(1));
    issuer.change(|answers| answers.is_away = true);
    let verifier = issuer.verifier(RequiredProof::Certificate, None);
    let send = async |token: &str, now| ask(&verifier, &headers("Bearer", token, None), Some(CERTIFICATE), now).await;
    let lasting = |key: &PrivateKey| {
        let exp = NOW.unix_timestamp() + 10_000;
        sign(
            key,
            &GrantClaims {
                exp,
                ..issuer.claims(&machine)
            },
        )
    };
    let token = lasting(&issuer.key);
    // Without any keys, nothing is known of a token.
    for _ in 0..5 {
        assert!(matches!(send(&token, NOW).await, Err(Refusal::Unavailable(_))));
    }
    assert_eq!(issuer.asked()[0], 1);
    issuer.change(|answers| answers.is_away = false);
    send(&token, after(10)).await.unwrap();
    issuer.change(|answers| answers.is_away = true);
    send(&token, after(3600)).await.unwrap();
    // An unknown key could be a new one.
    let other = lasting(&PrivateKey::generate().unwrap());
    assert!(matches!(send(&other, after(3610)).await, Err(Refusal::Unavailable(_))));
    assert!(matches!(send(&token, after(3621)).await, Err(Refusal::Unavailable(_))));
    issuer.change(|answers| answers.is_away = false);
    send(&token, after(3640)).await.unwrap();
}

/// After a quiet time, the keys at hand may be those of long ago.
#[tokio::test]
async fn after_ten_quiet_minutes_a_withdrawn_key_is_refused_at_the_first_request() {
    let (issuer, machine) = (Issuer::start().await, Machine::new(1));
    let verifier = issuer.verifier(RequiredProof::Certificate, None);
    let exp = NOW.unix_timestamp() + 10_000;
    let claims = GrantClaims {
        exp,
        ..issuer.claims(&machine)
    };
    let (known, unknown) = (sign(&issuer.key, &claims), sign(&issuer.key, &claims));
    let send = async |token: &str, now| ask(&verifier, &headers("Bearer", token, None), Some(CERTIFICATE), now).await;
    send(&known, NOW).await.unwrap();
    issuer.change(|answers| answers.keys = vec![PrivateKey::generate().unwrap().public_key().clone()]);
    for token in [&known, &unknown] {
        assert!(is_token_refused(&send(token, after(601)).await));
    }
    assert_eq!(issuer.asked()[0], 2);
}

/// Requests would otherwise wait for each other's timeouts while the server hangs.
#[tokio::test]
async fn a_server_that_cannot_introspect_is_not_asked_again_for_ten_seconds() {
    let (issuer, machine) = (Issuer::start().await, Machine::new(1));
    let verifier = issuer.verifier(RequiredProof::Certificate, Some(WhenAway::Refuse));
    let send = async |token: &str, now| ask(&verifier, &headers("Bearer", token, None), Some(CERTIFICATE), now).await;
    issuer.change(|answers| answers.introspection = (StatusCode::BAD_GATEWAY, json!({})));
    for (seconds, asked) in [(0, 1), (1, 1), (9, 1), (10, 2), (15, 2)] {
        let refused = send(&issuer.token(&machine), after(seconds)).await;
        assert!(matches!(refused, Err(Refusal::Unavailable(_))), "{refused:?}");
        assert_eq!(issuer.asked()[1], asked, "after {seconds} s");
    }
    issuer.change(|answers| answers.introspection = (StatusCode::OK, json!({"active": true, "permissions": ["read"]})));
    send(&issuer.token(&machine), after(20)).await.unwrap();
}

#[rstest]
#[case(WhenAway::Refuse)]
#[case(WhenAway::Accept)]
#[tokio::test]
async fn introspection_reduces_a_token_and_is_remembered(#[case] when_away: WhenAway) {
    let (issuer, machine) = (Issuer::start().await, Machine::new(1));
    let verifier = issuer.verifier(RequiredProof::Certificate, Some(when_away));
    let send = async |token: &str, seconds| {
        ask(
            &verifier,
            &headers("Bearer", token, None),
            Some(CERTIFICATE),
            after(seconds),
        )
        .await
    };
    let answer = |status: u16, body: Value| {
        issuer.change(|answers| answers.introspection = (StatusCode::from_u16(status).unwrap(), body));
    };
    let (token, other) = (issuer.token(&machine), issuer.token(&machine));
    answer(200, json!({"active": true, "permissions": ["read"]}));
    for seconds in [0, 1, 29] {
        assert_eq!(send(&token, seconds).await.unwrap().permissions, ["read"]);
    }
    assert_eq!(issuer.asked()[1], 1);
    answer(200, json!({"active": false}));
    assert!(is_token_refused(&send(&token, 30).await));
    answer(200, json!({"active": true, "permissions": ["write"]}));
    let lacking = Refusal::InsufficientScope("read".to_owned());
    assert_eq!(send(&token, 60).await, Err(lacking.clone()));

    for (seconds, status) in [(90, 500), (120, 503), (150, 429), (180, 404)] {
        answer(status, json!({}));
        match when_away {
            WhenAway::Refuse => {
                assert!(matches!(send(&token, seconds).await, Err(Refusal::Unavailable(_))));
                assert!(matches!(send(&other, seconds).await, Err(Refusal::Unavailable(_))));
            }
            // The last answer counts; a token that was never asked about says itself what it is worth.
            WhenAway::Accept => {
                assert_eq!(send(&token, seconds).await, Err(lacking.clone()));
                assert_eq!(send(&other, seconds).await.unwrap().permissions, ["read", "write"]);
            }
        }
    }
    // A wrong API key is a mistake, and no outage.
    answer(401, json!({}));
    assert!(matches!(send(&other, 210).await, Err(Refusal::Unavailable(_))));
}

#[tokio::test]
async fn a_machine_that_is_known_as_revoked_stays_out_while_the_server_is_away() {
    let (issuer, machine) = (Issuer::start().await, Machine::new(1));
    let verifier = issuer.verifier(RequiredProof::Certificate, Some(WhenAway::Accept));
    let bearer = headers("Bearer", &issuer.token(&machine), None);
    for (seconds, status) in [(0, StatusCode::OK), (31, StatusCode::BAD_GATEWAY)] {
        issuer.change(|answers| answers.introspection.0 = status);
        assert!(is_token_refused(
            &ask(&verifier, &bearer, Some(CERTIFICATE), after(seconds)).await
        ));
    }
}

/// The layer takes the time from the system's clock.
fn current(claims: GrantClaims) -> GrantClaims {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs().try_into().unwrap();
    GrantClaims {
        nbf: now,
        exp: now + 600,
        ..claims
    }
}

/// A request with these headers, and with forged ones.
fn request(more: HeaderMap) -> Request<Body> {
    let mut request = Request::get("/a?b=c").body(Body::empty()).unwrap();
    let forged = HeaderValue::from_static("forged");
    request.headers_mut().insert("x-assay-machine", forged.clone());
    request.headers_mut().append("x-assay-permissions", forged.clone());
    request.headers_mut().insert("x_assay_assurance", forged);
    request.headers_mut().extend(more);
    request
}

/// The machine, and the headers about it.
async fn seen(Extension(access): Extension<Access>, headers: HeaderMap) -> String {
    let ours: Vec<_> = headers
        .iter()
        .filter(|(name, _)| name.as_str().contains("assay"))
        .collect();
    format!("{} {ours:?}", access.machine_id)
}

#[tokio::test]
async fn the_layer_lets_a_service_see_only_what_was_verified() {
    let (issuer, machine) = (Issuer::start().await, Machine::new(1));
    let verifier = Arc::new(issuer.verifier(RequiredProof::Either, None));
    let router = Router::new().route("/a", routing::any(seen));
    let service = VerifyLayer::new(verifier, AUDIENCE, vec!["write".to_owned()]).layer(router);
    let token = sign(&issuer.key, &current(issuer.claims(&machine)));
    let send = async |request: Request<Body>| {
        let response = service.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 10_000).await.unwrap();
        (head, String::from_utf8(body.to_vec()).unwrap())
    };

    let mut with_certificate = request(headers("Bearer", &token, None));
    let certificate = ClientCertificate(CERTIFICATE.into());
    with_certificate.extensions_mut().insert(certificate.clone());
    let (head, body) = send(with_certificate).await;
    assert_eq!(head.status, 200);
    assert!(
        body.starts_with(&Uuid::from_u128(7).to_string()) && !body.contains("forged"),
        "{body}"
    );
    assert!(body.contains("read write") && body.contains("verified"), "{body}");

    let mut claims = machine.proof_claims(&token);
    claims.iat = current(issuer.claims(&machine)).nbf;
    let proven = headers("DPoP", &token, Some(&machine.sign(&claims)));
    let (head, _) = send(request(proven.clone())).await;
    assert_eq!(head.status, 200);
    let (head, body) = send(request(proven)).await;
    let challenges: Vec<_> = head.headers.get_all("www-authenticate").iter().collect();
    assert_eq!((head.status.as_u16(), body.as_str(), challenges.len()), (401, "", 1));
    assert!(
        challenges[0]
            .to_str()
            .unwrap()
            .contains(r#"error="invalid_dpop_proof""#),
        "{challenges:?}"
    );

    let (head, _) = send(request(HeaderMap::new())).await;
    let challenges: Vec<_> = head
        .headers
        .get_all("www-authenticate")
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    assert_eq!(
        (head.status.as_u16(), challenges),
        (401, vec![b"Bearer".as_slice(), br#"DPoP algs="ES256""#])
    );

    let reader = GrantClaims {
        permissions: vec!["read".to_owned()],
        ..current(issuer.claims(&machine))
    };
    let mut lacking = request(headers("Bearer", &sign(&issuer.key, &reader), None));
    lacking.extensions_mut().insert(certificate);
    let (head, _) = send(lacking).await;
    let challenge = head.headers["www-authenticate"].to_str().unwrap();
    assert_eq!(head.status, 403);
    assert!(challenge.starts_with("Bearer error=\"insufficient_scope\"") && challenge.ends_with("scope=\"write\""));
}
