//! Permissions and grants: their names, their changes, what is kept of each version, and the events of administrators.

use assay_protocol::ProblemKind;
use assay_protocol::admin_api::api_keys::Role;
use assay_server::clock::Clock;
use assay_tests::administrator::{Administrator, text};
use assay_tests::answer::Answer;
use assay_tests::event_stream::EventStream;
use assay_tests::in_process::InProcess;
use assay_tests::installation::Installation;
use assay_tests::machine::Machine;
use http::Method;
use serde_json::{Value, json};
use time::Duration;
use uuid::Uuid;

/// A machine with one permission.
struct Setting {
    installation: &'static Installation,
    administrator: Administrator,
    machine: Machine,
    permission: String,
}

impl Setting {
    async fn new() -> Self {
        let installation = Installation::shared().await;
        let administrator = installation.administrator();
        let machine = administrator.enrolled(&installation.api(0)).await;
        let permission = administrator.permission("read").await;
        Self {
            installation,
            administrator,
            machine,
            permission,
        }
    }

    /// A grant of the permission to the machine.
    fn body(&self, name: &str, conditions: Value) -> Value {
        json!({
            "name": name, "permission_id": self.permission,
            "selector": {"machine_ids": [self.machine.id()]}, "conditions": conditions,
        })
    }

    async fn create(&self, body: &Value) -> Answer {
        self.administrator.call(Method::POST, "grants", Some(body)).await
    }

    async fn replace(&self, id: &str, body: &Value) -> Answer {
        let path = format!("grants/{id}");
        self.administrator.call(Method::PUT, &path, Some(body)).await
    }

    /// Whether both replicas grant the permission.
    async fn is_granted(&self) -> bool {
        let mut granted = Vec::new();
        for replica in 0..2 {
            let api = self.installation.api(replica);
            let checked_in = self.machine.check_in(&api).await.expect(200).json();
            granted.push(!checked_in["grants"].as_array().unwrap().is_empty());
        }
        assert_eq!(granted[0], granted[1]);
        granted[0]
    }
}

fn name() -> String {
    format!("grant-{}", Uuid::new_v4())
}

#[tokio::test]
async fn a_changed_grant_keeps_its_id_and_decides_at_the_next_check_in() {
    let setting = Setting::new().await;
    let first = name();
    let grant = setting
        .create(&setting.body(&first, json!({})))
        .await
        .expect(201)
        .json();
    assert_eq!((&grant["name"], &grant["description"]), (&json!(first), &json!("")));
    let id = text(&grant, "id");
    assert!(setting.is_granted().await);

    let second = name();
    let mut body = setting.body(&second, json!({"min_assurance": "attested"}));
    body["description"] = json!("Only what Apple attests");
    let changed = setting.replace(&id, &body).await.expect(200).json();
    assert_eq!(changed["id"], grant["id"]);
    assert_eq!(changed["name"], json!(second));
    assert_eq!(changed["description"], "Only what Apple attests");
    assert_eq!(changed["created_at"], grant["created_at"]);
    assert!(text(&changed, "changed_at") > text(&grant, "changed_at"));
    assert_eq!(setting.administrator.get(&format!("grants/{id}")).await, changed);
    assert!(!setting.is_granted().await);

    // A repeated call changes nothing, and a request without a name keeps the name.
    let repeated = setting.replace(&id, &body).await.expect(200).json();
    assert_eq!(repeated, changed);
    body.as_object_mut().unwrap().remove("name");
    assert_eq!(setting.replace(&id, &body).await.expect(200).json(), changed);

    let audit = setting.administrator.audit(&format!("grant:{id}")).await;
    let actions: Vec<_> = audit.iter().map(|entry| text(entry, "action")).collect();
    assert_eq!(actions, ["grant.replace", "grant.create"]);
    assert_eq!((&audit[0]["before"], &audit[0]["after"]), (&grant, &changed));
}

