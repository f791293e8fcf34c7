//! Lowers the assurance of machines whose serial numbers are removed from the inventory, in the same transaction. A
//! machine without another ground becomes `asserted`.

use serde_json::json;

use crate::{
    changes::{Action, Change, EventKind},
    store::{
        self, StoreError, Transaction,
        machines::{grounds::LockedGrounds, presence::LockedMachine},
    },
};

/// How many machines one statement changes.
const BATCH: usize = 5_000;

/// Removes this ground from the machines with these serial numbers, and returns how many have a lower assurance now.
/// Each statement changes thousands of machines, which stay locked until the commit.
pub(super) async fn lower(tx: &mut Transaction, removed: &[String]) -> Result<u64, StoreError> {
    if removed.is_empty() {
        return Ok(0);
    }
    let mut lowered = 0;
    let machines = store::machines::presence::lock_on_inventory(tx, removed).await?;
    for machines in machines.chunks(BATCH) {
        lowered += lower_batch(tx, machines).await?;
    }
    Ok(lowered)
}

async fn lower_batch(tx: &mut Transaction, machines: &[LockedMachine]) -> Result<u64, StoreError> {
    let before = store::machines::grounds::lock_on_inventory(tx, machines).await?;
    let after: Vec<LockedGrounds<'_>> = before.iter().map(LockedGrounds::without_inventory).collect();
    store::machines::grounds::set_all(tx, &after).await?;
    let (mut lowered, mut changes) = (Vec::new(), Vec::new());
    for (before, after) in before.iter().zip(&after) {
        let (from, to) = (before.grounds.assurance(), after.grounds.assurance());
        if from == to {
            continue;
        }
        let reason = format!(
            "the serial number {} was removed from the inventory",
            before.serial_number
        );
        let (from, to) = (json!({ "assurance": from }), json!({ "assurance": to }));
        lowered.push(before.machine);
        let detail = json!({ "before": from, "after": to, "reason": reason });
        changes.push(
            Change::new(Action::MachineLowerAssurance, before.machine.id())
                .reason(Some(&reason))
                .before(from)
                .after(to)
                .event(before.machine.id(), EventKind::MachineAssuranceLowered, detail),
        );
    }
    store::machines::presence::bump_record_versions(tx, &lowered).await?;
    tx.record_all(&changes).await?;
    Ok(u64::try_from(lowered.len()).unwrap_or(u64::MAX))
}
