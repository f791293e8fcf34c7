//! Permissions, grants and audiences as one document.

use assay_protocol::ProblemKind;
use assay_server::clock::Clock;
use assay_tests::answer::Answer;
use assay_tests::in_process::InProcess;
use http::Method;
use rstest::rstest;
use serde_json::{Value, json};
use time::{Duration, format_description::well_known::Rfc3339};

const POLICY: &str = "/v1/admin/policy";

/// Reads the policy, and its version.
async fn read(server: &InProcess) -> (String, Value) {
    let answer = server.get(POLICY).await.expect(200);
    let tag = answer.header("etag").unwrap().to_owned();
    (tag, answer.json())
}

async fn put(server: &InProcess, tag: &str, query: &str, policy: &Value) -> Answer {
    let request = server.admin(Method::PUT, &format!("{POLICY}{query}"));
    server.send(request.header("if-match", tag).json(policy)).await
}

/// Puts a policy on top of the present one, and returns the steps.
async fn apply(server: &InProcess, query: &str, policy: &Value) -> Vec<String> {
    let (tag, _) = read(server).await;
    steps(&put(server, &tag, query, policy).await.expect(200).json())
}

/// `STEP KIND AUDIENCE NAME` of each change.
fn steps(applied: &Value) -> Vec<String> {
    let member = |change: &Value, name: &str| change[name].as_str().unwrap_or("-").to_owned();
    let line = |change| {
        ["step", "kind", "audience", "name"]
            .map(|name| member(change, name))
            .join(" ")
    };
    applied["changes"].as_array().unwrap().iter().map(line).collect()
}

fn in_an_hour(server: &InProcess) -> String {
    let end = server.clock().now() + Duration::hours(1);
    end.replace_nanosecond(0).unwrap().format(&Rfc3339).unwrap()
}

fn empty() -> Value {
    json!({"permissions": [], "grants": [], "audiences": []})
}

/// One of each, as the server writes it.
fn policy() -> Value {
    json!({
        "permissions": [
            {"audience": "https://wiki.example.com", "name": "read", "description": "Read the wiki"},
            {"audience": "https://wiki.example.com", "name": "write", "description": ""},
        ],
        "grants": [
            {
                "name": "wiki-readers", "description": "", "audience": "https://wiki.example.com", "permission": "read",
                "selector": {"all": true}, "conditions": {"sip_enabled": true},
            },
        ],
        "audiences": [{"audience": "https://wiki.example.com", "token": {"aud": "text"}}],
    })
}

