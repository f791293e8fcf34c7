//! Wrong bodies for every operation with a body: malformed, truncated, oversized and wrong-typed. Each gets a problem
//! with a 4xx, no connection is dropped, and the server keeps running.

use assay_protocol::admin_api::api_keys::Role;
use assay_protocol::{ProblemKind, Purpose};
use assay_server::clock::Clock;
use assay_tests::answer::Answer;
use assay_tests::apple::{Apple, Attested, device_information};
use assay_tests::in_process::InProcess;
use assay_tests::machine::Machine;
use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::api::document::{Operation, allows, operations};

/// Settings without rate limits, because all calls come from one address.
const UNLIMITED: [(&str, &str); 3] = [
    ("rate_limit.machine_per_minute", "0"),
    ("rate_limit.address_per_minute", "0"),
    ("rate_limit.api_key_per_minute", "0"),
];

/// A server, and what is needed to call its operations.
struct Ground {
    server: InProcess,
    token: String,
    permission_id: String,
    apple: Apple,
}

impl Ground {
    async fn prepare() -> Self {
        let (server, apple) = InProcess::with_apple(&UNLIMITED).await;
        let token = server.enrollment_token(json!({"max_uses": 100_000})).await;
        let permission = json!({"audience": "audience", "name": "permission"});
        let permission = server.post("/v1/admin/permissions", &permission).await.json();
        Self {
            server,
            token,
            permission_id: permission["id"].as_str().unwrap().to_owned(),
            apple,
        }
    }

    /// The operations with a body.
    async fn operations(&self) -> Vec<Operation> {
        let mut operations = operations(&self.server).await;
        operations.retain(|operation| operation.body.is_some());
        assert!(operations.len() > 10, "{operations:?}");
        operations
    }

    /// Apple's attestation of a healthy machine.
    fn attested(&self, machine: &Machine) -> Attested {
        Attested::of(
            machine.serial_number(),
            &machine.public_key(),
            self.server.clock().now(),
        )
    }

    /// An MDM's event about a healthy machine.
    fn mdm_event(&self, machine: &Machine) -> Value {
        let chain = self.apple.attest(&self.attested(machine));
        let payload = STANDARD.encode(device_information("UDID", Some(&chain)));
        json!({"topic": "mdm.Connect", "acknowledge_event": {"udid": "UDID", "raw_payload": payload}})
    }

    /// A machine with the status that the operation needs.
    async fn enrolled_for(&self, operation: &Operation, serial_number: &str) -> Machine {
        let machine = match operation.path.contains("apple-attestation") || operation.path.contains("mdm") {
            true => self.server.attestable(serial_number).await,
            false => self.server.enrolled(serial_number).await,
        };
        if operation.path.ends_with("/release") {
            let path = format!("{}/quarantine", machine.path());
            let _held_back = self.server.post(&path, &json!({"reason": "odd"})).await.expect(200);
        }
        machine
    }

