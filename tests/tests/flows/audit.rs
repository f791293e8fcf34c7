//! The audit's hash chain: tampering is detected, and several replicas seal it without waiting for each other.

use std::time::{Duration, Instant};

use assay_tests::administrator::{Administrator, text};
use assay_tests::cluster::Database;
use assay_tests::installation::Installation;
use assay_tests::processes::Server;
use futures_util::future::join_all;
use http::Method;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, PgPool};
use uuid::Uuid;

use super::commands::run;
use super::contended_records::until_a_query_waits_for;

/// Far longer than the half second after which an entry is normally sealed.
const SEALED_WITHIN: Duration = Duration::from_secs(20);

/// Parallel changes on two replicas.
const CHANGES: usize = 200;

/// How the owner disables the audit's triggers, and enables them again.
const LET_IN: &str =
    "ALTER TABLE audit_entries DISABLE TRIGGER only_added_to; ALTER TABLE audit_seals DISABLE TRIGGER only_added_to;";
const SHUT: &str = "ALTER TABLE audit_entries ENABLE ALWAYS TRIGGER only_added_to; ALTER TABLE audit_seals ENABLE ALWAYS TRIGGER only_added_to;";

async fn execute(pool: &PgPool, statements: &str) {
    sqlx::raw_sql(statements).execute(pool).await.unwrap();
}

/// Locks a table until the returned connection is closed.
async fn lock(database: &Database<'_>, statements: &'static str) -> PgConnection {
    let mut connection = PgConnection::connect_with(&database.connect_options()).await.unwrap();
    sqlx::raw_sql(statements).execute(&mut connection).await.unwrap();
    connection
}

/// Makes an audited change that shares no row with other changes.
async fn change(administrator: &Administrator) {
    let _token = administrator.token(json!({})).await;
}

/// Comes back when every entry has its hash, with the number of entries.
pub(super) async fn all_sealed(pool: &PgPool) -> i64 {
    let begun = Instant::now();
    loop {
        let counted = "SELECT (SELECT count(*) FROM audit_entries), (SELECT count(*) FROM audit_seals)";
        let (entries, seals): (i64, i64) = sqlx::query_as(counted).fetch_one(pool).await.unwrap();
        if entries == seals {
            return entries;
        }
        assert!(begun.elapsed() < SEALED_WITHIN, "{seals} of {entries} are sealed");
    }
}

/// The result of `audit verify` and `GET /audit/verify`, which must agree.
async fn verify(server: &Server, administrator: &Administrator, last_hash: Option<&str>) -> Value {
    let query = last_hash.map(|hash| format!("?last_hash={hash}")).unwrap_or_default();
    let answered = administrator.get(&format!("audit/verify{query}")).await;
    let arguments = ["audit", "verify", "--last-hash"];
    let arguments = match last_hash {
        Some(hash) => [arguments.as_slice(), &[hash]].concat(),
        None => arguments[..2].to_vec(),
    };
    let verified = run(server.configuration().command(&arguments)).await;
    assert_eq!(
        serde_json::from_str::<Value>(&verified.stdout).unwrap(),
        answered,
        "{}",
        verified.stderr
    );
    let code = if answered["valid"] == json!(true) { 0 } else { 1 };
    assert_eq!(verified.code, Some(code), "{answered} {}", verified.stderr);
    answered
}

