//! Check-ins that change something: the posture, the key, the liveness. Check-ins that must be refused come here, too. Each
//! has a transaction of its own, which locks the machine's row.

use assay_protocol::machine::Liveness;
use serde_json::{Map, Value, json};
use time::Duration;

use crate::{
    changes::EventKind,
    machines::{claims::Claims, liveness::LivenessBoundaries},
    registry::{
        admission::{self, Attempt, Refusal},
        key_rotation, liveness_sweep,
    },
    store::{
        self, StoreError, Transaction,
        machines::{
            self,
            keys::KeyStatus,
            presence::{CheckIn, LockedMachine, Presence, Recorded},
        },
    },
};

/// Records the check-in with what has changed, or says why it is refused.
pub(crate) async fn record(
    tx: &mut Transaction,
    check_in_interval: Duration,
    check_in: &CheckIn,
    attempt: &Attempt<'_>,
) -> Result<Result<Recorded, Refusal>, StoreError> {
    let Some(key) = machines::keys::find(tx, check_in.key).await? else {
        return Ok(Err(Refusal::Unknown));
    };
    let admitted = match admission::admit(tx, &key, attempt).await? {
        Ok(admitted) => admitted,
        Err(refusal) => return Ok(Err(refusal)),
    };
    if admitted.key == KeyStatus::Next {
        key_rotation::complete(tx, &admitted, check_in.key).await?;
    }
    let presence = &admitted.presence;
    let changed = presence.claims_digest != check_in.claims_digest.as_bytes();
    if changed {
        keep_claims(tx, &presence.machine, attempt.claims).await?;
    }
    announce_return(tx, check_in_interval, check_in, presence).await?;
    Ok(Ok(
        machines::presence::record(tx, &presence.machine, check_in, changed).await?
    ))
}

async fn keep_claims(tx: &mut Transaction, machine: &LockedMachine, claims: &Claims) -> Result<(), StoreError> {
    let before = machines::record::find_claims(tx, machine.id()).await?;
    machines::record::set_claims(tx, machine, claims).await?;
    // The record keeps a serial number and a hardware UUID that it has, so it is compared with itself.
    let after = machines::record::find_claims(tx, machine.id()).await?;
    let differences = differences(&store::json(&before)?, &store::json(&after)?);
    if differences.is_empty() {
        return Ok(());
    }
    let detail = Value::Object(differences);
    tx.announce(machine.id(), EventKind::PostureChanged, detail).await
}

async fn announce_return(
    tx: &mut Transaction,
    check_in_interval: Duration,
    check_in: &CheckIn,
    presence: &Presence,
) -> Result<(), StoreError> {
    let boundaries = LivenessBoundaries::at(check_in.at, check_in_interval);
    let before = liveness_sweep::before_check_in(&boundaries, presence.noted_liveness, presence.last_check_in_at);
    if before == Liveness::Live {
        return Ok(());
    }
    let event = liveness_sweep::event(check_in.machine_id, before, Liveness::Live, presence.last_check_in_at);
    tx.announce_all(&[event]).await
}

/// Which claims differ, as `{"posture.os_version": {"before": …, "after": …}}`.
fn differences(before: &Value, after: &Value) -> Map<String, Value> {
    let mut found = Map::new();
    let (Value::Object(before), Value::Object(after)) = (before, after) else {
        return found;
    };
    for (group, after) in after {
        let Value::Object(after) = after else { continue };
        for (name, after) in after {
            let before = before
                .get(group)
                .and_then(|group| group.get(name))
                .unwrap_or(&Value::Null);
            if before != after {
                found.insert(format!("{group}.{name}"), json!({"before": before, "after": after}));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_named_with_both_values() {
        let before = json!({"posture": {"sip_enabled": true, "os_version": "26.0"}, "key": {"store": "software"}});
        let after = json!({"posture": {"sip_enabled": true, "os_version": "26.1"}, "key": {"store": "software"}});
        assert_eq!(
            Value::Object(differences(&before, &after)),
            json!({"posture.os_version": {"before": "26.0", "after": "26.1"}})
        );
        assert!(differences(&after, &after).is_empty());
    }
}
