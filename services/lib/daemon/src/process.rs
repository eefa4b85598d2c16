//! Signals of a process.

use tokio::signal::unix::{SignalKind, signal};

use crate::supervised::tell_stopping;

/// Waits until the process is told to stop, says so to systemd, and by which signal to the caller.
pub async fn stop_signal() -> &'static str {
    let (Ok(mut term), Ok(mut int)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return std::future::pending().await;
    };
    let signal = tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
    };
    tell_stopping();
    signal
}
