//! Statements that serve many callers at once. Each caller alone would pay for a connection from the pool and a round trip,
//! which cost more than the row does.

use std::{collections::HashMap, hash::Hash, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{Connection, Store, StoreError};

/// How long one statement may take. A database that does not answer is as good as down, and the caller is owed a 503
/// within 5 s.
pub(crate) const STATEMENT_TIMEOUT: Duration = Duration::from_secs(3);
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
            let mut group = Vec::with_capacity(LARGEST_GROUP);
            while waiting.recv_many(&mut group, LARGEST_GROUP).await > 0 {
                answer(&store, &read, &mut group).await;
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

async fn answer<K, V>(
    store: &Store,
    read: &impl for<'c> Fn(&'c mut Connection, &'c [K]) -> BoxFuture<'c, Result<HashMap<K, V>, StoreError>>,
    group: &mut Vec<Waiting<K, V>>,
) where
    K: Copy + Eq + Hash,
    V: Clone,
{
    let keys: Vec<K> = group.iter().map(|waiting| waiting.key).collect();
    let found = find_all(store, read, &keys).await;
    for Waiting { key, answer } in group.drain(..) {
        // A caller that has hung up meanwhile needs no answer.
        let _ = answer.send(match &found {
            Ok(found) => Ok(found.get(&key).cloned()),
            Err(error) => Err(error.clone()),
        });
    }
}

async fn find_all<K, V>(
    store: &Store,
    read: &impl for<'c> Fn(&'c mut Connection, &'c [K]) -> BoxFuture<'c, Result<HashMap<K, V>, StoreError>>,
    keys: &[K],
) -> Result<HashMap<K, V>, GroupError> {
    let mut connection = store.connection().await?;
    match timeout(STATEMENT_TIMEOUT, read(&mut connection, keys)).await {
        Ok(found) => Ok(found?),
        Err(_) => {
            // The statement may still be under way on it: nobody else may get this connection.
            drop(connection.detach());
            Err(GroupError::Overloaded)
        }
    }
}
