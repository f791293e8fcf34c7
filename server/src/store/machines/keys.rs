//! `machine_keys`: every key that ever requested enrollment.

use std::collections::HashMap;

use assay_protocol::{KeyThumbprint, PublicKey, machine::KeyStoreKind, words};
use time::OffsetDateTime;
use uuid::Uuid;

use super::presence::LockedMachine;
use crate::store::{Connection, StoreError, certificates::Recent, parse_text, thumbprint};

/// The constraint that a second row of one key violates.
pub(crate) const PRIMARY_KEY: &str = "machine_keys_pkey";

words! {
    /// The status of a key.
    pub(crate) enum KeyStatus {
        /// Waits for an administrator's decision.
        Pending = "pending",
        /// The machine's key.
        Current = "current",
        /// Accepted beside the current key. Its first check-in supersedes the current key.
        Next = "next",
        /// Replaced by a newer one.
        Superseded = "superseded",
        /// Permanently rejected.
        Revoked = "revoked",
        /// An administrator denied it, or another next key took its place.
        Denied = "denied",
    }
}

/// A recorded key.
impl KeyStatus {
    /// Whether this is a key of the machine now. Another one must not use up the machine's rate limit.
    pub(crate) fn is_machines_own(self) -> bool {
        matches!(self, Self::Current | Self::Next)
    }

    /// Whether a signature by this key proves that it comes from the machine. Anyone can make a key that waits for the
    /// machine's record, or that was denied.
    pub(crate) fn proves_machine(self) -> bool {
        !matches!(self, Self::Pending | Self::Denied)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct KeyRecord {
    pub(crate) machine_id: Uuid,
    pub(crate) status: KeyStatus,
    pub(crate) status_reason: Option<String>,
    /// Where the first evidence that the key signed said that it is; `None` until then.
    pub(crate) store: Option<KeyStoreKind>,
    /// Whether the event of its use after its successor's first check-in was written.
    pub(crate) superseded_use_noted: bool,
}

/// What a token or an administrator gave to a next key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GroundOfNext {
    /// The token that is bound to the serial number.
    pub(crate) token: Option<Uuid>,
    /// The enrollment that an administrator approved.
    pub(crate) approval: Option<Uuid>,
    /// Whether Apple's attestation of this key counts: see [`crate::machines::assurance::Grounds::of_key`].
    pub(crate) of_key: bool,
}

/// A public key and the machine that it belongs to.
#[derive(Debug, Clone)]
pub(crate) struct OwnedKey {
    pub(crate) machine_id: Uuid,
    pub(crate) public_key: PublicKey,
    pub(crate) status: KeyStatus,
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
                status: parse_text(&row.status)?,
            };
            Ok((key, owned))
        })
        .collect()
}

/// The record of a key.
pub(crate) async fn find(connection: &mut Connection, key: KeyThumbprint) -> Result<Option<KeyRecord>, StoreError> {
    let row = sqlx::query!(
        "SELECT machine_id, status, status_reason, store, superseded_use_noted FROM machine_keys WHERE thumbprint = $1",
        key.as_bytes()
    )
    .fetch_optional(connection)
    .await?;
    row.map(|row| {
        Ok(KeyRecord {
            machine_id: row.machine_id,
            status: parse_text(&row.status)?,
            status_reason: row.status_reason,
            store: row.store.as_deref().map(parse_text).transpose()?,
            superseded_use_noted: row.superseded_use_noted,
        })
    })
    .transpose()
}

