//! Statements that serve many callers at once. Each caller alone would pay for a connection from the pool and a round trip,
//! which cost more than the row does.

use std::{collections::HashMap, hash::Hash, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{
    select,
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

use super::{Connection, PooledConnection, Store, StoreError};

/// How long one statement may take. A database that does not answer is as good as down, and the caller is owed a 503
/// within 5 s.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a connection is kept without a statement.
const KEPT_IDLE: Duration = Duration::from_secs(1);
/// The most keys that one statement reads.
const LARGEST_GROUP: usize = 512;
/// How many may wait before more are told to come back.
const LONGEST_QUEUE: usize = 16_384;

/// Why a statement that served many did not. Shared by all of them.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum GroupError {
    #[error("a statement that serves many callers failed")]
    Store(#[source] Arc<StoreError>),
    #[error("too many callers wait, or the database does not answer")]
    Overloaded,
}

impl From<StoreError> for GroupError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// Reads by key, for all who ask while the last statement is under way in the next one.
pub(crate) struct GroupReader<K, V> {
    queue: mpsc::Sender<Waiting<K, V>>,
}

struct Waiting<K, V> {
    key: K,
    answer: oneshot::Sender<Result<Option<V>, GroupError>>,
}

impl<K, V> GroupReader<K, V>
where
    K: Copy + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + 'static,
{
    /// Starts the task that reads with `read`, which finds by each key at most one thing. The task ends with the last handle.
    pub(crate) fn start(
        store: Store,
        read: impl for<'c> Fn(&'c mut Connection, &'c [K]) -> BoxFuture<'c, Result<HashMap<K, V>, StoreError>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        let (queue, mut waiting) = mpsc::channel(LONGEST_QUEUE);
        tokio::spawn(async move {
            let mut connection = KeptConnection::of(store);
            let mut group: Vec<Waiting<K, V>> = Vec::with_capacity(LARGEST_GROUP);
            while connection.receive(&mut waiting, &mut group, LARGEST_GROUP).await > 0 {
                let keys: Vec<K> = group.iter().map(|waiting| waiting.key).collect();
                let found = connection.run(keys.as_slice(), &read).await;
                answer(&mut group, &found);
            }
        });
        Self { queue }
    }

    /// What is on record at some moment after the call.
    pub(crate) async fn find(&self, key: K) -> Result<Option<V>, GroupError> {
        let (answer, found) = oneshot::channel();
        self.queue
            .try_send(Waiting { key, answer })
            .map_err(|_| GroupError::Overloaded)?;
        found.await.map_err(|_| GroupError::Overloaded)?
    }
}

fn answer<K: Eq + Hash, V: Clone>(group: &mut Vec<Waiting<K, V>>, found: &Result<HashMap<K, V>, GroupError>) {
    for Waiting { key, answer } in group.drain(..) {
        // A caller that has hung up meanwhile needs no answer.
        let _ = answer.send(match found {
            Ok(found) => Ok(found.get(&key).cloned()),
            Err(error) => Err(error.clone()),
        });
    }
}

/// A connection that is kept from one group's statement to the next while they follow each other. Taking one from the pool
/// for each would cost a round trip, in which the pool sees whether it still serves; one that was used a moment ago needs no
/// such look.
pub(crate) struct KeptConnection {
    store: Store,
    kept: Option<PooledConnection>,
}

impl KeptConnection {
    pub(crate) fn of(store: Store) -> Self {
        Self { store, kept: None }
    }

    /// Waits for the next group, and meanwhile gives the connection back: after a while, or when the pool closes.
    pub(crate) async fn receive<T>(&mut self, queue: &mut mpsc::Receiver<T>, group: &mut Vec<T>, most: usize) -> usize {
        if self.kept.is_some() {
            let closing = self.store.pool().close_event();
            select! {
                biased;
                received = queue.recv_many(group, most) => return received,
                () = sleep(KEPT_IDLE) => {}
                () = closing => {}
            }
            self.kept = None;
        }
        queue.recv_many(group, most).await
    }

    /// Runs a group's one statement, which may be run twice: the connection may have broken since it was last used, and then
    /// it is tried once more on one that the pool has looked at.
    pub(crate) async fn run<I: ?Sized, T>(
        &mut self,
        group: &I,
        statement: &impl for<'c> Fn(&'c mut Connection, &'c I) -> BoxFuture<'c, Result<T, StoreError>>,
    ) -> Result<T, GroupError> {
        if let Some(connection) = self.kept.take() {
            match self.run_on(connection, group, statement).await {
                Err(GroupError::Store(error)) if matches!(*error, StoreError::Unavailable(_)) => {}
                outcome => return outcome,
            }
        }
        let connection = self.store.connection().await?;
        self.run_on(connection, group, statement).await
    }

    /// Keeps the connection where the statement ended well on it, and others are left.
    async fn run_on<I: ?Sized, T>(
        &mut self,
        mut connection: PooledConnection,
        group: &I,
        statement: &impl for<'c> Fn(&'c mut Connection, &'c I) -> BoxFuture<'c, Result<T, StoreError>>,
    ) -> Result<T, GroupError> {
        match timeout(STATEMENT_TIMEOUT, statement(&mut connection, group)).await {
            Ok(Ok(done)) => {
                // Somebody may wait for it: what is kept is only what nobody else needs.
                self.kept = self.store.has_spare_connections().then_some(connection);
                Ok(done)
            }
            Ok(Err(error)) => Err(error.into()),
            Err(_) => {
                // The statement may still be under way on it: nobody else may get this connection.
                drop(connection.detach());
                Err(GroupError::Overloaded)
            }
        }
    }
}
