//! `machine_presence`: the one row that a check-in writes. This file locks and changes it, and [`super::check_ins`]
//! records check-ins.

use assay_protocol::{KeyThumbprint, machine::Liveness};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::machines::{
    claims::ClaimsDigest,
    continuity::{Continuity, ContinuityState},
};
use crate::store::{Connection, StoreError, Transaction, parse_text, thumbprint};

/// A machine whose row is locked until the end of the transaction: no check-in and no other change of the machine comes
/// between. Only the statements of this module that lock the row make one.
///
/// The row is the first of a machine's that any transaction locks, after the serial number's row in the inventory;
/// several machines are locked in the order of their ids. Otherwise two transactions could deadlock.
#[derive(Debug)]
pub(crate) struct LockedMachine(Uuid);

impl LockedMachine {
    pub(crate) fn id(&self) -> Uuid {
        self.0
    }
}

/// A machine's row, locked.
#[derive(Debug)]
pub(crate) struct Presence {
    pub(crate) machine: LockedMachine,
    pub(crate) admitted: bool,
    pub(crate) current_key: KeyThumbprint,
    pub(crate) claims_digest: Vec<u8>,
    pub(crate) last_nonce_at: OffsetDateTime,
    pub(crate) continuity: Continuity,
    pub(crate) last_check_in_at: Option<OffsetDateTime>,
    pub(crate) record_version: i64,
    pub(crate) verdict_digest: Option<Vec<u8>>,
    /// What was announced last.
    pub(crate) noted_liveness: Liveness,
}

/// Locks a machine's row. `None` when there is no such machine.
pub(crate) async fn lock(tx: &mut Transaction, machine_id: Uuid) -> Result<Option<Presence>, StoreError> {
    let row = sqlx::query_as!(
        Row,
        "SELECT machine_id, admitted, current_key, claims_digest, last_nonce_at, last_check_in_at, record_version,
                verdict_digest, noted_liveness, continuity_state, continuity_carried
         FROM machine_presence WHERE machine_id = $1 FOR UPDATE",
        machine_id
    )
    .fetch_optional(&mut **tx)
    .await?;
    row.map(TryInto::try_into).transpose()
}

/// Locks the rows of these machines, except those that another transaction has locked.
pub(crate) async fn lock_free(tx: &mut Transaction, machine_ids: &[Uuid]) -> Result<Vec<Presence>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT machine_id, admitted, current_key, claims_digest, last_nonce_at, last_check_in_at, record_version,
                verdict_digest, noted_liveness, continuity_state, continuity_carried
         FROM machine_presence WHERE machine_id = ANY ($1) ORDER BY machine_id FOR NO KEY UPDATE SKIP LOCKED",
        machine_ids
    )
    .fetch_all(&mut **tx)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Locks the row of every machine that rests on one of these serial numbers being in the inventory; in the order of
/// their ids.
pub(crate) async fn lock_on_inventory(
    tx: &mut Transaction,
    serial_numbers: &[String],
) -> Result<Vec<LockedMachine>, StoreError> {
    let ids = sqlx::query_scalar!(
        "SELECT presence.machine_id
         FROM machine_presence AS presence
              JOIN machines ON machines.id = presence.machine_id
              JOIN unnest($1::text[]) AS gone (serial_number) ON gone.serial_number = machines.serial_number
         WHERE ground_inventory = 'matched'
         ORDER BY presence.machine_id FOR UPDATE OF presence",
        serial_numbers
    )
    .fetch_all(&mut **tx)
    .await?;
    Ok(ids.into_iter().map(LockedMachine).collect())
}

/// Whether there is such a machine.
pub(crate) async fn exists(connection: &mut Connection, machine_id: Uuid) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM machine_presence WHERE machine_id = $1) AS "exists!""#,
        machine_id
    )
    .fetch_one(connection)
    .await?)
}