    /// An operation's path and a valid body, both for a new machine or a new enrollment.
    async fn valid(&self, operation: &Operation) -> (String, Value, Machine) {
        let serial_number = format!("BODIES-{}", rand::random::<u64>());
        if operation.path.contains("/approve") || operation.path.contains("/deny") {
            return self.valid_decision(operation, &serial_number).await;
        }
        let machine = self.enrolled_for(operation, &serial_number).await;
        if operation.path.contains("/certificates/") {
            let record = self.server.get(&machine.path()).await.json();
            let path = operation.path_with(record["certificate"]["serial_number"].as_str().unwrap());
            return (path, json!({"reason": "superseded", "note": "a note"}), machine);
        }
        let id = machine.id().to_string();
        let nonce = self.server.nonce().await;
        let body = match operation.name().as_str() {
            "POST /v1/enroll" => machine.enroll_body(self.server.audience(), Some(&self.token), &nonce),
            "POST /v1/check-in" => machine.check_in_body(self.server.audience(), &nonce),
            "POST /v1/renew" => machine.renew_body(self.server.audience(), &machine.csr(), &nonce),
            "POST /v1/admin/api-keys" => json!({
                "name": serial_number, "role": "viewer", "expires_in_seconds": 60, "networks": ["10.0.0.0/8"],
            }),
            "POST /v1/admin/enrollment-tokens" => json!({
                "description": "d", "expires_in_seconds": 60, "max_uses": 2, "serial_numbers": ["C02XYZ"],
                "labels": {"team": "build"}, "approval": "manual", "allow_reenrollment": true,
            }),
            "POST /v1/admin/permissions" => json!({"audience": "a", "name": id, "description": "d"}),
            "POST /v1/admin/audiences" => json!({"audience": id, "token": token_form()}),
            "PUT /v1/admin/audiences/{id}" => {
                let path = operation.path_with(&self.audience(&id).await);
                return (path, json!({"token": token_form()}), machine);
            }
            "POST /v1/admin/grants" => self.grant(&id),
            "PUT /v1/admin/policy" => self.policy(&id),
            "PUT /v1/admin/grants/{id}" => {
                let grant = self.grant(&id);
                let created = self.server.post("/v1/admin/grants", &grant).await.expect(201).json();
                return (operation.path_with(created["id"].as_str().unwrap()), grant, machine);
            }
            "PUT /v1/admin/permissions/{id}" => {
                let permission = json!({"audience": "a", "name": id});
                let created = self.server.post("/v1/admin/permissions", &permission).await;
                let path = operation.path_with(created.expect(201).json()["id"].as_str().unwrap());
                return (path, json!({"description": "d"}), machine);
            }
            "POST /v1/admin/webhooks" => json!({
                "url": "https://example.com/hook", "description": "d", "kinds": ["machine.enrolled"],
            }),
            "POST /v1/admin/grants/evaluate" => json!({"machine_id": id}),
            "PUT /v1/admin/inventory" => json!({
                "items": [{"serial_number": serial_number, "labels": {"team": "build"}, "owner": "Ada"}],
            }),
            "PATCH /v1/admin/machines/{id}" => json!({"labels": {"team": "build", "old": null}, "note": "a note"}),
            "POST /v1/admin/machines/{id}/apple-attestation" => self.apple.body(&self.attested(&machine)),
            "POST /v1/mdm/nanomdm" => self.mdm_event(&machine),
            _ if operation.path.starts_with("/v1/admin/machines/{id}/") => json!({"reason": "a reason"}),
            name => panic!("{name} needs a valid body here"),
        };
        (operation.path_with(&id), body, machine)
    }

    /// A policy with one of each part.
    fn policy(&self, machine: &str) -> Value {
        let mut grant = self.grant(machine);
        let members = grant.as_object_mut().unwrap();
        members.remove("permission_id");
        members.insert("audience".to_owned(), json!("a"));
        members.insert("permission".to_owned(), json!(machine));
        json!({
            "permissions": [{"audience": "a", "name": machine, "description": "d"}],
            "grants": [grant],
            "audiences": [{"audience": machine, "token": token_form()}],
        })
    }

    /// A grant with every member, for a machine.
    fn grant(&self, machine: &str) -> Value {
        json!({
            "name": machine,
            "description": "d",
            "permission_id": self.permission_id,
            "selector": {"machine_ids": [machine], "labels": {"team": "build"}, "all": true},
            "conditions": {
                "min_assurance": "verified", "max_attestation_age_days": 30, "key_store": "software",
                "sip_enabled": true, "filevault_enabled": true, "firewall_enabled": false,
                "gatekeeper_enabled": true, "secure_boot": "full", "min_os_version": "26.1", "mdm_enrolled": true,
            },
            "expires_at": "2126-11-22T10:00:00Z",
        })
    }

