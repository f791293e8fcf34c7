//! Restarts Postgres when it dies while the server runs.

use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::PrivatePostgresError;
use super::cluster::Cluster;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// After this long, a new failure is considered unrelated to the previous one.
const STABLE: Duration = Duration::from_secs(60);

const LOG_CHECK_INTERVAL: Duration = Duration::from_secs(600);
const MAX_LOG: u64 = 16 * 1024 * 1024;

/// Runs until it is dropped. An idle connection shows at once when Postgres ends, even if another process started it.
/// Counts the restarts in `restarts`.
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
            pause = (pause * 2).min(MAX_PAUSE);
            match restart(cluster).await {
                Ok(()) => break,
                Err(error) => tracing::error!(
                    error = &error as &dyn std::error::Error,
                    retry_in_seconds = pause.as_secs_f64(),
                    "cannot restart the private Postgres"
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
    let mut log_check = interval(LOG_CHECK_INTERVAL);
    log_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            received = listener.try_recv() => {
                if received?.is_none() {
                    return Ok(());
                }
            }
            _ = log_check.tick() => {
                if let Err(error) = cluster.directory.bound_log(MAX_LOG) {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot truncate the log of Postgres");
                }
            }
        }
    }
}

async fn restart(cluster: &Cluster) -> Result<(), PrivatePostgresError> {
    let _startup = cluster.directory.lock_startup().await?;
    cluster.ensure_running().await
}
