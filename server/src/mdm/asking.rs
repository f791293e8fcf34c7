//! Having machines asked for their attestations, by the MDM that manages them.
//!
//! That a device is asked is on record before the MDM is called, in a transaction of its own. A server that dies between the
//! two leaves a device that is not asked for 7 days; the other way round it would be asked twice, and a Mac makes one
//! attestation in that time, whatever it is asked. What the MDM certainly did not take counts as not asked.

use std::{sync::Arc, time::Duration as StdDuration};

use assay_protocol::{attestation::FreshnessCode, machine::Assurance};
use serde_json::json;
use time::{Duration, OffsetDateTime};
use tokio::{select, time::sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{NanoMdm, client::Outcome};
use crate::{
    changes::{Change, Origin},
    clock, periodic,
    registry::apple_attestations::{due, request},
    services::Services,
    store::{
        self, StoreError, Transaction,
        duties::{self, Duty},
        mdm_devices::{self, Turn, TurnMachine},
    },
};

const NAME: &str = "have machines asked for attestations";
/// How long a machine that has to be attested waits at most while the MDM is well.
const INTERVAL: StdDuration = StdDuration::from_secs(1);
/// How many devices one round asks: an MDM tells each by Apple's push service, which takes its time.
const BATCH: usize = 20;
/// How many devices one transaction looks at.
const LOOKED_AT: i64 = 200;
/// A Mac makes no new attestation sooner.
const ASK_EVERY: Duration = Duration::days(7);
/// How long a call that is under way may go on when the server stops.
const GRACE: StdDuration = StdDuration::from_secs(2);
/// The first pause after a failure, which doubles with each further one, and the longest.
const FIRST_PAUSE: Duration = Duration::MINUTE;
const LONGEST_PAUSE: Duration = Duration::HOUR;

/// A device that is asked now.
struct Asked {
    turn: Turn,
    plist: String,
}

/// What to do about a device whose turn it is.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Ask,
    LookAgain(OffsetDateTime),
}

/// Asks whoever is due, again and again, until the server stops.
pub(crate) async fn run(services: Arc<Services>, shutdown: CancellationToken) {
    let Some(mdm) = &services.nano_mdm else {
        return;
    };
    periodic::repeat(NAME, INTERVAL, &shutdown, || ask_due(&services, mdm, &shutdown)).await;
}

/// Asks some of them, one after the other, until the MDM fails.
async fn ask_due(services: &Services, mdm: &NanoMdm, shutdown: &CancellationToken) -> Result<(), StoreError> {
    for _ in 0..BATCH {
        if shutdown.is_cancelled() {
            return Ok(());
        }
        let claim = services
            .store
            .tx(NAME, services, |tx, services| Box::pin(claim(tx, services)));
        let Some(asked) = claim.await? else {
            return Ok(());
        };
        let outcome = select! {
            outcome = mdm.enqueue(&asked.turn.enrollment_id, asked.plist) => outcome,
            () = cut_off(shutdown) => Outcome::Unclear("the server stopped before there was an answer".to_owned()),
        };
        let goes_on = matches!(outcome, Outcome::Taken | Outcome::Refused(_));
        if let Outcome::Refused(error) | Outcome::Failing(error) | Outcome::Unclear(error) = &outcome {
            tracing::warn!(
                device = asked.turn.enrollment_id,
                error,
                "a device was not asked for its attestation"
            );
        }
        let context = (services, &asked.turn, &outcome);
        services
            .store
            .tx(
                "record what came of a command",
                &context,
                |tx, &(services, turn, outcome)| Box::pin(record(tx, services, turn, outcome)),
            )
            .await?;
        if !goes_on {
            return Ok(());
        }
    }
    Ok(())
}

async fn cut_off(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    sleep(GRACE).await;
}