/// A change at position 7, and the position of the first broken entry. `None` if that entry is a new one.
const TAMPERINGS: [(&str, &str, Option<i64>); 6] = [
    (
        "changed",
        "UPDATE audit_entries SET reason = 'another' WHERE id = (SELECT entry_id FROM audit_seals WHERE sequence = 7)",
        Some(7),
    ),
    (
        "deleted",
        "DELETE FROM audit_entries WHERE id = (SELECT entry_id FROM audit_seals WHERE sequence = 7)",
        Some(7),
    ),
    (
        "number 7, before this one, is missing",
        "DELETE FROM audit_entries WHERE id = (SELECT entry_id FROM audit_seals WHERE sequence = 7);
         DELETE FROM audit_seals WHERE sequence = 7",
        Some(8),
    ),
    (
        "changed or moved",
        "UPDATE audit_seals SET hash = sha256('another') WHERE sequence = 7",
        Some(7),
    ),
    (
        "changed or moved",
        "UPDATE audit_entries SET at = at + interval '1 microsecond' WHERE id = (SELECT entry_id FROM audit_seals WHERE sequence = 7);
         UPDATE audit_seals SET hash = sha256('another') WHERE sequence = 9",
        Some(7),
    ),
    (
        "without being sealed",
        "INSERT INTO audit_entries SELECT '01000000-0000-7000-8000-000000000000', at, actor_kind, actor_id, actor_name, action,
             resource_kind, resource_id, request_id, reason, before, after FROM audit_entries LIMIT 1",
        None,
    ),
];

