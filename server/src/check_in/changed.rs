//! Check-ins that change something: the posture, the key, the liveness. Check-ins that must be refused come here, too. Each
//! has a transaction of its own, which locks the machine's row.

use assay_protocol::machine::{Assurance, Liveness};
use serde_json::{Map, Value, json};
use time::Duration;

use crate::{
    changes::EventKind,
    machines::{claims::Claims, continuity::Judgement, liveness::LivenessBoundaries},
    registry::{
        admission::{self, Admitted, Attempt, Refusal},
        key_rotation, liveness_sweep, opening,
    },
    store::{
        self, StoreError, Transaction,
        machines::{
            self,
            check_ins::{CheckIn, Recorded},
            keys::KeyStatus,
            presence::Presence,
            record::{HARDWARE_UUID, Identity, SERIAL_NUMBER},
        },
    },
};

/// Why an opening of the record ends.
const CHECKED_IN: &str = "the machine's own key checked in";

/// Records the check-in with what has changed, or says why it is refused.
pub(crate) async fn record(
    tx: &mut Transaction,
    check_in_interval: Duration,
    check_in: &CheckIn,
    attempt: &Attempt<'_>,
) -> Result<Result<(Recorded, Judgement), Refusal>, StoreError> {
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
        keep_claims(tx, &admitted, attempt.claims).await?;
        opening::end_unused(tx, &presence.machine, CHECKED_IN).await?;
    }
    announce_return(tx, check_in_interval, check_in, presence).await?;
    let recorded = machines::check_ins::record(tx, &presence.machine, check_in, changed).await?;
    Ok(Ok((recorded, admitted.continuity)))
}

async fn keep_claims(tx: &mut Transaction, admitted: &Admitted, claims: &Claims) -> Result<(), StoreError> {
    let (machine, identity) = (&admitted.presence.machine, &admitted.identity);
    let before = machines::record::find_claims(tx, machine.id()).await?;
    let serial_number = late_serial_number(tx, identity, claims).await?;
    let withheld = withheld(identity, claims);
    let withheld_before = machines::record::set_claims(tx, machine, claims, serial_number, &withheld).await?;
    if withheld.iter().any(|name| !withheld_before.contains(name)) {
        let detail = json!({ "withheld": withheld });
        tx.announce(machine.id(), EventKind::MachineIdentityWithheld, detail)
            .await?;
    }
    // The record keeps a serial number and a hardware UUID that it has, so it is compared with itself.
    let after = machines::record::find_claims(tx, machine.id()).await?;
    let differences = differences(&store::json(&before)?, &store::json(&after)?);
    if differences.is_empty() {
        return Ok(());
    }
    let detail = Value::Object(differences);
    tx.announce(machine.id(), EventKind::PostureChanged, detail).await
}

/// Which values on record this evidence leaves out. A copied key that claims no hardware contradicts nothing.
fn withheld(identity: &Identity, claims: &Claims) -> Vec<String> {
    let claimed = &claims.machine;
    let values = [
        (SERIAL_NUMBER, &identity.serial_number, &claimed.serial_number),
        (HARDWARE_UUID, &identity.hardware_uuid, &claimed.hardware_uuid),
    ];
    let withheld = values
        .into_iter()
        .filter(|(_, recorded, claimed)| recorded.is_some() && claimed.is_none());
    withheld.map(|(name, ..)| name.to_owned()).collect()
}

/// A serial number that the machine claims for the first time. A machine whose assurance has other grounds keeps a
/// record without one, because assurance is of a serial number. Another machine's serial number is not recorded.
async fn late_serial_number<'a>(
    tx: &mut Transaction,
    identity: &Identity,
    claims: &'a Claims,
) -> Result<Option<&'a str>, StoreError> {
    let Some(serial_number) = claims.machine.serial_number.as_deref() else {
        return Ok(None);
    };
    if identity.serial_number.is_some() || identity.assurance != Assurance::Asserted {
        return Ok(None);
    }
    let holder = machines::other_holder_of_serial_number(tx, serial_number, identity.id).await?;
    Ok(holder.is_none().then_some(serial_number))
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
