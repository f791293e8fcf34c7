//! The callers of each operation in the document: without credentials, with a wrong key, and with a key of each role.

use std::collections::{BTreeMap, BTreeSet};

use assay_protocol::ProblemKind;
use assay_protocol::admin_api::api_keys::Role;
use assay_tests::answer::{AGENT_PATHS, Answer};
use assay_tests::in_process::InProcess;
use assay_tests::machine::Machine;
use reqwest::{Method, RequestBuilder};
use serde_json::json;
use uuid::Uuid;

use crate::api::document::{Operation, operations};
use crate::flows::revocation::path_of_list;

/// Needs no credentials.
const ANYBODY: &str = "anybody";
/// Needs evidence that the machine's key signed. An API key is not accepted.
const MACHINE: &str = "machine";
/// With an API key of any role.
const ANY: &str = "any";
/// With an API key of this role or of a higher one.
const VIEWER: &str = "viewer";
const OPERATOR: &str = "operator";
const ADMIN: &str = "admin";
/// Needs an API key with exactly this role.
const RELYING_PARTY: &str = "relying-party";
const MDM: &str = "mdm";

/// The callers of each operation. A new operation needs a line.
const CALLERS: &[(&str, &str)] = &[
    ("GET /.well-known/jwks.json", ANYBODY),
    ("GET /.well-known/openid-configuration", ANYBODY),
    ("GET /.well-known/spiffe-bundle", ANYBODY),
    ("GET /healthz", ANYBODY),
    ("GET /openapi.json", ANYBODY),
    ("GET /readyz", ANYBODY),
    ("GET /v1/ca/bundle.pem", ANYBODY),
    ("GET /v1/ca/chain.pem", ANYBODY),
    ("GET /v1/ca/crl", ANYBODY),
    ("GET /v1/ca/crl/{key_identifier}", ANYBODY),
    ("GET /v1/ca/crls.pem", ANYBODY),
    ("GET /v1/ca/issuer.cer", ANYBODY),
    ("GET /v1/ca/issuer/{key_identifier}", ANYBODY),
    ("POST /v1/ca/ocsp", ANYBODY),
    ("GET /v1/ca/ocsp/{request}", ANYBODY),
    ("POST /v1/check-in", MACHINE),
    ("POST /v1/enroll", MACHINE),
    ("POST /v1/introspect", RELYING_PARTY),
    ("GET /v1/nonce", ANYBODY),
    ("POST /v1/renew", MACHINE),
    ("GET /v1/admin/api-keys", VIEWER),
    ("POST /v1/admin/api-keys", ADMIN),
    ("DELETE /v1/admin/api-keys/{id}", ADMIN),
    ("GET /v1/admin/self", ANY),
    ("GET /v1/admin/audiences", VIEWER),
    ("POST /v1/admin/audiences", ADMIN),
    ("GET /v1/admin/audiences/{id}", VIEWER),
    ("PUT /v1/admin/audiences/{id}", ADMIN),
    ("DELETE /v1/admin/audiences/{id}", ADMIN),
    ("GET /v1/admin/audit", VIEWER),
    ("GET /v1/admin/audit/verify", VIEWER),
    ("GET /v1/admin/background-work", VIEWER),
    ("GET /v1/admin/enrollment-tokens", VIEWER),
    ("POST /v1/admin/enrollment-tokens", OPERATOR),
    ("GET /v1/admin/enrollment-tokens/{id}", VIEWER),
    ("DELETE /v1/admin/enrollment-tokens/{id}", OPERATOR),
    ("GET /v1/admin/enrollments", VIEWER),
    ("POST /v1/admin/enrollments/{id}/approve", OPERATOR),
    ("POST /v1/admin/enrollments/{id}/deny", OPERATOR),
    ("GET /v1/admin/grants", VIEWER),
    ("POST /v1/admin/grants", ADMIN),
    ("POST /v1/admin/grants/evaluate", VIEWER),
    ("GET /v1/admin/grants/{id}", VIEWER),
    ("PUT /v1/admin/grants/{id}", ADMIN),
    ("DELETE /v1/admin/grants/{id}", ADMIN),
    ("GET /v1/admin/machines", VIEWER),
    ("GET /v1/admin/machines/{id}", VIEWER),
    ("PATCH /v1/admin/machines/{id}", OPERATOR),
    ("DELETE /v1/admin/machines/{id}", ADMIN),
    ("POST /v1/admin/machines/{id}/approve", OPERATOR),
    ("GET /v1/admin/machines/{id}/certificates", VIEWER),
    ("POST /v1/admin/machines/{id}/deny", OPERATOR),
    ("GET /v1/admin/machines/{id}/events", VIEWER),
    ("GET /v1/admin/machines/{id}/grants", VIEWER),
    ("POST /v1/admin/machines/{id}/open", OPERATOR),
    ("POST /v1/admin/machines/{id}/quarantine", OPERATOR),
    ("POST /v1/admin/machines/{id}/release", OPERATOR),
    ("POST /v1/admin/machines/{id}/revoke", OPERATOR),
    ("GET /v1/admin/permissions", VIEWER),
    ("POST /v1/admin/permissions", ADMIN),
    ("GET /v1/admin/permissions/{id}", VIEWER),
    ("PUT /v1/admin/permissions/{id}", ADMIN),
    ("DELETE /v1/admin/permissions/{id}", ADMIN),
    ("GET /v1/admin/enrollments/{id}", VIEWER),
    ("GET /v1/admin/inventory", VIEWER),
    ("PUT /v1/admin/inventory", OPERATOR),
    ("GET /v1/admin/inventory/{serial_number}", VIEWER),
    ("DELETE /v1/admin/inventory/{serial_number}", OPERATOR),
    ("GET /v1/admin/events", VIEWER),
    ("GET /v1/admin/events/stream", VIEWER),
    ("GET /v1/admin/webhooks", VIEWER),
    ("POST /v1/admin/webhooks", ADMIN),
    ("GET /v1/admin/webhooks/{id}", VIEWER),
    ("DELETE /v1/admin/webhooks/{id}", ADMIN),
    ("GET /v1/admin/webhooks/{id}/deliveries", VIEWER),
    ("POST /v1/admin/webhooks/{id}/test", ADMIN),
    ("GET /v1/admin/certificates", VIEWER),
    ("GET /v1/admin/certificates/{serial}", VIEWER),
    ("POST /v1/admin/certificates/{serial}/revoke", OPERATOR),
    ("GET /v1/admin/policy", VIEWER),
    ("PUT /v1/admin/policy", ADMIN),
    ("GET /v1/admin/stats", VIEWER),
    ("GET /v1/admin/machines/{id}/apple-attestation", VIEWER),
    ("POST /v1/admin/machines/{id}/apple-attestation", OPERATOR),
    ("GET /v1/admin/apple-attestations/due", VIEWER),
    ("POST /v1/mdm/nanomdm", MDM),
];

