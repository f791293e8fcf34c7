//! The stream of events of one server: its content, its start, its callers and its end.

use assay_protocol::ProblemKind;
use assay_protocol::admin_api::api_keys::Role;
use assay_tests::event_stream::{EventStream, Told};
use assay_tests::in_process::InProcess;
use http::Method;
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use sqlx::PgPool;
use time::Duration;
use uuid::Uuid;

const STREAM: &str = "/v1/admin/events/stream";

/// The events of an enrollment: the machine and its certificate.
const ENROLLMENT: usize = 2;

async fn open(server: &InProcess, query: &str) -> EventStream {
    EventStream::open(server.admin(Method::GET, &format!("{STREAM}{query}"))).await
}

/// The events of machines alone.
async fn of_machines(server: &InProcess, query: &str) -> EventStream {
    open(server, query).await.of_machines()
}

/// The sequences of these events.
fn sequences(told: &[Told]) -> Vec<i64> {
    told.iter().map(|told| told.id).collect()
}

/// Sets the clock forward, because events of one moment have no order.
async fn quarantine(server: &InProcess, path: &str) {
    server.clock().advance(Duration::milliseconds(1));
    let answer = server
        .post(&format!("{path}/quarantine"), &json!({"reason": "lost"}))
        .await;
    assert_eq!(answer.status, 200, "{answer}");
}

#[tokio::test]
async fn a_stream_sends_the_events_of_the_list_in_order_from_now_or_from_a_given_event() {
    let server = InProcess::start().await;
    let first = server.enrolled("FIRST").await;
    let mut from_the_beginning = of_machines(&server, "?after=0").await;
    let told = from_the_beginning.take(ENROLLMENT).await;

    let mut from_now = of_machines(&server, "").await;
    let second = server.enrolled("SECOND").await;
    let told_now = from_now.take(ENROLLMENT).await;
    let told_on = from_the_beginning.take(ENROLLMENT).await;
    assert_eq!(told_now, told_on, "streams tell the same");
    assert!(told.iter().all(|told| told.data["machine_id"] == json!(first.id())));
    assert!(told_on.iter().all(|told| told.data["machine_id"] == json!(second.id())));
    let all = [told, told_on].concat();
    assert!(sequences(&all).is_sorted_by(|before, after| before < after));

    let mut listed = server.items("/v1/admin/events").await;
    listed.retain(|event| !event["machine_id"].is_null());
    let key = |event: &Value| event["id"].as_str().unwrap().to_owned();
    listed.sort_by_key(key);
    let mut shown: Vec<Value> = all.iter().map(|told| told.data.clone()).collect();
    for (told, event) in all.iter().zip(&mut shown) {
        assert_eq!(event["kind"], told.kind.as_str());
        let sequence = event.as_object_mut().unwrap().remove("sequence");
        assert_eq!(sequence, Some(json!(told.id)));
    }
    shown.sort_by_key(key);
    assert_eq!(shown, listed);
    server.stop().await;
}