#[tokio::test]
async fn a_grant_without_a_name_is_named_after_its_id_and_no_name_is_used_twice() {
    let setting = Setting::new().await;
    let mut unnamed = setting.body("", json!({}));
    unnamed.as_object_mut().unwrap().remove("name");
    let unnamed = setting.create(&unnamed).await.expect(201).json();
    assert_eq!(unnamed["name"], unnamed["id"]);

    let taken = name();
    let named = setting
        .create(&setting.body(&taken, json!({"sip_enabled": true})))
        .await
        .expect(201)
        .json();
    let again = setting
        .create(&setting.body(&taken, json!({"sip_enabled": false})))
        .await;
    let again = again.expect_problem(ProblemKind::Conflict);
    assert!(again.detail().contains(&taken), "{again}");
    let renamed = setting.body(&taken, json!({"firewall_enabled": true}));
    let renamed = setting.replace(&text(&unnamed, "id"), &renamed).await;
    let _refused = renamed.expect_problem(ProblemKind::Conflict);

    let found = setting.administrator.get(&format!("grants?name={taken}")).await;
    assert_eq!(found["items"], json!([named]));
    let of_permission = setting
        .administrator
        .get(&format!("grants?permission_id={}", setting.permission))
        .await;
    assert_eq!(of_permission["items"], json!([unnamed, named]));
}

#[tokio::test]
async fn the_same_grant_twice_is_a_conflict_that_names_the_first() {
    let setting = Setting::new().await;
    let (first, other) = (name(), name());
    let conditions = json!({"sip_enabled": true, "min_assurance": "verified"});
    let _created = setting
        .create(&setting.body(&first, conditions.clone()))
        .await
        .expect(201);
    let equal = setting.create(&setting.body(&name(), conditions.clone())).await;
    let equal = equal.expect_problem(ProblemKind::Conflict);
    assert!(equal.detail().contains(&first), "{equal}");

    let created = setting
        .create(&setting.body(&other, json!({})))
        .await
        .expect(201)
        .json();
    let equal = setting
        .replace(&text(&created, "id"), &setting.body(&other, conditions))
        .await;
    let equal = equal.expect_problem(ProblemKind::Conflict);
    assert!(equal.detail().contains(&first), "{equal}");
}

#[tokio::test]
async fn a_permission_with_grants_is_deleted_only_with_cascade() {
    let setting = Setting::new().await;
    let grant = setting
        .create(&setting.body(&name(), json!({})))
        .await
        .expect(201)
        .json();
    let path = format!("permissions/{}", setting.permission);
    for query in ["", "?cascade=false"] {
        let refused = setting
            .administrator
            .call(Method::DELETE, &format!("{path}{query}"), None)
            .await;
        let refused = refused.expect_problem(ProblemKind::Conflict);
        assert!(
            refused.detail().contains("1 grants") && refused.detail().contains("cascade"),
            "{refused}"
        );
    }
    assert!(setting.is_granted().await);
    setting.administrator.delete(&format!("{path}?cascade=true")).await;
    assert!(!setting.is_granted().await);
    let gone = setting
        .administrator
        .call(Method::GET, &format!("grants/{}", text(&grant, "id")), None)
        .await;
    assert_eq!(gone.status, 404);
}

#[tokio::test]
async fn a_permissions_description_is_replaced_and_permissions_are_found_by_audience_and_name() {
    let setting = Setting::new().await;
    let path = format!("permissions/{}", setting.permission);
    let before = setting.administrator.get(&path).await;
    let body = json!({"description": "Read the wiki"});
    let after = setting
        .administrator
        .call(Method::PUT, &path, Some(&body))
        .await
        .expect(200)
        .json();
    assert_eq!(after["description"], "Read the wiki");
    assert_eq!(
        (&after["id"], &after["name"], &after["audience"]),
        (&before["id"], &before["name"], &before["audience"])
    );
    let query = format!("permissions?audience={}&name=read", text(&before, "audience"));
    assert_eq!(setting.administrator.get(&query).await["items"], json!([after]));
    let query = format!("permissions?audience={}&name=write", text(&before, "audience"));
    assert_eq!(setting.administrator.get(&query).await["items"], json!([]));
}