/// Uses a nonce up.
pub(crate) async fn use_nonce(
    connection: &mut Connection,
    machine: &LockedMachine,
    nonce: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE machine_presence SET last_nonce_at = $2 WHERE machine_id = $1",
        machine.id(),
        nonce
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Sets what is on record of a machine's continuity.
pub(crate) async fn set_continuity(
    connection: &mut Connection,
    machine: &LockedMachine,
    continuity: Continuity,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE machine_presence SET continuity_state = $2, continuity_carried = $3 WHERE machine_id = $1",
        machine.id(),
        continuity.state.as_str(),
        continuity.carried,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Sets the verdict of the last check-in.
pub(crate) async fn set_verdict(
    connection: &mut Connection,
    machine: &LockedMachine,
    digest: &[u8; 32],
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE machine_presence SET verdict_digest = $2 WHERE machine_id = $1",
        machine.id(),
        digest,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Sets whether check-ins are admitted, and makes earlier evaluations stale.
pub(crate) async fn set_admitted(
    connection: &mut Connection,
    machine: &LockedMachine,
    admitted: bool,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE machine_presence SET admitted = $2, record_version = record_version + 1 WHERE machine_id = $1",
        machine.id(),
        admitted
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Forgets the digest of the claims, so that the next check-in gets a transaction of its own.
pub(crate) async fn forget_claims(connection: &mut Connection, machine: &LockedMachine) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE machine_presence SET claims_digest = $2 WHERE machine_id = $1",
        machine.id(),
        &[0; 32]
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Makes earlier evaluations of a machine stale.
pub(crate) async fn bump_record_version(
    connection: &mut Connection,
    machine: &LockedMachine,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE machine_presence SET record_version = record_version + 1 WHERE machine_id = $1",
        machine.id()
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Makes earlier evaluations of several machines stale.
pub(crate) async fn bump_record_versions(
    connection: &mut Connection,
    machines: &[&LockedMachine],
) -> Result<(), StoreError> {
    let machine_ids: Vec<Uuid> = machines.iter().map(|machine| machine.id()).collect();
    sqlx::query!(
        "UPDATE machine_presence SET record_version = record_version + 1 WHERE machine_id = ANY ($1)",
        &machine_ids
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Replaces the key, and admits check-ins that it signs.
pub(crate) async fn replace_key(
    connection: &mut Connection,
    machine: &LockedMachine,
    key: KeyThumbprint,
    claims: ClaimsDigest,
    continuity: Continuity,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE machine_presence
         SET admitted = true, current_key = $2, claims_digest = $3, verdict_digest = NULL,
             record_version = record_version + 1, continuity_state = $4, continuity_carried = $5
         WHERE machine_id = $1",
        machine.id(),
        key.as_bytes(),
        claims.as_bytes(),
        continuity.state.as_str(),
        continuity.carried,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Makes a machine's next key its current one.
pub(crate) async fn rotate_key(
    connection: &mut Connection,
    machine: &LockedMachine,
    key: KeyThumbprint,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE machine_presence SET current_key = $2, record_version = record_version + 1 WHERE machine_id = $1",
        machine.id(),
        key.as_bytes()
    )
    .execute(connection)
    .await?;
    Ok(())
}

struct Row {
    machine_id: Uuid,
    admitted: bool,
    current_key: Vec<u8>,
    claims_digest: Vec<u8>,
    last_nonce_at: OffsetDateTime,
    last_check_in_at: Option<OffsetDateTime>,
    record_version: i64,
    verdict_digest: Option<Vec<u8>>,
    noted_liveness: String,
    continuity_state: String,
    continuity_carried: Option<OffsetDateTime>,
}

/// Only [`lock`] and [`lock_free`] read such rows, and both lock them.
impl TryFrom<Row> for Presence {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            machine: LockedMachine(row.machine_id),
            admitted: row.admitted,
            current_key: thumbprint(&row.current_key)?,
            claims_digest: row.claims_digest,
            last_nonce_at: row.last_nonce_at,
            continuity: Continuity {
                state: parse_text::<ContinuityState>(&row.continuity_state)?,
                carried: row.continuity_carried,
            },
            last_check_in_at: row.last_check_in_at,
            record_version: row.record_version,
            verdict_digest: row.verdict_digest,
            noted_liveness: parse_text(&row.noted_liveness)?,
        })
    }
}