#[tokio::test]
async fn table_and_openapi_document_agree_on_who_may_call_each_operation() {
    let server = InProcess::start().await;
    let operations = operations(&server).await;
    let documented: BTreeMap<String, &str> = operations
        .iter()
        .map(|operation| (operation.name(), operation.role.as_str()))
        .collect();
    let listed: BTreeMap<String, &str> = CALLERS.iter().map(|(name, who)| ((*name).to_owned(), *who)).collect();
    assert_eq!(CALLERS.len(), listed.len(), "a line twice");
    assert_eq!(
        documented, listed,
        "an operation without a line in the table, or the other way round, or a handler of the admin API whose routes are \
         not made with http::operation::routes"
    );
    for operation in &operations {
        let needs_key = !matches!(operation.role.as_str(), ANYBODY | MACHINE);
        assert_eq!(operation.needs_key, needs_key, "{}", operation.name());
    }
    server.stop().await;
}

#[tokio::test]
async fn the_openapi_document_distinguishes_path_and_query_parameters() {
    let server = InProcess::start().await;
    for operation in operations(&server).await {
        let in_path: BTreeSet<String> = operation
            .path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}').map(str::to_owned))
            .collect();
        let documented: BTreeSet<String> = operation.path_parameters.iter().cloned().collect();
        assert_eq!(documented, in_path, "{}", operation.name());
        assert!(!operation.successes.is_empty(), "{}", operation.name());
    }
    server.stop().await;
}

#[tokio::test]
async fn the_admin_api_refuses_calls_without_an_api_key() {
    let server = InProcess::start().await;
    let strangers: [fn(RequestBuilder) -> RequestBuilder; 6] = [
        |request| request,
        |request| request.bearer_auth("garbage"),
        |request| request.bearer_auth(format!("assay_key_{}", "A".repeat(43))),
        |request| request.bearer_auth("x".repeat(10_000)),
        |request| request.header("authorization", "Bearer "),
        |request| request.header("authorization", b"Bearer \xff\xfe".as_slice()),
    ];
    for operation in operations(&server).await.iter().filter(|operation| operation.needs_key) {
        for stranger in strangers {
            let request = server.request(operation.method.clone(), &operation.path_with(&Uuid::nil().to_string()));
            let answer = server.send(stranger(request)).await;
            assert_eq!(answer.kind(), ProblemKind::Unauthenticated, "{answer}");
        }
    }
    server.stop().await;
}

/// A proxy may have checked another one than the one that counts here.
#[tokio::test]
async fn a_second_authorization_header_is_malformed() {
    let server = InProcess::start().await;
    let key = server.api_key(Role::Admin);
    for second in [key, "garbage"] {
        let request = server.admin(Method::GET, "/v1/admin/machines").bearer_auth(second);
        let answer = server.send(request).await;
        assert_eq!(answer.kind(), ProblemKind::Malformed, "{answer}");
    }
    server.stop().await;
}

