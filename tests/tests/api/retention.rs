//! Deleting what is past its retention, at exactly that time, and nothing else.

use assay_protocol::ProblemKind;
use assay_server::clock::{Clock, SystemClock};
use assay_tests::cluster::Database;
use assay_tests::event_stream::EventStream;
use assay_tests::in_process::InProcess;
use assay_tests::installation::Installation;
use assay_tests::machine::Machine;
use serde_json::{Value, json};
use sqlx::PgPool;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};
use uuid::{Builder, Uuid};

/// How often the audit is read before the test fails: far more often than removing some rows needs.
const LOOKS: u32 = 20_000;

/// The nouns, in the order in which the server processes them.
const NOUNS: [(&str, &str); 6] = [
    ("events", "event"),
    ("certificates", "certificate"),
    ("enrollments", "enrollment"),
    ("enrollment_tokens", "enrollment-token"),
    ("api_keys", "api-key"),
    ("webhook_deliveries", "webhook-delivery"),
];

/// An id for this time, with microseconds, as the server generates it.
fn id_at(time: OffsetDateTime) -> Uuid {
    let microseconds = u64::try_from(time.unix_timestamp_nanos() / 1000).unwrap();
    let [.., high, low] = ((microseconds % 1000) * 4096 / 1000).to_be_bytes();
    let mut tail = [high, low, 0, 0, 0, 0, 0, 0, 0, 0];
    tail[2..].copy_from_slice(&rand::random::<[u8; 8]>());
    Builder::from_unix_timestamp_millis(microseconds / 1000, &tail).into_uuid()
}

/// Inserts a row of each noun that ended at a time, all with this id.
async fn insert(pool: &PgPool, ended: OffsetDateTime) -> Uuid {
    let id = id_at(ended);
    let (time, hash) = (ended.format(&Rfc3339).unwrap(), hex::encode(rand::random::<[u8; 32]>()));
    let statements = format!(
        r"INSERT INTO events (id, at, machine_id, kind, detail) VALUES ('{id}', '{time}', '{id}', 'old', '{{}}');
          INSERT INTO certificates (serial_number, machine_id, key_thumbprint, issuer_id, sha256, der, not_before, not_after,
                                    issued_at, revoked_at, revocation_reason)
          VALUES ('{id}', '{id}', '\x{hash}', '{id}', '\x{hash}', '', '{time}', '{time}', '{time}', '{time}', 'superseded');
          INSERT INTO machine_keys (thumbprint, machine_id, spki, status, created_at)
          VALUES ('\x{hash}', '{id}', '', 'denied', '{time}');
          INSERT INTO enrollments (id, kind, status, machine_id, key_thumbprint, claims, requested_at, decided_at)
          VALUES ('{id}', 'enrollment', 'denied', '{id}', '\x{hash}', '{{}}', '{time}', '{time}');
          INSERT INTO enrollment_tokens (id, secret_hash, description, created_at, expires_at, max_uses, approval, allow_reenrollment)
          VALUES ('{id}', '\x{hash}', 'old', '{time}', '{time}', 1, 'manual', false);
          INSERT INTO api_keys (id, secret_hash, name, role, created_at, revoked_at)
          VALUES ('{id}', '\x{hash}', 'old', 'viewer', '{time}', '{time}');
          INSERT INTO webhooks (id, url, description, sealed_secret, created_at)
          VALUES ('{id}', 'http://127.0.0.1:9/', 'old', '', '{time}');
          INSERT INTO webhook_deliveries (id, webhook_id, event_kind, status, created_at, finished_at)
          VALUES ('{id}', '{id}', 'old', 'failed', '{time}', '{time}');
          WITH place AS (UPDATE event_sequence SET last = last + 1 RETURNING last)
          UPDATE events SET sequence = last FROM place WHERE id = '{id}'"
    );
    sqlx::raw_sql(&statements).execute(pool).await.unwrap();
    id
}

/// The nouns that have a row with this id.
async fn kept(pool: &PgPool, id: Uuid) -> Vec<&'static str> {
    let mut kept = Vec::new();
    for (table, noun) in NOUNS {
        let column = if table == "certificates" {
            "serial_number"
        } else {
            "id::text"
        };
        let statement = format!("SELECT count(*) FROM {table} WHERE {column} = $1");
        let count: i64 = sqlx::query_scalar(&statement)
            .bind(id.to_string())
            .fetch_one(pool)
            .await
            .unwrap();
        if count > 0 {
            kept.push(noun);
        }
    }
    kept
}

async fn count(pool: &PgPool, table: &str) -> i64 {
    let statement = format!("SELECT count(*) FROM {table}");
    sqlx::query_scalar(&statement).fetch_one(pool).await.unwrap()
}

