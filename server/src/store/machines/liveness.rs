//! `machine_presence.noted_liveness`: the last announced liveness of each machine.

use assay_protocol::machine::Liveness;
use time::OffsetDateTime;
use uuid::Uuid;

use super::presence::Presence;
use crate::store::{Connection, StoreError};

/// Bounds of last check-ins that contradict the recorded liveness.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Contradictions {
    /// Recorded as live, but last checked in before this.
    pub(crate) late_before: OffsetDateTime,
    /// Recorded as late, but last checked in before this.
    pub(crate) unreachable_before: OffsetDateTime,
    /// Recorded as late, but last checked in after this.
    pub(crate) live_after: OffsetDateTime,
    /// Recorded as unreachable, but last checked in after this.
    pub(crate) reachable_after: OffsetDateTime,
}

/// The result of checking some machines.
#[derive(Debug)]
pub(crate) struct Look {
    /// Machines whose last check-in contradicts the recorded liveness.
    pub(crate) contradicted: Vec<Uuid>,
    /// The last machine checked, from which to continue; `None` at the end.
    pub(crate) last: Option<Uuid>,
}

/// Checks the next `machines` after one.
pub(crate) async fn look(
    connection: &mut Connection,
    contradictions: &Contradictions,
    after: Uuid,
    machines: i64,
) -> Result<Look, StoreError> {
    Ok(sqlx::query_as!(
        Look,
        r#"WITH looked_at AS MATERIALIZED (
               SELECT machine_id, noted_liveness, last_check_in_at FROM machine_presence
               WHERE machine_id > $5 ORDER BY machine_id LIMIT $6
           )
           SELECT ARRAY(SELECT machine_id FROM looked_at
                        WHERE (noted_liveness = 'live' AND last_check_in_at < $1)
                           OR (noted_liveness = 'late' AND (last_check_in_at < $2 OR last_check_in_at > $3))
                           OR (noted_liveness = 'unreachable' AND last_check_in_at > $4)
                           OR (noted_liveness = 'never' AND last_check_in_at IS NOT NULL)) AS "contradicted!",
                  (SELECT machine_id FROM looked_at ORDER BY machine_id OFFSET $6 - 1) AS last"#,
        contradictions.late_before,
        contradictions.unreachable_before,
        contradictions.live_after,
        contradictions.reachable_after,
        after,
        machines
    )
    .fetch_one(connection)
    .await?)
}

/// Records the liveness of machines.
pub(crate) async fn note(connection: &mut Connection, turned: &[(Presence, Liveness)]) -> Result<(), StoreError> {
    let machine_ids: Vec<Uuid> = turned.iter().map(|(presence, _)| presence.machine.id()).collect();
    let livenesses: Vec<&str> = turned.iter().map(|(_, liveness)| liveness.as_str()).collect();
    sqlx::query!(
        "UPDATE machine_presence AS presence SET noted_liveness = turned.liveness
         FROM unnest($1::uuid[], $2::text[]) AS turned (machine_id, liveness)
         WHERE presence.machine_id = turned.machine_id",
        &machine_ids,
        &livenesses as &[&str]
    )
    .execute(connection)
    .await?;
    Ok(())
}
