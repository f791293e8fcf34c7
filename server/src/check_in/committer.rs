//! The group committer: gathers the check-ins that wait and records them in one statement. One statement is under way
//! at a time; what arrives meanwhile is the next batch, so a busy server writes large batches and an idle one waits for
//! nothing. Each caller is answered after the commit.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::{
    store::{
        Connection, Store, StoreError,
        groups::{GroupError, KeptConnection},
        machines::{
            self,
            presence::{CheckIn, Recorded},
        },
    },
    telemetry::Metrics,
};

/// The most check-ins that one statement records.
const LARGEST_BATCH: usize = 512;
/// How many may wait before more are told to come back: beyond it, they would be answered too late to matter.
const LONGEST_QUEUE: usize = 16_384;

/// Takes check-ins and answers each when it is durable.
#[derive(Debug, Clone)]
pub(crate) struct Committer {
    queue: mpsc::Sender<Waiting>,
}

pub(super) type Outcome = Result<Option<Recorded>, GroupError>;

#[derive(Debug)]
struct Waiting {
    check_in: CheckIn,
    answer: oneshot::Sender<Outcome>,
}

impl Committer {
    /// Starts the task that writes. It ends when the last handle is dropped, after what waits is written.
    pub(crate) fn start(store: Store, metrics: Arc<Metrics>) -> Self {
        let (queue, waiting) = mpsc::channel(LONGEST_QUEUE);
        tokio::spawn(run(store, metrics, waiting));
        Self { queue }
    }

    /// Records a check-in that brings nothing new. `None` when it does, or when something about it is wrong.
    pub(crate) async fn record(&self, check_in: CheckIn) -> Outcome {
        let (answer, outcome) = oneshot::channel();
        self.queue
            .try_send(Waiting { check_in, answer })
            .map_err(|_| GroupError::Overloaded)?;
        outcome.await.map_err(|_| GroupError::Overloaded)?
    }
}

/// A batch that is tried again may have been recorded the first time, if its answer alone was lost: it is no longer
/// unchanged then, and each of it finds out in a transaction of its own.
async fn run(store: Store, metrics: Arc<Metrics>, mut queue: mpsc::Receiver<Waiting>) {
    let mut connection = KeptConnection::of(store);
    let mut batch = Vec::with_capacity(LARGEST_BATCH);
    while connection.receive(&mut queue, &mut batch, LARGEST_BATCH).await > 0 {
        metrics.committer.queued(queue.len());
        let started = Instant::now();
        let (check_ins, answers) = one_for_each_machine(&mut batch);
        let outcome = connection.run(check_ins.as_slice(), &record).await;
        metrics
            .committer
            .committed(check_ins.len(), started.elapsed(), outcome.is_ok());
        count(&metrics, &outcome, check_ins.len());
        deliver(outcome, answers);
    }
}

fn record<'c>(
    connection: &'c mut Connection,
    check_ins: &'c [CheckIn],
) -> BoxFuture<'c, Result<Vec<Option<Recorded>>, StoreError>> {
    Box::pin(machines::presence::record_unchanged(connection, check_ins))
}

/// Takes the latest check-in of each machine. The others are answered at once: a later nonce of the same machine is being
/// used, so only a transaction that waits for it can say what becomes of them.
fn one_for_each_machine(batch: &mut Vec<Waiting>) -> (Vec<CheckIn>, Vec<oneshot::Sender<Outcome>>) {
    batch.sort_unstable_by_key(|waiting| (waiting.check_in.machine_id, std::cmp::Reverse(waiting.check_in.nonce)));
    let mut check_ins = Vec::<CheckIn>::with_capacity(batch.len());
    let mut answers = Vec::with_capacity(batch.len());
    for Waiting { check_in, answer } in batch.drain(..) {
        if check_ins
            .last()
            .is_some_and(|last| last.machine_id == check_in.machine_id)
        {
            // A caller that has hung up meanwhile needs no answer.
            let _ = answer.send(Ok(None));
        } else {
            check_ins.push(check_in);
            answers.push(answer);
        }
    }
    (check_ins, answers)
}

fn count(metrics: &Metrics, outcome: &Result<Vec<Option<Recorded>>, GroupError>, size: usize) {
    for place in 0..size {
        metrics.committer.ended(match outcome {
            Ok(recorded) if recorded.get(place).is_some_and(Option::is_some) => "recorded",
            Ok(_) => "news",
            Err(_) => "failed",
        });
    }
}

fn deliver(outcome: Result<Vec<Option<Recorded>>, GroupError>, answers: Vec<oneshot::Sender<Outcome>>) {
    match outcome {
        Ok(recorded) => {
            for (answer, recorded) in answers.into_iter().zip(recorded) {
                let _ = answer.send(Ok(recorded));
            }
        }
        Err(error) => {
            for answer in answers {
                let _ = answer.send(Err(error.clone()));
            }
        }
    }
}
