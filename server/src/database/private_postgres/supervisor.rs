//! Starts Postgres again when it has died under a running server.

use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::PrivatePostgresError;
use super::cluster::Cluster;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A Postgres that ran this long has not died of what killed the one before it.
const STABLE: Duration = Duration::from_secs(60);

const LOG_CHECKED_EVERY: Duration = Duration::from_secs(600);
const LONGEST_LOG: u64 = 16 * 1024 * 1024;

/// Runs until it is dropped. A connection that does nothing is what tells of the end of Postgres: also of one that
/// another process has started, and at the very moment. Counts in `restarts`.
pub(super) async fn supervise(cluster: &Cluster, restarts: &watch::Sender<u64>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let since = Instant::now();
        match until_lost(cluster).await {
            Ok(()) => tracing::warn!("the private Postgres has closed its connections"),
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "lost the private Postgres"),
        }
        if since.elapsed() >= STABLE {
            pause = FIRST_PAUSE;
        }
        loop {
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            match restart(cluster).await {
                Ok(()) => break,
                Err(error) => tracing::error!(
                    error = &error as &dyn std::error::Error,
                    retry_in_seconds = pause.as_secs_f64(),
                    "cannot start the private Postgres again"
                ),
            }
        }
        restarts.send_modify(|count| *count = count.saturating_add(1));
        tracing::info!("the private Postgres accepts connections again");
    }
}

async fn until_lost(cluster: &Cluster) -> Result<(), sqlx::Error> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .connect_lazy_with(cluster.connect_options());
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.eager_reconnect(false);
    let mut log_check = interval(LOG_CHECKED_EVERY);
    log_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            received = listener.try_recv() => {
                if received?.is_none() {
                    return Ok(());
                }
            }
            _ = log_check.tick() => {
                if let Err(error) = cluster.directory.bound_log(LONGEST_LOG) {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot bound the log of Postgres");
                }
            }
        }
    }
}

async fn restart(cluster: &Cluster) -> Result<(), PrivatePostgresError> {
    let _startup = cluster.directory.lock_startup().await?;
    cluster.ensure_running().await
}
