//! Records check-ins in `machine_presence`: many in one statement if nothing has changed, each other one by itself.

use assay_protocol::KeyThumbprint;
use time::OffsetDateTime;
use uuid::Uuid;

use super::presence::LockedMachine;
use crate::{
    machines::claims::ClaimsDigest,
    store::{Connection, StoreError},
};

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

/// Records the check-ins that change nothing, all in one statement. The results are in the order of the slice. `None`
/// means that something has changed or is wrong, and the check-in needs a transaction of its own.
///
/// There is at most one check-in per machine: of several, Postgres would record an arbitrary one. Rows that another
/// transaction has locked are skipped. If this statement waited for them, two replicas whose batches share machines
/// could deadlock, and one row that is locked for long would delay all other machines.
///
/// `IS TRUE` makes Postgres look the locked rows up in a hash table. Otherwise it plans a join, which compares each row
/// of a batch with every other.
pub(crate) async fn record_unchanged(
    connection: &mut Connection,
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
             AND CASE WHEN presence.continuity_state = 'unsent' THEN seen.carried IS NULL
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
