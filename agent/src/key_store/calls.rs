//! Calls into a key store: each on a thread of its own, with a timeout, and only a few at a time.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{KeyFault, KeyStoreError};

/// Calls into the Secure Enclave can hang; a normal one takes milliseconds. Tests wait for this timeout, so theirs is
/// short.
pub(super) const TIMEOUT: Duration = Duration::from_secs(if cfg!(feature = "enclave-stand-in") { 2 } else { 30 });
/// Limit for concurrent calls, including hanging ones. Above it, the store counts as unavailable, and no more threads
/// are created.
pub(super) const MAX_CALLS: usize = 4;

/// The calls of one process into its key store. Clones share the limit.
#[derive(Debug, Clone)]
pub(crate) struct Calls(Arc<Semaphore>);

impl Default for Calls {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_CALLS)))
    }
}

impl Calls {
    /// Runs work on a thread outside the runtime, because a hanging call must not keep the process from exiting.
    ///
    /// A hanging call never returns what the work owns. The work must therefore not own anything that others wait for,
    /// such as a lock.
    pub(crate) async fn call<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<KeyFault> + Send + 'static,
        F: FnOnce() -> Result<T, E> + Send + 'static,
    {
        let permit = self.permit()?;
        let (sender, receiver) = oneshot::channel();
        std::thread::Builder::new()
            .name("key-store".to_owned())
            .spawn(move || {
                let result = work();
                // Release the permit before the result is sent: the receiver may call again at once.
                drop(permit);
                // The receiver is gone after a timeout.
                let _ = sender.send(result);
            })
            .map_err(|error| unavailable(error.to_string()))?;
        match tokio::time::timeout(TIMEOUT, receiver).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(unavailable("the call ended without a result".to_owned()).into()),
            Err(_) => Err(KeyFault::TimedOut(TIMEOUT).into()),
        }
    }

    /// A permit for a call that the caller makes on a thread of its own.
    pub(super) fn permit(&self) -> Result<OwnedSemaphorePermit, KeyFault> {
        let permit = Arc::clone(&self.0).try_acquire_owned();
        permit.map_err(|_| unavailable(format!("{MAX_CALLS} calls have not returned")))
    }

    #[cfg(test)]
    pub(super) fn left(&self) -> usize {
        self.0.available_permits()
    }
}

pub(super) fn unavailable(reason: String) -> KeyFault {
    KeyFault::Store(KeyStoreError::Unavailable { reason })
}
