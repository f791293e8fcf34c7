//! How long a request may take. The time that a body needs to arrive is the caller's and counts apart: the limit says
//! how long the server works on what it has got.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{extract::OptionalFromRequestParts, http::request::Parts};
use tokio::time::{Instant, sleep_until};

/// A caller is told within 5 s when the database does not answer. What was under way is rolled back, or was committed
/// and shows when the call is repeated.
const WORK: Duration = Duration::from_secs(4);

/// When the request is given up; an extension of the request.
#[derive(Debug, Clone)]
pub(crate) struct Deadline(Arc<Mutex<Instant>>);

impl Deadline {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now() + WORK)))
    }

    /// Gives the request this much time from now on, for what takes long by its nature.
    pub(crate) fn allow(&self, time: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + time;
    }

    /// Gives the request the usual time from now on.
    pub(crate) fn begin_work(&self) {
        self.allow(WORK);
    }

    /// Waits until the time is up, also when it is put off meanwhile.
    pub(super) async fn passed(&self) {
        loop {
            let deadline = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if Instant::now() >= deadline {
                return;
            }
            sleep_until(deadline).await;
        }
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for Deadline {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Option<Self>, Infallible> {
        Ok(parts.extensions.get().cloned())
    }
}
