//! `machine_presence`: the one row that a check-in writes.

use assay_protocol::{KeyThumbprint, machine::Liveness};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::machines::{
    claims::ClaimsDigest,
    continuity::{Continuity, ContinuityState},
};
use crate::store::{Connection, StoreError, Transaction, parse_text, thumbprint};

/// A check-in whose evidence is verified, on its way into its machine's row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CheckIn {
    pub(crate) machine_id: Uuid,
    pub(crate) key: KeyThumbprint,
    /// The order of the nonce that it uses.
    pub(crate) nonce: OffsetDateTime,
    /// The order of the continuity value that it carries.
    pub(crate) carried: Option<OffsetDateTime>,
    pub(crate) claims_digest: ClaimsDigest,
    /// When it arrived.
    pub(crate) at: OffsetDateTime,
    /// Machine's clock minus server's.
    pub(crate) clock_skew_seconds: i64,
    /// A machine that checked in last before this returns, which is a change.
    pub(crate) live_since: OffsetDateTime,
}

/// The state of the machine at the moment when its check-in was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub(crate) record_version: i64,
    pub(crate) grants_version: i64,
    pub(crate) verdict_digest: Option<Vec<u8>>,
}

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

/// Records the check-ins that change nothing, all in one statement. The results are in the order of the slice. `None`
/// means that something has changed or is wrong, and the check-in needs a transaction of its own.
///
/// There is at most one check-in per machine: of several, Postgres would record an arbitrary one. Rows that another
/// transaction has locked are skipped. If this statement waited for them, two replicas whose batches share machines
/// could deadlock, and one row that is locked for long would delay all other machines.
///
/// `judges_continuity` is false where continuity is switched off.
///
/// `IS TRUE` makes Postgres look the locked rows up in a hash table. Otherwise it plans a join, which compares each row
/// of a batch with every other.
pub(crate) async fn record_unchanged(
    connection: &mut Connection,
    judges_continuity: bool,
    check_ins: &[CheckIn],
) -> Result<Vec<Option<Recorded>>, StoreError> {
    let columns = Columns::of(check_ins);
    let rows = sqlx::query!(
        r#"WITH locked AS MATERIALIZED (
               SELECT machine_id FROM machine_presence WHERE machine_id = ANY ($2) ORDER BY machine_id
               FOR NO KEY UPDATE SKIP LOCKED
           )
           UPDATE machine_presence AS presence
           SET last_nonce_at = seen.nonce, last_check_in_at = seen.at, clock_skew_seconds = seen.skew,
               continuity_carried = seen.carried
           FROM unnest($1::bigint[], $2::uuid[], $3::bytea[], $4::timestamptz[], $5::bytea[], $6::timestamptz[],
                       $7::bigint[], $8::timestamptz[], $9::timestamptz[])
                AS seen (place, machine_id, key, nonce, claims_digest, at, skew, live_since, carried)
           WHERE presence.machine_id = seen.machine_id
             AND (seen.machine_id IN (SELECT machine_id FROM locked)) IS TRUE
             AND presence.admitted
             AND presence.current_key = seen.key
             AND presence.claims_digest = seen.claims_digest
             AND presence.last_nonce_at < seen.nonce
             AND CASE WHEN NOT $10 THEN true
                      WHEN presence.continuity_state = 'unsent' THEN seen.carried IS NULL
                      WHEN presence.continuity_state = 'bound'
                      THEN seen.carried IN (presence.last_nonce_at, presence.continuity_carried)
                      ELSE false END
             AND presence.last_check_in_at >= seen.live_since
             AND presence.noted_liveness = 'live'
           RETURNING seen.place AS "place!", presence.record_version, presence.verdict_digest,
                     (SELECT grants_version FROM settings) AS "grants_version!""#,
        &columns.places,
        &columns.machine_ids,
        &columns.keys as &[&[u8]],
        &columns.nonces,
        &columns.claims_digests as &[&[u8]],
        &columns.times,
        &columns.skews,
        &columns.live_since,
        &columns.carried as &[Option<OffsetDateTime>],
        judges_continuity,
    )
    .fetch_all(connection)
    .await?;
    let mut results = vec![None; check_ins.len()];
    for row in rows {
        let place = usize::try_from(row.place).ok().and_then(|place| results.get_mut(place));
        if let Some(result) = place {
            *result = Some(Recorded {
                record_version: row.record_version,
                grants_version: row.grants_version,
                verdict_digest: row.verdict_digest,
            });
        }
    }
    Ok(results)
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

/// Records a check-in that a transaction has admitted.
pub(crate) async fn record(
    connection: &mut Connection,
    machine: &LockedMachine,
    check_in: &CheckIn,
    changed: bool,
) -> Result<Recorded, StoreError> {
    let row = sqlx::query!(
        r#"UPDATE machine_presence
           SET last_nonce_at = $2, last_check_in_at = $3, clock_skew_seconds = $4, claims_digest = $5,
               noted_liveness = 'live',
               record_version = record_version + CASE WHEN $6::boolean THEN 1 ELSE 0 END
           WHERE machine_id = $1
           RETURNING record_version, verdict_digest, (SELECT grants_version FROM settings) AS "grants_version!""#,
        machine.id(),
        check_in.nonce,
        check_in.at,
        check_in.clock_skew_seconds,
        check_in.claims_digest.as_bytes(),
        changed,
    )
    .fetch_one(connection)
    .await?;
    Ok(Recorded {
        record_version: row.record_version,
        grants_version: row.grants_version,
        verdict_digest: row.verdict_digest,
    })
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

/// The check-ins in columns, for `unnest`.
#[derive(Default)]
struct Columns<'a> {
    places: Vec<i64>,
    machine_ids: Vec<Uuid>,
    keys: Vec<&'a [u8]>,
    nonces: Vec<OffsetDateTime>,
    claims_digests: Vec<&'a [u8]>,
    times: Vec<OffsetDateTime>,
    skews: Vec<i64>,
    live_since: Vec<OffsetDateTime>,
    carried: Vec<Option<OffsetDateTime>>,
}

impl<'a> Columns<'a> {
    fn of(check_ins: &'a [CheckIn]) -> Self {
        let mut columns = Self::default();
        for (place, check_in) in (0..).zip(check_ins) {
            columns.places.push(place);
            columns.machine_ids.push(check_in.machine_id);
            columns.keys.push(check_in.key.as_bytes());
            columns.nonces.push(check_in.nonce);
            columns.claims_digests.push(check_in.claims_digest.as_bytes());
            columns.times.push(check_in.at);
            columns.skews.push(check_in.clock_skew_seconds);
            columns.live_since.push(check_in.live_since);
            columns.carried.push(check_in.carried);
        }
        columns
    }
}
