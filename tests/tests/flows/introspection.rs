//! Introspection: a grant token is worth what a check-in would grant now, on every replica.

use assay_protocol::ProblemKind;
use assay_protocol::admin_api::api_keys::Role;
use assay_protocol::machine::SecureBoot;
use assay_tests::administrator::{Administrator, text};
use assay_tests::answer::Answer;
use assay_tests::api::Api;
use assay_tests::in_process::InProcess;
use assay_tests::installation::Installation;
use assay_tests::machine::Machine;
use http::Method;
use serde_json::{Value, json};
use time::Duration;

/// A machine with grants for `read` and `write` at one audience, and a relying party there.
struct Setting {
    apis: [Api; 2],
    administrator: Administrator,
    machine: Machine,
    api_key: String,
    audience: String,
    grants: [String; 2],
}

impl Setting {
    async fn new() -> Self {
        let installation = Installation::shared().await;
        let (apis, administrator) = ([installation.api(0), installation.api(1)], installation.administrator());
        let machine = administrator.enrolled(&apis[0]).await;
        // Tests share the installation, and names of keys are unique.
        let name = format!("the repository of {}", machine.serial_number());
        let api_key = json!({"name": name, "role": "relying-party"});
        let api_key = text(&administrator.create("api-keys", &api_key).await, "key");
        let audience = format!("https://{}.example.com", machine.serial_number().to_lowercase());
        let mut grants = Vec::new();
        for (name, conditions) in [("read", json!({})), ("write", json!({"secure_boot": "full"}))] {
            let permission = json!({"audience": audience, "name": name, "description": ""});
            let permission = text(&administrator.create("permissions", &permission).await, "id");
            grants.push(administrator.grant(&permission, &machine, conditions).await);
        }
        Self {
            apis,
            administrator,
            machine,
            api_key,
            audience,
            grants: grants.try_into().unwrap(),
        }
    }

    async fn token(&self, machine: &Machine) -> String {
        let checked_in = machine.check_in(&self.apis[0]).await.expect(200).json();
        text(&checked_in["grants"][0], "token")
    }

    /// The response of both replicas, which must be the same.
    async fn introspect(&self, token: &str) -> Value {
        let mut found = Vec::new();
        for api in &self.apis {
            let answer = self
                .ask(api, &[("token", token), ("token_type_hint", "access_token")])
                .await;
            let answer = answer.expect(200);
            assert_eq!(answer.header("cache-control"), Some("no-store"));
            found.push(answer.json());
        }
        assert_eq!(found[0], found[1]);
        found.swap_remove(0)
    }

    async fn ask(&self, api: &Api, form: &[(&str, &str)]) -> Answer {
        let body = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(form)
            .finish();
        let request = api
            .request(Method::POST, "/v1/introspect")
            .bearer_auth(&self.api_key)
            .header("content-type", "application/x-www-form-urlencoded");
        Answer::to(request.body(body)).await
    }
}

#[tokio::test]
async fn an_active_token_says_what_is_still_granted() {
    let setting = Setting::new().await;
    let token = setting.token(&setting.machine).await;
    let active = setting.introspect(&token).await;
    assert_eq!(active["active"], true);
    assert_eq!(
        (&active["scope"], &active["permissions"]),
        (&json!("read write"), &json!(["read", "write"]))
    );
    assert_eq!(active["aud"], json!([setting.audience]));
    assert_eq!(active["machine_id"], setting.machine.id().to_string());
    assert_eq!(active["cnf"]["jkt"], setting.machine.thumbprint().to_string());
    assert_eq!(
        (&active["assurance"], &active["token_type"]),
        (&json!("asserted"), &json!("Bearer"))
    );
    for member in ["iss", "sub", "exp", "iat", "nbf", "jti"] {
        assert!(!active[member].is_null(), "{member}: {active}");
    }

    // An administrator and the machine's posture reduce the grants. Later grants do not extend the token.
    let permission = json!({"audience": setting.audience, "name": "later", "description": ""});
    let permission = text(&setting.administrator.create("permissions", &permission).await, "id");
    setting
        .administrator
        .grant(&permission, &setting.machine, json!({}))
        .await;
    assert_eq!(setting.introspect(&token).await["scope"], "read write");
    let mut worse = setting.machine.clone();
    worse.posture.secure_boot = Some(SecureBoot::Reduced);
    let _checked_in = worse.check_in(&setting.apis[1]).await.expect(200);
    assert_eq!(setting.introspect(&token).await["scope"], "read");
    setting
        .administrator
        .delete(&format!("grants/{}", setting.grants[0]))
        .await;
    assert_eq!(setting.introspect(&token).await, json!({"active": false}));
}

