//! A simulation of many short lives of a fleet. Machines, thieves and administrators do random operations on two
//! replicas with clocks of their own. Answers get lost, and calls are cut off.
//!
//! Everything random follows from a seed. A model that is written apart from the server says after every step what must
//! hold. See `tests/simulation/README.md`.

mod books;
mod dice;
mod ground;
mod holder;
mod interruption;
mod model;
mod operations;
mod plan;
mod replica;
mod run;

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use tokio::runtime::Builder;

use self::ground::Ground;
use self::model::Violation;
use self::plan::{Step, plan};
use self::run::Run;

/// Which runs to make.
#[derive(Clone, Copy, Debug)]
pub struct Simulation {
    /// The seed of the first run; each further one has the next seed.
    pub first_seed: u64,
    /// How many runs to make.
    pub runs: u64,
    /// The steps of each run.
    pub steps: usize,
    /// How many runs go on at once, each on a database of its own.
    pub workers: usize,
}

/// A run that broke a rule.
#[derive(Debug)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// The rule, in words.
    pub rule: &'static str,
    detail: String,
    steps: Vec<Step>,
    trace: Vec<String>,
}

impl Simulation {
    /// Makes the runs. Returns the failure with the lowest seed of those that were found before the workers stopped.
    #[must_use]
    pub fn find_failure(&self) -> Option<Failure> {
        let next = AtomicU64::new(self.first_seed);
        let end = self.first_seed.saturating_add(self.runs);
        let failures = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..self.workers {
                scope.spawn(|| {
                    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(self.work(&next, end, &failures));
                });
            }
        });
        let failures: Vec<Failure> = failures.into_inner().unwrap();
        failures.into_iter().min_by_key(|failure| failure.seed)
    }

    /// Makes a run twice, without races and dropped calls. Returns what happened in each, without random names.
    ///
    /// # Panics
    ///
    /// If the run breaks a rule.
    #[must_use]
    pub fn traces_of_repeated_run(seed: u64, steps: usize) -> [String; 2] {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut ground = Ground::prepare().await;
            let first = undisturbed(&mut ground, seed, steps).await;
            [first, undisturbed(&mut ground, seed, steps).await]
        })
    }

    async fn work(&self, next: &AtomicU64, end: u64, failures: &Mutex<Vec<Failure>>) {
        let mut ground = Ground::prepare().await;
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return;
            }
            let steps = plan(seed, self.steps);
            if let Some(failure) = attempt(&mut ground, seed, &steps).await {
                next.store(end, Ordering::Relaxed);
                let failure = shortened(&mut ground, failure).await;
                failures.lock().unwrap().push(failure);
                return;
            }
        }
    }
}

async fn undisturbed(ground: &mut Ground, seed: u64, steps: usize) -> String {
    let steps = plan(seed, steps);
    let steps: Vec<Step> = steps.into_iter().filter(|step| !step.operation.is_race()).collect();
    let mut run = Run::new(ground, seed);
    run.drops_calls = false;
    let result = run.all(&steps).await;
    run.clean_up().await;
    result.unwrap();
    without_random_names(&run.trace.join("\n"))
}

/// Keys, ids, serial numbers and nonces are the words of at least 32 characters.
fn without_random_names(text: &str) -> String {
    let is_part = |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_');
    let words = text.split_inclusive(|character| !is_part(character));
    let words = words.map(|word| if word.len() > 32 { "…" } else { word });
    words.collect()
}

async fn attempt(ground: &mut Ground, seed: u64, steps: &[Step]) -> Option<Failure> {
    let mut run = Run::new(ground, seed);
    let result = run.all(steps).await;
    run.clean_up().await;
    let Violation { rule, detail } = result.err()?;
    let trace = std::mem::take(&mut run.trace);
    Some(Failure {
        seed,
        rule,
        detail,
        steps: steps.to_vec(),
        trace,
    })
}

/// Leaves out every step without which the same rule is still broken.
async fn shortened(ground: &mut Ground, mut failure: Failure) -> Failure {
    let mut size = failure.steps.len().div_ceil(2);
    while size > 0 {
        let mut from = 0;
        while from < failure.steps.len() {
            let mut fewer = failure.steps.clone();
            fewer.drain(from..fewer.len().min(from + size));
            match attempt(ground, failure.seed, &fewer).await {
                Some(shorter) if shorter.rule == failure.rule => failure = shorter,
                _ => from += size,
            }
        }
        size /= 2;
    }
    failure
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "seed {} breaks the rule: {}", self.seed, self.rule)?;
        writeln!(formatter, "{}", self.detail)?;
        writeln!(formatter, "The steps that it takes:")?;
        for line in &self.trace {
            writeln!(formatter, "  {line}")?;
        }
        Ok(())
    }
}