/// Finds the next device that is to be asked, and notes that it is; `None` when there is none, when the MDM is not to be
/// called now, or when another replica is at it.
async fn claim(tx: &mut Transaction, services: &Services) -> Result<Option<Asked>, StoreError> {
    if !duties::try_take(tx, Duty::AskForAttestations).await? {
        return Ok(None);
    }
    let now = services.clock.now();
    if mdm_devices::pause(tx).await?.is_some_and(|(until, _)| now < until) {
        return Ok(None);
    }
    let renewed_after = due::due_after(services);
    let mut put_off = Vec::new();
    let mut next = None;
    for turn in mdm_devices::due(tx, now, LOOKED_AT).await? {
        match (decide(&turn, renewed_after, now), &turn.machine) {
            (Decision::Ask, Some(machine)) => {
                next = Some((machine.clone(), turn));
                break;
            }
            (Decision::Ask, None) => {}
            (Decision::LookAgain(at), _) => put_off.push((turn.enrollment_id, at)),
        }
    }
    mdm_devices::put_off(tx, &put_off).await?;
    match next {
        Some((machine, turn)) => Ok(Some(note(tx, services, &machine, turn, now).await?)),
        None => Ok(None),
    }
}

async fn note(
    tx: &mut Transaction,
    services: &Services,
    machine: &TurnMachine,
    turn: Turn,
    now: OffsetDateTime,
) -> Result<Asked, StoreError> {
    let command: Uuid = clock::new_id(services.clock.as_ref());
    let nonce = FreshnessCode::of(&machine.key);
    mdm_devices::note_asked(tx, &turn.enrollment_id, command, now, now.saturating_add(ASK_EVERY)).await?;
    let change = Change::new("machine.ask-for-attestation", "machine", machine.id).after(json!({
        "enrollment_id": turn.enrollment_id, "command_uuid": command, "nonce_hex": nonce,
    }));
    store::audit_entries::insert(tx, services.clock.as_ref(), &Origin::system(), change).await?;
    Ok(Asked {
        plist: request::device_information(nonce, command),
        turn,
    })
}

async fn record(tx: &mut Transaction, services: &Services, turn: &Turn, outcome: &Outcome) -> Result<(), StoreError> {
    let now = services.clock.now();
    match outcome {
        Outcome::Taken => {
            mdm_devices::end_pause(tx).await?;
            mdm_devices::note_taken(tx, &turn.enrollment_id).await
        }
        Outcome::Refused(error) => {
            mdm_devices::end_pause(tx).await?;
            let failures = turn.failures.saturating_add(1);
            let due_at = now.saturating_add(pause(failures));
            mdm_devices::note_not_taken(tx, turn, failures, error, due_at).await
        }
        Outcome::Failing(error) => {
            let until = pause_all(tx, now, error).await?;
            mdm_devices::note_not_taken(tx, turn, turn.failures, error, until).await
        }
        Outcome::Unclear(error) => {
            pause_all(tx, now, error).await?;
            mdm_devices::note_unclear(tx, &turn.enrollment_id, error).await
        }
    }
}

/// No device is asked until then.
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

/// A machine that has nothing but its own word behind its serial number is not asked: whoever holds a shared token could
/// say another one's, and have its Mac vouch for a key that it has never seen.
fn decide(turn: &Turn, renewed_after: Duration, now: OffsetDateTime) -> Decision {
    // A trigger brings this forward when the machine changes; this is for what it does not see, as another configuration.
    let later = now.saturating_add(ASK_EVERY);
    let Some(machine) = turn
        .machine
        .as_ref()
        .filter(|machine| machine.assurance > Assurance::Asserted)
    else {
        return Decision::LookAgain(later);
    };
    let due_at = machine.attested_at.map(|at| at.saturating_add(renewed_after));
    let not_before = turn.asked_at.map(|at| at.saturating_add(ASK_EVERY));
    match due_at.max(not_before) {
        Some(at) if at > now => Decision::LookAgain(at.min(later)),
        _ => Decision::Ask,
    }
}
