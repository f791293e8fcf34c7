//! The group committer: records the check-ins that wait in one statement.

use std::{cmp::Reverse, sync::Arc};

use futures_util::future::BoxFuture;

use crate::{
    store::{
        Connection, Store, StoreError,
        batcher::{Batcher, Limits},
        machines::{
            self,
            check_ins::{CheckIn, Recorded},
        },
    },
    telemetry::Metrics,
};

const LIMITS: Limits = Limits {
    batch: 512,
    queue: 16_384,
};

/// Records check-ins in which nothing changed. It answers `None` for any other.
pub(crate) type Committer = Batcher<CheckIn, Recorded>;

/// Starts the task that records. If a batch runs twice, the first run may have recorded it and used its nonces. The second
/// run then answers `None`, and each check-in's own transaction decides.
pub(crate) fn start(store: Store, metrics: &Arc<Metrics>) -> Committer {
    Batcher::start(store, metrics.committer.clone(), LIMITS, record)
}

/// Records the latest check-in of each machine. The others are answered `None`, because a later nonce of the same machine is
/// being used. Their own transactions wait for it and decide.
fn record<'c>(
    connection: &'c mut Connection,
    check_ins: &'c [CheckIn],
) -> BoxFuture<'c, Result<Vec<Option<Recorded>>, StoreError>> {
    Box::pin(async move {
        let (places, latest) = latest_of_each_machine(check_ins);
        let recorded = machines::check_ins::record_unchanged(connection, &latest).await?;
        let mut outputs = vec![None; check_ins.len()];
        for (place, recorded) in places.into_iter().zip(recorded) {
            if let Some(output) = outputs.get_mut(place) {
                *output = recorded;
            }
        }
        Ok(outputs)
    })
}

/// The latest check-in of each machine in the order of their ids, each with its place in the slice.
fn latest_of_each_machine(check_ins: &[CheckIn]) -> (Vec<usize>, Vec<CheckIn>) {
    let mut latest: Vec<(usize, CheckIn)> = check_ins.iter().copied().enumerate().collect();
    latest.sort_unstable_by_key(|(_, check_in)| (check_in.machine_id, Reverse(check_in.nonce)));
    latest.dedup_by_key(|(_, check_in)| check_in.machine_id);
    latest.into_iter().unzip()
}

#[cfg(test)]
mod tests {
    use assay_protocol::KeyThumbprint;
    use serde_json::{from_value, json};
    use time::{Duration, OffsetDateTime};
    use uuid::Uuid;

    use super::*;
    use crate::machines::claims::Claims;

    fn check_in(machine: u128, nonce: i64) -> CheckIn {
        let at = OffsetDateTime::UNIX_EPOCH;
        let claims: Claims = from_value(json!({"machine": {}, "posture": {}, "key": {"store": "software"}})).unwrap();
        CheckIn {
            machine_id: Uuid::from_u128(machine),
            key: KeyThumbprint::from_bytes(&[7; 32]).unwrap(),
            nonce: at + Duration::seconds(nonce),
            carried: None,
            claims_digest: claims.digest().unwrap(),
            at,
            clock_skew_seconds: 0,
            live_since: at,
        }
    }

    #[test]
    fn one_statement_records_the_latest_check_in_of_each_machine() {
        let asked = [
            check_in(2, 5),
            check_in(1, 3),
            check_in(2, 9),
            check_in(2, 7),
            check_in(1, 3),
        ];
        let (places, latest) = latest_of_each_machine(&asked);
        let machines: Vec<u128> = latest.iter().map(|check_in| check_in.machine_id.as_u128()).collect();
        assert_eq!(machines, [1, 2]);
        assert!([1, 4].contains(&places[0]));
        assert_eq!(places[1], 2);
    }
}
