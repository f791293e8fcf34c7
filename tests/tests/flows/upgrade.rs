//! Rows of an older version, after the schema was migrated.

use std::borrow::Cow;
use std::path::Path;

use assay_tests::cluster::{Database, SUPERUSER};
use assay_tests::in_process::InProcess;
use rstest::rstest;
use sqlx::PgPool;
use sqlx::migrate::Migrator;
use time::OffsetDateTime;
use time::macros::datetime;
use tokio::time::{Duration, timeout};
use uuid::Uuid;

/// The last migration before grounds were stored.
const BEFORE_GROUNDS: i64 = 4;

/// The last migration before API keys had prefixes and an end by default.
const BEFORE_ENDS_OF_API_KEYS: i64 = 22;

/// The migration that derived which keys have grounds of their own.
const GROUNDS_OF_KEYS: i64 = 20;
/// Who decided an enrollment.
const ADMINISTRATOR: &str = r#"{"kind": "api-key", "id": null, "name": "A"}"#;

/// A database with the schema of the version before grounds were stored.
async fn before_grounds(pool: &PgPool) {
    migrate_anew_to(pool, BEFORE_GROUNDS).await;
}

/// Empties the database, and migrates it to this version.
async fn migrate_anew_to(pool: &PgPool, version: i64) {
    for statement in ["DROP SCHEMA public CASCADE", "CREATE SCHEMA public"] {
        sqlx::query(statement).execute(pool).await.unwrap();
    }
    migrate_to(pool, version).await;
}

async fn migrate_to(pool: &PgPool, version: i64) {
    let mut older = all().await;
    let migrations = older.iter().filter(|migration| migration.version <= version);
    older.migrations = Cow::Owned(migrations.cloned().collect());
    older.run(pool).await.unwrap();
}

async fn all() -> Migrator {
    let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations");
    Migrator::new(migrations).await.unwrap()
}

/// A machine with a key that this token admitted, and in some cases an administrator approved.
async fn machine(pool: &PgPool, number: u8, assurance: &str, token: Uuid, decided_by: Option<&str>) -> (Uuid, Uuid) {
    // Ids of enrollments have an order.
    let (id, enrollment, key) = (Uuid::new_v4(), Uuid::from_u128(number.into()), vec![number; 32]);
    let machine = "INSERT INTO machines (id, status, assurance, serial_number, claimed_posture, current_key, key_store,
                                         key_created_at, enrolled_at)
                   VALUES ($1, 'active', $2, $3, '{}', $4, 'software', now(), now())";
    let machine = sqlx::query(machine).bind(id).bind(assurance);
    machine
        .bind(format!("S{number}"))
        .bind(&key)
        .execute(pool)
        .await
        .unwrap();
    let row = "INSERT INTO machine_keys (thumbprint, machine_id, spki, status, created_at)
               VALUES ($1, $2, '', 'current', now())";
    sqlx::query(row).bind(&key).bind(id).execute(pool).await.unwrap();
    let row = "INSERT INTO enrollments (id, kind, status, machine_id, key_thumbprint, token_id, claims, requested_at,
                                        decided_at, decided_by)
               VALUES ($1, 'enrollment', 'approved', $2, $3, $4, '{}', now(), now(), $5::jsonb)";
    let row = sqlx::query(row).bind(enrollment).bind(id).bind(&key).bind(token);
    row.bind(decided_by).execute(pool).await.unwrap();
    (id, enrollment)
}

/// A token that this many keys have used.
async fn token(pool: &PgPool, id: Uuid, uses: i64, serial_numbers: Option<&[&str]>) {
    let row = "INSERT INTO enrollment_tokens (id, secret_hash, description, created_at, expires_at, max_uses, uses,
                                              serial_numbers, approval, allow_reenrollment)
               VALUES ($1, sha256($1::text::bytea), '', now(), now(), 9, $2, $3, 'automatic', false)";
    let row = sqlx::query(row).bind(id).bind(uses).bind(serial_numbers);
    row.execute(pool).await.unwrap();
}

