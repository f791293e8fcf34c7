//! `serve`

use std::sync::Arc;

use super::CommandError;
use crate::{
    clock::Clock,
    config::{Config, LogFormat},
    running::{RunningServer, stop_requested},
    telemetry::logging,
};

/// Serves until SIGTERM or SIGINT.
pub(super) async fn serve(config: &Config, clock: Arc<dyn Clock>) -> Result<(), CommandError> {
    start_logging(config, &clock)?;
    // The signal is awaited from the start. It takes effect after the start, when everything that was started can be
    // stopped.
    let stop = tokio::spawn(stop_requested());
    let server = RunningServer::start(config, clock).await?;
    let _ = stop.await;
    Ok(server.stop().await?)
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