/// Every version is kept, also of grants that were deleted with their permission.
#[tokio::test]
async fn every_version_of_permissions_grants_and_audiences_is_kept() {
    let server = InProcess::start().await;
    let audience = json!({"audience": "https://wiki.example.com", "token": {}});
    let audience = server.post("/v1/admin/audiences", &audience).await.expect(201).json();
    let permission = json!({"audience": "https://wiki.example.com", "name": "read"});
    let permission = server
        .post("/v1/admin/permissions", &permission)
        .await
        .expect(201)
        .json();
    let mut body = json!({"permission_id": permission["id"], "selector": {"all": true}});
    let grant = server.post("/v1/admin/grants", &body).await.expect(201).json();
    body["description"] = json!("for all");
    let path = format!("/v1/admin/grants/{}", text(&grant, "id"));
    let replaced = server.send(server.admin(Method::PUT, &path).json(&body)).await;
    let replaced = replaced.expect(200).json();
    let path = format!("/v1/admin/permissions/{}?cascade=true", text(&permission, "id"));
    let _deleted = server.delete(&path).await.expect(204);

    let pool = server.database().pool().await;
    let versions =
        "SELECT kind, version, content ->> 'description', content IS NULL FROM policy_versions ORDER BY number";
    let versions: Vec<(String, i64, Option<String>, bool)> = sqlx::query_as(versions).fetch_all(&pool).await.unwrap();
    let first = versions[0].1;
    let expected = [
        ("audience", 0, None, false),
        ("permission", 1, Some(""), false),
        ("grant", 2, Some(""), false),
        ("grant", 3, Some("for all"), false),
        ("grant", 4, None, true),
        ("permission", 4, None, true),
    ];
    let mut found: Vec<_> = versions
        .iter()
        .map(|(kind, version, description, is_gone)| (kind.as_str(), version - first, description.as_deref(), *is_gone))
        .collect();
    found.sort_by_key(|(kind, version, ..)| (*version, *kind));
    assert_eq!(found, expected);
    assert_ne!((&audience["id"], &replaced["id"]), (&Value::Null, &Value::Null));
    server.stop().await;
}

/// An earlier version accepted equal grants.
#[tokio::test]
async fn grants_that_were_equal_before_can_be_named_and_described() {
    let server = InProcess::start().await;
    let permission = json!({"audience": "https://wiki.example.com", "name": "read"});
    let permission = server
        .post("/v1/admin/permissions", &permission)
        .await
        .expect(201)
        .json();
    let body = json!({"permission_id": permission["id"], "selector": {"all": true}});
    let grant = server.post("/v1/admin/grants", &body).await.expect(201).json();
    let pool = server.database().pool().await;
    let twin = "INSERT INTO grants (id, permission_id, selector, conditions, created_at)
                SELECT $1, permission_id, selector, conditions, created_at FROM grants";
    let twin = sqlx::query(twin).bind(Uuid::new_v4()).execute(&pool).await.unwrap();
    assert_eq!(twin.rows_affected(), 1);

    let path = format!("/v1/admin/grants/{}", text(&grant, "id"));
    let put = async |body: &Value| server.send(server.admin(Method::PUT, &path).json(body)).await;
    let mut described = body.clone();
    described["description"] = json!("for all");
    let _described = put(&described).await.expect(200);
    let policy = server.get("/v1/admin/policy").await.expect(200);
    let mut document = policy.json();
    document["grants"][0]["description"] = json!("by document");
    let request = server.admin(Method::PUT, "/v1/admin/policy").json(&document);
    let applied = server
        .send(request.header("if-match", policy.header("etag").unwrap()))
        .await;
    assert_eq!(applied.expect(200).json()["changes"].as_array().unwrap().len(), 1);

    // Another condition, and back again, would make it equal anew.
    described["conditions"] = json!({"sip_enabled": true});
    let _changed = put(&described).await.expect(200);
    let _equal = put(&body).await.expect_problem(ProblemKind::Conflict);
    server.stop().await;
}

