//! What a run does, in order. A plan follows from its seed alone, and each step has a seed of its own. A step therefore does
//! the same when others are left out, which is how a failing run is made short.

use super::dice::Dice;

/// One step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// Its place in the whole plan.
    pub(super) number: usize,
    pub(super) operation: Operation,
    pub(super) seed: u64,
}

/// What a step does. Whom it does it to, and what gets lost meanwhile, follows from the step's seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    CreateToken,
    Enroll,
    RepeatEnrollment,
    CheckIn,
    Renew,
    Replay,
    ChangeGrants,
    Quarantine,
    Release,
    Revoke,
    PassTime,
    RestartReplica,
    RaceRevocation,
    RaceReplay,
    Rotate,
    CopyKey,
    RestoreState,
    UseOldKey,
    DecideRequest,
    ApproveKey,
    Open,
    RevokeCertificate,
    RevokeToken,
    ChangeInventory,
    Attest,
    Introspect,
}

/// How often each operation is chosen, relative to the others.
const WEIGHTS: &[(Operation, usize)] = &[
    (Operation::CreateToken, 3),
    (Operation::Enroll, 6),
    (Operation::RepeatEnrollment, 3),
    (Operation::CheckIn, 14),
    (Operation::Renew, 4),
    (Operation::Replay, 3),
    (Operation::ChangeGrants, 3),
    (Operation::Quarantine, 2),
    (Operation::Release, 2),
    (Operation::Revoke, 1),
    (Operation::PassTime, 4),
    (Operation::RestartReplica, 1),
    (Operation::RaceRevocation, 3),
    (Operation::RaceReplay, 2),
    (Operation::Rotate, 8),
    (Operation::CopyKey, 2),
    (Operation::RestoreState, 2),
    (Operation::UseOldKey, 2),
    (Operation::DecideRequest, 6),
    (Operation::ApproveKey, 2),
    (Operation::Open, 3),
    (Operation::RevokeCertificate, 2),
    (Operation::RevokeToken, 1),
    (Operation::ChangeInventory, 2),
    (Operation::Attest, 5),
    (Operation::Introspect, 3),
];

/// Every run begins with these, because most operations do nothing without a machine and something to grant.
const BEGINNING: [Operation; 5] = [
    Operation::ChangeGrants,
    Operation::CreateToken,
    Operation::Enroll,
    Operation::Enroll,
    Operation::CheckIn,
];

/// The plan of this seed.
pub(super) fn plan(seed: u64, length: usize) -> Vec<Step> {
    let mut dice = Dice::new(seed);
    let total = WEIGHTS.iter().map(|(_, weight)| weight).sum();
    let steps = (0..length).map(|number| {
        let chosen = chosen(dice.below(total));
        let operation = BEGINNING.get(number).copied().unwrap_or(chosen);
        let seed = dice.roll();
        Step {
            number,
            operation,
            seed,
        }
    });
    steps.collect()
}

impl Operation {
    /// Whether the time that the database takes decides what happens, and not the seed alone.
    pub(super) fn is_race(self) -> bool {
        matches!(self, Self::RaceRevocation | Self::RaceReplay)
    }
}

fn chosen(mut place: usize) -> Operation {
    for (operation, weight) in WEIGHTS {
        match place.checked_sub(*weight) {
            Some(rest) => place = rest,
            None => return *operation,
        }
    }
    WEIGHTS[0].0
}