/// The audit entries about removed rows of a noun.
async fn removals(server: &InProcess, noun: &str) -> Vec<Value> {
    let audit = server.get(&format!("/v1/admin/audit?resource={noun}:*")).await.json();
    audit["items"].as_array().unwrap().clone()
}

/// Waits until all events have a sequence, because the server does not delete others.
async fn all_announced(pool: &PgPool) {
    for _ in 0..LOOKS {
        let waiting = sqlx::query_scalar("SELECT count(*) FROM events WHERE sequence IS NULL");
        if waiting.fetch_one(pool).await.is_ok_and(|waiting: i64| waiting == 0) {
            return;
        }
    }
    panic!("an event waits for ever");
}

/// Waits until the server has processed the last noun this many times.
async fn gone_through(server: &InProcess, times: usize) {
    for _ in 0..LOOKS {
        if removals(server, "webhook-delivery").await.len() == times {
            return;
        }
    }
    panic!("nothing was removed");
}

const SETTINGS: [(&str, &str); 8] = [
    ("retention.events", "10d"),
    ("retention.certificates", "10d"),
    ("retention.enrollments", "10d"),
    ("retention.enrollment_tokens", "10d"),
    ("retention.api_keys", "10d"),
    ("retention.webhook_deliveries", "10d"),
    ("rate_limit.api_key_per_minute", "0"),
    // A pending row has not ended.
    ("enrollment.pending_ttl", "100d"),
];

#[tokio::test]
async fn rows_past_their_retention_are_deleted_and_the_audit_has_the_count() {
    let database = Database::create().await;
    let (pool, now) = (database.pool().await, SystemClock.now());
    let boundary = now - Duration::days(10);
    let on_it = insert(&pool, boundary).await;
    let past_it = insert(&pool, boundary - Duration::microseconds(1)).await;
    let all: Vec<&str> = NOUNS.iter().map(|(_, noun)| *noun).collect();

    let server = InProcess::start_at(now, &database.url(), &SETTINGS).await;
    gone_through(&server, 1).await;
    assert_eq!(kept(&pool, past_it).await, Vec::<&str>::new());
    assert_eq!(kept(&pool, on_it).await, all);
    for (_, noun) in NOUNS {
        let entries = removals(&server, noun).await;
        let [entry] = entries.as_slice() else {
            panic!("{noun}: {entries:?}")
        };
        assert_eq!(
            (&entry["actor"]["kind"], &entry["after"]["removed"]),
            (&json!("system"), &json!(1)),
            "{entry}"
        );
    }
    server.stop().await;

    let server = InProcess::start_at(now + Duration::microseconds(1), &database.url(), &SETTINGS).await;
    gone_through(&server, 2).await;
    assert_eq!(kept(&pool, on_it).await, Vec::<&str>::new());
    assert_eq!(count(&pool, "machine_keys").await, 2, "a denied key stays denied");
    assert_eq!(count(&pool, "webhooks").await, 2);
    assert_eq!(server.get("/v1/admin/audit/verify").await.json()["valid"], true);
    server.stop().await;
}

#[tokio::test]
async fn names_and_addresses_are_deleted_after_their_retention_and_the_audit_stays_valid() {
    let database = Database::create().await;
    let (pool, now) = (database.pool().await, SystemClock.now());
    let settings = [
        ("retention.personal_data", "10d"),
        ("rate_limit.api_key_per_minute", "0"),
    ];
    let server = InProcess::start_at(now - Duration::days(11), &database.url(), &settings).await;
    let waiting = Machine::with_serial_number("WAITING");
    let token = server.enrollment_token(json!({"approval": "manual"})).await;
    let pending = waiting.enroll(&server, Some(&token)).await.expect(202).json();
    let path = format!("/v1/admin/enrollments/{}", pending["enrollment_id"].as_str().unwrap());
    assert_eq!(server.get(&path).await.json()["address"], "127.0.0.1");
    server.stop().await;

    let server = InProcess::start_at(now, &database.url(), &settings).await;
    let _recent = server.enrollment_token(json!({})).await;
    for _ in 0..LOOKS {
        if !removals(&server, "enrollment").await.is_empty() {
            break;
        }
    }
    assert_eq!(server.get(&path).await.json()["address"], Value::Null);
    let removed = removals(&server, "audit").await;
    assert_eq!(removed.len(), 1, "{removed:?}");
    assert_eq!(removed[0]["action"], "audit.remove-personal-data");
    let entries = server.get("/v1/admin/audit?limit=500").await.json();
    for entry in entries["items"].as_array().unwrap() {
        let at = OffsetDateTime::parse(entry["at"].as_str().unwrap(), &Rfc3339).unwrap();
        let has_called = entry["actor"]["kind"] == "api-key" || entry["actor"]["kind"] == "machine";
        let expected = has_called && at > now - Duration::days(10);
        assert_eq!(!entry["address"].is_null(), expected, "{entry}");
    }
    assert_eq!(server.get("/v1/admin/audit/verify").await.json()["valid"], true);
    assert!(count(&pool, "audit_personal_data").await > 0);
    server.stop().await;
}

