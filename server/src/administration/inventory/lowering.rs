//! What becomes of machines when their serial numbers go from the inventory: those that nothing else stands behind fall
//! to `asserted`, in the same transaction.

use serde_json::json;

use crate::{
    changes::{Change, Origin},
    services::Services,
    store::{self, StoreError, Transaction, events::NewEvent, machines::grounds::Standing},
};

/// How many machines one statement changes.
const BATCH: usize = 5_000;

/// Takes the ground away from the machines of these serial numbers, and returns how many fell by that. A fleet's
/// worth of them is changed by a few statements for thousands of machines, each of which is held until the commit, in
/// the order of their ids.
pub(super) async fn lower(
    tx: &mut Transaction,
    services: &Services,
    origin: &Origin,
    removed: &[String],
) -> Result<u64, StoreError> {
    if removed.is_empty() {
        return Ok(0);
    }
    let mut lowered = 0;
    let machines = store::machines::grounds::hold_on_inventory(tx, removed).await?;
    for ids in machines.chunks(BATCH) {
        let standing = store::machines::grounds::lock_on_inventory(tx, ids).await?;
        lowered += lower_batch(tx, services, origin, &standing).await?;
    }
    Ok(lowered)
}

async fn lower_batch(
    tx: &mut Transaction,
    services: &Services,
    origin: &Origin,
    standing: &[Standing],
) -> Result<u64, StoreError> {
    let after: Vec<Standing> = standing.iter().map(Standing::without_inventory).collect();
    store::machines::grounds::set_all(tx, &after).await?;
    let (mut ids, mut events, mut changes) = (Vec::new(), Vec::new(), Vec::new());
    for (before, after) in standing.iter().zip(&after) {
        let (from, to) = (before.grounds.assurance(), after.grounds.assurance());
        if from == to {
            continue;
        }
        let reason = format!(
            "the serial number {} was taken out of the inventory",
            before.serial_number
        );
        let (from, to) = (json!({ "assurance": from }), json!({ "assurance": to }));
        ids.push(before.machine_id);
        events.push(NewEvent {
            machine_id: before.machine_id,
            kind: "machine.assurance-lowered",
            detail: json!({ "before": from, "after": to, "reason": reason }),
        });
        changes.push(
            Change::new("machine.lower-assurance", "machine", before.machine_id)
                .reason(Some(&reason))
                .before(from)
                .after(to),
        );
    }
    let clock = services.clock.as_ref();
    store::machines::presence::bump_record_versions(tx, &ids).await?;
    store::events::insert_all(tx, clock, &events).await?;
    store::audit_entries::insert_all(tx, clock, origin, &changes).await?;
    Ok(u64::try_from(ids.len()).unwrap_or(u64::MAX))
}
