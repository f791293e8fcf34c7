//! The group committer of enrollments: admits many simple ones in one transaction.

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

/// Admits keys, and responds to each when its admission is durable.
pub(crate) struct Committer {
    batcher: Batcher<NewMachine, Decided>,
}

impl Committer {
    /// Starts the task that writes the batches.
    pub(crate) fn start(store: Store, rate_limits: Arc<RateLimits>, metrics: &Arc<Metrics>) -> Self {
        let metrics = metrics.enrollment_committer.clone();
        let batcher = Batcher::start(store, metrics, LIMITS, move |connection, asking| {
            let rate_limits = Arc::clone(&rate_limits);
            Box::pin(async move { new_machines::admit(connection, &rate_limits, asking).await })
        });
        Self { batcher }
    }

    /// Admits a simple enrollment. `None` if a transaction of its own must decide. After an error it is unknown whether
    /// the key was admitted, and a repeated call finds out.
    pub(super) async fn admit(&self, new_machine: NewMachine) -> BatchResult<Decided> {
        match self.batcher.call(new_machine).await {
            // An enrollment of the batch is at fault, or it collided with another transaction. Each one is retried
            // alone.
            Err(BatchError::Store(error)) if !error.is_outage() => Ok(None),
            result => result,
        }
    }
}
