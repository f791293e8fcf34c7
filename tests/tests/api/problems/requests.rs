//! Problems of requests that are refused for any caller, and of callers without the right.

use assay_protocol::ProblemKind;
use assay_protocol::admin_api::api_keys::Role;
use assay_server::clock::Clock;
use assay_tests::answer::Answer;
use assay_tests::apple::{Apple, Attested};
use assay_tests::in_process::InProcess;
use reqwest::Method;
use serde_json::{Value, json};
use time::Duration;
use uuid::Uuid;

pub(super) async fn malformed(server: &InProcess) -> Vec<Answer> {
    let unknown_field = json!({"audience": "a", "name": "n", "descriptoin": "misspelled"});
    let unknown_field = server.post("/v1/admin/permissions", &unknown_field).await;
    assert!(unknown_field.detail().contains("descriptoin"), "{unknown_field}");
    vec![
        server.call("/v1/check-in", &json!({})).await,
        server.get("/v1/admin/permissions?limit=0").await,
        unknown_field,
    ]
}

pub(super) async fn unauthenticated(server: &InProcess) -> Vec<Answer> {
    let create = |fields: Value| async move { server.post("/v1/admin/api-keys", &fields).await.json() };
    let expiring = create(json!({"name": "for a minute", "role": "admin", "expires_in_seconds": 60})).await;
    let revoked = create(json!({"name": "for nobody", "role": "admin"})).await;
    let path = format!("/v1/admin/api-keys/{}", revoked["id"].as_str().unwrap());
    assert_eq!(server.delete(&path).await.status, 204);
    let list = |authorization: String| {
        let request = server.request(Method::GET, "/v1/admin/permissions");
        server.send(request.header("authorization", authorization))
    };
    let bearer = |key: &Value| format!("Bearer {}", key["key"].as_str().unwrap());
    assert_eq!(list(bearer(&expiring)).await.status, 200);
    server.clock().advance(Duration::seconds(60));
    vec![
        server.send(server.request(Method::GET, "/v1/admin/permissions")).await,
        list(bearer(&expiring)).await,
        list(bearer(&revoked)).await,
        list(format!("Basic {}", server.api_key(Role::Admin))).await,
        list(server.api_key(Role::Admin).to_owned()).await,
        list("Bearer".to_owned()).await,
        list(format!("Bearer {}x", server.api_key(Role::Admin))).await,
    ]
}

pub(super) async fn forbidden(server: &InProcess) -> Vec<Answer> {
    let mut answers = Vec::new();
    for role in [Role::Viewer, Role::Operator, Role::RelyingParty] {
        let request = server.request(Method::POST, "/v1/admin/permissions");
        let body = json!({"audience": "a", "name": "forbidden"});
        answers.push(server.send(request.bearer_auth(server.api_key(role)).json(&body)).await);
    }
    answers
}

pub(super) async fn not_found(server: &InProcess) -> Vec<Answer> {
    let mut answers = vec![server.send(server.request(Method::GET, "/v2/nothing")).await];
    for noun in ["machines", "permissions", "grants", "enrollment-tokens"] {
        answers.push(server.get(&format!("/v1/admin/{noun}/{}", Uuid::nil())).await);
        answers.push(server.get(&format!("/v1/admin/{noun}/no-id")).await);
    }
    answers
}

pub(super) async fn method_not_allowed(server: &InProcess) -> Vec<Answer> {
    let mut answers = Vec::new();
    for (method, path, allowed) in [
        (Method::DELETE, "/v1/nonce", "GET,HEAD"),
        (Method::GET, "/v1/enroll", "POST"),
        (Method::PUT, "/v1/admin/permissions", "GET,HEAD,POST"),
        (Method::POST, "/healthz", "GET,HEAD"),
    ] {
        let answer = server.send(server.request(method, path)).await;
        let mut allow: Vec<_> = answer.header("allow").unwrap().split(',').map(str::trim).collect();
        allow.sort_unstable();
        assert_eq!(allow.join(","), allowed, "{answer}");
        answers.push(answer);
    }
    answers
}

