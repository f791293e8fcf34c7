//! `demo`

use std::sync::Arc;

use super::{CommandError, DemoArguments};
use crate::{
    clock::Clock,
    demo::{self, DemoOptions},
    running::stop_requested,
    telemetry::logging::{self, LogFormat},
};

/// Runs the demo. Only errors are logged.
pub(super) async fn run(arguments: &DemoArguments, clock: Arc<dyn Clock>) -> Result<(), CommandError> {
    logging::start(LogFormat::Text, "error", Arc::clone(&clock))?;
    let options = DemoOptions {
        machines: arguments.machines,
        once: arguments.once,
        port: arguments.port,
    };
    Ok(demo::run(options, clock, stop_requested()).await?)
}
