//! Audiences: the form of the grant tokens that a relying party takes.

use assay_protocol::ProblemKind;
use assay_protocol::admin_api::api_keys::Role;
use assay_tests::administrator::{Administrator, items, text};
use assay_tests::answer::Answer;
use assay_tests::api::{Api, Called};
use assay_tests::in_process::InProcess;
use assay_tests::installation::Installation;
use assay_tests::machine::Machine;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::Method;
use rstest::rstest;
use serde_json::{Value, json};
use uuid::Uuid;

/// A machine with the permissions `read` and `write` at an audience.
struct Setting {
    apis: [Api; 2],
    administrator: Administrator,
    machine: Machine,
    audience: String,
}

impl Setting {
    async fn new() -> Self {
        let installation = Installation::shared().await;
        let (apis, administrator) = ([installation.api(0), installation.api(1)], installation.administrator());
        let machine = administrator.enrolled(&apis[0]).await;
        let audience = format!("https://{}.example.com", Uuid::new_v4());
        for name in ["read", "write"] {
            let permission = json!({"audience": audience, "name": name});
            let permission = text(&administrator.create("permissions", &permission).await, "id");
            administrator.grant(&permission, &machine, json!({})).await;
        }
        Self {
            apis,
            administrator,
            machine,
            audience,
        }
    }

    /// Creates the audience, and returns its path.
    async fn form(&self, token: Value) -> String {
        let body = json!({"audience": self.audience, "token": token});
        let created = self.administrator.create("audiences", &body).await;
        assert_eq!(created["token"], token);
        format!("audiences/{}", text(&created, "id"))
    }

    async fn replace(&self, path: &str, token: Value) {
        let body = json!({"token": token});
        let call = self.administrator.call(Method::PUT, path, Some(&body));
        let replaced = call.await.expect(200).json();
        assert_eq!(replaced["token"], token);
    }

    async fn label(&self, labels: Value) {
        let (path, body) = (format!("machines/{}", self.machine.id()), json!({"labels": labels}));
        let call = self.administrator.call(Method::PATCH, &path, Some(&body));
        let _labelled = call.await.expect(200);
    }

    /// The check-in on each replica, one after the other.
    async fn check_ins(&self) -> [Value; 2] {
        [
            self.machine.check_in(&self.apis[0]).await.expect(200).json(),
            self.machine.check_in(&self.apis[1]).await.expect(200).json(),
        ]
    }

    /// The claims of its token, without what differs from call to call.
    async fn claims(&self) -> Value {
        let [mut here, mut there] = self.check_ins().await.map(|checked_in| claims(&token(&checked_in)));
        for claims in [&mut here, &mut there] {
            for name in ["jti", "iat", "nbf", "exp"] {
                assert!(!claims[name].is_null(), "{claims}");
                claims[name].take();
            }
        }
        assert_eq!(here, there);
        here
    }
}

fn token(checked_in: &Value) -> String {
    text(&checked_in["grants"][0], "token")
}

fn claims(token: &str) -> Value {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    serde_json::from_slice(&payload).unwrap()
}

/// What Amazon's STS reads: `aud` as a text, `sub`, and session tags.
fn for_amazon() -> Value {
    json!({
        "aud": "text",
        "lifetime_seconds": 900,
        "subject": "machine/{machine_id}",
        "claims": {"https://aws.amazon.com/tags": {
            "principal_tags": {"team": ["{labels.team}"], "may": ["{scope}"]},
            "transitive_tag_keys": ["team"],
        }},
    })
}