/// Records a new key, and where its own evidence said that it is, if it signed any.
pub(crate) async fn insert(
    connection: &mut Connection,
    key: &PublicKey,
    machine_id: Uuid,
    (status, store): (KeyStatus, Option<KeyStoreKind>),
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    let thumbprint = key.thumbprint();
    sqlx::query!(
        "INSERT INTO machine_keys (thumbprint, machine_id, spki, status, created_at, store) VALUES ($1, $2, $3, $4, $5, $6)",
        thumbprint.as_bytes(),
        machine_id,
        key.spki_der(),
        status.as_str(),
        now,
        store.map(KeyStoreKind::as_str),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// What was given to a next key itself; `None` if it inherits the grounds of the current key.
pub(crate) async fn ground_of_next(
    connection: &mut Connection,
    key: KeyThumbprint,
) -> Result<Option<GroundOfNext>, StoreError> {
    let found = sqlx::query_as!(
        GroundOfNext,
        "SELECT ground_token_id AS token, ground_enrollment_id AS approval, ground_of_key AS of_key
         FROM machine_keys WHERE thumbprint = $1 AND status = 'next'",
        key.as_bytes()
    )
    .fetch_optional(connection)
    .await?;
    Ok(found.filter(|ground| ground.token.is_some() || ground.approval.is_some()))
}

/// Makes a key that waited the machine's next one.
pub(crate) async fn make_next(connection: &mut Connection, key: KeyThumbprint) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE machine_keys SET status = 'next' WHERE thumbprint = $1 AND status = 'pending'",
        key.as_bytes()
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Records what was given to a next key.
pub(crate) async fn set_ground_of_next(
    connection: &mut Connection,
    key: KeyThumbprint,
    ground: GroundOfNext,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE machine_keys SET ground_token_id = $2, ground_enrollment_id = $3, ground_of_key = $4
         WHERE thumbprint = $1 AND status = 'next'",
        key.as_bytes(),
        ground.token,
        ground.approval,
        ground.of_key,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Records where a key is, from the first evidence that it signed. Later evidence changes nothing.
pub(crate) async fn note_store(
    connection: &mut Connection,
    key: KeyThumbprint,
    store: KeyStoreKind,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE machine_keys SET store = $2 WHERE thumbprint = $1 AND store IS NULL",
        key.as_bytes(),
        store.as_str()
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Records that the event of a superseded key's use was written.
pub(crate) async fn note_superseded_use(connection: &mut Connection, key: KeyThumbprint) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE machine_keys SET superseded_use_noted = true WHERE thumbprint = $1",
        key.as_bytes()
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Whether the key that replaced this superseded one has checked in. A rotation is complete only with a check-in; a
/// re-enrollment is complete before.
pub(crate) async fn successor_has_checked_in(
    connection: &mut Connection,
    key: KeyThumbprint,
) -> Result<bool, StoreError> {
    let found = sqlx::query_scalar!(
        r#"SELECT coalesce(last_check_in_at >= retired_at, false)
                  OR NOT EXISTS (SELECT FROM enrollments
                                 WHERE key_thumbprint = presence.current_key AND kind = 're-enrollment')
                  AS "has_checked_in!"
           FROM machine_keys JOIN machine_presence AS presence USING (machine_id)
           WHERE thumbprint = $1 AND machine_keys.status = 'superseded'"#,
        key.as_bytes()
    )
    .fetch_optional(connection)
    .await?;
    Ok(found.unwrap_or(false))
}

/// The next keys that a machine asked for since a time.
pub(crate) async fn rotations_since(
    connection: &mut Connection,
    machine: &LockedMachine,
    since: OffsetDateTime,
) -> Result<Recent, StoreError> {
    Ok(sqlx::query_as!(
        Recent,
        r#"SELECT count(*) AS "count!", min(created_at) AS first_at FROM machine_keys
           WHERE machine_id = $1 AND created_at > $2
             AND NOT EXISTS (SELECT FROM enrollments WHERE key_thumbprint = thumbprint AND kind <> 'rotation')"#,
        machine.id(),
        since
    )
    .fetch_one(connection)
    .await?)
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

/// Denies a machine's next key, and returns it.
pub(crate) async fn deny_next(
    connection: &mut Connection,
    machine: &LockedMachine,
    reason: &str,
    at: OffsetDateTime,
) -> Result<Option<KeyThumbprint>, StoreError> {
    let key = sqlx::query_scalar!(
        "UPDATE machine_keys SET status = 'denied', status_reason = $2, retired_at = $3
         WHERE machine_id = $1 AND status = 'next'
         RETURNING thumbprint",
        machine.id(),
        reason,
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