    /// The path and the body for a decision about a new enrollment.
    async fn valid_decision(&self, operation: &Operation, serial_number: &str) -> (String, Value, Machine) {
        let token = self.server.enrollment_token(json!({"approval": "manual"})).await;
        let machine = Machine::with_serial_number(serial_number);
        let pending = machine.enroll(&self.server, Some(&token)).await.json();
        let id = match operation.path.contains("/enrollments/") {
            true => "enrollment_id",
            false => "machine_id",
        };
        let path = operation.path_with(pending[id].as_str().unwrap());
        (path, json!({"reason": "a reason"}), machine)
    }

    /// The id of a new audience.
    async fn audience(&self, name: &str) -> String {
        let audience = json!({"audience": name, "token": {}});
        let created = self.server.post("/v1/admin/audiences", &audience).await.expect(201);
        created.json()["id"].as_str().unwrap().to_owned()
    }

    fn request(&self, operation: &Operation, path: &str) -> RequestBuilder {
        let request = self.server.request(operation.method.clone(), path);
        match operation.role.as_str() {
            "mdm" => request.bearer_auth(self.server.api_key(Role::Mdm)),
            _ if operation.needs_key => request.bearer_auth(self.server.api_key(Role::Admin)),
            _ => request,
        }
    }

    async fn send(&self, operation: &Operation, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        let mut request = self.request(operation, path);
        if operation.path == "/v1/admin/policy" {
            let present = self.server.get(&operation.path).await;
            request = request.header("if-match", present.header("etag").unwrap());
        }
        let request = request.header("content-type", "application/json").body(body);
        self.server.send(request).await
    }

    /// Checks that the server still works.
    async fn end(self) {
        let ready = self.server.send(self.server.request(Method::GET, "/readyz")).await;
        assert_eq!(ready.status, 200, "{ready}");
        self.server.stop().await;
    }
}

fn token_form() -> Value {
    json!({
        "aud": "text", "lifetime_seconds": 900, "subject": "machine/{machine_id}",
        "claims": {"groups": "{permissions}", "tags": {"team": ["{labels.team}"], "is_machine": true}},
    })
}

#[tokio::test]
async fn a_valid_body_is_accepted_by_every_operation() {
    let ground = Ground::prepare().await;
    for operation in ground.operations().await {
        let (path, body, _) = ground.valid(&operation).await;
        let answer = ground.send(&operation, &path, body.to_string()).await;
        assert!(answer.status < 300, "{answer}");
    }
    ground.end().await;
}

#[tokio::test]
async fn a_body_that_is_not_a_json_object_is_malformed() {
    let ground = Ground::prepare().await;
    for operation in ground.operations().await {
        let (path, valid, _) = ground.valid(&operation).await;
        let mut bodies = what_is_no_object(&valid.to_string());
        let may_be_empty = operation.body.as_ref().is_some_and(|body| allows(body, "null"));
        bodies.retain(|body| !(may_be_empty && body == b"null"));
        for body in bodies {
            let answer = ground.send(&operation, &path, body.clone()).await;
            assert_eq!(
                answer.kind(),
                ProblemKind::Malformed,
                "{:?}: {answer}",
                String::from_utf8_lossy(&body)
            );
        }
        let empty = ground.send(&operation, &path, "").await;
        assert_eq!(empty.status < 300, may_be_empty, "{empty}");
    }
    ground.end().await;
}

#[tokio::test]
async fn a_body_of_the_wrong_size_or_media_type_is_refused() {
    let ground = Ground::prepare().await;
    for operation in ground.operations().await {
        let (path, _, _) = ground.valid(&operation).await;
        let limit = match operation.path.as_str() {
            "/v1/admin/inventory" | "/v1/admin/policy" => 32 * 1024 * 1024,
            "/v1/mdm/nanomdm" => 4 * 1024 * 1024,
            _ if operation.needs_key => 1024 * 1024,
            _ => 64 * 1024,
        };
        for length in [limit + 1, 2 * limit] {
            let answer = ground.send(&operation, &path, vec![b' '; length]).await;
            assert_eq!(answer.kind(), ProblemKind::PayloadTooLarge, "{answer}");
        }
        for media_type in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "application/json2",
            "",
        ] {
            let request = ground.request(&operation, &path).header("content-type", media_type);
            let answer = ground.server.send(request.body("{\"reason\":\"x\"}")).await;
            assert_eq!(
                answer.kind(),
                ProblemKind::UnsupportedMediaType,
                "{media_type}: {answer}"
            );
        }
        let no_media_type = ground.request(&operation, &path).body("{\"reason\":\"x\"}");
        let answer = ground.server.send(no_media_type).await;
        assert_eq!(answer.kind(), ProblemKind::UnsupportedMediaType, "{answer}");
    }
    ground.end().await;
}

