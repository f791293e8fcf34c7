//! Calls into a key store: each on a thread of its own, with a timeout, and never more than a few at a time.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{KeyFault, KeyStoreError};

/// Calls into the Secure Enclave have been seen to hang; an honest one takes milliseconds. Tests wait for it to pass.
pub(super) const TIMEOUT: Duration = Duration::from_secs(if cfg!(feature = "enclave-stand-in") { 2 } else { 30 });
/// How many calls may be under way or hang at a time. Past it the store counts as unavailable, and no more threads are spent.
pub(super) const MOST_CALLS: usize = 4;

/// The calls of one process into its key store. Clones share the count.
#[derive(Debug, Clone)]
pub(crate) struct Calls(Arc<Semaphore>);

impl Default for Calls {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MOST_CALLS)))
    }
}

impl Calls {
    /// Runs on a thread of its own, not one of the runtime's: a call that hangs must not keep the process from ending.
    ///
    /// What the work takes along is lost with it when it hangs: nothing that others wait for, such as a lock.
    pub(crate) async fn call<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<KeyFault> + Send + 'static,
        F: FnOnce() -> Result<T, E> + Send + 'static,
    {
        let permit = self.permit()?;
        let (answer, answered) = oneshot::channel();
        std::thread::Builder::new()
            .name("key-store".to_owned())
            .spawn(move || {
                let result = work();
                // Before the answer: whoever gets it may call again at once.
                drop(permit);
                // Nobody listens any more when the call took too long.
                let _ = answer.send(result);
            })
            .map_err(|error| unavailable(error.to_string()))?;
        match tokio::time::timeout(TIMEOUT, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(unavailable("the call ended without an answer".to_owned()).into()),
            Err(_) => Err(KeyFault::TimedOut(TIMEOUT).into()),
        }
    }

    /// A place among the calls that are under way, for one that its caller makes on a thread of its own.
    pub(super) fn permit(&self) -> Result<OwnedSemaphorePermit, KeyFault> {
        let permit = Arc::clone(&self.0).try_acquire_owned();
        permit.map_err(|_| unavailable(format!("{MOST_CALLS} calls into it have not returned")))
    }

    #[cfg(test)]
    pub(super) fn left(&self) -> usize {
        self.0.available_permits()
    }
}

pub(super) fn unavailable(reason: String) -> KeyFault {
    KeyFault::Store(KeyStoreError::Unavailable { reason })
}
