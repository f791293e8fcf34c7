//! The program `assay-verify`: it answers a proxy's question whether a request may pass.
//!
//! It answers 200 with headers for the service, 401 or 403. It believes what the proxy's headers say of certificate,
//! method and URL, so it listens on this machine only, and the proxy must overwrite these headers.

mod arguments;
mod listener;
mod question;
mod serving;

use std::{ffi::OsString, io::Write, process::ExitCode, sync::Arc};

use assay_protocol::Chain;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use self::{
    arguments::{Arguments, ArgumentsError},
    listener::{BindError, Listener},
    serving::Answering,
};
use crate::{clock::now, https::SetUpError, verifier::Verifier};

/// Why the program ends.
#[derive(Debug, thiserror::Error)]
enum ProgramError {
    #[error(transparent)]
    Arguments(#[from] ArgumentsError),
    #[error(transparent)]
    SetUp(#[from] SetUpError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("the runtime cannot be started")]
    Runtime(#[source] std::io::Error),
}

/// Runs the program with these arguments, and returns its exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // If the error cannot be printed, there is no other place to report it.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "assay-verify: {}", Chain(&error));
            ExitCode::from(if matches!(error, ProgramError::Arguments(_)) {
                2
            } else {
                1
            })
        }
    }
}

fn run(arguments: Arguments) -> Result<(), ProgramError> {
    log(&arguments.log_level);
    let runtime = tokio::runtime::Runtime::new().map_err(ProgramError::Runtime)?;
    runtime.block_on(serve(arguments))
}

async fn serve(arguments: Arguments) -> Result<(), ProgramError> {
    let listen = arguments.listen.clone();
    let (options, trusted) = arguments.options()?;
    let verifier = Arc::new(Verifier::new(options, now())?);
    let stop = stop_signal().map_err(ProgramError::Runtime)?;
    let listener = Listener::bind(&listen).await?;
    // Later requests fetch the keys if that fails now.
    let _ = verifier.fetch_keys(now()).await;
    tracing::info!(address = %listener.address(), "listening");
    serving::serve(listener, Answering { verifier, trusted }, stop).await;
    Ok(())
}

/// A token that SIGTERM or SIGINT cancels.
fn stop_signal() -> std::io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let (mut signals, stop) = (signal(kind)?, stop.clone());
        tokio::spawn(async move {
            signals.recv().await;
            stop.cancel();
        });
    }
    Ok(stop)
}

/// Logs to standard error. Libraries that could log headers are limited to `info`.
fn log(level: &str) {
    let filter = format!("info,assay_verify={level}");
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(fmt::layer().with_writer(std::io::stderr).with_ansi(false))
        .try_init();
}
