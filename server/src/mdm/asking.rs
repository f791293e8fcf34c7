//! Requests attestations from machines through the MDM that manages them.
//!
//! A transaction of its own records the request before the MDM is called. If the server dies between the two, the
//! device is not asked for 7 days. In the other order it would be asked twice, and a Mac makes only one attestation in
//! 7 days. A command that the MDM certainly did not accept counts as not sent.

use std::{sync::Arc, time::Duration as StdDuration};

use assay_protocol::attestation::FreshnessCode;
use serde_json::json;
use time::{Duration, OffsetDateTime};
use tokio::{select, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{NanoMdm, client::EnqueueResult};
use crate::{
    changes::{Action, Change, Origin},
    periodic::{Turns, Work},
    registry::apple_attestations::{due, request},
    services::{Policy, Services},
    store::{
        StoreError, Transaction,
        duties::{self, Duty},
        mdm_devices::{self, Turn, TurnMachine},
        tx,
    },
};

const NAME: &str = "request attestations";
/// How long a machine that needs an attestation waits at most, while the MDM works.
const INTERVAL: StdDuration = StdDuration::from_secs(1);
pub(crate) const WORK: Work = Work::every(INTERVAL, NAME);
/// How many devices one round asks. The MDM notifies each through Apple's push service, which is slow.
const BATCH: usize = 20;
/// How many devices one transaction examines.
const EXAMINED: i64 = 200;
/// A Mac makes at most one attestation in this time.
const ASK_EVERY: Duration = Duration::days(7);
/// How long a running call may continue when the server stops.
const GRACE: StdDuration = StdDuration::from_secs(2);
/// The first pause after a failure, and the longest. Each further failure doubles the pause.
const FIRST_PAUSE: Duration = Duration::MINUTE;
const LONGEST_PAUSE: Duration = Duration::HOUR;

/// A device, and the command to send to it now.
struct Request {
    turn: Turn,
    plist: String,
}

/// What to do about a device that is due.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Ask,
    CheckAgain(OffsetDateTime),
}

/// Asks all devices that are due, until the server stops.
pub(crate) async fn run(services: Arc<Services>, turns: Turns) {
    let Some(mdm) = &services.nano_mdm else {
        return;
    };
    turns.repeat(|| ask_due(&services, mdm, turns.shutdown())).await;
}

/// Asks up to `BATCH` devices, one after the other, and stops when the MDM fails.
async fn ask_due(services: &Services, mdm: &NanoMdm, shutdown: &CancellationToken) -> Result<(), StoreError> {
    for _ in 0..BATCH {
        if shutdown.is_cancelled() {
            return Ok(());
        }
        let (policy, origin) = (&services.policy, &Origin::system());
        let Some(request) = tx!(services.store, AskForAttestation, origin => claim(policy)).await? else {
            return Ok(());
        };
        let result = select! {
            result = mdm.enqueue(&request.turn.enrollment_id, request.plist) => result,
            () = after_grace(shutdown) => EnqueueResult::Unclear("the server stopped before the response".to_owned()),
        };
        let continues = matches!(result, EnqueueResult::Queued | EnqueueResult::Refused(_));
        if let EnqueueResult::Refused(error) | EnqueueResult::Failing(error) | EnqueueResult::Unclear(error) = &result {
            tracing::warn!(
                device = request.turn.enrollment_id,
                error,
                "cannot ask a device for its attestation"
            );
        }
        tx!(services.store, RecordAttestationCommand, origin => record(&request.turn, &result)).await?;
        if !continues {
            return Ok(());
        }
    }
    Ok(())
}

async fn after_grace(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    sleep(GRACE).await;
}