#[tokio::test]
async fn an_upgrade_derives_the_grounds_of_assurance_from_enrollments() {
    let database = Database::create().await;
    let pool = database.pool().await;
    before_grounds(&pool).await;
    let (bound, shared) = (Uuid::new_v4(), Uuid::new_v4());
    token(&pool, bound, 3, Some(&["S1", "S2"])).await;
    token(&pool, shared, 2, None).await;
    let administrator = Some(ADMINISTRATOR);
    let (named, _) = machine(&pool, 1, "verified", bound, None).await;
    let (both, both_by) = machine(&pool, 2, "verified", bound, administrator).await;
    let (approved, approved_by) = machine(&pool, 3, "verified", shared, administrator).await;
    let (asserted, _) = machine(&pool, 4, "asserted", shared, None).await;

    all().await.run(&pool).await.unwrap();

    for (id, token, approval) in [
        (named, Some(bound), None),
        (both, Some(bound), Some(both_by)),
        (approved, None, Some(approved_by)),
        (asserted, None, None),
    ] {
        let row = "SELECT ground_token_id, ground_enrollment_id, ground_inventory FROM machines WHERE id = $1";
        let found: (Option<Uuid>, Option<Uuid>, Option<String>) =
            sqlx::query_as(row).bind(id).fetch_one(&pool).await.unwrap();
        assert_eq!(found, (token, approval, None));
    }
}

/// What is on record of a key whose token has this many uses, but one enrollment.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shown {
    Nothing,
    Approval,
    Attestation,
    /// The server saw the first use itself, because it had the grounds of keys already.
    Later,
    NoToken,
}

#[rstest]
#[case::the_only_use(1, Shown::Nothing, true)]
#[case::another_use_was_deleted(2, Shown::Nothing, false)]
#[case::approved(2, Shown::Approval, true)]
#[case::attested(2, Shown::Attestation, true)]
#[case::of_this_version(2, Shown::Later, true)]
#[case::the_token_was_deleted(1, Shown::NoToken, false)]
#[tokio::test]
async fn an_upgrade_takes_no_key_for_the_first_of_a_token_whose_enrollments_were_deleted(
    #[case] uses: i64,
    #[case] shown: Shown,
    #[case] expected: bool,
) {
    let database = Database::create().await;
    let pool = database.pool().await;
    before_grounds(&pool).await;
    let bound = Uuid::new_v4();
    token(&pool, bound, uses, Some(&["S1"])).await;
    let decided_by = (shown == Shown::Approval).then_some(ADMINISTRATOR);
    let (id, _) = machine(&pool, 1, "verified", bound, decided_by).await;
    migrate_to(&pool, GROUNDS_OF_KEYS).await;
    assert!(has_ground_of_its_own(&pool, id).await);
    let statements: &[&str] = match shown {
        Shown::Nothing | Shown::Approval => &[],
        Shown::Attestation => &[
            "INSERT INTO apple_attestations (id, machine_id, key_thumbprint, serial_number, attested_at, not_after,
                                             bound_at, claims, chain)
             SELECT id, id, current_key, serial_number, key_created_at, now(), now(), '{}', ARRAY[''::bytea] FROM machines",
            "UPDATE machines SET apple_attestation_id = id, attested_at = key_created_at, ground_attestation = 'lapsed'",
        ],
        Shown::Later => &["UPDATE machines SET key_created_at = clock_timestamp()"],
        Shown::NoToken => &["DELETE FROM enrollment_tokens"],
    };
    for statement in statements {
        sqlx::query(statement).execute(&pool).await.unwrap();
    }

    all().await.run(&pool).await.unwrap();

    assert_eq!(has_ground_of_its_own(&pool, id).await, expected);
}

