//! Signals: SIGTERM and SIGINT stop the program, SIGHUP reloads the configuration.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::reload::{ReloadScope, Reloader};

/// The signals that the program handles.
pub(super) struct Signals {
    /// SIGTERM and SIGINT.
    pub stop: StopSignals,
    /// SIGHUP.
    pub hangup: Signal,
}

/// SIGTERM and SIGINT.
pub(super) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Handles the signals from now on; until then, each of them kills the program. Requires a runtime.
    pub(super) fn handle() -> io::Result<Self> {
        let stop =
            StopSignals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? };
        Ok(Self { stop, hangup: signal(SignalKind::hangup())? })
    }
}

impl StopSignals {
    /// Waits for the next signal and returns its name.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Reloads everything at each SIGHUP.
pub(super) async fn reload_on_hangup(reloader: Arc<Reloader>, mut hangup: Signal) {
    while hangup.recv().await.is_some() {
        // The reloader has logged an error.
        let _ = reloader.reload(ReloadScope::Everything, "SIGHUP").await;
    }
}