#[tokio::test]
async fn a_token_of_a_machine_that_could_not_check_in_is_not_active() {
    let setting = Setting::new().await;
    let token = setting.token(&setting.machine).await;
    for (decision, active) in [("quarantine", false), ("release", true)] {
        let _decided = setting
            .administrator
            .decide(setting.machine.id(), decision, "why")
            .await
            .expect(200);
        assert_eq!(setting.introspect(&token).await["active"], active, "{decision}");
    }
    let body = json!({"serial_numbers": [setting.machine.serial_number()], "allow_reenrollment": true});
    let reenrollment = setting.administrator.token(body).await;
    let erased = setting.machine.erased();
    let _enrolled = erased
        .enroll(&setting.apis[0], Some(&reenrollment.secret))
        .await
        .expect(201);
    assert_eq!(
        setting.introspect(&token).await,
        json!({"active": false}),
        "its key is superseded"
    );
    let token = setting.token(&erased).await;
    assert_eq!(setting.introspect(&token).await["active"], true);
    let _revoked = setting
        .administrator
        .decide(erased.id(), "revoke", "stolen")
        .await
        .expect(200);
    assert_eq!(setting.introspect(&token).await, json!({"active": false}));
    setting.administrator.delete(&format!("machines/{}", erased.id())).await;
    assert_eq!(setting.introspect(&token).await, json!({"active": false}));
}

#[tokio::test]
async fn a_foreign_token_is_inactive_without_a_reason() {
    let setting = Setting::new().await;
    let token = setting.token(&setting.machine).await;
    let (signed, _signature) = token.rsplit_once('.').unwrap();
    let forged = format!("{signed}.{}", "A".repeat(86));
    let evidence = setting.machine.check_in_body(setting.apis[0].audience(), "nonce");
    for garbage in [
        "",
        "garbage",
        "a.b.c",
        &"x".repeat(20_000),
        &forged,
        evidence["evidence"].as_str().unwrap(),
    ] {
        assert_eq!(setting.introspect(garbage).await, json!({"active": false}), "{garbage}");
    }
    let api = &setting.apis[0];
    for form in [
        [].as_slice(),
        &[("tokens", "a")],
        &[("token", &token), ("token", &token)],
    ] {
        let refused = setting.ask(api, form).await.expect_problem(ProblemKind::Malformed);
        assert!(refused.detail().contains("token"), "{refused}");
    }
    let json = api
        .request(Method::POST, "/v1/introspect")
        .bearer_auth(&setting.api_key);
    let json = Answer::to(json.json(&json!({"token": token}))).await;
    let _refused = json.expect_problem(ProblemKind::UnsupportedMediaType);
    let large = "x".repeat(70_000);
    let _refused = setting
        .ask(api, &[("token", &large)])
        .await
        .expect_problem(ProblemKind::PayloadTooLarge);
}

#[tokio::test]
async fn a_token_is_active_until_it_expires() {
    let server = InProcess::start().await;
    let machine = server.enrolled("EXPIRES").await;
    let permission = json!({"audience": "https://expires.example.com", "name": "read", "description": ""});
    let permission = server
        .post("/v1/admin/permissions", &permission)
        .await
        .expect(201)
        .json();
    let grant = json!({"permission_id": permission["id"], "selector": {"all": true}, "conditions": {}});
    let _granted = server.post("/v1/admin/grants", &grant).await.expect(201);
    let checked_in = machine.check_in(&server).await.expect(200).json();
    let token = text(&checked_in["grants"][0], "token");
    let introspect = async || {
        let request = server
            .request(Method::POST, "/v1/introspect")
            .bearer_auth(server.api_key(Role::RelyingParty))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(format!("token={token}"));
        server.send(request).await.expect(200).json()
    };
    server.clock().advance(Duration::seconds(590));
    assert_eq!(introspect().await["active"], true);
    server.clock().advance(Duration::seconds(20));
    assert_eq!(introspect().await, json!({"active": false}));
    server.stop().await;
}

/// Spring and mod_auth_openidc know only this way to authenticate (RFC 6749, section 2.3.1).
#[tokio::test]
async fn a_relying_party_may_authenticate_by_client_secret_basic() {
    let setting = Setting::new().await;
    let token = setting.token(&setting.machine).await;
    let discovery = setting.apis[0]
        .get("/.well-known/openid-configuration")
        .await
        .expect(200);
    let methods = &discovery.json()["introspection_endpoint_auth_methods_supported"];
    assert_eq!(methods, &json!(["client_secret_basic", "Bearer"]));
    let ask = async |secret: &str| {
        let request = setting.apis[1].request(Method::POST, "/v1/introspect");
        let request = request.basic_auth("the repository", Some(secret));
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        Answer::to(request.body(format!("token={token}"))).await
    };
    assert_eq!(ask(&setting.api_key).await.expect(200).json()["active"], true);
    let wrong = ask("assay_key_x").await;
    let request = setting.apis[1].request(Method::POST, "/v1/introspect");
    for refused in [wrong, Answer::to(request).await] {
        let refused = refused.expect_problem(ProblemKind::Unauthenticated);
        let challenges: Vec<_> = refused.headers.get_all("www-authenticate").iter().collect();
        assert_eq!(
            challenges,
            ["Bearer", "Basic realm=\"assay\", charset=\"UTF-8\""],
            "{refused}"
        );
    }
    let elsewhere = setting.apis[1].request(Method::GET, "/v1/admin/machines");
    let refused = Answer::to(elsewhere).await.expect_problem(ProblemKind::Unauthenticated);
    assert_eq!(
        refused.headers.get_all("www-authenticate").iter().collect::<Vec<_>>(),
        ["Bearer"]
    );
}
