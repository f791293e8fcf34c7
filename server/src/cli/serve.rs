//! `serve`

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use super::CommandError;
use crate::{
    clock::Clock,
    config::{Config, LogFormat},
    running::RunningServer,
    telemetry::logging,
};

/// Serves until SIGTERM or SIGINT.
pub(super) async fn serve(config: &Config, clock: Arc<dyn Clock>) -> Result<(), CommandError> {
    start_logging(config, &clock)?;
    // Listened for from the start on; obeyed when everything that was begun, such as a private Postgres, can be ended.
    let stop = tokio::spawn(ordered_to_stop());
    let server = RunningServer::start(config, clock).await?;
    let _ = stop.await;
    Ok(server.stop().await?)
}

/// Waits until the process is told to end.
pub(crate) async fn ordered_to_stop() {
    // Without a handler the signal ends the process at once, which is what is left to do.
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

fn start_logging(config: &Config, clock: &Arc<dyn Clock>) -> Result<(), CommandError> {
    let format = match config.log.format {
        LogFormat::Json => logging::LogFormat::Json,
        LogFormat::Text => logging::LogFormat::Text,
    };
    Ok(logging::start(
        format,
        &config.log.level.to_string(),
        Arc::clone(clock),
    )?)
}