#[tokio::test]
async fn a_token_has_the_form_that_its_audience_has() {
    let setting = Setting::new().await;
    setting.label(json!({"team": "b{u}ild \"1\""})).await;
    let usual = setting.claims().await;
    assert_eq!(usual["aud"], json!([setting.audience]));
    let path = setting.form(for_amazon()).await;
    let found = setting.claims().await;
    let expected = json!({
        "principal_tags": {"team": ["b{u}ild \"1\""], "may": ["read write"]}, "transitive_tag_keys": ["team"],
    });
    assert_eq!(found["https://aws.amazon.com/tags"], expected);
    assert_eq!(found["aud"], setting.audience.as_str());
    assert_eq!(found["sub"], format!("machine/{}", setting.machine.id()));
    for name in ["iss", "cnf", "scope", "permissions", "machine_id", "assurance"] {
        assert_eq!(found[name], usual[name], "{name}");
    }

    // A change takes effect at the next check-in, and so does its end.
    setting
        .replace(
            &path,
            json!({"claims": {"groups": "{permissions}", "acr": "{assurance}"}}),
        )
        .await;
    let found = setting.claims().await;
    assert_eq!(found["groups"], json!(["read", "write"]));
    assert_eq!((&found["acr"], &found["aud"]), (&json!("asserted"), &usual["aud"]));
    setting.administrator.delete(&path).await;
    assert_eq!(setting.claims().await, usual);
    let gone = setting.administrator.call(Method::DELETE, &path, None).await;
    let _gone = gone.expect_problem(ProblemKind::NotFound);
    let resource = format!("audit?resource=audience:{}", path.trim_start_matches("audiences/"));
    let entries = items(setting.administrator.get(&resource).await);
    let actions: Vec<_> = entries.iter().map(|entry| text(entry, "action")).collect();
    assert_eq!(actions.len(), 3, "{actions:?}");
    for action in ["audience.create", "audience.replace", "audience.delete"] {
        assert!(actions.iter().any(|found| found == action), "{actions:?}");
    }
}

#[tokio::test]
async fn a_token_lives_as_long_as_its_audience_says() {
    let setting = Setting::new().await;
    let _path = setting.form(json!({"lifetime_seconds": 3600})).await;
    let [checked_in, _] = setting.check_ins().await;
    let claims = claims(&token(&checked_in));
    // It is valid from 30 seconds ago, for verifiers whose clocks are behind.
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 3630);
    let expires_at = text(&checked_in["grants"][0], "expires_at");
    let format = &time::format_description::well_known::Rfc3339;
    let expires_at = time::OffsetDateTime::parse(&expires_at, format).unwrap();
    assert_eq!(claims["exp"], expires_at.unix_timestamp());
}

#[tokio::test]
async fn a_machine_that_lacks_what_its_token_must_name_is_denied_with_the_reason() {
    let setting = Setting::new().await;
    let form = json!({"claims": {"team": "{labels.team}", "serial": "{serial_number}"}});
    let path = setting.form(form).await;
    let reasons = json!([
        "token: the label team is required, and the machine lacks it",
        "token: a serial number of assurance verified is required, on record asserted",
    ]);
    for checked_in in setting.check_ins().await {
        assert_eq!(checked_in["grants"], json!([]));
        let denied = checked_in["denied"].as_array().unwrap();
        assert_eq!(denied.len(), 2);
        for denial in denied {
            assert_eq!(denial["reasons"], reasons, "{denial}");
        }
    }
    let evaluated = setting
        .administrator
        .get(&format!("machines/{}/grants", setting.machine.id()))
        .await;
    assert_eq!(
        (&evaluated["grants"], evaluated["denied"].as_array().unwrap().len()),
        (&json!([]), 2)
    );
    assert_eq!(evaluated["evaluations"][0]["granted"], false);

    // An empty label would be an empty claim.
    setting
        .replace(&path, json!({"claims": {"team": "{labels.team}"}}))
        .await;
    setting.label(json!({"team": ""})).await;
    let [checked_in, _] = setting.check_ins().await;
    assert_eq!(checked_in["denied"][0]["reasons"], json!([reasons[0]]));
    setting.label(json!({"team": "build"})).await;
    assert_eq!(setting.claims().await["team"], "build");

    // With an administrator's approval, the serial number is more than the machine's own word.
    setting
        .replace(&path, json!({"claims": {"serial": "{serial_number}"}}))
        .await;
    let approve = json!({"key_thumbprint": setting.machine.thumbprint().to_string()});
    let approve_path = format!("machines/{}/approve", setting.machine.id());
    let approved = setting.administrator.call(Method::POST, &approve_path, Some(&approve));
    let _approved = approved.await.expect(200);
    assert_eq!(setting.claims().await["serial"], setting.machine.serial_number());
    let evaluated = setting
        .administrator
        .get(&format!("machines/{}/grants", setting.machine.id()))
        .await;
    assert_eq!(
        evaluated["grants"][0]["token"]["claims"]["serial"],
        setting.machine.serial_number()
    );
}

