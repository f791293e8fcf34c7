//! Background work that recurs on every replica. Work that only one replica may do at a time takes a duty
//! ([`crate::store::duties`]) in its transaction.

use std::{
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use assay_protocol::admin_api::background_work;
use time::OffsetDateTime;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::{clock::Clock, telemetry::Metrics};

/// Sparing work uses one part in this many of the time.
const SPARING: u32 = 50;
/// The shortest pause of sparing work.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// What the API shows for any error, because an error's own text may contain SQL, a path or an address.
const FAILED: &str = "the work failed; see the log";

/// A kind of work, and how often it runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    name: &'static str,
    interval: Duration,
    is_sparing: bool,
}

impl Work {
    /// Runs at once, and then at each interval.
    pub(crate) const fn every(interval: Duration, name: &'static str) -> Self {
        Self {
            name,
            interval,
            is_sparing: false,
        }
    }

    /// Runs at once, and then with pauses in proportion to its duration. A small fleet gets a run every second; a large
    /// one uses at most a fiftieth of a core.
    pub(crate) const fn sparing(name: &'static str) -> Self {
        Self {
            name,
            interval: SHORTEST_PAUSE,
            is_sparing: true,
        }
    }
}

/// All background work of this replica, with the last run of each kind.
pub(crate) struct BackgroundWork {
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    registered: Mutex<Vec<Arc<Registered>>>,
}

struct Registered {
    work: Work,
    last: Mutex<LastRun>,
}

/// A run is under way if it started after the last one finished.
#[derive(Debug, Clone, Copy, Default)]
struct LastRun {
    started_at: Option<OffsetDateTime>,
    finished_at: Option<OffsetDateTime>,
    duration: Option<Duration>,
    has_failed: bool,
}

impl BackgroundWork {
    pub(crate) fn new(clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        Self {
            clock,
            metrics,
            registered: Mutex::default(),
        }
    }

    /// Adds work to the list, and returns what runs it until `shutdown`.
    pub(crate) fn register(&self, work: Work, shutdown: CancellationToken) -> Turns {
        let registered = Arc::new(Registered {
            work,
            last: Mutex::default(),
        });
        lock(&self.registered).push(Arc::clone(&registered));
        Turns {
            registered,
            clock: Arc::clone(&self.clock),
            metrics: Arc::clone(&self.metrics),
            shutdown,
        }
    }

    /// The list, in the order of registration.
    pub(crate) fn list(&self) -> Vec<background_work::BackgroundWork> {
        let registered = lock(&self.registered);
        registered.iter().map(|registered| registered.shown()).collect()
    }
}

impl Registered {
    fn shown(&self) -> background_work::BackgroundWork {
        let last = *lock(&self.last);
        background_work::BackgroundWork {
            name: self.work.name.to_owned(),
            interval_seconds: self.work.interval.as_secs_f64(),
            last_started_at: last.started_at,
            last_finished_at: last.finished_at,
            last_duration_ms: last
                .duration
                .map(|duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)),
            last_error: last.has_failed.then(|| FAILED.to_owned()),
        }
    }
}

/// Runs one kind of work until the server stops, and records each run.
pub(crate) struct Turns {
    registered: Arc<Registered>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
}

impl Turns {
    /// Cancelled when the server stops.
    pub(crate) fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// Repeats the work until the server stops. A run that is under way then is finished. A failure does not delay the
    /// next run, because each run determines for itself what is left to do.
    pub(crate) async fn repeat<W, E>(&self, work: impl Fn() -> W)
    where
        W: Future<Output = Result<(), E>>,
        E: Error + 'static,
    {
        let Work {
            interval: pause,
            is_sparing,
            ..
        } = self.registered.work;
        let mut ticks = interval(pause);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            let started = Instant::now();
            self.once(work()).await;
            if is_sparing {
                let pause = started.elapsed().saturating_mul(SPARING);
                // The next tick adds the shortest pause.
                if self.shutdown.run_until_cancelled(sleep(pause)).await.is_none() {
                    return;
                }
            }
        }
    }

    /// Runs the work once. Of several failures in a row, only the first is logged as a warning.
    pub(crate) async fn once<E>(&self, work: impl Future<Output = Result<(), E>>)
    where
        E: Error + 'static,
    {
        let name = self.registered.work.name;
        let started = Instant::now();
        lock(&self.registered.last).started_at = Some(self.clock.now());
        let result = work.await;
        let was_failing = self.note(started.elapsed(), result.is_err());
        match result {
            Ok(()) if was_failing => tracing::info!(work = name, "periodic work succeeds again"),
            Ok(()) => {}
            Err(error) if was_failing => {
                tracing::debug!(error = &error as &dyn Error, work = name, "periodic work still fails");
            }
            Err(error) => warn(name, &error),
        }
    }

    /// Records a run. Returns whether the previous one failed.
    fn note(&self, duration: Duration, has_failed: bool) -> bool {
        let finished_at = self.clock.now();
        let succeeded_at = (!has_failed).then(|| finished_at.unix_timestamp());
        let background = &self.metrics.background;
        background.finished(self.registered.work.name, duration, succeeded_at);
        let mut last = lock(&self.registered.last);
        last.finished_at = Some(finished_at);
        last.duration = Some(duration);
        std::mem::replace(&mut last.has_failed, has_failed)
    }
}

/// Runs work once without recording it, and logs a failure.
pub(crate) async fn attempt<E: Error + 'static>(name: &'static str, work: impl Future<Output = Result<(), E>>) {
    if let Err(error) = work.await {
        warn(name, &error);
    }
}

fn warn(name: &str, error: &(dyn Error + 'static)) {
    tracing::warn!(error, work = name, "periodic work failed");
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a batch of this size was full, so that more may be left.
pub(crate) fn is_full(size: usize, batch: i64) -> bool {
    i64::try_from(size).is_ok_and(|size| size >= batch)
}
