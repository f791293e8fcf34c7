//! Grants: a machine's next check-in after each change that affects them.

use assay_protocol::machine::SecureBoot;
use assay_server::clock::{Clock, SystemClock};
use assay_tests::administrator::Administrator;
use assay_tests::api::Api;
use assay_tests::installation::Installation;
use assay_tests::machine::Machine;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

/// A machine that checks in on both replicas.
struct Granted {
    machine: Machine,
    apis: [Api; 2],
    administrator: Administrator,
}

impl Granted {
    async fn new() -> Self {
        let installation = Installation::shared().await;
        let (apis, administrator) = ([installation.api(0), installation.api(1)], installation.administrator());
        let machine = administrator.enrolled(&apis[0]).await;
        Self {
            machine,
            apis,
            administrator,
        }
    }

    /// The permissions that each replica grants, which is the same on both.
    async fn permissions(&self) -> Vec<String> {
        let mut found = Vec::new();
        for api in &self.apis {
            let checked_in = self.machine.check_in(api).await.expect(200).json();
            found.push(permissions(&checked_in));
        }
        assert_eq!(found[0], found[1]);
        found.swap_remove(0)
    }
}

fn permissions(checked_in: &Value) -> Vec<String> {
    let grants = checked_in["grants"].as_array().unwrap();
    let mut permissions: Vec<_> = grants
        .iter()
        .flat_map(|grant| grant["permissions"].as_array().unwrap())
        .map(|permission| permission.as_str().unwrap().to_owned())
        .collect();
    permissions.sort();
    permissions
}

#[tokio::test]
async fn a_deleted_grant_is_gone_at_the_next_check_in() {
    let granted = Granted::new().await;
    let (read, write) = (
        granted.administrator.permission("read").await,
        granted.administrator.permission("write").await,
    );
    let first = granted.administrator.grant(&read, &granted.machine, json!({})).await;
    granted.administrator.grant(&write, &granted.machine, json!({})).await;
    assert_eq!(granted.permissions().await, ["read", "write"]);
    granted.administrator.delete(&format!("grants/{first}")).await;
    assert_eq!(granted.permissions().await, ["write"]);
}

#[tokio::test]
async fn a_grant_lasts_until_it_expires() {
    let granted = Granted::new().await;
    let (read, write) = (
        granted.administrator.permission("read").await,
        granted.administrator.permission("write").await,
    );
    let expires_at = SystemClock.now() + Duration::seconds(2);
    let grant = json!({
        "permission_id": read, "selector": {"machine_ids": [granted.machine.id()]}, "conditions": {},
        "expires_at": expires_at.format(&Rfc3339).unwrap(),
    });
    granted.administrator.create("grants", &grant).await;
    granted.administrator.grant(&write, &granted.machine, json!({})).await;

    let mut seen = granted.permissions().await;
    assert_eq!(seen, ["read", "write"]);
    // Check-ins continue until the time has passed. The last one starts after it.
    while SystemClock.now() <= expires_at || seen.len() > 1 {
        let begun = SystemClock.now();
        seen = permissions(&granted.machine.check_in(&granted.apis[0]).await.expect(200).json());
        assert!(begun <= expires_at || seen == ["write"], "{seen:?} after it expired");
    }
    assert_eq!(granted.permissions().await, ["write"]);
}

#[tokio::test]
async fn a_token_never_outlives_its_grant() {
    let granted = Granted::new().await;
    let permission = granted.administrator.permission("read").await;
    let expires_at = SystemClock.now() + Duration::minutes(2);
    let grant = json!({
        "permission_id": permission, "selector": {"machine_ids": [granted.machine.id()]}, "conditions": {},
        "expires_at": expires_at.format(&Rfc3339).unwrap(),
    });
    granted.administrator.create("grants", &grant).await;
    let checked_in = granted.machine.check_in(&granted.apis[1]).await.expect(200).json();
    let token_expires_at = checked_in["grants"][0]["expires_at"].as_str().unwrap();
    assert!(
        OffsetDateTime::parse(token_expires_at, &Rfc3339).unwrap() <= expires_at,
        "{checked_in}"
    );
}