#[tokio::test]
async fn list_and_stream_can_be_filtered_by_kind_and_machine() {
    let server = InProcess::start().await;
    let (one, other) = (server.enrolled("ONE").await, server.enrolled("OTHER").await);
    let mut of_kind = open(&server, "?after=0&kind=machine.quarantined").await;
    let mut of_machine = open(&server, &format!("?after=0&machine_id={}", other.id())).await;
    let mut of_both = open(&server, &format!("?kind=machine.quarantined&machine_id={}", other.id())).await;
    quarantine(&server, &one.path()).await;
    quarantine(&server, &other.path()).await;

    let quarantined = [of_kind.next().await, of_kind.next().await];
    assert_eq!(
        quarantined.clone().map(|told| told.data["machine_id"].clone()),
        [json!(one.id()), json!(other.id())]
    );
    let of_machine = of_machine.up_to("machine.quarantined").await;
    assert!(
        of_machine.len() > 1
            && of_machine
                .iter()
                .all(|told| told.data["machine_id"] == json!(other.id()))
    );
    assert_eq!(of_both.next().await, quarantined[1]);

    for (query, expected) in [
        ("kind=machine.quarantined".to_owned(), 2),
        (format!("machine_id={}", other.id()), of_machine.len()),
        (format!("kind=machine.quarantined&machine_id={}", one.id()), 1),
        ("kind=machine.deleted".to_owned(), 0),
        (format!("machine_id={}", Uuid::nil()), 0),
    ] {
        let list = server.get(&format!("/v1/admin/events?{query}")).await.json();
        assert_eq!(list["items"].as_array().unwrap().len(), expected, "{query}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_bad_start_position_is_refused() {
    let server = InProcess::start().await;
    for query in ["?after=-1", "?after=now", "?machine_id=one", "?unknown=1"] {
        let answer = server.get(&format!("{STREAM}{query}")).await;
        let _malformed = answer.expect_problem(ProblemKind::Malformed);
    }
    for place in ["-1", "now", "99999999999999999999"] {
        let request = server.admin(Method::GET, STREAM).header("last-event-id", place);
        let _malformed = server.send(request).await.expect_problem(ProblemKind::Malformed);
    }
    server.stop().await;
}

/// A stream with a new API key for the role `viewer`.
async fn key(server: &InProcess, name: &str, life: Option<u64>) -> (String, String) {
    let request = json!({"name": name, "role": "viewer", "expires_in_seconds": life});
    let created = server.post("/v1/admin/api-keys", &request).await.expect(201).json();
    let member = |name: &str| created[name].as_str().unwrap().to_owned();
    (member("id"), member("key"))
}

#[tokio::test]
async fn revocation_or_expiry_of_an_api_key_ends_only_its_own_streams() {
    let server = InProcess::start().await;
    let (revoked, revoked_key) = key(&server, "to be revoked", None).await;
    let (_, expiring_key) = key(&server, "to expire", Some(60)).await;
    let stream = async |key: &str| {
        EventStream::open(EventStream::request(server.reached(), key, None))
            .await
            .of_machines()
    };
    let (mut of_revoked, mut of_expiring) = (stream(&revoked_key).await, stream(&expiring_key).await);
    let mut staying = stream(server.api_key(Role::Viewer)).await;

    assert_eq!(
        server.delete(&format!("/v1/admin/api-keys/{revoked}")).await.status,
        204
    );
    assert_eq!(of_revoked.read().await.unwrap(), None);
    server.clock().advance(Duration::seconds(60));
    assert_eq!(of_expiring.read().await.unwrap(), None);

    server.enrolled("STILL-TOLD").await;
    assert_eq!(staying.take(ENROLLMENT).await.len(), ENROLLMENT);
    server.stop().await;
}

#[tokio::test]
async fn an_api_key_may_have_twenty_streams_at_once() {
    let server = InProcess::start().await;
    let (_, key) = key(&server, "many", None).await;
    let request = || EventStream::request(server.reached(), &key, None);
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(EventStream::open(request()).await.of_machines());
    }
    let refused = server.send(request()).await.expect_problem(ProblemKind::RateLimited);
    assert!(refused.detail().contains("20 streams"), "{refused}");
    // Other API keys have limits of their own.
    let _other = EventStream::open(server.admin(Method::GET, STREAM)).await;
    server.stop().await;
    for mut stream in streams {
        assert_eq!(stream.read().await.unwrap(), None, "the server ends them cleanly");
    }
}

async fn remove(pool: &PgPool, condition: &str) {
    let statement = format!("DELETE FROM events WHERE {condition}");
    sqlx::raw_sql(&statement).execute(pool).await.unwrap();
}

#[tokio::test]
async fn a_stream_reports_a_gap_in_the_events() {
    let server = InProcess::start().await;
    let machine = server.enrolled("GAPS").await;
    quarantine(&server, &machine.path()).await;
    let told = open(&server, "?after=0").await.up_to("machine.quarantined").await;
    let end = told.last().unwrap().id;
    assert!(end >= 3, "{told:?}");
    let pool = server.database().pool().await;
    let gap = |after: i64, oldest: i64| Told {
        id: oldest - 1,
        kind: "assay.gap".to_owned(),
        data: json!({"after": after, "oldest_available": oldest}),
    };

    remove(&pool, "sequence = 1").await;
    let mut stream = open(&server, "?after=0").await;
    assert_eq!(stream.next().await, gap(0, 2));
    assert_eq!(stream.next().await, told[1]);
    assert_eq!(
        open(&server, "?after=1").await.next().await,
        told[1],
        "nothing is missing here"
    );

    remove(&pool, "true").await;
    let mut stream = open(&server, "?after=1").await;
    assert_eq!(stream.next().await, gap(1, end + 1));
    // A database restored from a backup is behind the caller's position.
    let mut of_the_future = open(&server, "?after=900").await;
    assert_eq!(of_the_future.next().await, gap(900, end + 1));
    let (release, reason) = (format!("{}/release", machine.path()), json!({"reason": "found"}));
    assert_eq!(server.post(&release, &reason).await.status, 200);
    for stream in [&mut stream, &mut of_the_future] {
        let next = stream.next().await;
        assert_eq!(
            (next.id, next.kind.as_str()),
            (end + 1, "machine.released"),
            "the order goes on"
        );
    }
    server.stop().await;
}

#[tokio::test]
async fn a_stream_sends_no_rolled_back_event_and_misses_none_that_commits_late() {
    let server = InProcess::start().await;
    let machine = server.enrolled("ROLLED-BACK").await;
    let mut stream = of_machines(&server, "?after=0").await;
    let before = stream.take(ENROLLMENT).await.last().unwrap().id;
    let pool = server.database().pool().await;

    // The change's transaction writes the audit entry after the event.
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now'; END $$;
                  CREATE TRIGGER refuse BEFORE INSERT ON audit_entries EXECUTE FUNCTION refuse()";
    sqlx::raw_sql(refuse).execute(&pool).await.unwrap();
    let failed = server
        .post(&format!("{}/quarantine", machine.path()), &json!({"reason": "lost"}))
        .await;
    let _internal = failed.expect_problem(ProblemKind::Internal);
    sqlx::raw_sql("DROP TRIGGER refuse ON audit_entries")
        .execute(&pool)
        .await
        .unwrap();

    // This event's id is older than that of the event that commits first and is announced first.
    let mut late = pool.begin().await.unwrap();
    let id = Uuid::from_u128(0x0001_0000_0000_7000_8000_0000_0000_0001);
    sqlx::query("INSERT INTO events (id, at, machine_id, kind, detail) VALUES ($1, now(), $2, 'late', '{}')")
        .bind(id)
        .bind(machine.id())
        .execute(&mut *late)
        .await
        .unwrap();
    let renewed = machine.renew(&server).await;
    assert_eq!(renewed.status, 200, "{renewed}");
    let next = stream.next().await;
    assert_eq!((next.id, next.kind.as_str()), (before + 1, "certificate.issued"));
    late.commit().await.unwrap();
    let next = stream.next().await;
    assert_eq!((next.id, next.kind.as_str()), (before + 2, "late"));
    assert_eq!(next.data["id"], json!(id));
    server.stop().await;
}

#[tokio::test]
async fn a_stream_works_over_http1_and_answers_a_head_request() {
    let server = InProcess::start().await;
    let url = format!("{}{STREAM}?after=0", assay_tests::in_process::PUBLIC_URL);
    let request: RequestBuilder = server
        .http1_client()
        .get(&url)
        .bearer_auth(server.api_key(Role::Viewer));
    let mut stream = EventStream::open(request).await.of_machines();
    server.enrolled("OVER-HTTP1").await;
    assert_eq!(stream.take(ENROLLMENT).await.len(), ENROLLMENT);
    let head = server.send(server.admin(Method::HEAD, STREAM)).await.expect(200);
    assert!(head.body.is_empty());
    server.stop().await;
    assert_eq!(stream.read().await.unwrap(), None);
}
