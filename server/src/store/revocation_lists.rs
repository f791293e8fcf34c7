//! `revocation_lists`: the newest list of each CA; and `revocations_waiting`, what no list has yet.

use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, StoreError};

/// What is known of a CA's newest list without reading it.
#[derive(Debug, Clone)]
pub(crate) struct ListState {
    pub(crate) issuer_id: Uuid,
    pub(crate) number: i64,
    pub(crate) this_update: OffsetDateTime,
    pub(crate) next_update: OffsetDateTime,
    /// Whether something was revoked since.
    pub(crate) is_stale: bool,
}

/// A list as it is served.
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

/// Takes what waits for the list of a CA: whoever calls this reads the revoked certificates afterwards, and so finds at
/// least these. What is revoked meanwhile waits for the next list.
pub(crate) async fn take_waiting(connection: &mut Connection, issuer_id: Uuid) -> Result<(), StoreError> {
    sqlx::query!("DELETE FROM revocations_waiting WHERE issuer_id = $1", issuer_id)
        .execute(connection)
        .await?;
    Ok(())
}

/// Keeps a new list in the place of the one before.
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

/// Removes the list of a CA that has none any more, and what waits for it.
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