#[tokio::test]
async fn a_token_with_aud_as_text_is_introspected_with_its_further_claims() {
    let setting = Setting::new().await;
    setting.label(json!({"team": "build"})).await;
    let _path = setting
        .form(json!({"aud": "text", "claims": {"team": "{labels.team}"}}))
        .await;
    let [checked_in, _] = setting.check_ins().await;
    let name = format!("the service of {}", setting.audience);
    let key = json!({"name": name, "role": "relying-party"});
    let key = text(&setting.administrator.create("api-keys", &key).await, "key");
    let introspect = async || {
        let request = setting.apis[1]
            .request(Method::POST, "/v1/introspect")
            .bearer_auth(&key);
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        let body = format!("token={}", token(&checked_in));
        Answer::to(request.body(body)).await.expect(200).json()
    };
    let active = introspect().await;
    assert_eq!(
        (&active["active"], &active["aud"]),
        (&json!(true), &json!(setting.audience))
    );
    assert_eq!(
        (&active["scope"], &active["team"]),
        (&json!("read write"), &json!("build"))
    );
    setting.label(json!({"team": "sales"})).await;
    assert_eq!(introspect().await["team"], "sales");
    setting.label(json!({"team": null})).await;
    assert_eq!(introspect().await, json!({"active": false}));
}

#[tokio::test]
async fn a_form_that_no_token_could_have_is_malformed() {
    let setting = Setting::new().await;
    let nested = json!({"a": {"b": {"c": {"d": {"e": "too deep"}}}}});
    for (token, named) in [
        (json!({"aud": "array"}), "aud"),
        (json!({"aud": null}), "aud"),
        (json!({"lifetime_seconds": 59}), "lifetime_seconds"),
        (json!({"lifetime_seconds": 3601}), "lifetime_seconds"),
        (json!({"subject": "everybody"}), "{machine_id}"),
        (json!({"subject": "{{machine_id}}"}), "{machine_id}"),
        (json!({"subject": "machine {machine_id}"}), "visible ASCII"),
        (json!({"subject": ""}), "visible ASCII"),
        (json!({"claims": {"a": "{hostname}"}}), "{hostname}"),
        (json!({"claims": {"a": "{labels.}"}}), "{labels.}"),
        (json!({"claims": {"a": "x{permissions}"}}), "{scope}"),
        (json!({"claims": {"a": ["x", "{"]}}), "a.1"),
        (json!({"claims": {"a": "}"}}), "brace"),
        (json!({"claims": {"a": ""}}), "claims.a"),
        (json!({"claims": {"a": {"b": null}}}), "claims.a.b"),
        (json!({"claims": nested}), "deeper"),
        (json!({"claims": {"": "x"}}), "name"),
        (json!({"claims": {"a": "x".repeat(4096)}}), "4096 bytes"),
        (json!({"claims": []}), "claims"),
        (json!({"audience": "x"}), "audience"),
        (json!([]), "token"),
    ] {
        let body = json!({"audience": setting.audience, "token": token});
        let call = setting.administrator.call(Method::POST, "audiences", Some(&body));
        let refused = call.await.expect_problem(ProblemKind::Malformed);
        assert!(refused.detail().contains(named), "{named}: {refused}");
    }
}

