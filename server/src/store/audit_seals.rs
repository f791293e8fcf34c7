//! `audit_seals`: the hash chain over the audit.

use assay_protocol::admin_api::audit::AuditEntry;
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, StoreError, audit_entries};
use crate::changes::chain::EntryHash;

/// One link of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seal {
    /// The position in the chain, counted from 1 without gaps.
    pub(crate) sequence: i64,
    pub(crate) entry_id: Uuid,
    pub(crate) hash: EntryHash,
}

struct Row {
    sequence: i64,
    entry_id: Uuid,
    hash: Vec<u8>,
    id: Option<Uuid>,
    at: Option<OffsetDateTime>,
    actor_kind: Option<String>,
    actor_id: Option<String>,
    actor_name: Option<String>,
    action: Option<String>,
    resource_kind: Option<String>,
    resource_id: Option<String>,
    request_id: Option<String>,
    reason: Option<String>,
    before: Option<Value>,
    after: Option<Value>,
    personal_name: Option<String>,
    personal_salt: Option<Vec<u8>>,
    address: Option<String>,
}

/// The end of the chain.
pub(crate) async fn last(connection: &mut Connection) -> Result<Option<Seal>, StoreError> {
    let row = sqlx::query!("SELECT sequence, entry_id, hash FROM audit_seals ORDER BY sequence DESC LIMIT 1")
        .fetch_optional(connection)
        .await?;
    row.map(|row| seal(row.sequence, row.entry_id, &row.hash)).transpose()
}

/// Appends to the chain, and removes the entries from those waiting to be sealed.
pub(crate) async fn append(connection: &mut Connection, seals: &[Seal]) -> Result<(), StoreError> {
    let sequences: Vec<i64> = seals.iter().map(|seal| seal.sequence).collect();
    let entries: Vec<Uuid> = seals.iter().map(|seal| seal.entry_id).collect();
    let hashes: Vec<Vec<u8>> = seals.iter().map(|seal| seal.hash.as_bytes().to_vec()).collect();
    sqlx::query!(
        "INSERT INTO audit_seals (sequence, entry_id, hash)
         SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::bytea[])",
        &sequences,
        &entries,
        &hashes
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!("DELETE FROM audit_waiting WHERE entry_id = ANY($1)", &entries)
        .execute(connection)
        .await?;
    Ok(())
}

/// The length of the chain.
pub(crate) async fn count(connection: &mut Connection) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM audit_seals"#)
        .fetch_one(connection)
        .await?)
}

/// The next links after a position, each with its entry if that still exists.
pub(crate) async fn list_with_entries(
    connection: &mut Connection,
    after: i64,
    limit: i64,
) -> Result<Vec<(Seal, Option<AuditEntry>)>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT sequence, audit_seals.entry_id, hash, id AS "id?", at AS "at?", actor_kind AS "actor_kind?", actor_id,
                  audit_entries.actor_name, audit_personal_data.actor_name AS personal_name,
                  action AS "action?", resource_kind AS "resource_kind?", resource_id AS "resource_id?", request_id, reason,
                  before, after, salt AS "personal_salt?", address
           FROM audit_seals
                LEFT JOIN audit_entries ON id = audit_seals.entry_id
                LEFT JOIN audit_personal_data ON audit_personal_data.entry_id = audit_seals.entry_id
           WHERE sequence > $1 ORDER BY sequence LIMIT $2"#,
        after,
        limit
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| Ok((seal(row.sequence, row.entry_id, &row.hash)?, entry(row)?)))
        .collect()
}

fn seal(sequence: i64, entry_id: Uuid, hash: &[u8]) -> Result<Seal, StoreError> {
    let hash = EntryHash::from_bytes(hash).ok_or_else(|| StoreError::Corrupt("a seal is not a hash".to_owned()))?;
    Ok(Seal {
        sequence,
        entry_id,
        hash,
    })
}

fn entry(row: Row) -> Result<Option<AuditEntry>, StoreError> {
    let (Some(id), Some(at), Some(actor_kind), Some(action), Some(resource_kind), Some(resource_id)) = (
        row.id,
        row.at,
        row.actor_kind,
        row.action,
        row.resource_kind,
        row.resource_id,
    ) else {
        return Ok(None);
    };
    let row = audit_entries::Row {
        id,
        at,
        actor_kind,
        actor_id: row.actor_id,
        actor_name: row.actor_name,
        action,
        resource_kind,
        resource_id,
        request_id: row.request_id,
        reason: row.reason,
        before: row.before,
        after: row.after,
        hash: None,
        personal_name: row.personal_name,
        personal_salt: row.personal_salt,
        address: row.address,
    };
    row.try_into().map(Some)
}
