//! Work that recurs in the background, on every replica; what only one of them may do takes a duty
//! ([`crate::store::duties`]) in its transaction.

use std::{error::Error, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, sleep};
use tokio_util::sync::CancellationToken;

/// Works at once and then after each interval, until the server stops. What is under way then is finished. The first of
/// several failures in a row is logged, and the next turn comes as usual: whatever is done here finds out by itself what is
/// left to do.
pub(crate) async fn repeat<W, E>(
    name: &'static str,
    interval: Duration,
    shutdown: &CancellationToken,
    work: impl Fn() -> W,
) where
    W: Future<Output = Result<(), E>>,
    E: Error + 'static,
{
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_failing = false;
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        let result = work().await;
        let was_failing = std::mem::replace(&mut is_failing, result.is_err());
        match result {
            Ok(()) if was_failing => tracing::info!(work = name, "a recurring task works again"),
            Ok(()) => {}
            Err(error) if was_failing => {
                tracing::debug!(
                    error = &error as &dyn Error,
                    work = name,
                    "a recurring task fails still"
                );
            }
            Err(error) => warn(name, &error),
        }
    }
}

/// The part of the time that [`repeat_sparingly`] works: one in this many.
const SPARING: u32 = 50;
/// Its shortest pause.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// Works at once and then again and again, with pauses that are as long as the work is slow: a small fleet is seen to
/// every second, and a large one costs a fiftieth of a core.
pub(crate) async fn repeat_sparingly<W, E>(name: &'static str, shutdown: &CancellationToken, work: impl Fn() -> W)
where
    W: Future<Output = Result<(), E>>,
    E: Error + 'static,
{
    loop {
        let started = Instant::now();
        attempt(name, work()).await;
        let pause = started.elapsed().saturating_mul(SPARING).max(SHORTEST_PAUSE);
        if shutdown.run_until_cancelled(sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// Works once, and logs a failure.
pub(crate) async fn attempt<E: Error + 'static>(name: &'static str, work: impl Future<Output = Result<(), E>>) {
    if let Err(error) = work.await {
        warn(name, &error);
    }
}

fn warn(name: &str, error: &(dyn Error + 'static)) {
    tracing::warn!(error, work = name, "a recurring task failed");
}
