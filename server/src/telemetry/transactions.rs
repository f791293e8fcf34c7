//! Metrics of transactions, one series for each name of [`Name`].

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use super::metrics::{counted, timed};
use crate::store::transaction::Name;

/// Metrics of transactions.
pub struct TransactionMetrics {
    ended: Family<EndLabels, Counter>,
    seconds: Family<NameLabels, Histogram, fn() -> Histogram>,
    retries: Family<NameLabels, Counter>,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TransactionEnd {
    /// Its changes are in the database.
    Committed,
    /// The operation decided against it, and nothing was changed.
    Refused,
    /// The database failed, or the transaction collided with others until its last try.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    transaction: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NameLabels {
    transaction: &'static str,
}

impl TransactionMetrics {
    /// A transaction collided with another one and is tried again.
    pub(crate) fn collided(&self, name: Name) {
        self.retries.get_or_create(&NameLabels::of(name)).inc();
    }

    /// A transaction ended, `elapsed` after its first try began.
    pub(crate) fn ended(&self, name: Name, end: TransactionEnd, elapsed: Duration) {
        self.ended.get_or_create(&EndLabels::of(name, end)).inc();
        self.seconds
            .get_or_create(&NameLabels::of(name))
            .observe(elapsed.as_secs_f64());
    }

    pub(super) fn register(to: &mut Registry) -> Self {
        let ended: Family<EndLabels, Counter> = counted(to, "transactions", "Transactions, by how they ended");
        // An alert on a rate needs the series to be there before the first failure.
        for &name in Name::ALL {
            drop(ended.get_or_create(&EndLabels::of(name, TransactionEnd::Failed)));
        }
        Self {
            ended,
            seconds: timed(
                to,
                "transaction_duration",
                "From the first try to the last commit or rollback",
                Family::new_with_constructor(seconds),
            ),
            retries: counted(to, "transaction_retries", "Tries that collided and were repeated"),
        }
    }
}

impl EndLabels {
    fn of(name: Name, end: TransactionEnd) -> Self {
        Self {
            transaction: name.as_str(),
            result: match end {
                TransactionEnd::Committed => "committed",
                TransactionEnd::Refused => "refused",
                TransactionEnd::Failed => "failed",
            },
        }
    }
}

impl NameLabels {
    fn of(name: Name) -> Self {
        Self {
            transaction: name.as_str(),
        }
    }
}

/// From 1 ms to 16 s. Coarse, because each name has a histogram of its own.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 4.0, 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_counted_by_its_name_and_its_end() {
        let metrics = crate::telemetry::Metrics::new();
        let elapsed = Duration::from_millis(3);
        metrics.transactions.collided(Name::Enroll);
        metrics
            .transactions
            .ended(Name::Enroll, TransactionEnd::Committed, elapsed);
        metrics
            .transactions
            .ended(Name::Enroll, TransactionEnd::Refused, elapsed);
        let text = metrics.encode();
        for line in [
            r#"assay_transactions_total{transaction="enroll",result="committed"} 1"#,
            r#"assay_transactions_total{transaction="enroll",result="refused"} 1"#,
            r#"assay_transactions_total{transaction="enroll",result="failed"} 0"#,
            r#"assay_transactions_total{transaction="renew",result="failed"} 0"#,
            r#"assay_transaction_retries_total{transaction="enroll"} 1"#,
            r#"assay_transaction_duration_seconds_count{transaction="enroll"} 2"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nin\n{text}");
        }
    }
}
