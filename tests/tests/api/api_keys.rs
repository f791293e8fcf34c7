//! API keys: told apart by prefix and name, limited to networks, watched for their last use and their end.

use assay_protocol::ProblemKind;
use assay_protocol::admin_api::api_keys::Role;
use assay_server::clock::{Clock, SystemClock};
use assay_tests::administrator::text;
use assay_tests::answer::Answer;
use assay_tests::cluster::Database;
use assay_tests::in_process::InProcess;
use futures_util::future::join_all;
use reqwest::Method;
use rstest::rstest;
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};
use tokio::task::yield_now;

async fn create(server: &InProcess, body: Value) -> Value {
    server.post("/v1/admin/api-keys", &body).await.expect(201).json()
}

/// The record of a key, as its holder reads it.
async fn read_self(server: &InProcess, key: &str) -> Answer {
    server
        .send(server.request(Method::GET, "/v1/admin/self").bearer_auth(key))
        .await
}

async fn execute(server: &InProcess, statement: String) {
    let pool = server.database().pool().await;
    sqlx::raw_sql(&statement).execute(&pool).await.unwrap();
}

fn time(record: &Value, member: &str) -> OffsetDateTime {
    OffsetDateTime::parse(&text(record, member), &Rfc3339).unwrap()
}

#[tokio::test]
async fn the_holder_of_a_key_of_any_role_reads_its_own_record() {
    let server = InProcess::start().await;
    for role in Role::ALL {
        let record = read_self(&server, server.api_key(role)).await.expect(200).json();
        assert_eq!(record["role"], json!(role), "{record}");
        let prefix = text(&record, "prefix");
        assert_eq!(prefix.len(), "assay_key_".len() + 6, "{prefix}");
        assert!(server.api_key(role).starts_with(&prefix), "{prefix}");
        assert_eq!(record["key"], Value::Null, "{record}");
    }
    server.stop().await;
}

/// A version before prefixes stored none, and the secret itself is not kept.
#[tokio::test]
async fn a_key_without_a_prefix_gets_it_with_its_next_use() {
    let server = InProcess::start().await;
    let created = create(&server, json!({"name": "old", "role": "viewer"})).await;
    let id = text(&created, "id");
    execute(
        &server,
        format!("UPDATE api_keys SET prefix = NULL, expires_at = NULL WHERE id = '{id}'"),
    )
    .await;
    let find = async || {
        let keys = server.items("/v1/admin/api-keys").await;
        keys.into_iter().find(|key| key["id"] == json!(id)).unwrap()
    };
    assert_eq!(
        (&find().await["prefix"], &find().await["expires_at"]),
        (&Value::Null, &Value::Null)
    );
    let _used = read_self(&server, &text(&created, "key")).await.expect(200);
    assert_eq!(find().await["prefix"], created["prefix"]);
    server.stop().await;
}

#[tokio::test]
async fn the_last_use_of_a_key_is_recorded_with_its_address_at_most_once_a_minute() {
    let server = InProcess::start().await;
    let created = create(&server, json!({"name": "used", "role": "viewer"})).await;
    assert_eq!(
        (&created["last_used_at"], &created["last_used_address"]),
        (&Value::Null, &Value::Null)
    );
    let key = text(&created, "key");
    let first = server.clock().now();
    for (after, recorded) in [(0, 0), (59, 0), (1, 60), (30, 60), (3600, 3690)] {
        server.clock().advance(Duration::seconds(after));
        let _used = read_self(&server, &key).await.expect(200);
        let record = read_self(&server, &key).await.json();
        assert_eq!(
            time(&record, "last_used_at") - first,
            Duration::seconds(recorded),
            "{record}"
        );
        assert_eq!(record["last_used_address"], json!("127.0.0.1"));
    }
    server.stop().await;
}

#[tokio::test]
async fn two_valid_keys_never_have_the_same_name() {
    let server = InProcess::start().await;
    let body = json!({"name": " deploy ", "role": "viewer", "expires_in_seconds": 60});
    let answers = join_all((0..8).map(|_| server.post("/v1/admin/api-keys", &body))).await;
    let created: Vec<_> = answers.iter().filter(|answer| answer.status == 201).collect();
    assert_eq!(created.len(), 1);
    for answer in answers.iter().filter(|answer| answer.status != 201) {
        assert_eq!(answer.kind(), ProblemKind::Conflict, "{answer}");
        assert!(answer.detail().contains(&text(&created[0].json(), "id")), "{answer}");
    }
    // A name is free again when its key is revoked, and when it has expired.
    let id = text(&created[0].json(), "id");
    let _revoked = server.delete(&format!("/v1/admin/api-keys/{id}")).await.expect(204);
    let _second = create(&server, body.clone()).await;
    let _taken = server
        .post("/v1/admin/api-keys", &body)
        .await
        .expect_problem(ProblemKind::Conflict);
    server.clock().advance(Duration::seconds(60));
    let _third = create(&server, body).await;
    server.stop().await;
}

#[tokio::test]
async fn a_key_ends_after_a_year_unless_its_creator_says_otherwise() {
    let server = InProcess::start().await;
    for (given, life) in [
        (Value::Null, Duration::days(365)),
        (json!(315_360_000), Duration::days(3650)),
    ] {
        let created = create(
            &server,
            json!({"name": format!("{life}"), "role": "viewer", "expires_in_seconds": given}),
        )
        .await;
        assert_eq!(time(&created, "expires_at") - time(&created, "created_at"), life);
    }
    let brief = create(&server, json!({"name": "a year", "role": "viewer"})).await;
    server.clock().advance(Duration::days(365));
    let _expired = read_self(&server, &text(&brief, "key"))
        .await
        .expect_problem(ProblemKind::Unauthenticated);
    server.stop().await;
}

