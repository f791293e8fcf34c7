//! Rows of an older version, after the schema was migrated.

use std::borrow::Cow;
use std::path::Path;

use assay_tests::cluster::Database;
use sqlx::PgPool;
use sqlx::migrate::Migrator;
use uuid::Uuid;

/// The last migration before grounds were stored.
const BEFORE_GROUNDS: i64 = 4;

/// A database with the schema of that version.
async fn before_grounds(pool: &PgPool) {
    for statement in ["DROP SCHEMA public CASCADE", "CREATE SCHEMA public"] {
        sqlx::query(statement).execute(pool).await.unwrap();
    }
    let mut older = all().await;
    let migrations = older.iter().filter(|migration| migration.version <= BEFORE_GROUNDS);
    older.migrations = Cow::Owned(migrations.cloned().collect());
    older.run(pool).await.unwrap();
}

async fn all() -> Migrator {
    let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations");
    Migrator::new(migrations).await.unwrap()
}

/// A machine with a key that this token admitted, and in some cases an administrator approved.
async fn machine(pool: &PgPool, number: u8, assurance: &str, token: Uuid, decided_by: Option<&str>) -> (Uuid, Uuid) {
    let (id, enrollment, key) = (Uuid::new_v4(), Uuid::new_v4(), vec![number; 32]);
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

#[tokio::test]
async fn an_upgrade_derives_the_grounds_of_assurance_from_enrollments() {
    let database = Database::create().await;
    let pool = database.pool().await;
    before_grounds(&pool).await;
    let (bound, shared) = (Uuid::new_v4(), Uuid::new_v4());
    for (id, serial_numbers) in [(bound, Some(vec!["S1", "S2"])), (shared, None)] {
        let row = "INSERT INTO enrollment_tokens (id, secret_hash, description, created_at, expires_at, max_uses,
                                                  serial_numbers, approval, allow_reenrollment)
                   VALUES ($1, sha256($1::text::bytea), '', now(), now(), 9, $2, 'automatic', false)";
        sqlx::query(row)
            .bind(id)
            .bind(serial_numbers)
            .execute(&pool)
            .await
            .unwrap();
    }
    let administrator = Some(r#"{"kind": "api-key", "id": null, "name": "A"}"#);
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
