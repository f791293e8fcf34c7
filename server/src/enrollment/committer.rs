//! The group committer of enrollments: gathers the keys that ask and lets in, in one transaction, those who are ordinary.
//! One transaction is under way at a time; what arrives meanwhile is the next batch. Each caller is answered after the
//! commit, or told to take a transaction of its own.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

use super::{
    Decided,
    new_machines::{self, NewMachine},
};
use crate::{
    machines::assurance::Grounds,
    rate_limits::RateLimits,
    store::{Store, groups::GroupError},
    telemetry::{CommitterMetrics, Metrics},
};

/// The most keys that one transaction lets in: it holds their tokens until it commits.
const LARGEST_BATCH: usize = 128;
/// How many may wait before more are told to come back: beyond it, they would be answered too late to matter.
const LONGEST_QUEUE: usize = 4096;
/// How long one transaction may take, and how long a caller waits, for the one before as well. A database that does not
/// answer is as good as down, and the caller is owed a 503 within 5 s.
const PATIENCE: Duration = Duration::from_secs(3);

/// Takes keys that ask, and answers each when what was decided is durable.
#[derive(Debug, Clone)]
pub(crate) struct Committer {
    queue: mpsc::Sender<Waiting>,
}

/// After an error it is unknown whether they were let in: a repeated call tells.
type Outcome = Result<Option<Decided>, GroupError>;

struct Waiting {
    new_machine: NewMachine,
    answer: oneshot::Sender<Outcome>,
}

impl Committer {
    /// Starts the task that writes. It ends when the last handle is dropped, after what waits is written.
    pub(crate) fn start(store: Store, rate_limits: Arc<RateLimits>, metrics: Arc<Metrics>) -> Self {
        let (queue, waiting) = mpsc::channel(LONGEST_QUEUE);
        tokio::spawn(run(store, rate_limits, metrics, waiting));
        Self { queue }
    }

    /// Lets a new machine in. `None` when it takes a transaction of its own to tell what becomes of it.
    pub(super) async fn admit(&self, new_machine: NewMachine) -> Outcome {
        let (answer, outcome) = oneshot::channel();
        self.queue
            .try_send(Waiting { new_machine, answer })
            .map_err(|_| GroupError::Overloaded)?;
        match timeout(PATIENCE, outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Err(GroupError::Overloaded),
        }
    }
}

async fn run(store: Store, rate_limits: Arc<RateLimits>, metrics: Arc<Metrics>, mut queue: mpsc::Receiver<Waiting>) {
    let mut batch = Vec::with_capacity(LARGEST_BATCH);
    while queue.recv_many(&mut batch, LARGEST_BATCH).await > 0 {
        metrics.enrollment_committer.queued(queue.len());
        // Whoever has hung up repeats the call, and that is when it counts.
        batch.retain(|waiting: &Waiting| !waiting.answer.is_closed());
        if batch.is_empty() {
            continue;
        }
        let started = Instant::now();
        let (asking, answers): (Vec<_>, Vec<_>) = batch
            .drain(..)
            .map(|waiting| (waiting.new_machine, waiting.answer))
            .unzip();
        let outcome = write(&store, &rate_limits, &asking).await;
        metrics
            .enrollment_committer
            .committed(asking.len(), started.elapsed(), outcome.is_ok());
        deliver(&metrics.enrollment_committer, outcome, asking, answers);
    }
}

async fn write(
    store: &Store,
    rate_limits: &RateLimits,
    asking: &[NewMachine],
) -> Result<Vec<Option<Grounds>>, GroupError> {
    let mut connection = store.connection().await?;
    match timeout(PATIENCE, new_machines::admit(&mut connection, rate_limits, asking)).await {
        Ok(Ok(admitted)) => Ok(admitted),
        Ok(Err(error)) if error.is_outage() => Err(GroupError::from(error)),
        // One of them is at fault, or somebody was in the way: each alone finds out.
        Ok(Err(error)) => {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                size = asking.len(),
                "a batch was undone"
            );
            Ok(asking.iter().map(|_| None).collect())
        }
        Err(_) => {
            // The statement may still be under way on it: nobody else may get this connection.
            drop(connection.detach());
            Err(GroupError::Overloaded)
        }
    }
}

fn deliver(
    metrics: &CommitterMetrics,
    outcome: Result<Vec<Option<Grounds>>, GroupError>,
    asking: Vec<NewMachine>,
    answers: Vec<oneshot::Sender<Outcome>>,
) {
    match outcome {
        Ok(admitted) => {
            for ((new_machine, answer), grounds) in asking.into_iter().zip(answers).zip(admitted) {
                metrics.ended(if grounds.is_some() { "recorded" } else { "special" });
                // A caller that has hung up meanwhile needs no answer.
                let _ = answer.send(Ok(grounds.map(|grounds| new_machine.decided(grounds))));
            }
        }
        Err(error) => {
            for answer in answers {
                metrics.ended("failed");
                let _ = answer.send(Err(error.clone()));
            }
        }
    }
}