/// Unknown members of a newer agent are ignored. A misspelt condition is refused, because it would grant too much.
#[tokio::test]
async fn an_unknown_field_is_named_to_administrators_and_ignored_from_agents_and_mdms() {
    let ground = Ground::prepare().await;
    for operation in ground.operations().await {
        let (path, mut body, _) = ground.valid(&operation).await;
        body["a_field_of_the_future"] = json!({"deep": [1]});
        let answer = ground.send(&operation, &path, body.to_string()).await;
        if operation.needs_key && operation.role != "mdm" {
            assert_eq!(answer.kind(), ProblemKind::Malformed, "{answer}");
            assert!(answer.detail().contains("a_field_of_the_future"), "{answer}");
        } else {
            assert!(answer.status < 300, "{answer}");
        }
    }
    let nested = [("selector", "lables"), ("conditions", "sip_enabeld")];
    for (member, misspelt) in nested {
        let mut grant = json!({"permission_id": ground.permission_id, "selector": {"all": true}, "conditions": {}});
        grant[member][misspelt] = json!(true);
        let answer = ground.server.post("/v1/admin/grants", &grant).await;
        assert_eq!(answer.kind(), ProblemKind::Malformed, "{answer}");
        assert!(answer.detail().contains(misspelt), "{answer}");
    }
    ground.end().await;
}

/// "at line 1 column 211" does not help a caller that generates the body.
#[tokio::test]
async fn a_field_of_the_wrong_type_is_named_with_its_path_and_without_a_column() {
    let ground = Ground::prepare().await;
    let grant = |member: &str, value: Value| {
        let mut grant = json!({"permission_id": ground.permission_id, "selector": {"all": true}, "conditions": {}});
        *grant.pointer_mut(member).unwrap() = value;
        grant
    };
    for (path, body, named) in [
        (
            "api-keys",
            json!({"name": 1, "role": "viewer"}),
            "name: invalid type: integer `1`, expected a string",
        ),
        (
            "api-keys",
            json!({"name": "n", "role": "king"}),
            "role: unknown variant `king`, expected one of `viewer`",
        ),
        ("api-keys", json!({"role": "viewer"}), "missing field `name`"),
        ("grants", grant("/permission_id", json!("x")), "permission_id: "),
        (
            "grants",
            grant("/selector", json!({"labels": {"a": 1}})),
            "selector: labels.a: invalid type",
        ),
        (
            "grants",
            grant("/conditions", json!({"sip_enabled": "yes"})),
            "conditions: sip_enabled: invalid type",
        ),
        (
            "enrollment-tokens",
            json!({"serial_numbers": ["A", 2]}),
            "serial_numbers[1]: invalid type",
        ),
    ] {
        let answer = ground.server.post(&format!("/v1/admin/{path}"), &body).await;
        let refused = answer.expect_problem(ProblemKind::Malformed);
        let detail = refused.detail();
        assert!(
            detail.starts_with(named) && !detail.contains("column"),
            "{named}: {refused}"
        );
    }
    ground.end().await;
}