#[tokio::test]
async fn an_upgrade_leaves_the_first_key_of_a_token_its_ground_if_all_enrollments_are_on_record() {
    let database = Database::create().await;
    let pool = database.pool().await;
    before_grounds(&pool).await;
    let bound = Uuid::new_v4();
    token(&pool, bound, 2, Some(&["S1", "S2"])).await;
    let (first, _) = machine(&pool, 1, "verified", bound, None).await;
    let (second, _) = machine(&pool, 2, "verified", bound, None).await;

    all().await.run(&pool).await.unwrap();

    assert!(has_ground_of_its_own(&pool, first).await);
    assert!(!has_ground_of_its_own(&pool, second).await);
}

async fn has_ground_of_its_own(pool: &PgPool, id: Uuid) -> bool {
    let row = "SELECT ground_of_key FROM machines WHERE id = $1";
    sqlx::query_scalar(row).bind(id).fetch_one(pool).await.unwrap()
}

/// API keys end after a year unless the administrator says otherwise. Programs use the earlier ones, some without an end.
#[tokio::test]
async fn an_upgrade_leaves_the_ends_of_api_keys_as_they_are() {
    const END: OffsetDateTime = datetime!(2031-05-06 07:08:09 UTC);
    let database = Database::create().await;
    let pool = database.pool().await;
    migrate_anew_to(&pool, BEFORE_ENDS_OF_API_KEYS).await;
    for (name, end) in [("endless", None), ("ending", Some(END))] {
        let row = "INSERT INTO api_keys (id, secret_hash, name, role, created_at, expires_at)
                   VALUES (gen_random_uuid(), sha256($1::text::bytea), $1, 'viewer', '2025-01-01T00:00:00Z', $2)";
        sqlx::query(row).bind(name).bind(end).execute(&pool).await.unwrap();
    }
    all().await.run(&pool).await.unwrap();
    let keys = "SELECT name, expires_at, revoked_at FROM api_keys ORDER BY name DESC";
    type Key = (String, Option<OffsetDateTime>, Option<OffsetDateTime>);
    let keys: Vec<Key> = sqlx::query_as(keys).fetch_all(&pool).await.unwrap();
    assert_eq!(
        keys,
        [
            ("endless".to_owned(), None, None),
            ("ending".to_owned(), Some(END), None)
        ]
    );
}

/// A backup reads all tables for long. All calls that come after a migration would wait behind it.
#[tokio::test]
async fn a_migration_that_waits_for_a_lock_does_not_stop_the_readers_behind_it() {
    let database = Database::create().await;
    let pool = database.pool().await;
    migrate_anew_to(&pool, BEFORE_ENDS_OF_API_KEYS).await;
    let mut backup = pool.begin().await.unwrap();
    let lock = sqlx::query("LOCK TABLE api_keys IN ACCESS SHARE MODE");
    lock.execute(&mut *backup).await.unwrap();
    let behind = async {
        wait_for_a_waiting_migration(&pool).await;
        let read = sqlx::query("SELECT FROM api_keys").execute(&pool);
        let read = timeout(Duration::from_secs(30), read).await;
        let _none = read.expect("a reader waits behind the migration").unwrap();
        backup.rollback().await.unwrap();
    };
    let (url, owner) = (database.url(), database.url_of(SUPERUSER));
    let settings = [("database.migration_url", owner.as_str())];
    let (server, ()) = tokio::join!(InProcess::start_on(&url, &settings), behind);
    assert_eq!(server.get("/v1/admin/api-keys").await.status, 200);
    server.stop().await;
}

/// Waits until a statement waits for the lock of `api_keys`.
async fn wait_for_a_waiting_migration(pool: &PgPool) {
    let waiting = "DO $$ BEGIN
         WHILE NOT EXISTS (SELECT FROM pg_locks WHERE relation = 'api_keys'::regclass AND NOT granted)
         LOOP PERFORM pg_sleep(0.001); END LOOP; END $$";
    let waiting = timeout(Duration::from_secs(60), sqlx::query(waiting).execute(pool)).await;
    let _waits = waiting.expect("no migration waits for the lock").unwrap();
}
