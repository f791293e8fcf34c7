//! Statements for many callers at once. Run separately, each caller would need a connection from the pool and a round
//! trip, which cost more than its row.

use std::{collections::HashMap, hash::Hash, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{
    select,
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};

use super::{Connection, PooledConnection, Store, StoreError};
use crate::telemetry::BatcherMetrics;

/// How long the database may take for one batch. The limit is shorter than a request's deadline, so the callers of a
/// database that hangs get a 503 within 5 s.
const BATCH_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a connection is kept without a batch.
const KEPT_IDLE: Duration = Duration::from_secs(1);

/// Why a batch failed. All of its callers get the same error. Whether the batch was committed is unknown.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum BatchError {
    #[error("a statement for several callers failed")]
    Store(#[source] Arc<StoreError>),
    #[error("too many callers are waiting, or the database does not respond")]
    Overloaded,
}

impl From<StoreError> for BatchError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// The limits of a batcher.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The most calls in one batch.
    pub(crate) batch: usize,
    /// The most waiting calls. Further ones are refused at once, because their results would come too late.
    pub(crate) queue: usize,
}

/// Gathers calls, and runs each batch of them in one round trip. Only one batch runs at a time; calls that arrive
/// meanwhile form the next one. A busy server therefore runs large batches, and an idle one waits for nothing. Each
/// caller gets its result after the commit.
///
/// A batcher has no timer for a caller. A request that passes its deadline drops its call, and the batcher leaves out calls
/// that were dropped before their batch began.
#[derive(Debug)]
pub(crate) struct Batcher<In, Out> {
    queue: mpsc::Sender<Call<In, Out>>,
}

/// `None` is the batch's own refusal of one call, such as a key that is not on record.
pub(crate) type BatchResult<Out> = Result<Option<Out>, BatchError>;

#[derive(Debug)]
struct Call<In, Out> {
    input: In,
    reply: oneshot::Sender<BatchResult<Out>>,
}

impl<In, Out> Batcher<In, Out>
where
    In: Send + Sync + 'static,
    Out: Send + 'static,
{
    /// Starts the task that works. It ends when the last handle is dropped, after what waits is done.
    ///
    /// `work` answers by the place in the slice. It may run twice for one batch, see [`KeptConnection::run`].
    pub(crate) fn start(
        store: Store,
        metrics: BatcherMetrics,
        limits: Limits,
        work: impl for<'c> Fn(&'c mut Connection, &'c [In]) -> BoxFuture<'c, Result<Vec<Option<Out>>, StoreError>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        let (queue, mut calls) = mpsc::channel::<Call<In, Out>>(limits.queue);
        tokio::spawn(async move {
            let mut connection = KeptConnection { store, kept: None };
            let mut batch = Vec::with_capacity(limits.batch);
            while connection.receive(&mut calls, &mut batch, limits.batch).await > 0 {
                metrics.queued(calls.len());
                batch.retain(|call| !call.reply.is_closed());
                if batch.is_empty() {
                    continue;
                }
                let started = Instant::now();
                let (inputs, replies): (Vec<In>, Vec<_>) = batch.drain(..).map(|call| (call.input, call.reply)).unzip();
                let result = connection.run(&inputs, &work).await;
                metrics.done(inputs.len(), started.elapsed(), result.is_ok());
                reply(&metrics, result, replies);
            }
        });
        Self { queue }
    }

    /// Runs this input in the next batch.
    pub(crate) async fn call(&self, input: In) -> BatchResult<Out> {
        let (reply, result) = oneshot::channel();
        self.queue
            .try_send(Call { input, reply })
            .map_err(|_| BatchError::Overloaded)?;
        result.await.map_err(|_| BatchError::Overloaded)?
    }
}

impl<K, V> Batcher<K, V>
where
    K: Copy + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + 'static,
{
    /// Starts a task that reads by key. A call sees the database at some moment after the call.
    pub(crate) fn start_reader(
        store: Store,
        metrics: BatcherMetrics,
        read: impl for<'c> Fn(&'c mut Connection, &'c [K]) -> BoxFuture<'c, Result<HashMap<K, V>, StoreError>>
        + Copy
        + Send
        + Sync
        + 'static,
    ) -> Self {
        let limits = Limits {
            batch: 512,
            queue: 16_384,
        };
        Self::start(store, metrics, limits, move |connection, keys| {
            Box::pin(async move {
                let found = read(connection, keys).await?;
                Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
            })
        })
    }
}

/// A caller that has gone needs no reply.
fn reply<Out>(
    metrics: &BatcherMetrics,
    result: Result<Vec<Option<Out>>, BatchError>,
    replies: Vec<oneshot::Sender<BatchResult<Out>>>,
) {
    match result {
        Ok(outputs) => {
            for (output, reply) in outputs.into_iter().zip(replies) {
                metrics.answered(output.is_some());
                let _ = reply.send(Ok(output));
            }
        }
        Err(error) => {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                size = replies.len(),
                "a batch failed"
            );
            for reply in replies {
                metrics.failed();
                let _ = reply.send(Err(error.clone()));
            }
        }
    }
}

/// A connection that is kept between batches while they follow each other closely. Acquiring one from the pool pings it
/// first, which costs a round trip; one used a moment ago needs no ping.
struct KeptConnection {
    store: Store,
    kept: Option<PooledConnection>,
}

impl KeptConnection {
    /// Waits for the next batch. Returns the connection to the pool after a while, or when the pool closes.
    async fn receive<T>(&mut self, queue: &mut mpsc::Receiver<T>, batch: &mut Vec<T>, most: usize) -> usize {
        if self.kept.is_some() {
            let closing = self.store.pool().close_event();
            select! {
                biased;
                received = queue.recv_many(batch, most) => return received,
                () = sleep(KEPT_IDLE) => {}
                () = closing => {}
            }
            self.kept = None;
        }
        queue.recv_many(batch, most).await
    }

    /// Runs a batch. A kept connection may have broken since it was last used, so after such an error the batch runs once
    /// more, on a connection that the pool has pinged. The first run may have been committed, if its reply alone was lost.
    async fn run<In, T>(
        &mut self,
        batch: &[In],
        work: &impl for<'c> Fn(&'c mut Connection, &'c [In]) -> BoxFuture<'c, Result<T, StoreError>>,
    ) -> Result<T, BatchError> {
        if let Some(connection) = self.kept.take() {
            match self.run_on(connection, batch, work).await {
                Err(BatchError::Store(error)) if matches!(*error, StoreError::Unavailable(_)) => {}
                result => return result,
            }
        }
        let connection = self.store.connection().await?;
        self.run_on(connection, batch, work).await
    }

    /// Keeps the connection if the batch succeeded and the pool has spare connections. Otherwise a small pool would
    /// starve its other callers.
    async fn run_on<In, T>(
        &mut self,
        mut connection: PooledConnection,
        batch: &[In],
        work: &impl for<'c> Fn(&'c mut Connection, &'c [In]) -> BoxFuture<'c, Result<T, StoreError>>,
    ) -> Result<T, BatchError> {
        match timeout(BATCH_TIMEOUT, work(&mut connection, batch)).await {
            Ok(Ok(done)) => {
                self.kept = self.store.has_spare_connections().then_some(connection);
                Ok(done)
            }
            Ok(Err(error)) => Err(error.into()),
            Err(_) => {
                // The statement may still be under way on it, so this connection must not go back to the pool.
                drop(connection.detach());
                Err(BatchError::Overloaded)
            }
        }
    }
}