#[tokio::test]
async fn machines_their_keys_and_what_they_need_are_never_deleted_by_age() {
    let database = Database::create().await;
    let (pool, now) = (database.pool().await, SystemClock.now());
    let before = InProcess::start_at(now - Duration::days(40), &database.url(), &SETTINGS).await;
    let (silent, revoked) = (before.enrolled("SILENT").await, before.enrolled("REVOKED").await);
    let (revoke, reason) = (format!("{}/revoke", revoked.path()), json!({"reason": "lost"}));
    assert_eq!(before.post(&revoke, &reason).await.status, 200);
    let waiting = Machine::with_serial_number("WAITING");
    let token = before.enrollment_token(json!({"approval": "manual"})).await;
    assert_eq!(waiting.enroll(&before, Some(&token)).await.status, 202);
    let keys = count(&pool, "machine_keys").await;
    all_announced(&pool).await;
    before.stop().await;

    // This delivery shows when the server has processed all nouns.
    let _seen = insert(&pool, now - Duration::days(39)).await;
    let server = InProcess::start_at(now, &database.url(), &SETTINGS).await;
    gone_through(&server, 1).await;
    let number = async |path: String| server.get(&path).await.json()["items"].as_array().unwrap().len();
    let events = server.get(&format!("{}/events", silent.path())).await.json();
    assert_eq!(events["items"], json!([]), "{events}");
    assert_eq!(
        number(format!("{}/certificates", silent.path())).await,
        1,
        "its current one stays"
    );
    assert_eq!(number(format!("{}/certificates", revoked.path())).await, 0);
    assert_eq!(number("/v1/admin/enrollments".to_owned()).await, 1);
    assert_eq!(number("/v1/admin/enrollments?status=pending".to_owned()).await, 1);
    assert_eq!(number("/v1/admin/machines".to_owned()).await, 3);
    assert_eq!(count(&pool, "machine_keys").await, keys + 1);
    let asked = revoked.enroll(&server, None).await;
    let _revoked = asked.expect_problem(ProblemKind::MachineRevoked);
    assert_eq!(silent.renew(&server).await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn two_replicas_delete_each_row_once_in_small_batches_and_streams_report_the_gap() {
    const OLD: i64 = 3_000;
    let database = Database::create().await;
    let (pool, now) = (database.pool().await, SystemClock.now());
    let times = (0..OLD).map(|number| now - Duration::days(500) + Duration::seconds(number));
    let (ids, times): (Vec<Uuid>, Vec<OffsetDateTime>) = times.map(|time| (id_at(time), time)).unzip();
    sqlx::query(
        "WITH place AS (UPDATE event_sequence SET last = $3)
         INSERT INTO events (id, at, machine_id, kind, detail, sequence)
         SELECT id, at, id, 'old', '{}', row_number() OVER (ORDER BY id) FROM unnest($1, $2) AS old (id, at)",
    )
    .bind(&ids)
    .bind(&times)
    .bind(OLD)
    .execute(&pool)
    .await
    .unwrap();

    let installation = Installation::replicated(&database).await;
    let administrator = installation.administrator();
    let mut removed = Vec::new();
    for _ in 0..LOOKS {
        let entries = administrator.audit("event:*").await;
        removed = entries
            .iter()
            .map(|entry| entry["after"]["removed"].as_i64().unwrap())
            .collect();
        if removed.iter().sum::<i64>() >= OLD {
            break;
        }
    }
    assert_eq!(removed.iter().sum::<i64>(), OLD, "{removed:?}");
    assert!(removed.iter().all(|removed| *removed <= 500), "{removed:?}");

    let request = EventStream::request(&installation.api(1), &installation.api_key, Some(7));
    let mut stream = EventStream::open(request).await;
    let gap = stream.next().await;
    assert_eq!((gap.id, gap.kind.as_str()), (OLD, "assay.gap"));
    assert_eq!(gap.data, json!({"after": 7, "oldest_available": OLD + 1}));
    administrator.enrolled(&installation.api(0)).await;
    assert_eq!(stream.next().await.id, OLD + 1);
}
