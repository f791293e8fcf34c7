//! The signals that end the process.

use tokio::signal::unix::{SignalKind, signal};

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