#[tokio::test]
async fn each_role_may_call_exactly_the_operations_in_the_table() {
    let server = InProcess::start().await;
    for operation in operations(&server).await.iter().filter(|operation| operation.needs_key) {
        for role in Role::ALL {
            let path = operation.path_with(&Uuid::nil().to_string());
            // The body is invalid. A caller that is refused for the body was authorized.
            let request = server.request(operation.method.clone(), &format!("{path}?unknown=1"));
            let request = request
                .header("content-type", "application/json")
                .body("{\"unknown\":1}");
            let answer = server.send(request.bearer_auth(server.api_key(role))).await;
            let refused = answer.status >= 400 && answer.kind() == ProblemKind::Forbidden;
            assert_eq!(!refused, includes(role, caller(operation)), "{role:?}: {answer}");
            assert_ne!(answer.status, 401, "{answer}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn an_api_key_does_not_replace_evidence() {
    let server = InProcess::start().await;
    let machine = server.enrolled("EVIDENCE").await;
    let mut tried = 0;
    for operation in operations(&server).await {
        if caller(&operation) != MACHINE {
            continue;
        }
        for role in Role::ALL {
            let nonce = server.nonce().await;
            let mut body = match operation.path.as_str() {
                "/v1/enroll" => machine.enroll_body(server.audience(), None, &nonce),
                "/v1/check-in" => machine.check_in_body(server.audience(), &nonce),
                "/v1/renew" => machine.renew_body(server.audience(), &machine.csr(), &nonce),
                path => panic!("{path} needs a body here"),
            };
            let evidence = body["evidence"].as_str().unwrap();
            let (signed, _signature) = evidence.rsplit_once('.').unwrap();
            body["evidence"] = json!(format!("{signed}.{}", "A".repeat(86)));
            let request = server.request(operation.method.clone(), &operation.path).json(&body);
            let answer = server.send(request.bearer_auth(server.api_key(role))).await;
            let _refused = answer.expect_problem(ProblemKind::BadEvidence);
            tried += 1;
        }
    }
    assert_eq!(tried, 3 * Role::ALL.len());
    server.stop().await;
}

#[tokio::test]
async fn public_operations_answer_as_documented_without_a_key() {
    let server = InProcess::start().await;
    let token = server.enrollment_token(json!({})).await;
    let machine = Machine::with_serial_number("PUBLIC");
    let operations = operations(&server).await;
    let agents = operations
        .iter()
        .filter(|operation| !operation.needs_key && operation.path.starts_with("/v1/"));
    let agents: BTreeSet<&str> = agents
        .map(|operation| operation.path.as_str())
        .filter(|path| !path.starts_with("/v1/ca/"))
        .collect();
    assert_eq!(agents, BTreeSet::from(AGENT_PATHS));
    // The enrollment is first, because the others need a machine.
    let public = operations.iter().filter(|operation| !operation.needs_key);
    let (enroll, others): (Vec<_>, Vec<_>) = public.partition(|operation| operation.path == "/v1/enroll");
    for operation in enroll.into_iter().chain(others) {
        let answer = match (operation.method.as_str(), operation.path.as_str()) {
            ("GET", "/v1/ca/crl/{key_identifier}") => {
                let path = path_of_list(&server, &machine).await;
                server.send(server.request(Method::GET, &path)).await
            }
            ("GET", "/v1/ca/issuer/{key_identifier}") => {
                let path = path_of_list(&server, &machine).await.replace("/crl/", "/issuer/");
                server.send(server.request(Method::GET, &path)).await
            }
            ("GET", path) => server.send(server.request(Method::GET, path)).await,
            ("POST", "/v1/ca/ocsp") => {
                let request = server.request(Method::POST, "/v1/ca/ocsp");
                server
                    .send(request.header("content-type", "application/ocsp-request"))
                    .await
            }
            ("POST", "/v1/enroll") => machine.enroll(&server, Some(&token)).await,
            ("POST", "/v1/check-in") => machine.check_in(&server).await,
            ("POST", "/v1/renew") => machine.renew(&server).await,
            _ => panic!("{} needs a call here", operation.name()),
        };
        assert_documented(operation, &answer);
    }
    server.stop().await;
}

/// The callers of an operation, from the table.
fn caller(operation: &Operation) -> &'static str {
    let line = CALLERS.iter().find(|(name, _)| *name == operation.name());
    line.unwrap_or_else(|| panic!("{} has no line in the table", operation.name()))
        .1
}

fn includes(role: Role, lowest: &str) -> bool {
    match lowest {
        ANY => true,
        VIEWER => matches!(role, Role::Viewer | Role::Operator | Role::Admin),
        OPERATOR => matches!(role, Role::Operator | Role::Admin),
        exactly => role.as_str() == exactly,
    }
}

fn assert_documented(operation: &Operation, answer: &Answer) {
    let documented = operation.successes.iter().find(|(status, _)| *status == answer.status);
    let (_, media_type) = documented.unwrap_or_else(|| panic!("not documented: {answer}"));
    assert_eq!(answer.header("content-type"), media_type.as_deref(), "{answer}");
}
