//! `revocation_lists`: the newest list of each CA. `revocations_waiting`: revocations that no list contains yet.

use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, StoreError};

/// The properties of a CA's newest list.
#[derive(Debug, Clone)]
pub(crate) struct ListState {
    pub(crate) issuer_id: Uuid,
    pub(crate) number: i64,
    pub(crate) this_update: OffsetDateTime,
    pub(crate) next_update: OffsetDateTime,
    /// Whether certificates were revoked since.
    pub(crate) is_stale: bool,
}

/// A stored list.
#[derive(Debug)]
pub(crate) struct StoredList {
    pub(crate) number: i64,
    pub(crate) der: Vec<u8>,
    pub(crate) next_update: OffsetDateTime,
}

/// The state of every CA's list.
pub(crate) async fn states(connection: &mut Connection) -> Result<Vec<ListState>, StoreError> {
    Ok(sqlx::query_as!(
        ListState,
        r#"SELECT issuer_id, number, this_update, next_update,
                  EXISTS (SELECT FROM revocations_waiting WHERE revocations_waiting.issuer_id = revocation_lists.issuer_id)
                      AS "is_stale!"
           FROM revocation_lists"#
    )
    .fetch_all(connection)
    .await?)
}

/// The newest list of a CA.
pub(crate) async fn find(connection: &mut Connection, issuer_id: Uuid) -> Result<Option<StoredList>, StoreError> {
    Ok(sqlx::query_as!(
        StoredList,
        "SELECT number, der, next_update FROM revocation_lists WHERE issuer_id = $1",
        issuer_id
    )
    .fetch_optional(connection)
    .await?)
}

/// Marks the list of a CA as stale: this certificate must be on the next one.
pub(crate) async fn wait_for(
    connection: &mut Connection,
    issuer_id: Uuid,
    serial_number: &str,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO revocations_waiting (serial_number, issuer_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        serial_number,
        issuer_id
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes the waiting revocations of a CA. The caller reads the revoked certificates afterwards, so its list contains
/// at least these. Later revocations wait for the next list.
pub(crate) async fn take_waiting(connection: &mut Connection, issuer_id: Uuid) -> Result<(), StoreError> {
    sqlx::query!("DELETE FROM revocations_waiting WHERE issuer_id = $1", issuer_id)
        .execute(connection)
        .await?;
    Ok(())
}

/// Replaces the list of a CA.
pub(crate) async fn replace(
    connection: &mut Connection,
    issuer_id: Uuid,
    this_update: OffsetDateTime,
    list: &StoredList,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO revocation_lists (issuer_id, number, der, this_update, next_update) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (issuer_id) DO UPDATE
         SET number = excluded.number, der = excluded.der, this_update = excluded.this_update,
             next_update = excluded.next_update",
        issuer_id,
        list.number,
        list.der,
        this_update,
        list.next_update,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes the list of a CA that no longer needs one, and its waiting revocations.
pub(crate) async fn remove(connection: &mut Connection, issuer_id: Uuid) -> Result<(), StoreError> {
    sqlx::query!(
        "WITH waiting AS (DELETE FROM revocations_waiting WHERE issuer_id = $1)
         DELETE FROM revocation_lists WHERE issuer_id = $1",
        issuer_id
    )
    .execute(connection)
    .await?;
    Ok(())
}
