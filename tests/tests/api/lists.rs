//! Lists, a page at a time.

use std::collections::BTreeSet;

use assay_protocol::ProblemKind;
use assay_tests::in_process::InProcess;
use assay_tests::machine::Machine;
use reqwest::Method;
use serde_json::{Value, json};
use time::Duration;

use crate::api::document::operations;

/// The member that identifies the items of the list at a path.
fn ids(page: &Value) -> Vec<String> {
    let items = page["items"].as_array().unwrap();
    let id = |item: &Value| {
        let id = item.get("id").unwrap_or(&item["serial_number"]);
        id.as_str().unwrap().to_owned()
    };
    items.iter().map(id).collect()
}

async fn page(server: &InProcess, path: &str, limit: usize, cursor: Option<&str>) -> (Vec<String>, Option<String>) {
    let cursor = cursor.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
    let answer = server.get(&format!("{path}?limit={limit}{cursor}")).await;
    assert_eq!(answer.status, 200, "{answer}");
    let page = answer.json();
    let members: Vec<&String> = page.as_object().unwrap().keys().collect();
    assert_eq!(members, ["items", "next_cursor"], "{answer}");
    let next = page["next_cursor"].as_str().map(str::to_owned);
    assert!(next.is_some() || page["next_cursor"].is_null(), "{answer}");
    assert!(ids(&page).len() <= limit, "{answer}");
    (ids(&page), next)
}

async fn all(server: &InProcess, path: &str, limit: usize) -> Vec<String> {
    let (mut found, mut next) = page(server, path, limit, None).await;
    while let Some(cursor) = next {
        let (more, after) = page(server, path, limit, Some(&cursor)).await;
        assert!(!more.is_empty(), "an empty page after a cursor");
        found.extend(more);
        next = after;
    }
    found
}

/// Adds an item to every list.
async fn add(server: &InProcess, which: usize) -> Machine {
    server.clock().advance(Duration::milliseconds(1));
    let permission = json!({"audience": "a", "name": format!("permission-{which}")});
    let permission = server.post("/v1/admin/permissions", &permission).await.json();
    let grant = json!({"permission_id": permission["id"], "selector": {"all": true}});
    assert_eq!(server.post("/v1/admin/grants", &grant).await.status, 201);
    let audience = json!({"audience": format!("audience {which}"), "token": {"aud": "text"}});
    assert_eq!(server.post("/v1/admin/audiences", &audience).await.status, 201);
    let listed = json!({"items": [{"serial_number": format!("INVENTORY-{which:03}")}]});
    let listed = server
        .admin(Method::PUT, "/v1/admin/inventory?mode=merge")
        .json(&listed);
    assert_eq!(server.send(listed).await.status, 200);
    let key = json!({"name": format!("key {which}"), "role": "viewer"});
    assert_eq!(server.post("/v1/admin/api-keys", &key).await.status, 201);
    let webhook = json!({"url": "http://127.0.0.1:9/", "kinds": ["machine.deleted"]});
    assert_eq!(server.post("/v1/admin/webhooks", &webhook).await.status, 201);
    // An enrollment token, an enrollment, a machine and audit entries come with it.
    server.attestable(&format!("LISTED-{which}")).await
}

/// Adds a delivery to a webhook.
async fn test(server: &InProcess, webhook: &str) {
    let request = server.admin(Method::POST, &format!("/v1/admin/webhooks/{webhook}/test"));
    assert_eq!(server.send(request).await.status, 202);
}

