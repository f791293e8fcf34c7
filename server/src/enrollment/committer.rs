//! The group committer of enrollments: admits the simple ones that wait in one transaction.

use std::sync::Arc;

use super::{
    Decided,
    new_machines::{self, NewMachine},
};
use crate::{
    rate_limits::RateLimits,
    store::{
        Store,
        batcher::{BatchError, BatchResult, Batcher, Limits},
    },
    telemetry::Metrics,
};

/// A batch locks its tokens until it commits, so it is smaller than one of check-ins.
const LIMITS: Limits = Limits {
    batch: 128,
    queue: 4096,
};

/// Admits keys that ask, and answers each when the decision is durable.
pub(crate) struct Committer {
    batcher: Batcher<NewMachine, Decided>,
}

impl Committer {
    /// Starts the task that writes.
    pub(crate) fn start(store: Store, rate_limits: Arc<RateLimits>, metrics: &Arc<Metrics>) -> Self {
        let metrics = metrics.enrollment_committer.clone();
        let batcher = Batcher::start(store, metrics, LIMITS, move |connection, asking| {
            let rate_limits = Arc::clone(&rate_limits);
            Box::pin(async move { new_machines::admit(connection, &rate_limits, asking).await })
        });
        Self { batcher }
    }

    /// Admits a simple enrollment. `None` when its own transaction must decide. After an error it is unknown whether it was
    /// admitted: a repeated call tells.
    pub(super) async fn admit(&self, new_machine: NewMachine) -> BatchResult<Decided> {
        match self.batcher.call(new_machine).await {
            // One of the batch is at fault, or another transaction was in the way: each alone finds out.
            Err(BatchError::Store(error)) if !error.is_outage() => Ok(None),
            result => result,
        }
    }
}
