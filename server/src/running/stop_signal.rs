//! The signals that end the process.

use tokio::signal::unix::{SignalKind, signal};

/// Waits for a signal to stop the process.
pub(crate) async fn stop_requested() {
    // Without a handler, the signal ends the process at once.
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