/// A copy of the table in the role's own session is found first by an unqualified name.
#[tokio::test]
async fn the_history_of_policy_cannot_be_diverted_altered_or_dated_back() {
    let server = InProcess::start().await;
    let permission = json!({"audience": "https://wiki.example.com", "name": "read"});
    let permission = server
        .post("/v1/admin/permissions", &permission)
        .await
        .expect(201)
        .json();
    let pool = server.database().pool().await;
    let mut session = pool.begin().await.unwrap();
    let diverted = "CREATE TEMPORARY TABLE policy_versions (LIKE public.policy_versions INCLUDING ALL);
                    CREATE TEMPORARY TABLE settings (LIKE public.settings INCLUDING ALL);
                    UPDATE permissions SET description = 'changed'";
    sqlx::raw_sql(diverted).execute(&mut *session).await.unwrap();
    session.commit().await.unwrap();
    for change in [
        "UPDATE public.policy_versions SET at = '2020-01-01'",
        "DELETE FROM public.policy_versions",
        "TRUNCATE public.policy_versions",
    ] {
        let refused = sqlx::raw_sql(change).execute(&pool).await.unwrap_err();
        assert!(refused.to_string().contains("versions are only added"), "{refused}");
    }

    // The clock of the other replica is an hour behind.
    let hour_ago = server.clock().now() - Duration::hours(1);
    let behind = InProcess::start_at(hour_ago, &server.database().url(), &[]).await;
    let path = format!("/v1/admin/permissions/{}", text(&permission, "id"));
    let _deleted = behind.delete(&path).await.expect(204);
    let versions =
        "SELECT content ->> 'description', at >= max(at) OVER () FROM public.policy_versions ORDER BY number";
    let versions: Vec<(Option<String>, bool)> = sqlx::query_as(versions).fetch_all(&pool).await.unwrap();
    let descriptions: Vec<_> = versions.iter().map(|(description, _)| description.as_deref()).collect();
    assert_eq!(descriptions, [Some(""), Some("changed"), None]);
    assert!(versions.iter().all(|(_, is_latest)| *is_latest), "{versions:?}");
    behind.stop().await;
    server.stop().await;
}

/// Streams and webhooks tell an administrator what other administrators do.
#[tokio::test]
async fn every_change_by_an_administrator_is_an_event() {
    let server = InProcess::start().await;
    let mut stream = EventStream::open(server.admin(Method::GET, "/v1/admin/events/stream?after=0")).await;
    for _key in Role::ALL {
        assert_eq!(stream.next().await.kind, "api-key.created");
    }
    let grant = make_changes(&server).await;
    let mut expected = [
        "permission.created",
        "grant.created",
        "grant.deleted",
        "permission.deleted",
        "audience.created",
        "audience.deleted",
        "enrollment-token.created",
        "enrollment-token.revoked",
        "api-key.created",
        "api-key.revoked",
        "inventory.imported",
        "inventory.removed",
    ];
    let told = stream.take(expected.len()).await;
    let mut kinds: Vec<_> = told.iter().map(|told| told.kind.as_str()).collect();
    // Changes of one moment have no order.
    kinds.sort_unstable();
    expected.sort_unstable();
    assert_eq!(kinds, expected);
    for told in &told {
        assert_eq!(told.data["machine_id"], Value::Null);
        assert_eq!(told.data["detail"]["actor"]["kind"], "api-key");
    }
    let created = told.iter().find(|told| told.kind == "grant.created").unwrap();
    assert_eq!(
        created.data["detail"]["resource"],
        json!({"kind": "grant", "id": grant})
    );
    server.stop().await;
}

/// Creates and deletes one of each, and returns the id of the grant.
async fn make_changes(server: &InProcess) -> String {
    let create = async |noun: &str, body: Value| {
        let created = server.post(&format!("/v1/admin/{noun}"), &body).await.expect(201);
        text(&created.json(), "id")
    };
    let delete = async |path: &str| {
        let _deleted = server.delete(&format!("/v1/admin/{path}")).await.expect(204);
    };
    let permission = json!({"audience": "https://wiki.example.com", "name": "read"});
    let permission = create("permissions", permission).await;
    let grant = json!({"permission_id": permission, "selector": {"all": true}});
    let grant = create("grants", grant).await;
    delete(&format!("grants/{grant}")).await;
    delete(&format!("permissions/{permission}")).await;
    let audience = json!({"audience": "https://wiki.example.com", "token": {}});
    delete(&format!("audiences/{}", create("audiences", audience).await)).await;
    let token = text(&server.create_enrollment_token(json!({})).await, "id");
    delete(&format!("enrollment-tokens/{token}")).await;
    let key = create("api-keys", json!({"name": "night", "role": "viewer"})).await;
    delete(&format!("api-keys/{key}")).await;
    let inventory = json!({"items": [{"serial_number": "C02XYZ"}]});
    let import = server.admin(Method::PUT, "/v1/admin/inventory").json(&inventory);
    let _imported = server.send(import).await.expect(200);
    delete("inventory/C02XYZ").await;
    grant
}