#[tokio::test]
async fn a_policy_is_applied_as_a_whole_and_read_back_as_it_was_written() {
    let server = InProcess::start().await;
    let (first, nothing) = read(&server).await;
    assert_eq!(nothing, empty());
    let created = put(&server, &first, "", &policy()).await.expect(200);
    assert_eq!(
        steps(&created.json()),
        [
            "create permission https://wiki.example.com read",
            "create permission https://wiki.example.com write",
            "create audience https://wiki.example.com -",
            "create grant - wiki-readers",
        ]
    );
    let (second, written) = read(&server).await;
    assert_eq!(written, policy());
    assert_eq!(created.header("etag"), Some(second.as_str()));
    assert_ne!(first, second);

    // A repeated call changes nothing, also with the tag of before if its answer was lost.
    let lost = put(&server, &first, "?prune=true", &policy()).await.expect(200);
    assert_eq!(
        (lost.json()["changes"].clone(), lost.header("etag")),
        (json!([]), Some(second.as_str()))
    );
    let repeated = put(&server, &second, "?prune=true", &policy()).await.expect(200);
    assert_eq!(
        (repeated.json()["changes"].clone(), repeated.header("etag")),
        (json!([]), Some(second.as_str()))
    );
    assert_eq!(server.items("/v1/admin/grants").await.len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn what_a_policy_lacks_is_kept_and_named_and_deleted_only_with_prune() {
    let server = InProcess::start().await;
    let _created = apply(&server, "", &policy()).await;
    let grant = server.items("/v1/admin/grants").await[0].clone();
    let kept = [
        "keep permission https://wiki.example.com read",
        "keep permission https://wiki.example.com write",
        "keep audience https://wiki.example.com -",
        "keep grant - wiki-readers",
    ];
    assert_eq!(apply(&server, "", &empty()).await, kept);
    assert_eq!(read(&server).await.1, policy());

    // The grant moves to another permission, and its first one is deleted in the same call.
    let mut moved = policy();
    moved["permissions"].as_array_mut().unwrap().remove(0);
    moved["grants"][0]["permission"] = json!("write");
    let expected = [
        "delete permission https://wiki.example.com read",
        "replace grant - wiki-readers",
    ];
    assert_eq!(apply(&server, "?prune=true", &moved).await, expected);
    assert_eq!(read(&server).await.1, moved);
    let after = server.items("/v1/admin/grants").await[0].clone();
    assert_eq!(
        (&after["id"], &after["created_at"]),
        (&grant["id"], &grant["created_at"])
    );

    let gone = kept.map(|line| line.replace("keep", "delete"));
    assert_eq!(apply(&server, "?prune=true", &empty()).await, gone[1..]);
    assert_eq!(
        read(&server).await.1,
        json!({"permissions": [], "grants": [], "audiences": []})
    );
    server.stop().await;
}

#[tokio::test]
async fn a_dry_run_answers_the_same_changes_and_makes_none() {
    let server = InProcess::start().await;
    let (tag, before) = read(&server).await;
    let tried = put(&server, &tag, "?dry_run=true", &policy()).await.expect(200);
    assert_eq!(tried.json()["dry_run"], true);
    assert_eq!(tried.header("etag"), Some(tag.as_str()));
    assert_eq!(read(&server).await, (tag.clone(), before));
    let mut done = put(&server, &tag, "", &policy()).await.expect(200).json();
    done["dry_run"] = json!(true);
    assert_eq!(tried.json(), done);
    server.stop().await;
}

/// Two administrators read the same version. The second one would undo the first one's change unseen.
#[tokio::test]
async fn a_policy_for_a_version_that_has_changed_since_is_refused() {
    let server = InProcess::start().await;
    let (tag, _) = read(&server).await;
    let _first = put(&server, &tag, "", &policy()).await.expect(200);
    let second = put(&server, &tag, "?prune=true", &empty()).await;
    let _refused = second.expect_problem(ProblemKind::PreconditionFailed);
    assert_eq!(read(&server).await.1, policy());

    // A change of one grant is a version, too.
    let (tag, _) = read(&server).await;
    let grant = server.items("/v1/admin/grants").await[0].clone();
    let path = format!("/v1/admin/grants/{}", grant["id"].as_str().unwrap());
    let _deleted = server.delete(&path).await.expect(204);
    let late = put(&server, &tag, "?dry_run=true", &policy()).await;
    let _refused = late.expect_problem(ProblemKind::PreconditionFailed);
    for tag in ["*", "W/\"1\"", "1", "\"1\", \"2\"", ""] {
        let _refused = put(&server, tag, "", &policy())
            .await
            .expect_problem(ProblemKind::Malformed);
    }
    server.stop().await;
}

#[rstest]
#[case::name("/permissions/0/name", json!("a b"), ProblemKind::Malformed, "a b at https://wiki.example.com: name")]
#[case::selector("/grants/0/selector", json!({}), ProblemKind::Malformed, "wiki-readers: selector")]
#[case::past("/grants/0/expires_at", json!("2020-01-01T00:00:00Z"), ProblemKind::Malformed, "wiki-readers: expires_at")]
#[case::subject("/audiences/0/token", json!({"subject": "all"}), ProblemKind::Malformed, "wiki.example.com: ")]
#[case::twice("/permissions/1/name", json!("read"), ProblemKind::Malformed, "read at https://wiki.example.com is there twice")]
#[case::lacking("/grants/0/permission", json!("sign"), ProblemKind::Malformed, "no permission sign at https://wiki.example.com")]
#[case::without_a_list("/grants", Value::Null, ProblemKind::Malformed, "grants")]
#[case::unknown("/grants/0/condition", json!({}), ProblemKind::Malformed, "condition")]
#[tokio::test]
async fn a_policy_with_one_wrong_part_is_refused_by_its_name_and_changes_nothing(
    #[case] pointer: &str,
    #[case] wrong: Value,
    #[case] kind: ProblemKind,
    #[case] named: &str,
) {
    let server = InProcess::start().await;
    let (tag, empty) = read(&server).await;
    let mut policy = policy();
    let (parent, member) = pointer.rsplit_once('/').unwrap();
    policy.pointer_mut(parent).unwrap()[member] = wrong;
    let refused = put(&server, &tag, "", &policy).await.expect_problem(kind);
    assert!(refused.detail().contains(named), "{refused}");
    assert_eq!(read(&server).await, (tag, empty));
    server.stop().await;
}

#[tokio::test]
async fn a_grant_that_has_ended_may_stay_in_a_policy_and_two_equal_grants_may_not() {
    let server = InProcess::start().await;
    let mut policy = policy();
    let end = in_an_hour(&server);
    policy["grants"][0]["expires_at"] = json!(end);
    let _created = apply(&server, "", &policy).await;
    server.clock().advance(Duration::hours(2));
    policy["grants"][0]["description"] = json!("Until the move");
    assert_eq!(apply(&server, "", &policy).await, ["replace grant - wiki-readers"]);

    let mut twin = policy["grants"][0].clone();
    twin["name"] = json!("twin");
    let end = in_an_hour(&server);
    for index in [0, 1] {
        twin["expires_at"] = json!(end);
        policy["grants"].as_array_mut().unwrap().insert(0, twin.clone());
        policy["grants"][0]["name"] = json!(format!("twin-{index}"));
    }
    let (tag, _) = read(&server).await;
    let refused = put(&server, &tag, "", &policy)
        .await
        .expect_problem(ProblemKind::Conflict);
    assert!(refused.detail().contains("twin-0 and twin-1"), "{refused}");
    server.stop().await;
}

/// The audit and the events do not tell by which call a grant was changed.
#[tokio::test]
async fn each_change_of_a_policy_is_audited_and_announced_by_itself_in_one_version() {
    let server = InProcess::start().await;
    let _created = apply(&server, "", &policy()).await;
    let actions = async || {
        let mut actions: Vec<_> = server.items("/v1/admin/audit").await;
        actions.retain(|entry| entry["actor"]["kind"] == "api-key");
        let mut actions: Vec<_> = actions
            .iter()
            .map(|entry| entry["action"].as_str().unwrap().to_owned())
            .collect();
        actions.sort();
        actions
    };
    assert_eq!(
        actions().await,
        [
            "audience.create",
            "grant.create",
            "permission.create",
            "permission.create"
        ]
    );
    let pool = server.database().pool().await;
    let versions = "SELECT count(DISTINCT version), count(*) FROM policy_versions";
    let versions: (i64, i64) = sqlx::query_as(versions).fetch_one(&pool).await.unwrap();
    assert_eq!(versions, (1, 4));
    let _deleted = apply(&server, "?prune=true", &empty()).await;
    assert_eq!(actions().await.len(), 8);
    server.stop().await;
}
