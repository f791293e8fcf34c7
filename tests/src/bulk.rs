//! Fills the tables of a fleet as a restore does: it inserts the rows first, and then creates the indexes.

use sqlx::{Connection, PgConnection};

use crate::cluster::execute;

const TABLES: [&str; 8] = [
    "machines",
    "machine_presence",
    "machine_search",
    "machine_keys",
    "certificates",
    "enrollments",
    "events",
    "audit_entries",
];
const INDEXES_WITHOUT_CONSTRAINT: &str = "
    SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index
    WHERE indrelid = ANY ($1::text[]::regclass[]) AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)";

/// Runs the statements that insert the rows. They may use settings and temporary tables of this connection.
pub(crate) async fn fill(mut connection: PgConnection, statements: &str) {
    let settings = "SET maintenance_work_mem = '1GB'; SET synchronous_commit = off";
    execute(&mut connection, settings.to_owned()).await;
    let indexes = sqlx::query_as::<_, (String, String)>(INDEXES_WITHOUT_CONSTRAINT).bind(TABLES.as_slice());
    let indexes = indexes.fetch_all(&mut connection).await.unwrap();
    for (name, _) in &indexes {
        execute(&mut connection, format!("DROP INDEX {name}")).await;
    }
    execute(&mut connection, statements.to_owned()).await;
    for (_, definition) in indexes {
        execute(&mut connection, definition).await;
    }
    execute(&mut connection, "VACUUM (ANALYZE)".to_owned()).await;
    connection.close().await.unwrap();
}
