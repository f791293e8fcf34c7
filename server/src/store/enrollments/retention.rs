//! How enrollments expire and are removed.

use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    clock,
    store::{Connection, StoreError},
};

/// Pending enrollments that have expired, with their machines, in the order in which machines are locked.
pub(crate) async fn overdue(
    connection: &mut Connection,
    now: OffsetDateTime,
    limit: i64,
) -> Result<Vec<(Uuid, Uuid)>, StoreError> {
    let rows = sqlx::query!(
        "WITH overdue AS (
             SELECT id, machine_id FROM enrollments WHERE status = 'pending' AND expires_at <= $1
             ORDER BY expires_at LIMIT $2
         )
         SELECT id, machine_id FROM overdue ORDER BY machine_id, id",
        now,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.machine_id)).collect())
}

/// Removes the oldest enrollments that were decided before a time. Returns their number. The keys keep the decision.
pub(crate) async fn remove_decided_before(
    connection: &mut Connection,
    before: OffsetDateTime,
    limit: i64,
) -> Result<u64, StoreError> {
    let removed = sqlx::query!(
        "DELETE FROM enrollments
         WHERE id = ANY(ARRAY(SELECT id FROM enrollments WHERE id < $1 AND decided_at < $2 ORDER BY id LIMIT $3))",
        clock::first_id_at(before),
        before,
        limit
    )
    .execute(connection)
    .await?;
    Ok(removed.rows_affected())
}

/// Removes the addresses of the oldest enrollments that were requested before a time. Returns their number.
pub(crate) async fn remove_addresses_before(
    connection: &mut Connection,
    before: OffsetDateTime,
    limit: i64,
) -> Result<u64, StoreError> {
    let removed = sqlx::query!(
        "UPDATE enrollments SET address = NULL
         WHERE id = ANY(ARRAY(SELECT id FROM enrollments WHERE id < $1 AND address IS NOT NULL ORDER BY id LIMIT $2))",
        clock::first_id_at(before),
        limit
    )
    .execute(connection)
    .await?;
    Ok(removed.rows_affected())
}
