//! The time limit of a request. It covers only the server's work. The time in which the body arrives depends on the
//! caller and has its own limit.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{extract::OptionalFromRequestParts, http::request::Parts};
use tokio::time::{Instant, sleep_until};

/// A caller gets a response within 5 s even if the database is unreachable. A running transaction is rolled back, or it
/// has committed, which the repeated call then shows.
const WORK: Duration = Duration::from_secs(4);

/// When the request is aborted; an extension of the request.
#[derive(Debug, Clone)]
pub(crate) struct Deadline(Arc<Mutex<Instant>>);

impl Deadline {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now() + WORK)))
    }

    /// Allows this much time from now on, for slow operations.
    pub(crate) fn allow(&self, time: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + time;
    }

    /// Allows the usual time from now on.
    pub(crate) fn begin_work(&self) {
        self.allow(WORK);
    }

    /// Waits for the deadline, even if it is extended meanwhile.
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
