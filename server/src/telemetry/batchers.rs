//! Metrics of batchers, which do the calls of many callers in one round trip.

use std::time::Duration;

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use super::metrics::{Labels, counted, seconds, timed};

/// Metrics of one batcher.
#[derive(Debug, Clone)]
pub struct BatcherMetrics {
    batch_size: Histogram,
    batch_seconds: Histogram,
    batches: Family<Labels<1>, Counter>,
    calls: Family<Labels<1>, Counter>,
    queue_depth: Gauge,
    words: &'static BatcherWords,
}

/// The words in the names and labels of a batcher's metrics.
#[derive(Debug)]
pub(super) struct BatcherWords {
    name: &'static str,
    /// A batch, and a batch that succeeded.
    batch: [&'static str; 2],
    calls: &'static str,
    /// A call that the batch answered, and a call that it refused.
    results: [&'static str; 2],
}

pub(super) const COMMITTER: BatcherWords = BatcherWords {
    name: "committer",
    batch: ["commit", "committed"],
    calls: "check_ins",
    results: ["recorded", "news"],
};
pub(super) const ENROLLMENT_COMMITTER: BatcherWords = BatcherWords {
    name: "enrollment_committer",
    batch: ["commit", "committed"],
    calls: "enrollments",
    results: ["recorded", "special"],
};
pub(super) const KEY_READER: BatcherWords = BatcherWords {
    name: "key_reader",
    batch: ["read", "read"],
    calls: "keys",
    results: ["found", "missing"],
};
pub(super) const MACHINE_READER: BatcherWords = BatcherWords {
    name: "machine_reader",
    batch: ["read", "read"],
    calls: "machines",
    results: ["found", "missing"],
};

impl BatcherMetrics {
    /// Sets how many calls wait for the next batch.
    pub fn queued(&self, waiting: usize) {
        self.queue_depth.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }

    /// Records a batch of `size` calls, the time `elapsed`, and whether it succeeded.
    pub fn done(&self, size: usize, elapsed: Duration, succeeded: bool) {
        self.batch_size
            .observe(f64::from(u32::try_from(size).unwrap_or(u32::MAX)));
        self.batch_seconds.observe(elapsed.as_secs_f64());
        let result = if succeeded { self.words.batch[1] } else { "failed" };
        self.batches.get_or_create(&[("result", result)]).inc();
    }

    /// Counts a call that the batch answered or refused.
    pub fn answered(&self, accepted: bool) {
        let [yes, no] = self.words.results;
        let result = if accepted { yes } else { no };
        self.calls.get_or_create(&[("result", result)]).inc();
    }

    /// Counts a call that failed with its batch.
    pub fn failed(&self) {
        self.calls.get_or_create(&[("result", "failed")]).inc();
    }

    pub(super) fn register(to: &mut Registry, words: &'static BatcherWords) -> Self {
        let [batch, _] = words.batch;
        let named = |metric: &str| format!("{}_{metric}", words.name);
        let batch_size = Histogram::new(exponential_buckets(1.0, 2.0, 10));
        to.register(named("batch_size"), format!("Calls in one {batch}"), batch_size.clone());
        Self {
            batch_size,
            batch_seconds: timed(
                to,
                &named(&format!("{batch}_duration")),
                "Duration of a batch, including its commit",
                seconds(),
            ),
            batches: counted(to, &named(&format!("{batch}s")), "Batches, by result"),
            calls: counted(to, &named(words.calls), "Calls, by result"),
            queue_depth: counted(to, &named("queue_depth"), "Calls that wait for the next batch"),
            words,
        }
    }
}
