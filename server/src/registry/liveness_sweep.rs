//! The sweep over stored machines that announces changes of liveness. When a machine stops checking in, no call reports
//! that. The sweep therefore compares each machine's last check-in with its noted liveness, and writes an event for
//! each difference.
//!
//! Lists find machines by the noted liveness, because an index must not contain the time of the last check-in. A
//! machine's record shows the liveness that is computed from the times. A late sweep thus delays only events and lists.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use assay_protocol::machine::Liveness;
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use super::record::boundaries;
use crate::{
    changes::{EventKind, NewEvent, Origin},
    machines::liveness::LivenessBoundaries,
    periodic::{Turns, Work},
    services::Services,
    store::{
        StoreError, Transaction,
        duties::{self, Duty},
        machines::{self, liveness::Contradictions, presence::Presence},
        tx,
    },
};

const NAME: &str = "sweep liveness";
pub(crate) const WORK: Work = Work::sparing(NAME);
/// How many machines one statement reads. This is fast even from the disk, because lists wait for one such statement.
const LOOKED_AT: i64 = 20_000;
/// How many machines one transaction changes. Their check-ins wait for it.
const BATCH: usize = 500;
/// How far the clocks of replicas may differ before one of them reverts what another has noted. Otherwise two replicas
/// would announce a machine alternately while it is late only by one clock.
const REPLICA_SKEW: time::Duration = time::Duration::MINUTE;

/// Whether the fleet is too large for one statement.
#[derive(Debug, Default)]
pub(crate) struct LargeFleet(AtomicBool);

/// Whether to wait for another replica that is sweeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IfTaken {
    Wait,
    Leave,
}

/// Sweeps periodically until the server stops.
pub(crate) async fn run_sweeper(services: Arc<Services>, turns: Turns) {
    turns.repeat(|| sweep(&services, IfTaken::Leave)).await;
}

/// Sweeps a small fleet now, so its lists are exact. A large fleet is swept in the background, and its lists may miss
/// recent changes.
pub(crate) async fn bring_up_to_date(services: &Services) -> Result<(), StoreError> {
    if services.large_fleet.0.load(Ordering::Relaxed) {
        return Ok(());
    }
    sweep(services, IfTaken::Wait).await
}

/// The event for a machine that has checked in, given its noted liveness.
pub(crate) fn before_check_in(
    boundaries: &LivenessBoundaries,
    noted: Liveness,
    last_check_in_at: Option<OffsetDateTime>,
) -> Liveness {
    match boundaries.liveness(last_check_in_at) {
        Liveness::Live => noted,
        silent => silent,
    }
}

/// The event for a change of liveness.
pub(crate) fn event(
    machine_id: Uuid,
    before: Liveness,
    after: Liveness,
    last_check_in_at: Option<OffsetDateTime>,
) -> NewEvent {
    let last_check_in_at = last_check_in_at.and_then(|at| at.format(&Rfc3339).ok());
    NewEvent {
        machine_id: Some(machine_id),
        kind: EventKind::LivenessChanged,
        detail: json!({"before": before, "after": after, "last_check_in_at": last_check_in_at}),
    }
}

async fn sweep(services: &Services, if_taken: IfTaken) -> Result<(), StoreError> {
    let boundaries = boundaries(&services.policy, services.store.now()).liveness;
    let contradictions = contradictions(&boundaries);
    let mut after = Some(Uuid::nil());
    let mut looks = 0;
    while let Some(from) = after {
        let look = machines::liveness::look(
            &mut *services.store.connection().await?,
            &contradictions,
            from,
            LOOKED_AT,
        )
        .await?;
        looks += 1;
        for batch in look.contradicted.chunks(BATCH) {
            tx!(services.store, NoteLiveness, &Origin::system() => note(&boundaries, batch, if_taken)).await?;
        }
        after = look.last;
    }
    services.large_fleet.0.store(looks > 1, Ordering::Relaxed);
    Ok(())
}

async fn note(
    tx: &mut Transaction,
    boundaries: &LivenessBoundaries,
    machine_ids: &[Uuid],
    if_taken: IfTaken,
) -> Result<(), StoreError> {
    match if_taken {
        IfTaken::Wait => duties::wait_for(tx, Duty::NoteLiveness).await?,
        IfTaken::Leave => {
            if !duties::try_take(tx, Duty::NoteLiveness).await? {
                return Ok(());
            }
        }
    }
    // Skips locked machines. Either the other transaction notes their liveness, or the next sweep does.
    let turned: Vec<(Presence, Liveness)> = machines::presence::lock_free(tx, machine_ids)
        .await?
        .into_iter()
        .map(|presence| {
            let liveness = boundaries.liveness(presence.last_check_in_at);
            (presence, liveness)
        })
        .filter(|(presence, liveness)| presence.noted_liveness != *liveness)
        .collect();
    machines::liveness::note(tx, &turned).await?;
    let announced: Vec<NewEvent> = turned
        .iter()
        .map(|(presence, liveness)| {
            let Presence {
                machine,
                noted_liveness,
                last_check_in_at,
                ..
            } = presence;
            event(machine.id(), *noted_liveness, *liveness, *last_check_in_at)
        })
        .collect();
    tx.announce_all(&announced).await
}

fn contradictions(boundaries: &LivenessBoundaries) -> Contradictions {
    let (live_since, reachable_since) = (boundaries.live_since(), boundaries.reachable_since());
    Contradictions {
        late_before: live_since,
        unreachable_before: reachable_since,
        live_after: live_since.saturating_add(REPLICA_SKEW),
        reachable_after: reachable_since.saturating_add(REPLICA_SKEW),
    }
}