#[tokio::test]
async fn the_last_administrator_key_cannot_revoke_itself() {
    let server = InProcess::start().await;
    let own = read_self(&server, server.api_key(Role::Admin)).await.json();
    let path = format!("/v1/admin/api-keys/{}", text(&own, "id"));
    // An expired administrator's key does not count.
    let _expired = create(
        &server,
        json!({"name": "expired", "role": "admin", "expires_in_seconds": 1}),
    )
    .await;
    server.clock().advance(Duration::seconds(1));
    let refused = server.delete(&path).await.expect_problem(ProblemKind::Conflict);
    assert!(refused.detail().contains("last"), "{refused}");
    let _still = server.get("/v1/admin/self").await.expect(200);

    let second = create(&server, json!({"name": "second", "role": "admin"})).await;
    let other_path = format!("/v1/admin/api-keys/{}", text(&second, "id"));
    // Each revokes the other at the same time: one stays.
    let (first, other) = tokio::join!(
        server.delete(&other_path),
        server.send(server.request(Method::DELETE, &path).bearer_auth(text(&second, "key")))
    );
    let revoked = [&first, &other].iter().filter(|answer| answer.status == 204).count();
    assert_eq!(revoked, 1, "{first} {other}");
    server.stop().await;
}

#[tokio::test]
async fn an_administrator_key_that_ends_within_a_day_is_no_other_administrator() {
    let server = InProcess::start().await;
    let own = read_self(&server, server.api_key(Role::Admin)).await.json();
    let path = format!("/v1/admin/api-keys/{}", text(&own, "id"));
    for (life, status) in [(Duration::DAY, 409), (Duration::DAY + Duration::SECOND, 204)] {
        let other = json!({"name": life.to_string(), "role": "admin", "expires_in_seconds": life.whole_seconds()});
        let _other = create(&server, other).await;
        let _answered = server.delete(&path).await.expect(status);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_key_that_is_limited_to_networks_is_refused_from_elsewhere() {
    let server = InProcess::start().await;
    for (networks, may) in [
        (json!(["192.0.2.0/24", "2001:db8::/32"]), false),
        (json!(["192.0.2.0/24", "127.9.9.9/8"]), true),
        (json!(["127.0.0.1"]), true),
        (Value::Null, true),
    ] {
        let body = json!({"name": networks.to_string(), "role": "viewer", "networks": networks});
        let created = create(&server, body).await;
        let answer = read_self(&server, &text(&created, "key")).await;
        if may {
            let record = answer.expect(200).json();
            assert_eq!(record["networks"], created["networks"]);
        } else {
            let refused = answer.expect_problem(ProblemKind::Unauthenticated);
            assert!(refused.detail().contains("address"), "{refused}");
            let keys = server.items("/v1/admin/api-keys").await;
            let key = keys.iter().find(|key| key["id"] == created["id"]).unwrap();
            assert_eq!(key["last_used_at"], Value::Null, "a refused call is no use");
        }
    }
    server.stop().await;
}

#[rstest]
#[case(json!([]), "networks")]
#[case(json!(["10.0.0.0/8", "10.0.0.0/33"]), "networks[1]")]
#[case(json!(["example.com"]), "networks[0]")]
#[case(json!([""]), "networks[0]")]
#[case(json!("10.0.0.0/8"), "networks")]
#[tokio::test]
async fn what_is_no_network_is_refused_by_its_place(#[case] networks: Value, #[case] named: &str) {
    let server = InProcess::start().await;
    let body = json!({"name": "n", "role": "viewer", "networks": networks});
    let refused = server
        .post("/v1/admin/api-keys", &body)
        .await
        .expect_problem(ProblemKind::Malformed);
    assert!(refused.detail().contains(named), "{refused}");
    server.stop().await;
}

/// The periodic work runs when a server starts, so each moment has a server.
#[tokio::test]
async fn the_end_of_a_key_is_announced_once_thirty_days_before() {
    let database = Database::create().await;
    let now = SystemClock.now();
    let server = InProcess::start_at(now, &database.url(), &[]).await;
    let long = create(&server, json!({"name": "long", "role": "viewer"})).await;
    let _brief = create(
        &server,
        json!({"name": "brief", "role": "viewer", "expires_in_seconds": 2_592_000}),
    )
    .await;
    server.stop().await;

    let mut announced = Vec::new();
    for (day, expected) in [(334, 0), (335, 1), (336, 1)] {
        let server = InProcess::start_at(now + Duration::days(day), &database.url(), &[]).await;
        ran(&server, "announce the end of API keys").await;
        announced = server.items("/v1/admin/events?kind=api-key.expiring").await;
        assert_eq!(announced.len(), expected, "day {day}: {announced:?}");
        server.stop().await;
    }
    assert_eq!(announced[0]["machine_id"], Value::Null);
    let detail = &announced[0]["detail"];
    for member in ["name", "prefix", "role", "expires_at"] {
        assert_eq!(detail[member], long[member], "{detail}");
    }
    assert_eq!(detail["api_key_id"], long["id"]);
}

/// Returns when the work has run once.
async fn ran(server: &InProcess, name: &str) {
    loop {
        let items = server.items("/v1/admin/background-work").await;
        let item = items.iter().find(|item| item["name"] == name).unwrap();
        if !item["last_finished_at"].is_null() {
            return;
        }
        yield_now().await;
    }
}
