//! `enrollments`: requests to enroll a key, and their decisions.

pub(crate) mod retention;

use std::net::IpAddr;

use assay_protocol::{
    KeyThumbprint,
    admin_api::enrollments::{Enrollment, EnrollmentKey, EnrollmentKind, EnrollmentStatus, PreviousKey},
};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Connection, StoreError, Transaction, json, machines::presence::LockedMachine, parse_json, parse_text, thumbprint,
};
use crate::machines::claims::Claims;

/// An enrollment with all claims of its request.
#[derive(Debug, Clone)]
pub(crate) struct ClaimedEnrollment {
    pub(crate) enrollment: Enrollment,
    pub(crate) claims: Claims,
}

/// The request of a new key for the record of a machine.
#[derive(Debug)]
pub(crate) struct NewKeyRequest<'a> {
    pub(crate) id: Uuid,
    pub(crate) kind: EnrollmentKind,
    pub(crate) status: EnrollmentStatus,
    pub(crate) machine_id: Uuid,
    pub(crate) key: KeyThumbprint,
    pub(crate) previous_key: Option<KeyThumbprint>,
    pub(crate) token_id: Option<Uuid>,
    pub(crate) claims: &'a Claims,
    pub(crate) address: Option<IpAddr>,
    pub(crate) now: OffsetDateTime,
    /// When it expires, if it is pending.
    pub(crate) expires_at: OffsetDateTime,
}

/// The decision on a key.
#[derive(Debug, Clone)]
pub(crate) struct Decision {
    pub(crate) id: Uuid,
    pub(crate) kind: EnrollmentKind,
    pub(crate) status: EnrollmentStatus,
    pub(crate) machine_id: Uuid,
    pub(crate) token_id: Option<Uuid>,
    pub(crate) requested_at: OffsetDateTime,
    pub(crate) expires_at: OffsetDateTime,
}

struct Row {
    id: Uuid,
    kind: String,
    status: String,
    machine_id: Uuid,
    key_thumbprint: Vec<u8>,
    previous_key: Option<Vec<u8>>,
    token_id: Option<Uuid>,
    claims: Value,
    in_inventory: bool,
    address: Option<String>,
    requested_at: OffsetDateTime,
    expires_at: OffsetDateTime,
    decided_at: Option<OffsetDateTime>,
    decided_by: Option<Value>,
    reason: Option<String>,
}

impl TryFrom<Row> for ClaimedEnrollment {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let claims: Claims = parse_json(row.claims)?;
        let previous_key = row.previous_key.as_deref().map(thumbprint).transpose()?;
        let status = parse_text(&row.status)?;
        let kind = parse_text(&row.kind)?;
        let enrollment = Enrollment {
            id: row.id,
            kind,
            status,
            machine_id: row.machine_id,
            serial_number: claims.machine.serial_number.clone(),
            in_inventory: row.in_inventory,
            hardware_uuid: claims.machine.hardware_uuid.clone(),
            model_identifier: claims.machine.model_identifier.clone(),
            hostname: claims.machine.hostname.clone(),
            key: EnrollmentKey {
                thumbprint: thumbprint(&row.key_thumbprint)?,
                // The claims of a rotation are those of the current key.
                store: (kind != EnrollmentKind::Rotation).then_some(claims.key.store),
            },
            previous_key: previous_key.map(|thumbprint| PreviousKey { thumbprint }),
            token_id: row.token_id,
            address: row.address,
            requested_at: row.requested_at,
            expires_at: (status == EnrollmentStatus::Pending).then_some(row.expires_at),
            decided_at: row.decided_at,
            decided_by: row.decided_by.map(parse_json).transpose()?,
            reason: row.reason,
        };
        Ok(Self { enrollment, claims })
    }
}

impl TryFrom<Row> for Enrollment {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(ClaimedEnrollment::try_from(row)?.enrollment)
    }
}

