//! `machine_keys`: every key that ever requested enrollment.

use std::collections::HashMap;

use assay_protocol::{KeyThumbprint, PublicKey};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::presence::LockedMachine;
use crate::store::{Connection, StoreError, parse_text, text, thumbprint};

/// The constraint that a second row of one key violates.
pub(crate) const PRIMARY_KEY: &str = "machine_keys_pkey";

/// The status of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum KeyStatus {
    /// Waits for an administrator's decision.
    Pending,
    /// The machine's key.
    Current,
    /// Accepted beside the current key. Its first check-in supersedes the current key.
    Next,
    /// Replaced by a newer one.
    Superseded,
    /// Permanently rejected.
    Revoked,
    /// An administrator denied it.
    Denied,
}

/// A recorded key.
#[derive(Debug, Clone)]
pub(crate) struct KeyRecord {
    pub(crate) machine_id: Uuid,
    pub(crate) status: KeyStatus,
    pub(crate) status_reason: Option<String>,
}

/// A public key and the machine that it belongs to.
#[derive(Debug, Clone)]
pub(crate) struct OwnedKey {
    pub(crate) machine_id: Uuid,
    pub(crate) public_key: PublicKey,
    /// Whether the key can still move to another machine: a pending request may expire and be made again.
    pub(crate) may_change: bool,
}

/// The public key of this thumbprint and the machine that it belongs to.
pub(crate) async fn find_public_key(
    connection: &mut Connection,
    key: KeyThumbprint,
) -> Result<Option<OwnedKey>, StoreError> {
    Ok(find_public_keys(connection, &[key]).await?.remove(&key))
}

/// The keys among these that are recorded.
pub(crate) async fn find_public_keys(
    connection: &mut Connection,
    keys: &[KeyThumbprint],
) -> Result<HashMap<KeyThumbprint, OwnedKey>, StoreError> {
    let thumbprints: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes().as_slice()).collect();
    let rows = sqlx::query!(
        "SELECT thumbprint, machine_id, spki, status FROM machine_keys WHERE thumbprint = ANY ($1)",
        &thumbprints as &[&[u8]]
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let key = thumbprint(&row.thumbprint)?;
            let public_key = PublicKey::from_spki_der(&row.spki)
                .map_err(|_| StoreError::Corrupt(format!("the public key {key} is not readable")))?;
            let owned = OwnedKey {
                machine_id: row.machine_id,
                public_key,
                may_change: parse_text::<KeyStatus>(&row.status)? == KeyStatus::Pending,
            };
            Ok((key, owned))
        })
        .collect()
}

/// The record of a key.
pub(crate) async fn find(connection: &mut Connection, key: KeyThumbprint) -> Result<Option<KeyRecord>, StoreError> {
    let row = sqlx::query!(
        "SELECT machine_id, status, status_reason FROM machine_keys WHERE thumbprint = $1",
        key.as_bytes()
    )
    .fetch_optional(connection)
    .await?;
    row.map(|row| {
        Ok(KeyRecord {
            machine_id: row.machine_id,
            status: parse_text(&row.status)?,
            status_reason: row.status_reason,
        })
    })
    .transpose()
}

/// Inserts a key.
pub(crate) async fn insert(
    connection: &mut Connection,
    key: &PublicKey,
    machine_id: Uuid,
    status: KeyStatus,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    let thumbprint = key.thumbprint();
    sqlx::query!(
        "INSERT INTO machine_keys (thumbprint, machine_id, spki, status, created_at) VALUES ($1, $2, $3, $4, $5)",
        thumbprint.as_bytes(),
        machine_id,
        key.spki_der(),
        text(&status)?,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// When the server first saw a key.
pub(crate) async fn created_at(
    connection: &mut Connection,
    key: KeyThumbprint,
) -> Result<Option<OffsetDateTime>, StoreError> {
    Ok(sqlx::query_scalar!(
        "SELECT created_at FROM machine_keys WHERE thumbprint = $1",
        key.as_bytes()
    )
    .fetch_optional(connection)
    .await?)
}

/// Makes a pending key current.
pub(crate) async fn make_current(connection: &mut Connection, key: KeyThumbprint) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE machine_keys SET status = 'current', status_reason = NULL WHERE thumbprint = $1 AND status = 'pending'",
        key.as_bytes()
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Supersedes a machine's next key, and returns it.
pub(crate) async fn supersede_next(
    connection: &mut Connection,
    machine: &LockedMachine,
    at: OffsetDateTime,
) -> Result<Option<KeyThumbprint>, StoreError> {
    let key = sqlx::query_scalar!(
        "UPDATE machine_keys SET status = 'superseded', retired_at = $2 WHERE machine_id = $1 AND status = 'next'
         RETURNING thumbprint",
        machine.id(),
        at
    )
    .fetch_optional(connection)
    .await?;
    key.as_deref().map(thumbprint).transpose()
}

/// Makes a machine's next key its current one, and the current one superseded.
pub(crate) async fn rotate(
    connection: &mut Connection,
    machine: &LockedMachine,
    next: KeyThumbprint,
    at: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE machine_keys
         SET status = CASE thumbprint WHEN $2 THEN 'current' ELSE 'superseded' END,
             retired_at = CASE thumbprint WHEN $2 THEN retired_at ELSE $3 END
         WHERE machine_id = $1 AND status IN ('current', 'next')",
        machine.id(),
        next.as_bytes(),
        at
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Denies a pending key.
pub(crate) async fn deny(
    connection: &mut Connection,
    key: KeyThumbprint,
    reason: &str,
    at: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE machine_keys SET status = 'denied', status_reason = $2, retired_at = $3
         WHERE thumbprint = $1 AND status = 'pending'",
        key.as_bytes(),
        reason,
        at
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Deletes a pending key, so that it can request enrollment again.
pub(crate) async fn forget(connection: &mut Connection, key: KeyThumbprint) -> Result<(), StoreError> {
    sqlx::query!(
        "DELETE FROM machine_keys WHERE thumbprint = $1 AND status = 'pending'",
        key.as_bytes()
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Supersedes all keys that another one replaces. Revoked ones stay revoked.
pub(crate) async fn supersede_all(
    connection: &mut Connection,
    machine: &LockedMachine,
    at: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE machine_keys SET status = 'superseded', retired_at = $2 WHERE machine_id = $1 AND status IN ('current', 'next')",
        machine.id(),
        at
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Revokes every key of a machine, except denied ones and those that wait to take over the record. An administrator may
/// still approve the latter.
pub(crate) async fn revoke_all(
    connection: &mut Connection,
    machine: &LockedMachine,
    reason: &str,
    at: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE machine_keys SET status = 'revoked', status_reason = $2, retired_at = coalesce(retired_at, $3)
         WHERE machine_id = $1 AND status IN ('pending', 'current', 'next', 'superseded')
           AND NOT EXISTS (SELECT FROM enrollments
                           WHERE key_thumbprint = thumbprint AND kind = 're-enrollment' AND enrollments.status = 'pending')",
        machine.id(),
        reason,
        at
    )
    .execute(connection)
    .await?;
    Ok(())
}
