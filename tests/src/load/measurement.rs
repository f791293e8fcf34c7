//! The results of the calls.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::time::Instant;

/// The longest latency that is recorded exactly, in microseconds.
const LONGEST: u64 = 60_000_000;
/// The relative precision of latencies: a thousandth for a whole run, a hundredth for each second of it.
const DIGITS: u8 = 3;
const DIGITS_OF_A_SECOND: u8 = 2;

/// The time span that is measured.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// Its start.
    pub from: Instant,
    /// Its end.
    pub until: Instant,
}

/// Collects the results of the lanes.
#[derive(Debug)]
pub struct Measurement {
    window: Window,
    /// Successful calls, also outside the window, for the progress bar.
    pub succeeded: AtomicU64,
    /// Failed calls, also outside the window.
    pub failed: AtomicU64,
    findings: Mutex<Findings>,
}

/// The results.
#[derive(Debug)]
pub struct Findings {
    /// Calls that succeeded within the window.
    pub completed: u64,
    /// Calls that were due in the window, but were not sent until long after its end.
    pub unsent: u64,
    /// The latencies of the window's calls, in microseconds. Each counts from the time when its call was due.
    pub latencies: Histogram<u64>,
    /// Calls of the window that failed, by problem or by the connection's error.
    pub errors: BTreeMap<String, u64>,
    /// The calls of the window, by the second in which they were due.
    pub seconds: Vec<Second>,
}

/// The calls that were due in one second.
#[derive(Debug, Clone)]
pub struct Second {
    /// The latencies of those that succeeded, in microseconds.
    pub latencies: Histogram<u64>,
    /// How many failed.
    pub errors: u64,
}

impl Measurement {
    /// Measures within this window.
    #[must_use]
    pub fn new(window: Window) -> Self {
        Self {
            window,
            succeeded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            findings: Mutex::new(Findings {
                completed: 0,
                unsent: 0,
                latencies: Histogram::new_with_max(LONGEST, DIGITS).unwrap(),
                errors: BTreeMap::new(),
                seconds: Vec::new(),
            }),
        }
    }

    /// Records a call that was due at a time and has ended now.
    pub fn ended(&self, due: Instant, outcome: &Result<(), String>) {
        let now = Instant::now();
        let counter = if outcome.is_ok() { &self.succeeded } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        let mut findings = self.findings();
        if outcome.is_ok() && self.window.holds(now) {
            findings.completed += 1;
        }
        if !self.window.holds(due) {
            return;
        }
        let second = findings.second(due - self.window.from);
        match outcome {
            Ok(()) => {
                let latency = u64::try_from((now - due).as_micros()).unwrap_or(LONGEST);
                second.latencies.saturating_record(latency);
                findings.latencies.saturating_record(latency);
            }
            Err(error) => {
                second.errors += 1;
                *findings.errors.entry(error.clone()).or_default() += 1;
            }
        }
    }

    /// Records calls of the window that were abandoned before they were sent.
    pub fn unsent(&self, calls: u64) {
        self.findings().unsent += calls;
    }

    /// The results.
    #[must_use]
    pub fn into_findings(self) -> Findings {
        self.findings.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn findings(&self) -> MutexGuard<'_, Findings> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    fn holds(&self, moment: Instant) -> bool {
        self.from <= moment && moment < self.until
    }
}

impl Findings {
    fn second(&mut self, since_start: Duration) -> &mut Second {
        let second = usize::try_from(since_start.as_secs()).unwrap();
        while self.seconds.len() <= second {
            self.seconds.push(Second {
                latencies: Histogram::new_with_max(LONGEST, DIGITS_OF_A_SECOND).unwrap(),
                errors: 0,
            });
        }
        &mut self.seconds[second]
    }
}
