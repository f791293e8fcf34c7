//! Whether the database takes writes, for load balancers.

use assay_protocol::Chain;
use tokio::{
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::store::{Store, StoreError};

/// How long a result is returned to every caller. Anyone may call, so calls must not load the database.
const VALID_FOR: Duration = Duration::from_secs(1);

/// The last result and its time. One caller at a time asks the database, and the others wait for its result.
#[derive(Debug, Default)]
pub(crate) struct Readiness(Mutex<Option<(Instant, bool)>>);

impl Readiness {
    /// Whether the database takes writes now, or did less than a second ago.
    pub(crate) async fn is_ready(&self, store: &Store) -> bool {
        self.is_ready_by(Instant::now, || store.takes_writes()).await
    }

    async fn is_ready_by<A>(&self, now: impl Fn() -> Instant, ask: impl FnOnce() -> A) -> bool
    where
        A: Future<Output = Result<bool, StoreError>>,
    {
        let mut last = self.0.lock().await;
        if let Some((at, is_ready)) = *last
            && now() < at + VALID_FOR
        {
            return is_ready;
        }
        // Recorded before the query: a caller that goes away must not let the next one ask at once.
        let before = last.is_some_and(|(_, is_ready)| is_ready);
        *last = Some((now(), before));
        let result = ask().await;
        match &result {
            Ok(true) => {}
            Ok(false) => tracing::warn!("the database takes no writes"),
            Err(error) => tracing::warn!(error = %Chain(error), "the database is not available"),
        }
        let is_ready = result.unwrap_or(false);
        *last = Some((now(), is_ready));
        is_ready
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::pending};

    use futures_util::{FutureExt, future::join_all};
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn the_database_is_asked_once_a_second_for_all_callers() {
        let (readiness, now, asked) = (Readiness::default(), Cell::new(Instant::now()), Cell::new(0));
        let call = async |answer: Result<bool, StoreError>| {
            let ask = async || {
                asked.set(asked.get() + 1);
                // The other callers come meanwhile.
                yield_now().await;
                answer
            };
            readiness.is_ready_by(|| now.get(), ask).await
        };
        assert_eq!(join_all((0..300).map(|_| call(Ok(true)))).await, [true; 300]);
        now.set(now.get() + VALID_FOR - Duration::from_millis(1));
        assert!(call(Ok(false)).await);
        assert_eq!(asked.get(), 1);
        now.set(now.get() + Duration::from_millis(1));
        assert!(!call(Ok(false)).await);
        now.set(now.get() + VALID_FOR);
        let unavailable = || Err(StoreError::Corrupt("no answer".to_owned()));
        assert_eq!(join_all((0..300).map(|_| call(unavailable()))).await, [false; 300]);
        assert_eq!(asked.get(), 3);
    }

    #[tokio::test]
    async fn all_other_callers_are_answered_when_the_one_that_asks_the_database_hangs_up() {
        let (readiness, now, asked) = (Readiness::default(), Cell::new(Instant::now()), Cell::new(0));
        let count = || asked.set(asked.get() + 1);
        let answered = || {
            readiness.is_ready_by(
                || now.get(),
                async || {
                    count();
                    Ok(true)
                },
            )
        };
        assert!(answered().await);
        now.set(now.get() + VALID_FOR);
        let never_answers = || {
            count();
            pending()
        };
        let mut hangs_up = Box::pin(readiness.is_ready_by(|| now.get(), never_answers));
        let mut others = Box::pin(join_all((0..300).map(|_| answered())));
        assert_eq!((&mut hangs_up).now_or_never(), None);
        assert_eq!((&mut others).now_or_never(), None);
        // A caller's future is dropped with its connection.
        drop(hangs_up);
        assert_eq!(others.await, [true; 300]);
        assert_eq!(asked.get(), 2);
        now.set(now.get() + VALID_FOR);
        assert!(answered().await);
        assert_eq!(asked.get(), 3);
    }
}
