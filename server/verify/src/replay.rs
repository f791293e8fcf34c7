//! The proofs that were accepted, each of which is accepted only once.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
};

use assay_protocol::{KeyThumbprint, dpop::MAX_AGE_SECONDS, sha256};

/// How long a generation of proofs collects, in seconds. A proof whose clock is ahead is valid for twice the maximum age
/// after its first use.
const GENERATION_SECONDS: i64 = 2 * MAX_AGE_SECONDS;

/// Proofs by key and `jti`, in two generations. The older one is dropped as a whole, when none of its proofs is valid any
/// more.
#[derive(Debug)]
pub(crate) struct Replays {
    /// Limit for one generation.
    capacity: usize,
    generations: Mutex<Generations>,
}

#[derive(Debug)]
struct Generations {
    present: Generation,
    previous: Generation,
}

#[derive(Debug)]
struct Generation {
    /// In seconds since 1970.
    since: i64,
    seen: HashSet<[u8; 32]>,
    by_key: HashMap<KeyThumbprint, usize>,
}

/// Why a proof is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReplayError {
    #[error("the proof was used before")]
    Replayed,
    #[error("the proof is older than this program, so it may have been used before")]
    BeforeStart,
    #[error("too many proofs were used in the last minutes")]
    Full,
}

impl Replays {
    /// Nothing is known of proofs from before `now`.
    pub(crate) fn new(capacity: usize, now: i64) -> Self {
        Self {
            capacity,
            generations: Mutex::new(Generations {
                present: Generation::since(now),
                previous: Generation::since(now),
            }),
        }
    }

    /// Accepts a verified proof, unless it was accepted before. If there are too many, it refuses: a proof that is not
    /// remembered could be used twice. One key can use up a quarter.
    pub(crate) fn accept(&self, key: KeyThumbprint, id: &str, issued_at: i64, now: i64) -> Result<(), ReplayError> {
        let entry = sha256([key.as_bytes().as_slice(), id.as_bytes()].concat().as_slice());
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        let Generations { present, previous } = &mut *generations;
        // The clock was set back. What was accepted before belongs to times that have not come, so this begins as at a
        // start, and refuses what might have been used already.
        if now < previous.since {
            let since = now.saturating_add(MAX_AGE_SECONDS);
            (*previous, *present) = (Generation::since(since), Generation::since(since));
        }
        if now.saturating_sub(present.since) >= GENERATION_SECONDS {
            *previous = std::mem::replace(present, Generation::since(now));
        }
        if issued_at < previous.since {
            return Err(ReplayError::BeforeStart);
        }
        if previous.seen.contains(&entry) || present.seen.contains(&entry) {
            return Err(ReplayError::Replayed);
        }
        let of_key = present.by_key.entry(key).or_default();
        if present.seen.len() >= self.capacity || *of_key >= self.capacity.div_ceil(4) {
            return Err(ReplayError::Full);
        }
        *of_key += 1;
        present.seen.insert(entry);
        Ok(())
    }
}

impl Generation {
    fn since(since: i64) -> Self {
        Self {
            since,
            seen: HashSet::new(),
            by_key: HashMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: i64 = 1_795_000_000;

    fn key(byte: u8) -> KeyThumbprint {
        KeyThumbprint::from([byte; 32])
    }

    #[test]
    fn a_proof_is_accepted_once_while_it_is_valid() {
        let replays = Replays::new(1000, START);
        // Of a clock that is a minute ahead: it is valid for two minutes.
        for first_use in [START, START + 1, START + 119, START + 120, START + 1000] {
            let (id, issued_at) = (first_use.to_string(), first_use + 60);
            assert_eq!(replays.accept(key(1), &id, issued_at, first_use), Ok(()));
            for later in [0, 1, 60, 119, 120] {
                let again = replays.accept(key(1), &id, issued_at, first_use + later);
                assert_eq!(again, Err(ReplayError::Replayed), "{first_use} + {later}");
            }
            assert_eq!(replays.accept(key(2), &id, issued_at, first_use + 120), Ok(()));
        }
    }

    #[test]
    fn proofs_from_before_the_start_and_from_before_a_step_of_the_clock_are_refused() {
        let replays = Replays::new(1000, START);
        assert_eq!(
            replays.accept(key(1), "a", START - 1, START),
            Err(ReplayError::BeforeStart)
        );
        assert_eq!(replays.accept(key(1), "a", START, START), Ok(()));
        for now in [START + 150, START + 300, START + 450] {
            assert_eq!(replays.accept(key(1), &now.to_string(), now, now), Ok(()));
        }
        // Nothing is remembered of the first proof. A minute later, proofs are accepted again.
        assert_eq!(replays.accept(key(1), "a", START, START), Err(ReplayError::BeforeStart));
        let later = START + 60;
        assert_eq!(replays.accept(key(1), "c", later, later), Ok(()));
        assert_eq!(replays.accept(key(1), "c", later, later), Err(ReplayError::Replayed));
    }

    #[test]
    fn more_proofs_than_can_be_remembered_are_refused_and_one_key_cannot_use_all() {
        let replays = Replays::new(8, START);
        for id in ["a", "b"] {
            assert_eq!(replays.accept(key(1), id, START, START), Ok(()));
        }
        assert_eq!(replays.accept(key(1), "c", START, START), Err(ReplayError::Full));
        for other in 2..5 {
            for id in ["a", "b"] {
                assert_eq!(replays.accept(key(other), id, START, START), Ok(()));
            }
        }
        assert_eq!(replays.accept(key(5), "a", START, START), Err(ReplayError::Full));
        assert_eq!(replays.accept(key(5), "a", START + 120, START + 120), Ok(()));
    }
}
