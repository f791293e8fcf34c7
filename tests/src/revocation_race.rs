//! A suspension or a revocation, and check-ins of the same machine in flight on two replicas. Each check-in has another
//! verdict than the one before: a verdict that changes is written before its grants are answered, and waits for the
//! machine's row meanwhile.

use std::fmt;
use std::ops::AddAssign;
use std::time::{Duration, Instant};

use assay_protocol::ProblemKind;
use assay_protocol::machine::SecureBoot;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::administrator::Administrator;
use crate::answer::Answer;
use crate::api::Api;
use crate::installation::Installation;
use crate::machine::Machine;

/// Every so many tries, the machine is revoked instead of quarantined, and another takes its place.
const REVOKED_EVERY: u64 = 10;

/// What the tries came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Decisions that met check-ins in flight.
    pub tries: u64,
    /// Check-ins that were granted something.
    pub granted: u64,
    /// Verdicts that were written after the decision.
    pub verdicts_after: u64,
    /// Check-ins that were sent after the decision was answered, and were granted something.
    pub begun_after: u64,
    /// Check-ins that were sent before that answer, whose grants arrived after it.
    pub arrived_after: u64,
    /// The longest time from that answer to such grants.
    pub longest: Duration,
}

/// A grant: when its check-in was sent, and when it was answered.
struct Granted {
    sent: Instant,
    answered: Instant,
}

/// Tries so often, in lanes that run at the same time.
pub async fn run(installation: &Installation, lanes: u64, tries_of_a_lane: u64) -> Tally {
    let permission = installation.administrator().permission("connect").await;
    let lanes = (0..lanes).map(|_| lane(installation, &permission, tries_of_a_lane));
    let mut total = Tally::default();
    for tally in join_all(lanes).await {
        total += tally;
    }
    total
}

async fn lane(installation: &Installation, permission: &str, tries: u64) -> Tally {
    let (apis, administrator) = ([installation.api(0), installation.api(1)], installation.administrator());
    let new_machine = async || {
        let machine = administrator.enrolled(&apis[0]).await;
        let _grant = administrator
            .grant(permission, &machine, json!({"secure_boot": "full"}))
            .await;
        machine
    };
    let mut machine = new_machine().await;
    let mut tally = Tally::default();
    for number in 1..=tries {
        let is_final = number % REVOKED_EVERY == 0;
        tally += race(&administrator, &apis, &machine, is_final).await;
        match is_final {
            true => machine = new_machine().await,
            false => drop(administrator.decide(machine.id(), "release", "raced").await.expect(200)),
        }
    }
    tally
}

async fn race(administrator: &Administrator, apis: &[Api; 2], machine: &Machine, is_final: bool) -> Tally {
    let (decision, event, refusal) = match is_final {
        true => ("revoke", "machine.revoked", ProblemKind::MachineRevoked),
        false => ("quarantine", "machine.quarantined", ProblemKind::MachineQuarantined),
    };
    let decide = async {
        // The callers are under way by then.
        let _checked_in = machine.check_in(&apis[0]).await;
        let _decided = administrator.decide(machine.id(), decision, "raced").await.expect(200);
        Instant::now()
    };
    let callers = join_all(apis.iter().map(|api| check_in_until_refused(api, machine, refusal)));
    let (decided, granted) = tokio::join!(decide, callers);
    let kinds = administrator.event_kinds(machine.id()).await;
    let after: Vec<&Value> = kinds.iter().take_while(|kind| **kind != event).collect();
    assert!(
        after.len() < kinds.len(),
        "the list of events does not reach back to the decision"
    );
    let verdicts = after.iter().filter(|kind| ***kind == "verdict.changed").count();
    let mut tally = Tally {
        tries: 1,
        verdicts_after: u64::try_from(verdicts).unwrap(),
        ..Tally::default()
    };
    for grant in granted.into_iter().flatten() {
        tally.granted += 1;
        tally.begun_after += u64::from(grant.sent > decided);
        if let Some(late) = grant
            .answered
            .checked_duration_since(decided)
            .filter(|late| !late.is_zero())
        {
            tally.arrived_after += 1;
            tally.longest = tally.longest.max(late);
        }
    }
    tally
}

/// Checks in until the machine is refused. Returns when it was granted something.
async fn check_in_until_refused(api: &Api, machine: &Machine, refusal: ProblemKind) -> Vec<Granted> {
    let mut machine = machine.clone();
    let mut granted = Vec::new();
    let mut nonce = api.nonce().await;
    for number in 0.. {
        let is_full = number % 2 == 0;
        machine.posture.secure_boot = Some(if is_full { SecureBoot::Full } else { SecureBoot::Reduced });
        let request = machine.check_in_with(api, &nonce);
        let sent = Instant::now();
        let answer = Answer::to(request).await;
        let answered = Instant::now();
        answer.nonce().clone_into(&mut nonce);
        match answer.status {
            200 if answer.json()["grants"]
                .as_array()
                .is_some_and(|grants| !grants.is_empty()) =>
            {
                granted.push(Granted { sent, answered });
            }
            200 => {}
            // The other caller has used a later nonce.
            400 => drop(answer.expect_problem(ProblemKind::BadNonce)),
            // The record changed too often during this check-in.
            503 => drop(answer.expect_problem(ProblemKind::Unavailable)),
            _ => {
                let _refused = answer.expect_problem(refusal);
                break;
            }
        }
    }
    granted
}

impl Tally {
    /// Whether nothing was granted after a decision.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.verdicts_after == 0 && self.begun_after == 0
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.tries += other.tries;
        self.granted += other.granted;
        self.verdicts_after += other.verdicts_after;
        self.begun_after += other.begun_after;
        self.arrived_after += other.arrived_after;
        self.longest = self.longest.max(other.longest);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} tries, {} grants; verdicts written after the decision: {}; grants of check-ins sent after its answer: \
             {}; grants that arrived after its answer: {} (at most {:?})",
            self.tries, self.granted, self.verdicts_after, self.begun_after, self.arrived_after, self.longest
        )
    }
}