/// Items that are added between two pages do not repeat or hide earlier ones.
#[tokio::test]
async fn every_list_is_stable_while_rows_are_added() {
    let server = InProcess::start_with(&[("rate_limit.renewals_per_day", "0")]).await;
    let mut machine = add(&server, 0).await;
    for which in 1..7 {
        machine = add(&server, which).await;
    }
    // The lists of one machine need it.
    for _ in 0..6 {
        assert_eq!(machine.renew(&server).await.status, 200);
    }
    let id = machine.id().to_string();
    let webhooks = server.get("/v1/admin/webhooks").await.json();
    let webhook = webhooks["items"][0]["id"].as_str().unwrap().to_owned();
    for _ in 0..7 {
        server.clock().advance(Duration::milliseconds(1));
        test(&server, &webhook).await;
    }
    let mut lists = operations(&server).await;
    lists.retain(|operation| operation.query_parameters.iter().any(|name| name == "cursor"));
    assert!(lists.len() >= 9, "{lists:?}");
    for (which, list) in lists.iter().enumerate() {
        assert_eq!(list.method, Method::GET);
        let path = list.path_with(if list.path.contains("/webhooks/") {
            &webhook
        } else {
            &id
        });
        let before = all(&server, &path, 500).await;
        assert!(before.len() >= 7, "{path}: {before:?}");
        let distinct: BTreeSet<&String> = before.iter().collect();
        assert_eq!(distinct.len(), before.len(), "{path}: {before:?}");
        for limit in [1, 2, before.len() - 1, before.len(), before.len() + 1] {
            assert_eq!(all(&server, &path, limit).await, before, "{path}?limit={limit}");
        }
        let (first, cursor) = page(&server, &path, 3, None).await;
        assert_eq!(first, before[..3], "{path}");
        add(&server, 100 + which).await;
        assert_eq!(machine.renew(&server).await.status, 200);
        test(&server, &webhook).await;
        let (second, _) = page(&server, &path, 3, cursor.as_deref()).await;
        assert_eq!(second, before[3..6], "{path}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_page_has_fifty_items_by_default_and_at_most_five_hundred() {
    let server = InProcess::start_with(&[("rate_limit.api_key_per_minute", "0")]).await;
    let path = "/v1/admin/enrollment-tokens";
    assert_eq!(server.get(path).await.json(), json!({"items": [], "next_cursor": null}));
    for _ in 0..51 {
        server.enrollment_token(json!({})).await;
    }
    let page = server.get(path).await.json();
    assert_eq!(ids(&page).len(), 50);
    let cursor = page["next_cursor"].as_str().unwrap();
    let last = server.get(&format!("{path}?cursor={cursor}")).await.json();
    assert_eq!((ids(&last).len(), &last["next_cursor"]), (1, &Value::Null));
    let whole = server.get(&format!("{path}?limit=500")).await.json();
    assert_eq!((ids(&whole).len(), &whole["next_cursor"]), (51, &Value::Null));
    assert_eq!(server.get(&format!("{path}?limit=501")).await.status, 400);
    server.stop().await;
}

/// A cursor of another list would skip items without an error.
#[tokio::test]
async fn a_cursor_is_valid_only_for_its_own_list_and_filters() {
    let server = InProcess::start().await;
    let machines = [add(&server, 0).await, add(&server, 1).await];
    let next = |list: String| {
        let server = &server;
        async move {
            let separator = if list.contains('?') { '&' } else { '?' };
            let page = server
                .get(&format!("{list}{separator}limit=1"))
                .await
                .expect(200)
                .json();
            page["next_cursor"].as_str().unwrap().to_owned()
        }
    };
    let events = |machine: &Machine| format!("{}/events", machine.path());
    let cases = [
        ("/v1/admin/machines".to_owned(), "/v1/admin/enrollments".to_owned()),
        (
            "/v1/admin/machines".to_owned(),
            "/v1/admin/machines?status=active".to_owned(),
        ),
        (
            "/v1/admin/machines?status=active".to_owned(),
            "/v1/admin/machines?status=revoked".to_owned(),
        ),
        (events(&machines[0]), events(&machines[1])),
    ];
    for (given_for, other) in cases {
        let cursor = next(given_for.clone()).await;
        let separator = |list: &str| if list.contains('?') { '&' } else { '?' };
        let again = format!("{given_for}{}cursor={cursor}&limit=7", separator(&given_for));
        let _page = server.get(&again).await.expect(200);
        let refused = server
            .get(&format!("{other}{}cursor={cursor}", separator(&other)))
            .await;
        let refused = refused.expect_problem(ProblemKind::Malformed);
        assert!(
            refused
                .detail()
                .starts_with("cursor belongs to another list or to other filters"),
            "{refused}"
        );
    }
    // The order of the filters does not matter.
    let cursor = next("/v1/admin/machines?status=active&assurance=verified".to_owned()).await;
    let path = format!("/v1/admin/machines?assurance=verified&cursor={cursor}&status=active");
    let _page = server.get(&path).await.expect(200);
    server.stop().await;
}

#[tokio::test]
async fn a_limit_or_sequence_that_is_not_a_number_is_explained() {
    let server = InProcess::start().await;
    let limit = "limit must be a whole number from 1 to 500";
    let sequence = "after: must be the sequence of an event: a whole number from 0 to 9223372036854775807";
    for (query, words) in [
        ("machines?limit=abc", limit),
        ("machines?limit=0", limit),
        ("machines?limit=1.5", limit),
        ("machines?limit=", limit),
        ("machines?limit=99999999999999999999", limit),
        ("machines?limit=1&limit=2", "limit appears twice"),
        ("events/stream?after=99999999999999999999", sequence),
        ("events/stream?after=soon", sequence),
    ] {
        let refused = server
            .get(&format!("/v1/admin/{query}"))
            .await
            .expect_problem(ProblemKind::Malformed);
        assert_eq!(refused.detail(), words, "{query}");
    }
    server.stop().await;
}

/// A receiver that waits for `machine.enroled` would wait forever.
#[tokio::test]
async fn an_unknown_kind_is_refused_with_a_list_of_the_known_ones() {
    let server = InProcess::start().await;
    let (events, resources) = (
        "machine.enrolled, machine.identity-mismatch",
        "machine, mdm-device, permission",
    );
    for (path, named) in [
        ("events?kind=machine.enroled", events),
        ("events/stream?kind=machine.enroled", events),
        ("audit?resource=machines", resources),
        ("audit?resource=machines:1", resources),
    ] {
        let refused = server
            .get(&format!("/v1/admin/{path}"))
            .await
            .expect_problem(ProblemKind::Malformed);
        assert!(refused.detail().contains(named), "{refused}");
    }
    let webhook = json!({"url": "https://example.com/", "kinds": ["machine.enrolled", "machine.enroled"]});
    let refused = server
        .post("/v1/admin/webhooks", &webhook)
        .await
        .expect_problem(ProblemKind::Malformed);
    assert!(
        refused.detail().contains("\"machine.enroled\"") && refused.detail().contains(events),
        "{refused}"
    );
    server.stop().await;
}

#[tokio::test]
async fn deleting_any_resource_twice_gives_not_found() {
    let server = InProcess::start().await;
    let machine = add(&server, 0).await;
    let mut paths = vec![machine.path(), "/v1/admin/inventory/INVENTORY-000".to_owned()];
    for list in ["grants", "permissions", "webhooks", "enrollment-tokens", "api-keys"] {
        let list = format!("/v1/admin/{list}");
        let items = server.get(&list).await.expect(200).json();
        let last = items["items"].as_array().unwrap().last().unwrap().clone();
        paths.push(format!("{list}/{}", last["id"].as_str().unwrap()));
    }
    for path in paths {
        let _deleted = server.delete(&path).await.expect(204);
        let audit = server.get("/v1/admin/audit?limit=500").await.json()["items"]
            .as_array()
            .unwrap()
            .len();
        let _gone = server.delete(&path).await.expect_problem(ProblemKind::NotFound);
        let after = server.get("/v1/admin/audit?limit=500").await.json()["items"]
            .as_array()
            .unwrap()
            .len();
        assert_eq!(after, audit, "{path}");
    }
    server.stop().await;
}