#[tokio::test]
async fn labels_decide_at_the_next_check_in() {
    let granted = Granted::new().await;
    let permission = granted.administrator.permission("sign").await;
    let team = granted.machine.serial_number().to_owned();
    let grant = json!({"permission_id": permission, "selector": {"labels": {"team": team}}, "conditions": {}});
    granted.administrator.create("grants", &grant).await;
    assert!(granted.permissions().await.is_empty());
    let path = format!("machines/{}", granted.machine.id());
    for (label, expected) in [(json!(team), 1), (Value::Null, 0)] {
        let patch = json!({"labels": {"team": label}});
        let _patched = granted
            .administrator
            .call(http::Method::PATCH, &path, Some(&patch))
            .await
            .expect(200);
        assert_eq!(granted.permissions().await.len(), expected);
    }
}

#[tokio::test]
async fn a_posture_change_takes_effect_at_the_same_check_in() {
    let mut granted = Granted::new().await;
    let permission = granted.administrator.permission("release").await;
    let conditions = json!({"filevault_enabled": true, "secure_boot": "full", "min_os_version": "26.0"});
    granted
        .administrator
        .grant(&permission, &granted.machine, conditions)
        .await;
    let api = granted.apis[1].clone();
    let checked_in = granted.machine.check_in(&api).await.expect(200).json();
    assert_eq!(
        (permissions(&checked_in), &checked_in["denied"]),
        (vec!["release".to_owned()], &json!([]))
    );

    granted.machine.posture.filevault_enabled = Some(false);
    granted.machine.posture.secure_boot = Some(SecureBoot::Reduced);
    granted.machine.posture.os_version = None;
    let checked_in = granted.machine.check_in(&api).await.expect(200).json();
    assert!(permissions(&checked_in).is_empty());
    assert_eq!(checked_in["denied"][0]["permission"], "release");
    let reasons = checked_in["denied"][0]["reasons"].as_array().unwrap();
    assert_eq!(reasons.len(), 3, "{reasons:?}");
    assert!(
        reasons
            .iter()
            .any(|reason| reason.as_str().unwrap().contains("filevault_enabled")),
        "{reasons:?}"
    );
    assert!(
        reasons
            .iter()
            .any(|reason| reason.as_str().unwrap().contains("unknown")),
        "{reasons:?}"
    );
    let record = granted.administrator.machine(granted.machine.id()).await;
    assert_eq!(record["posture"]["claimed"]["filevault_enabled"], false);
    assert_eq!(
        record["last_verdict"]["reasons"].as_array().unwrap().len(),
        3,
        "{}",
        record["last_verdict"]
    );
    let denied = record["last_verdict"]["result"].clone();

    granted.machine.posture.filevault_enabled = Some(true);
    granted.machine.posture.secure_boot = Some(SecureBoot::Full);
    granted.machine.posture.os_version = Some("26.0".to_owned());
    assert_eq!(granted.permissions().await, ["release"]);
    let record = granted.administrator.machine(granted.machine.id()).await;
    assert_eq!(record["last_verdict"]["reasons"], json!([]));
    assert_ne!(record["last_verdict"]["result"], denied);

    let events = granted.administrator.events(granted.machine.id()).await;
    let count = |kind: &str| events.iter().filter(|event| event["kind"] == kind).count();
    assert_eq!(count("posture.changed"), 2, "{events:?}");
    assert!(count("verdict.changed") >= 2, "{events:?}");
    let before = events.len();
    // Nothing has changed, so only the time is written.
    assert_eq!(granted.permissions().await, ["release"]);
    assert_eq!(granted.administrator.events(granted.machine.id()).await.len(), before);
}

#[tokio::test]
async fn an_evaluation_predicts_the_next_check_in() {
    let granted = Granted::new().await;
    let (read, sign) = (
        granted.administrator.permission("read").await,
        granted.administrator.permission("sign").await,
    );
    granted.administrator.grant(&read, &granted.machine, json!({})).await;
    granted
        .administrator
        .grant(&sign, &granted.machine, json!({"min_assurance": "attested"}))
        .await;
    let body = json!({"machine_id": granted.machine.id()});
    let evaluated = granted
        .administrator
        .call(http::Method::POST, "grants/evaluate", Some(&body))
        .await
        .expect(200);
    let checked_in = granted.machine.check_in(&granted.apis[0]).await.expect(200).json();
    assert_eq!(permissions(&evaluated.json()), permissions(&checked_in));
    assert_eq!(evaluated.json()["denied"], checked_in["denied"]);
    assert_eq!(checked_in["denied"][0]["permission"], "sign");
}