#[tokio::test]
async fn a_reserved_claim_cannot_be_set_and_an_audience_has_one_form() {
    let setting = Setting::new().await;
    for reserved in [
        "iss",
        "sub",
        "aud",
        "exp",
        "nbf",
        "iat",
        "jti",
        "cnf",
        "scope",
        "permissions",
        "machine_id",
        "assurance",
        "active",
        "azp",
    ] {
        let body = json!({"audience": setting.audience, "token": {"claims": {reserved: "x"}}});
        let call = setting.administrator.call(Method::POST, "audiences", Some(&body));
        let refused = call.await.expect_problem(ProblemKind::Malformed);
        assert!(
            refused.detail().contains(&format!("claims.{reserved} is reserved")),
            "{refused}"
        );
    }
    let path = setting.form(json!({})).await;
    let again = json!({"audience": setting.audience, "token": {}});
    let again = setting
        .administrator
        .call(Method::POST, "audiences", Some(&again))
        .await;
    let _exists = again.expect_problem(ProblemKind::Conflict);
    let unfit = json!({"token": {"claims": {"sub": "x"}}});
    let refused = setting.administrator.call(Method::PUT, &path, Some(&unfit)).await;
    let _refused = refused.expect_problem(ProblemKind::Malformed);
}

/// Many libraries refuse a token from the future without any leeway.
#[tokio::test]
async fn a_token_is_valid_for_a_verifier_whose_clock_is_half_a_minute_behind() {
    let server = InProcess::start().await;
    let machine = server.enrolled("BEHIND").await;
    let administrator = Administrator::new(server.api().clone(), server.api_key(Role::Admin));
    let permission = administrator.permission("read").await;
    administrator.grant(&permission, &machine, json!({})).await;
    let now = assay_server::clock::Clock::now(server.clock()).unix_timestamp();
    let claims = claims(&token(&machine.check_in(&server).await.expect(200).json()));
    assert_eq!(
        (&claims["iat"], &claims["nbf"], &claims["exp"]),
        (&json!(now - 30), &json!(now - 30), &json!(now + 600))
    );
    server.stop().await;
}

/// A later version may reserve one more claim, or know a member that this one does not.
#[rstest]
#[case::a_reserved_claim(json!({"claims": {"iss": "https://other.example.com"}}))]
#[case::an_unknown_member(json!({"form": "of a later version"}))]
#[tokio::test]
async fn a_form_of_another_version_denies_its_own_audience_alone(#[case] form: Value) {
    let server = InProcess::start().await;
    let machine = server.enrolled("FORMS").await;
    let audiences = ["https://one.example.com", "https://two.example.com"];
    let body = json!({"audience": audiences[0], "token": {"claims": {"a": "b"}}});
    let _created = server.post("/v1/admin/audiences", &body).await.expect(201);
    let pool = server.database().pool().await;
    let changed = sqlx::query("UPDATE audiences SET token = $1")
        .bind(&form)
        .execute(&pool);
    assert_eq!(changed.await.unwrap().rows_affected(), 1);
    for audience in audiences {
        let permission = json!({"audience": audience, "name": "use"});
        let permission = server
            .post("/v1/admin/permissions", &permission)
            .await
            .expect(201)
            .json();
        let grant = json!({"permission_id": permission["id"], "selector": {"all": true}});
        let _granted = server.post("/v1/admin/grants", &grant).await.expect(201);
    }
    let checked_in = machine.check_in(&server).await.expect(200).json();
    let granted: Vec<&Value> = checked_in["grants"]
        .as_array()
        .unwrap()
        .iter()
        .map(|grant| &grant["audience"])
        .collect();
    assert_eq!(granted, [audiences[1]], "{checked_in}");
    let reason = checked_in["denied"][0]["reasons"][0].as_str().unwrap();
    assert!(reason.contains("does not accept the form"), "{checked_in}");
    server.stop().await;
}

/// With the usual interval of five minutes, the machine would have no token for four of them.
#[tokio::test]
async fn a_machine_checks_in_before_its_shortest_token_expires() {
    let setting = Setting::new().await;
    let usual = setting.check_ins().await;
    assert!(
        usual
            .iter()
            .all(|checked_in| checked_in["next_check_in_seconds"] == 300)
    );
    let path = setting.form(json!({"lifetime_seconds": 60})).await;
    for checked_in in setting.check_ins().await {
        assert_eq!(checked_in["next_check_in_seconds"], 40, "{checked_in}");
    }
    // A longer life changes nothing.
    setting.replace(&path, json!({"lifetime_seconds": 3600})).await;
    for checked_in in setting.check_ins().await {
        assert_eq!(checked_in["next_check_in_seconds"], 300, "{checked_in}");
    }
}
