//! Who may call what: each operation of the document without credentials, with a bad key, and with a key of each role.

use std::collections::BTreeSet;

use assay_protocol::ProblemKind;
use assay_protocol::admin_api::api_keys::Role;
use assay_tests::answer::{AGENT_PATHS, Answer};
use assay_tests::in_process::InProcess;
use assay_tests::machine::Machine;
use reqwest::{Method, RequestBuilder};
use serde_json::json;
use uuid::Uuid;

use crate::api::document::{Operation, operations};

/// The lowest role that may call each operation of the admin API: CONTRACT §7 in a table.
const LOWEST_ROLES: [(&str, Role); 33] = [
    ("GET /v1/admin/api-keys", Role::Viewer),
    ("POST /v1/admin/api-keys", Role::Admin),
    ("DELETE /v1/admin/api-keys/{id}", Role::Admin),
    ("GET /v1/admin/audit", Role::Viewer),
    ("GET /v1/admin/audit/verify", Role::Viewer),
    ("GET /v1/admin/enrollment-tokens", Role::Viewer),
    ("POST /v1/admin/enrollment-tokens", Role::Operator),
    ("GET /v1/admin/enrollment-tokens/{id}", Role::Viewer),
    ("DELETE /v1/admin/enrollment-tokens/{id}", Role::Operator),
    ("GET /v1/admin/enrollments", Role::Viewer),
    ("POST /v1/admin/enrollments/{id}/approve", Role::Operator),
    ("POST /v1/admin/enrollments/{id}/deny", Role::Operator),
    ("GET /v1/admin/grants", Role::Viewer),
    ("POST /v1/admin/grants", Role::Admin),
    ("POST /v1/admin/grants/evaluate", Role::Viewer),
    ("GET /v1/admin/grants/{id}", Role::Viewer),
    ("DELETE /v1/admin/grants/{id}", Role::Admin),
    ("GET /v1/admin/machines", Role::Viewer),
    ("GET /v1/admin/machines/{id}", Role::Viewer),
    ("PATCH /v1/admin/machines/{id}", Role::Operator),
    ("DELETE /v1/admin/machines/{id}", Role::Admin),
    ("POST /v1/admin/machines/{id}/approve", Role::Operator),
    ("GET /v1/admin/machines/{id}/certificates", Role::Viewer),
    ("POST /v1/admin/machines/{id}/deny", Role::Operator),
    ("GET /v1/admin/machines/{id}/events", Role::Viewer),
    ("GET /v1/admin/machines/{id}/grants", Role::Viewer),
    ("POST /v1/admin/machines/{id}/quarantine", Role::Operator),
    ("POST /v1/admin/machines/{id}/release", Role::Operator),
    ("POST /v1/admin/machines/{id}/revoke", Role::Operator),
    ("GET /v1/admin/permissions", Role::Viewer),
    ("POST /v1/admin/permissions", Role::Admin),
    ("GET /v1/admin/permissions/{id}", Role::Viewer),
    ("DELETE /v1/admin/permissions/{id}", Role::Admin),
];

#[tokio::test]
async fn the_document_tells_parameters_of_the_path_from_those_of_the_query() {
    let server = InProcess::start().await;
    for operation in operations(&server).await {
        let in_path: BTreeSet<String> = operation
            .path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}').map(str::to_owned))
            .collect();
        let documented: BTreeSet<String> = operation.path_parameters.iter().cloned().collect();
        assert_eq!(documented, in_path, "{}", operation.name());
        assert_eq!(
            operation.needs_key,
            operation.path.starts_with("/v1/admin/"),
            "{}",
            operation.name()
        );
        assert!(!operation.successes.is_empty(), "{}", operation.name());
    }
    server.stop().await;
}

#[tokio::test]
async fn the_admin_api_answers_nobody_without_a_key() {
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

#[tokio::test]
async fn each_role_may_call_what_the_table_says_and_nothing_else() {
    let server = InProcess::start().await;
    let operations = operations(&server).await;
    let admin: Vec<&Operation> = operations.iter().filter(|operation| operation.needs_key).collect();
    let served: BTreeSet<String> = admin.iter().map(|operation| operation.name()).collect();
    let listed: BTreeSet<String> = LOWEST_ROLES.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(
        served, listed,
        "an operation without a line in the table, or the other way round"
    );
    for operation in admin {
        let lowest = LOWEST_ROLES
            .iter()
            .find(|(name, _)| *name == operation.name())
            .unwrap()
            .1;
        for role in [Role::Viewer, Role::Operator, Role::Admin, Role::RelyingParty] {
            let request = server.request(operation.method.clone(), &operation.path_with(&Uuid::nil().to_string()));
            // Nothing of this is valid: whoever is refused for that was let in.
            let request = request
                .header("content-type", "application/json")
                .body("{\"unknown\":1}");
            let answer = server.send(request.bearer_auth(server.api_key(role))).await;
            let refused = answer.status >= 400 && answer.kind() == ProblemKind::Forbidden;
            assert_eq!(!refused, includes(role, lowest), "{role:?}: {answer}");
            assert_ne!(answer.status, 401, "{answer}");
        }
    }
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
    // Enrollment comes first, as the others need a machine.
    let public = operations.iter().filter(|operation| !operation.needs_key);
    let (enroll, others): (Vec<_>, Vec<_>) = public.partition(|operation| operation.path == "/v1/enroll");
    for operation in enroll.into_iter().chain(others) {
        let answer = match (operation.method.as_str(), operation.path.as_str()) {
            ("GET", path) => server.send(server.request(Method::GET, path)).await,
            ("POST", "/v1/enroll") => machine.enroll(&server, Some(&token)).await,
            ("POST", "/v1/check-in") => machine.check_in(&server).await,
            ("POST", "/v1/renew") => machine.renew(&server).await,
            _ => panic!("{} needs a call here", operation.name()),
        };
        assert_documented(operation, &answer);
    }
    server.stop().await;
}

fn includes(role: Role, lowest: Role) -> bool {
    match lowest {
        Role::Viewer => matches!(role, Role::Viewer | Role::Operator | Role::Admin),
        Role::Operator => matches!(role, Role::Operator | Role::Admin),
        Role::Admin => role == Role::Admin,
        Role::RelyingParty => false,
    }
}

fn assert_documented(operation: &Operation, answer: &Answer) {
    let documented = operation.successes.iter().find(|(status, _)| *status == answer.status);
    let (_, media_type) = documented.unwrap_or_else(|| panic!("not documented: {answer}"));
    assert_eq!(answer.header("content-type"), media_type.as_deref(), "{answer}");
}