/// The columns of an enrollment. All queries share them, so lists and single reads never differ.
macro_rules! select {
    ($condition:tt, $($argument:expr),+ $(,)?) => {
        sqlx::query_as!(
            Row,
            r#"SELECT id, kind, status, machine_id, key_thumbprint, previous_key, token_id, claims,
                      EXISTS (SELECT FROM inventory WHERE inventory.serial_number = claims #>> '{machine,serial_number}') AS "in_inventory!",
                      address, requested_at, expires_at, decided_at, decided_by, reason
               FROM enrollments "# + $condition,
            $($argument),+
        )
    };
}

/// A page of enrollments, oldest first.
pub(crate) async fn list(
    connection: &mut Connection,
    status: Option<EnrollmentStatus>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Enrollment>, StoreError> {
    select!(
        "WHERE ($1::text IS NULL OR status = $1) AND id > $2 ORDER BY id LIMIT $3",
        status.map(EnrollmentStatus::as_str),
        after.unwrap_or(Uuid::nil()),
        limit,
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(Enrollment::try_from)
    .collect()
}

/// Finds an enrollment.
pub(crate) async fn find(connection: &mut Connection, id: Uuid) -> Result<Option<ClaimedEnrollment>, StoreError> {
    let row = select!("WHERE id = $1", id).fetch_optional(connection).await?;
    row.map(TryInto::try_into).transpose()
}

/// Locks an enrollment and reads it. The caller must lock its machine first, if it has one.
pub(crate) async fn lock(connection: &mut Connection, id: Uuid) -> Result<Option<ClaimedEnrollment>, StoreError> {
    let row = select!("WHERE id = $1 FOR UPDATE", id)
        .fetch_optional(connection)
        .await?;
    row.map(TryInto::try_into).transpose()
}

/// The pending enrollments of a machine, limited in number. Those that can still be decided come first, among them the
/// first enrollment of the machine, then the newest.
pub(crate) async fn pending_of_machine(
    connection: &mut Connection,
    machine_id: Uuid,
    now: OffsetDateTime,
    limit: i64,
) -> Result<Vec<Enrollment>, StoreError> {
    select!(
        "WHERE machine_id = $1 AND status = 'pending'
         ORDER BY expires_at > $2 DESC, kind = 'enrollment' DESC, id DESC LIMIT $3",
        machine_id,
        now,
        limit
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(Enrollment::try_from)
    .collect()
}

/// The number of undecided enrollments without a token that can still be decided.
pub(crate) async fn count_waiting_without_token(
    connection: &mut Connection,
    now: OffsetDateTime,
) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM enrollments WHERE status = 'pending' AND token_id IS NULL AND expires_at > $1"#,
        now
    )
    .fetch_one(connection)
    .await?)
}

/// When the newest expired request of this key was made. `None` if no request expired.
pub(crate) async fn last_expired_of_key(
    connection: &mut Connection,
    key: KeyThumbprint,
) -> Result<Option<OffsetDateTime>, StoreError> {
    Ok(sqlx::query_scalar!(
        "SELECT requested_at FROM enrollments WHERE key_thumbprint = $1 AND status = 'expired' ORDER BY id DESC LIMIT 1",
        key.as_bytes()
    )
    .fetch_optional(connection)
    .await?)
}

/// An administrator's last decision on a machine's enrollments. `None` if there was none.
pub(crate) async fn last_decision_on_machine(
    connection: &mut Connection,
    machine_id: Uuid,
) -> Result<Option<Enrollment>, StoreError> {
    let row = select!(
        "WHERE machine_id = $1 AND decided_by IS NOT NULL ORDER BY decided_at DESC LIMIT 1",
        machine_id
    )
    .fetch_optional(connection)
    .await?;
    row.map(TryInto::try_into).transpose()
}

/// Another re-enrollment that took over the machine's record at or after this request.
pub(crate) async fn taken_over_since(
    connection: &mut Connection,
    asked: &Enrollment,
) -> Result<Option<Uuid>, StoreError> {
    Ok(sqlx::query_scalar!(
        "SELECT id FROM enrollments
         WHERE machine_id = $1 AND kind = 're-enrollment' AND status = 'approved' AND decided_at >= $2 AND id <> $3
           AND key_thumbprint IS DISTINCT FROM $4
         ORDER BY decided_at DESC LIMIT 1",
        asked.machine_id,
        asked.requested_at,
        asked.id,
        asked
            .previous_key
            .as_ref()
            .map(|previous| previous.thumbprint.as_bytes().as_slice())
    )
    .fetch_optional(connection)
    .await?)
}

/// All pending enrollments of a machine.
pub(crate) async fn lock_pending_of_machine(
    connection: &mut Connection,
    machine: &LockedMachine,
) -> Result<Vec<Enrollment>, StoreError> {
    select!(
        "WHERE machine_id = $1 AND status = 'pending' ORDER BY id FOR UPDATE",
        machine.id()
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(Enrollment::try_from)
    .collect()
}

/// Decides a pending enrollment.
pub(crate) async fn decide(
    tx: &mut Transaction,
    id: Uuid,
    status: EnrollmentStatus,
    reason: Option<&str>,
) -> Result<(), StoreError> {
    let (decided_by, at) = (json(&tx.origin().actor)?, tx.now());
    sqlx::query!(
        "UPDATE enrollments SET status = $2, decided_by = $3, reason = $4, decided_at = $5
         WHERE id = $1 AND status = 'pending'",
        id,
        status.as_str(),
        decided_by,
        reason,
        at
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Approves an enrollment that waits without an administrator, because of a token that was given to its key, or of an
/// opening.
pub(crate) async fn admit(tx: &mut Transaction, id: Uuid, token_id: Option<Uuid>) -> Result<(), StoreError> {
    let now = tx.now();
    sqlx::query!(
        "UPDATE enrollments SET status = 'approved', token_id = coalesce($2, token_id), decided_at = $3 WHERE id = $1 AND status = 'pending'",
        id,
        token_id,
        now
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Records an administrator's approval of a key that a token, or a rotation, had admitted.
pub(crate) async fn approve_admitted(tx: &mut Transaction, id: Uuid, reason: Option<&str>) -> Result<(), StoreError> {
    let (decided_by, at) = (json(&tx.origin().actor)?, tx.now());
    sqlx::query!(
        "UPDATE enrollments SET decided_by = $2, reason = $3, decided_at = $4
         WHERE id = $1 AND status = 'approved' AND decided_by IS NULL",
        id,
        decided_by,
        reason,
        at
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Records a request of a new key for a machine on record. A first enrollment is recorded with its machine, by
/// [`crate::store::machines::new::insert`].
pub(crate) async fn insert(connection: &mut Connection, new: &NewKeyRequest<'_>) -> Result<(), StoreError> {
    let decided_at = (new.status != EnrollmentStatus::Pending).then_some(new.now);
    sqlx::query!(
        "INSERT INTO enrollments
            (id, kind, status, machine_id, key_thumbprint, previous_key, token_id, claims, requested_at, decided_at, expires_at,
             address)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        new.id,
        new.kind.as_str(),
        new.status.as_str(),
        new.machine_id,
        new.key.as_bytes(),
        new.previous_key.as_ref().map(|key| key.as_bytes().as_slice()),
        new.token_id,
        json(new.claims)?,
        new.now,
        decided_at,
        new.expires_at,
        new.address.map(|address| address.to_string()),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Denies the pending requests of a machine's own keys: its first enrollment, and its rotations.
pub(crate) async fn deny_of_own_keys(
    tx: &mut Transaction,
    machine: &LockedMachine,
    reason: &str,
) -> Result<(), StoreError> {
    let (decided_by, at) = (json(&tx.origin().actor)?, tx.now());
    sqlx::query!(
        "UPDATE enrollments SET status = 'denied', decided_by = $2, reason = $3, decided_at = $4
         WHERE machine_id = $1 AND kind IN ('enrollment', 'rotation') AND status = 'pending'",
        machine.id(),
        decided_by,
        reason,
        at
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// The decision on this key, or its pending enrollment. Expired enrollments are ignored.
pub(crate) async fn find_decision(
    connection: &mut Connection,
    key: KeyThumbprint,
) -> Result<Option<Decision>, StoreError> {
    let row = sqlx::query!(
        "SELECT id, kind, status, machine_id, token_id, requested_at, expires_at FROM enrollments
         WHERE key_thumbprint = $1 AND status <> 'expired'",
        key.as_bytes()
    )
    .fetch_optional(connection)
    .await?;
    row.map(|row| {
        Ok(Decision {
            id: row.id,
            kind: parse_text(&row.kind)?,
            status: parse_text(&row.status)?,
            machine_id: row.machine_id,
            token_id: row.token_id,
            requested_at: row.requested_at,
            expires_at: row.expires_at,
        })
    })
    .transpose()
}