/// Chooses the next device to ask, and records that it is asked. `None` if no device is due, if calls to the MDM are
/// paused, or if another replica does this work.
async fn claim(tx: &mut Transaction, policy: &Policy) -> Result<Option<Request>, StoreError> {
    if !duties::try_take(tx, Duty::AskForAttestations).await? {
        return Ok(None);
    }
    let now = tx.now();
    if mdm_devices::pause(tx).await?.is_some_and(|(until, _)| now < until) {
        return Ok(None);
    }
    let renewed_after = due::due_after(policy);
    let mut put_off = Vec::new();
    let mut next = None;
    for turn in mdm_devices::due(tx, now, EXAMINED).await? {
        match (decide(&turn, renewed_after, now), &turn.machine) {
            (Decision::Ask, Some(machine)) => {
                next = Some((machine.clone(), turn));
                break;
            }
            (Decision::Ask, None) => {}
            (Decision::CheckAgain(at), _) => put_off.push((turn.enrollment_id, at)),
        }
    }
    mdm_devices::put_off(tx, &put_off).await?;
    match next {
        Some((machine, turn)) => Ok(Some(note(tx, &machine, turn, now).await?)),
        None => Ok(None),
    }
}

async fn note(
    tx: &mut Transaction,
    machine: &TurnMachine,
    turn: Turn,
    now: OffsetDateTime,
) -> Result<Request, StoreError> {
    let command = tx.new_id();
    let nonce = FreshnessCode::of(&machine.key);
    mdm_devices::note_asked(tx, &turn.enrollment_id, command, now, now.saturating_add(ASK_EVERY)).await?;
    let change = Change::new(Action::MachineAskForAttestation, machine.id).after(json!({
        "enrollment_id": turn.enrollment_id, "command_uuid": command, "nonce_hex": nonce,
    }));
    tx.record(change).await?;
    Ok(Request {
        plist: request::device_information(nonce, command),
        turn,
    })
}

async fn record(tx: &mut Transaction, turn: &Turn, result: &EnqueueResult) -> Result<(), StoreError> {
    let now = tx.now();
    match result {
        EnqueueResult::Queued => {
            mdm_devices::end_pause(tx).await?;
            mdm_devices::note_taken(tx, &turn.enrollment_id).await
        }
        EnqueueResult::Refused(error) => {
            mdm_devices::end_pause(tx).await?;
            let failures = turn.failures.saturating_add(1);
            let due_at = now.saturating_add(pause(failures));
            mdm_devices::note_not_taken(tx, turn, failures, error, due_at).await
        }
        EnqueueResult::Failing(error) => {
            let until = pause_all(tx, now, error).await?;
            mdm_devices::note_not_taken(tx, turn, turn.failures, error, until).await
        }
        EnqueueResult::Unclear(error) => {
            pause_all(tx, now, error).await?;
            mdm_devices::note_unclear(tx, &turn.enrollment_id, error).await
        }
    }
}

/// Pauses all calls to the MDM, and returns the end of the pause.
async fn pause_all(tx: &mut Transaction, now: OffsetDateTime, error: &str) -> Result<OffsetDateTime, StoreError> {
    let failures = mdm_devices::pause(tx)
        .await?
        .map_or(0, |(_, failures)| failures)
        .saturating_add(1);
    let until = now.saturating_add(pause(failures));
    mdm_devices::set_pause(tx, until, failures, error).await?;
    Ok(until)
}

fn pause(failures: i32) -> Duration {
    let doublings = u32::try_from(failures.saturating_sub(1)).unwrap_or(0).min(16);
    (FIRST_PAUSE * 2_i32.saturating_pow(doublings)).min(LONGEST_PAUSE)
}

/// A machine is asked only if a token or an approval was given to its current key itself. Otherwise a stranger could claim
/// the serial number of another machine, in the inventory or not. That Mac would then attest a key that it has never seen.
fn decide(turn: &Turn, renewed_after: Duration, now: OffsetDateTime) -> Decision {
    // A trigger makes the device due earlier when its machine changes. This date is for changes that the trigger does
    // not see, such as a new configuration.
    let later = now.saturating_add(ASK_EVERY);
    let Some(machine) = turn.machine.as_ref().filter(|machine| machine.is_attestable) else {
        return Decision::CheckAgain(later);
    };
    let due_at = machine.attested_at.map(|at| at.saturating_add(renewed_after));
    let not_before = turn.asked_at.map(|at| at.saturating_add(ASK_EVERY));
    match due_at.max(not_before) {
        Some(at) if at > now => Decision::CheckAgain(at.min(later)),
        _ => Decision::Ask,
    }
}