/// If one of these were ignored, the grant would have fewer conditions than intended.
#[tokio::test]
async fn a_null_or_duplicate_condition_or_selector_is_refused_by_name() {
    let ground = Ground::prepare().await;
    let operations = ground.operations().await;
    let create = operations
        .iter()
        .find(|operation| operation.name() == "POST /v1/admin/grants")
        .unwrap();
    for (selector, conditions, named) in [
        (r#""all": true"#, r#""sip_enabled": null"#, "sip_enabled"),
        (r#""all": true, "labels": null"#, "", "labels"),
        (
            r#""all": true"#,
            r#""min_assurance": "attested", "min_assurance": "asserted""#,
            "min_assurance",
        ),
    ] {
        let body = format!(
            r#"{{"permission_id": "{}", "selector": {{{selector}}}, "conditions": {{{conditions}}}}}"#,
            ground.permission_id
        );
        let answer = ground.send(create, "/v1/admin/grants", body).await;
        assert_eq!(answer.kind(), ProblemKind::Malformed, "{answer}");
        assert!(answer.detail().contains(named), "{answer}");
    }
    ground.end().await;
}

/// One administrator's text must not look like another one to the next administrator.
#[tokio::test]
async fn a_text_with_a_direction_mark_or_control_character_is_refused_by_its_name_in_every_body() {
    let ground = Ground::prepare().await;
    for operation in ground.operations().await {
        if !operation.needs_key || operation.role == "mdm" {
            continue;
        }
        let (path, valid, _) = ground.valid(&operation).await;
        let texts = pointers(&valid)
            .into_iter()
            .filter(|pointer| valid.pointer(pointer).is_some_and(Value::is_string));
        for pointer in texts {
            for unfit in ["C02\u{202e}XYZ", "C02\u{2066}XYZ", "C02\u{61c}XYZ", "C02\u{1b}[2JXYZ"] {
                let mut body = valid.clone();
                *body.pointer_mut(&pointer).unwrap() = json!(unfit);
                let answer = ground.send(&operation, &path, body.to_string()).await;
                assert_eq!(answer.kind(), ProblemKind::Malformed, "{pointer} = {unfit:?}: {answer}");
                let name = pointer.split('/').rfind(|name| name.parse::<usize>().is_err()).unwrap();
                assert!(answer.text().contains(name), "{pointer} = {unfit:?}: {answer}");
            }
        }
    }
    ground.end().await;
}

/// Parsers disagree on which of two members counts.
#[tokio::test]
async fn a_label_given_twice_is_refused_by_its_name() {
    let ground = Ground::prepare().await;
    let operations = ground.operations().await;
    let mut tried = 0;
    for operation in operations
        .iter()
        .filter(|operation| operation.needs_key && operation.role != "mdm")
    {
        let (path, valid, _) = ground.valid(operation).await;
        let valid = valid.to_string();
        let twice = valid.replace(r#""team":"build""#, r#""team":"build","te\u0061m":"sales""#);
        if twice == valid {
            continue;
        }
        let refused = ground
            .send(operation, &path, twice)
            .await
            .expect_problem(ProblemKind::Malformed);
        assert!(refused.text().contains("labels.team is there twice"), "{refused}");
        tried += 1;
    }
    assert_eq!(
        tried, 6,
        "tokens, new and replaced grants, policy, inventory and machines have labels"
    );
    ground.end().await;
}

/// Replaces every field at every depth of every body by each JSON type and its extreme values.
#[tokio::test]
async fn a_field_with_a_wrong_type_or_extreme_value_never_causes_a_server_error() {
    let ground = Ground::prepare().await;
    for operation in ground.operations().await {
        let (path, valid, _) = ground.valid(&operation).await;
        let schema = operation.body.clone().unwrap();
        for pointer in pointers(&valid) {
            for (json_type, value) in odd_values() {
                let mut body = valid.clone();
                *body.pointer_mut(&pointer).unwrap() = value.clone();
                let answer = ground.send(&operation, &path, body.to_string()).await;
                let sent = format!("{pointer} = {value:.100}: {answer}");
                assert!(answer.status < 500, "{sent}");
                let field = schema_at(&schema, &pointer);
                if !field.is_null() && !allows(&field, json_type) {
                    assert_eq!(answer.kind(), ProblemKind::Malformed, "{sent}");
                }
            }
            // No type here can represent 1e999, so it cannot come from a value.
            let mut body = valid.clone();
            *body.pointer_mut(&pointer).unwrap() = json!("PLACE");
            let body = body.to_string().replace("\"PLACE\"", "1e999");
            let answer = ground.send(&operation, &path, body).await;
            assert_eq!(answer.kind(), ProblemKind::Malformed, "{pointer} = 1e999: {answer}");
        }
    }
    ground.end().await;
}

/// The limits of the document are those of the server.
#[tokio::test]
async fn a_value_beyond_a_documented_limit_is_malformed() {
    let ground = Ground::prepare().await;
    let mut tried = 0;
    for operation in ground.operations().await {
        let (path, valid, _) = ground.valid(&operation).await;
        let schema = operation.body.clone().unwrap();
        for pointer in pointers(&valid) {
            for beyond in beyond(&schema_at(&schema, &pointer)) {
                let mut body = valid.clone();
                *body.pointer_mut(&pointer).unwrap() = beyond.clone();
                let answer = ground.send(&operation, &path, body.to_string()).await;
                assert_eq!(
                    answer.kind(),
                    ProblemKind::Malformed,
                    "{pointer} = {beyond:.100}: {answer}"
                );
                tried += 1;
            }
        }
    }
    assert!(tried > 30, "{tried}");
    ground.end().await;
}

/// Values just beyond the limits of a schema.
fn beyond(schema: &Value) -> Vec<Value> {
    let limit = |name: &str| schema[name].as_i64();
    let mut values = Vec::new();
    values.extend(limit("maximum").map(|most| json!(most + 1)));
    values.extend(limit("minimum").map(|least| json!(least - 1)));
    let text = |length: i64| json!("x".repeat(usize::try_from(length).unwrap()));
    values.extend(limit("maxLength").map(|most| text(most + 1)));
    values.extend(limit("minLength").map(|least| text(least - 1)));
    let list = |length: i64| json!(vec![json!("10.0.0.1"); usize::try_from(length).unwrap()]);
    values.extend(limit("maxItems").map(|most| list(most + 1)));
    values.extend(limit("minItems").map(|least| list(least - 1)));
    values
}

#[tokio::test]
async fn claims_with_a_wrong_type_or_extreme_value_never_cause_a_server_error() {
    let ground = Ground::prepare().await;
    let server = &ground.server;
    let mut machine = server.enrolled("CLAIMS").await;
    let template = serde_json::to_value(machine.claims(server.audience(), Purpose::CheckIn, "")).unwrap();
    for pointer in pointers(&template) {
        for (_, value) in odd_values() {
            for purpose in [Purpose::CheckIn, Purpose::Renew, Purpose::Enroll] {
                let nonce = server.nonce().await;
                let mut body = match purpose {
                    Purpose::CheckIn => json!({}),
                    Purpose::Renew => machine.renew_body(server.audience(), &machine.csr(), &nonce),
                    Purpose::Enroll => machine.enroll_body(server.audience(), Some(&ground.token), &nonce),
                };
                let mut claims = serde_json::to_value(machine.claims(server.audience(), purpose, &nonce)).unwrap();
                let Some(claim) = claims.pointer_mut(&pointer) else {
                    continue;
                };
                *claim = value.clone();
                body["evidence"] = json!(machine.sign_payload(claims.to_string().as_bytes()));
                let path = match purpose {
                    Purpose::CheckIn => "/v1/check-in",
                    Purpose::Renew => "/v1/renew",
                    Purpose::Enroll => "/v1/enroll",
                };
                let answer = server.call(path, &body).await;
                assert!(answer.status < 500, "{pointer} = {value:.100}: {answer}");
                if answer.status == 403 && answer.kind() == ProblemKind::IdentityMismatch {
                    machine = server.enrolled(&format!("CLAIMS-{}", rand::random::<u64>())).await;
                }
            }
        }
    }
    ground.end().await;
}

/// Bodies that are no JSON object: other JSON, no JSON, a truncated body, bytes that are no text, and deep nesting.
fn what_is_no_object(valid: &str) -> Vec<Vec<u8>> {
    let texts = [
        " ",
        "null",
        "[]",
        "[1]",
        "\"x\"",
        "1",
        "true",
        "1e999",
        "-",
        "{",
        "}",
        "{}{}",
        "{\"a\"}",
        "{a:1}",
        "{\"a\":1,}",
        "not JSON",
        "<xml/>",
        "reason=x",
        "\u{feff}{}",
        "{\"reason\":\"\\ud800\"}",
        "{'reason':'x'}",
        "NaN",
    ];
    let not_texts: [&[u8]; 4] = [b"\xff\xfe{\0}\0", b"{\"reason\":\"\xff\"}", b"\0", &[0; 1000]];
    let deep = [("[", "]"), ("{\"reason\":", "}"), ("{\"\":", "}")].map(|(open, close)| {
        let depth = 20_000 / open.len();
        format!("{}1{}", open.repeat(depth), close.repeat(depth)).into_bytes()
    });
    let cut = [1, valid.len() / 2, valid.len() - 1].map(|at| &valid.as_bytes()[..at]);
    let short = texts.map(str::as_bytes).into_iter().chain(cut).chain(not_texts);
    short.map(<[u8]>::to_vec).chain(deep).collect()
}

/// Pointers to every value inside it.
fn pointers(value: &Value) -> Vec<String> {
    let mut pointers = Vec::new();
    let members: Vec<(String, &Value)> = match value {
        Value::Object(members) => members.iter().map(|(name, member)| (name.clone(), member)).collect(),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(at, item)| (at.to_string(), item))
            .collect(),
        _ => Vec::new(),
    };
    for (name, member) in members {
        pointers.push(format!("/{name}"));
        pointers.extend(
            self::pointers(member)
                .into_iter()
                .map(|below| format!("/{name}{below}")),
        );
    }
    pointers
}

/// The schema at a pointer. Null if the document has none.
fn schema_at(schema: &Value, pointer: &str) -> Value {
    let mut schema = schema.clone();
    for name in pointer.split('/').skip(1) {
        let alternatives = schema["oneOf"]
            .as_array()
            .cloned()
            .unwrap_or_else(|| vec![schema.clone()]);
        let within = alternatives.iter().find_map(|schema| {
            let below = [
                &schema["properties"][name],
                &schema["items"],
                &schema["additionalProperties"],
            ];
            below.into_iter().find(|below| below.is_object()).cloned()
        });
        schema = within.unwrap_or(Value::Null);
    }
    schema
}

fn odd_values() -> Vec<(&'static str, Value)> {
    vec![
        ("null", json!(null)),
        ("boolean", json!(true)),
        ("integer", json!(0)),
        ("integer", json!(-1)),
        ("integer", json!(i64::MIN)),
        ("integer", json!(i64::MAX)),
        ("integer", json!(9_223_372_036_854_775_808_u64)),
        ("integer", json!(u64::MAX)),
        ("number", json!(1.5)),
        ("number", json!(1e308)),
        ("string", json!("")),
        ("string", json!("x")),
        ("string", json!("a\0b")),
        ("string", json!("\u{1b}[2J\r\n")),
        ("string", json!("💻\u{202e}\u{200b}")),
        ("string", json!("' OR 1=1; --")),
        ("string", json!("x".repeat(30_000))),
        ("string", json!("9999-12-31T23:59:60Z")),
        ("string", json!("-9999-01-01T00:00:00Z")),
        ("array", json!([])),
        ("array", json!([null])),
        ("array", json!(["x", "x"])),
        ("object", json!({})),
        ("object", json!({"x": "y"})),
        ("object", json!({"": null, "\0": "\0"})),
    ]
}