pub(super) async fn unsupported_media_type(server: &InProcess) -> Vec<Answer> {
    let mut answers = Vec::new();
    for media_type in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonp",
        "nonsense",
    ] {
        for request in [
            server.request(Method::POST, "/v1/enroll"),
            server.admin(Method::POST, "/v1/admin/permissions"),
        ] {
            answers.push(server.send(request.header("content-type", media_type).body("{}")).await);
        }
    }
    answers.push(
        server
            .send(server.request(Method::POST, "/v1/check-in").body("{}"))
            .await,
    );
    answers
}

pub(super) async fn payload_too_large(server: &InProcess) -> Vec<Answer> {
    let body = |length: usize| format!("{{\"evidence\":\"{}\"}}", "A".repeat(length - 15));
    let send = |request: reqwest::RequestBuilder, length| {
        server.send(request.header("content-type", "application/json").body(body(length)))
    };
    let check_in = || server.request(Method::POST, "/v1/check-in");
    let permissions = || server.admin(Method::POST, "/v1/admin/permissions");
    // The largest body that is read is refused for its content.
    assert_eq!(send(check_in(), 64 * 1024).await.kind(), ProblemKind::BadEvidence);
    assert_eq!(send(permissions(), 1024 * 1024).await.kind(), ProblemKind::Malformed);
    vec![
        send(check_in(), 64 * 1024 + 1).await,
        send(check_in(), 3 * 1024 * 1024).await,
        send(permissions(), 1024 * 1024 + 1).await,
        send(permissions(), 3 * 1024 * 1024).await,
    ]
}

pub(super) async fn attestation_refused(server: &InProcess) -> Vec<Answer> {
    let machine = server.enrolled("ATTESTED").await;
    // An attestation by an authority that this server does not trust.
    let attested = Attested::of("ATTESTED", &machine.public_key(), server.clock().now());
    let path = format!("{}/apple-attestation", machine.path());
    let refused = server.post(&path, &Apple::new().body(&attested)).await;
    assert_eq!(refused.json()["reason"], "path", "{refused}");
    vec![refused]
}

pub(super) async fn precondition_failed(server: &InProcess) -> Vec<Answer> {
    let policy = policy_with_a_permission();
    let request = server.admin(Method::PUT, "/v1/admin/policy").json(&policy);
    vec![server.send(request.header("if-match", "\"0\"")).await]
}

pub(super) async fn precondition_required(server: &InProcess) -> Vec<Answer> {
    let policy = policy_with_a_permission();
    let request = || server.admin(Method::PUT, "/v1/admin/policy").json(&policy);
    let twice = request().header("if-match", "\"1\"").header("if-match", "\"2\"");
    vec![server.send(request()).await, server.send(twice).await]
}

fn policy_with_a_permission() -> Value {
    json!({"permissions": [{"audience": "a", "name": "policy"}], "grants": [], "audiences": []})
}

pub(super) async fn conflict(server: &InProcess) -> Vec<Answer> {
    let permission = json!({"audience": "a", "name": "twice"});
    assert_eq!(server.post("/v1/admin/permissions", &permission).await.status, 201);
    let machine = server.enrolled("CONFLICT").await;
    let other = server.enrolled("CONFLICT-2").await;
    let gone = server.enrolled("CONFLICT-3").await;
    let reason = json!({"reason": "why"});
    assert_eq!(
        server.post(&format!("{}/revoke", gone.path()), &reason).await.status,
        200
    );
    let others_key = machine.renew_body(server.audience(), &other.csr(), &server.nonce().await);
    vec![
        server.post("/v1/admin/permissions", &permission).await,
        server.post(&format!("{}/release", gone.path()), &reason).await,
        server.post(&format!("{}/quarantine", gone.path()), &reason).await,
        server.post(&format!("{}/approve", machine.path()), &json!({})).await,
        server.call("/v1/renew", &others_key).await,
    ]
}