#[tokio::test]
async fn tampering_with_the_middle_of_the_audit_chain_is_detected() {
    let database = Database::create().await;
    let installation = Installation::unlimited(&database).await;
    let (server, administrator) = (&installation.servers[0], installation.administrator());
    for _ in 0..12 {
        change(&administrator).await;
    }
    let pool = database.pool().await;
    let entries = all_sealed(&pool).await;
    let whole = verify(server, &administrator, None).await;
    assert_eq!(
        (&whole["valid"], &whole["entries"]),
        (&json!(true), &json!(entries)),
        "{whole}"
    );
    assert_eq!(
        (&whole["first_broken_id"], &whole["reason"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(whole["last_sequence"], json!(entries));
    let newest = administrator.get("audit?limit=1").await["items"][0].clone();
    assert_eq!(whole["last_hash"], newest["hash"]);

    execute(
        &pool,
        "CREATE TABLE kept_entries AS TABLE audit_entries; CREATE TABLE kept_seals AS TABLE audit_seals",
    )
    .await;
    for (reason, tampering, place) in TAMPERINGS {
        execute(&pool, &format!("{LET_IN} {tampering}; {SHUT}")).await;
        let broken = verify(server, &administrator, None).await;
        assert_eq!(broken["valid"], json!(false), "{tampering}");
        let expected: Uuid = match place {
            Some(place) => sqlx::query_scalar("SELECT entry_id FROM kept_seals WHERE sequence = $1")
                .bind(place)
                .fetch_one(&pool)
                .await
                .unwrap(),
            None => "01000000-0000-7000-8000-000000000000".parse().unwrap(),
        };
        assert_eq!(text(&broken, "first_broken_id"), expected.to_string(), "{tampering}");
        assert!(text(&broken, "reason").contains(reason), "{broken}");
        // The part of the log that is intact.
        let good = place.map_or(entries, |_| 6);
        assert_eq!(broken["last_sequence"], json!(good), "{tampering}");
        let restore =
            "DELETE FROM audit_entries; DELETE FROM audit_seals; INSERT INTO audit_entries TABLE kept_entries;
                       INSERT INTO audit_seals TABLE kept_seals";
        execute(&pool, &format!("{LET_IN} {restore}; {SHUT}")).await;
    }
    assert_eq!(verify(server, &administrator, None).await, whole);
}

#[tokio::test]
async fn a_noted_hash_proves_that_the_audit_chain_was_not_truncated() {
    let database = Database::create().await;
    let installation = Installation::unlimited(&database).await;
    let (server, administrator) = (&installation.servers[0], installation.administrator());
    let pool = database.pool().await;
    change(&administrator).await;
    let noted = {
        all_sealed(&pool).await;
        text(&verify(server, &administrator, None).await, "last_hash")
    };
    change(&administrator).await;
    let entries = all_sealed(&pool).await;
    for hash in [&noted, &noted.to_uppercase()] {
        let kept = verify(server, &administrator, Some(hash)).await;
        assert_eq!(
            (&kept["valid"], &kept["last_sequence"]),
            (&json!(true), &json!(entries)),
            "{kept}"
        );
    }

    let cut = "DELETE FROM audit_entries WHERE id IN (SELECT entry_id FROM audit_seals WHERE sequence >= (SELECT max(sequence) - 1 FROM audit_seals));
               DELETE FROM audit_seals WHERE sequence >= (SELECT max(sequence) - 1 FROM audit_seals)";
    execute(&pool, &format!("{LET_IN} {cut}; {SHUT}")).await;
    let unnoticed = verify(server, &administrator, None).await;
    assert_eq!(unnoticed["valid"], json!(true), "the chain alone cannot tell");
    let noticed = verify(server, &administrator, Some(&noted)).await;
    assert_eq!(
        (&noticed["valid"], &noticed["first_broken_id"]),
        (&json!(false), &Value::Null)
    );
    assert!(text(&noticed, "reason").contains(&noted), "{noticed}");

    let refused = administrator
        .call(Method::GET, "audit/verify?last_hash=abc", None)
        .await;
    let refused = refused.expect_problem(assay_protocol::ProblemKind::Malformed);
    assert!(refused.detail().contains("last_hash"), "{refused}");
    let usage = run(server
        .configuration()
        .command(&["audit", "verify", "--last-hash", "abc"]))
    .await;
    assert_eq!((usage.code, usage.stdout.as_str()), (Some(2), ""), "{}", usage.stderr);
}

#[tokio::test]
async fn names_and_addresses_in_the_audit_may_be_deleted_and_not_altered() {
    let database = Database::create().await;
    let installation = Installation::unlimited(&database).await;
    let (server, administrator) = (&installation.servers[0], installation.administrator());
    let own = administrator.get("self").await;
    administrator.enrolled(&installation.api(0)).await;
    change(&administrator).await;
    let pool = database.pool().await;
    let entries = all_sealed(&pool).await;
    let whole = verify(server, &administrator, None).await;
    assert_eq!(whole["valid"], json!(true), "{whole}");

    let list = async |query: &str| administrator.get(&format!("audit?limit=500{query}")).await["items"].clone();
    let of_administrator = list(&format!("&actor={}", text(&own, "name").replace(' ', "%20"))).await;
    assert!(of_administrator.as_array().unwrap().len() >= 2, "{of_administrator}");
    for entry in list("").await.as_array().unwrap() {
        let (called, named) = match entry["actor"]["kind"].as_str().unwrap() {
            "api-key" => (json!("127.0.0.1"), own["name"].clone()),
            "machine" => (json!("127.0.0.1"), Value::Null),
            _ => (Value::Null, Value::Null),
        };
        assert_eq!(
            (&entry["address"], &entry["actor"]["name"]),
            (&called, &named),
            "{entry}"
        );
        assert_eq!(entry["personal_digest"].is_null(), called.is_null(), "{entry}");
        assert_eq!(entry["personal_salt"].is_null(), called.is_null(), "{entry}");
    }

    alterations_break_the_chain(&pool, server, &administrator).await;
    assert_eq!(verify(server, &administrator, None).await, whole);

    execute(&pool, "DELETE FROM audit_personal_data").await;
    assert_eq!(verify(server, &administrator, None).await, whole);
    let after = list("").await;
    for entry in after.as_array().unwrap() {
        assert_eq!(
            (&entry["address"], &entry["actor"]["name"]),
            (&Value::Null, &Value::Null),
            "{entry}"
        );
    }
    assert_eq!(after.as_array().unwrap().len(), usize::try_from(entries).unwrap());
    let left: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM audit_entries WHERE audit_entries::text ~ '127[.]0[.]0[.]1($|[^:0-9])'",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(left, 0, "an address stands in a sealed entry");
}

/// Changes each part of the personal data, and restores it.
async fn alterations_break_the_chain(pool: &PgPool, server: &Server, administrator: &Administrator) {
    execute(pool, "CREATE TABLE kept AS TABLE audit_personal_data").await;
    for alteration in [
        "UPDATE audit_personal_data SET actor_name = 'eve' WHERE actor_name IS NOT NULL",
        "UPDATE audit_personal_data SET address = '192.0.2.9'",
        "UPDATE audit_personal_data SET address = NULL",
        "UPDATE audit_personal_data SET salt = sha256('x')",
        "INSERT INTO audit_personal_data SELECT id, sha256('x'), 'eve', NULL FROM audit_entries WHERE actor_kind IN ('system', 'command-line')",
    ] {
        execute(pool, alteration).await;
        let broken = verify(server, administrator, None).await;
        assert_eq!(broken["valid"], json!(false), "{alteration}");
        assert!(text(&broken, "reason").contains("name or the address"), "{broken}");
        execute(
            pool,
            "DELETE FROM audit_personal_data; INSERT INTO audit_personal_data TABLE kept",
        )
        .await;
    }
}

/// Each verification reads the whole log.
#[tokio::test]
async fn one_verification_of_the_audit_runs_at_a_time() {
    let database = Database::create().await;
    let installation = Installation::unlimited(&database).await;
    let pool = database.pool().await;
    all_sealed(&pool).await;
    let locked = lock(
        &database,
        "BEGIN; LOCK TABLE audit_personal_data IN ACCESS EXCLUSIVE MODE",
    )
    .await;
    let first = installation.administrator();
    let first = tokio::spawn(async move { first.get("audit/verify").await });
    until_a_query_waits_for(&pool, "audit_personal_data").await;
    let second = installation
        .administrator()
        .call(Method::GET, "audit/verify", None)
        .await;
    let told = second.expect_problem(assay_protocol::ProblemKind::RateLimited);
    assert!(told.retry_after().is_some(), "{told}");
    locked.close().await.unwrap();
    assert_eq!(first.await.unwrap()["valid"], json!(true));
    let third = installation.administrator().get("audit/verify").await;
    assert_eq!(third["valid"], json!(true));
}

#[tokio::test]
async fn changes_do_not_wait_for_sealing_and_another_replica_takes_over_sealing() {
    let database = Database::create().await;
    let installation = Installation::unlimited(&database).await;
    let pool = database.pool().await;
    all_sealed(&pool).await;
    // The sealing replica has the duty, and now waits within its transaction.
    let locked = lock(&database, "BEGIN; LOCK TABLE audit_seals IN SHARE MODE").await;
    change(&installation.administrator()).await;
    until_a_query_waits_for(&pool, "audit_seals").await;

    let installation = installation.with_a_replica().await;
    let survivor = Administrator::new(installation.api(1), &installation.api_key);
    for administrator in [&installation.administrator(), &survivor] {
        change(administrator).await;
    }
    let newest = survivor.get("audit?limit=3").await;
    for entry in newest["items"].as_array().unwrap() {
        assert_eq!(
            entry["hash"],
            Value::Null,
            "sealed although the sealing is held: {entry}"
        );
    }
    installation.servers[0].kill().await;
    locked.close().await.unwrap();
    let entries = all_sealed(&pool).await;
    let begun = Instant::now();
    change(&survivor).await;
    assert_eq!(all_sealed(&pool).await, entries + 1);
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "sealed after {:?}",
        begun.elapsed()
    );
    let verified = verify(&installation.servers[1], &survivor, None).await;
    assert_eq!(
        (&verified["valid"], &verified["entries"]),
        (&json!(true), &json!(entries + 1))
    );
}

#[tokio::test]
async fn concurrent_changes_on_two_replicas_make_one_audit_chain() {
    let database = Database::create().await;
    let installation = Installation::replicated(&database).await;
    let administrators = [0, 1].map(|replica| Administrator::new(installation.api(replica), &installation.api_key));
    let pool = database.pool().await;
    let before = all_sealed(&pool).await;
    join_all((0..CHANGES).map(|number| change(&administrators[number % 2]))).await;
    let entries = all_sealed(&pool).await;
    assert_eq!(entries, before + i64::try_from(CHANGES).unwrap());
    let (first, last): (i64, i64) = sqlx::query_as("SELECT min(sequence), max(sequence) FROM audit_seals")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!((first, last), (1, entries), "as many places as entries, from 1 on");
    let verified = verify(&installation.servers[1], &administrators[0], None).await;
    assert_eq!(
        (&verified["valid"], &verified["entries"]),
        (&json!(true), &json!(entries))
    );
}
