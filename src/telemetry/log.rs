//! The log: structured lines on stderr.
//!
//! [`line`](super::line) bounds the lines. A separate thread writes them, so a reader that is slow or gone never blocks a
//! request. If the buffer is full, lines are dropped and counted. A process has one log, so this module has functions
//! instead of a handle.

use std::io::IsTerminal as _;
use std::panic::PanicHookInfo;
use std::sync::OnceLock;

use parking_lot::Mutex;
use tracing::Level;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::{fmt, reload};

use super::line::BoundedLines;
use crate::config::{Log, LogFormat};

/// Size of the buffer in lines, about 200 bytes each.
const LINES_MAX: usize = 16 * 1024;

static LOG: OnceLock<ActiveLog> = OnceLock::new();

/// The log of this process.
struct ActiveLog {
    dropped: ErrorCounter,
    filter: reload::Handle<Targets, Registry>,
    level: Mutex<Level>,
}

/// A guard of the log. Dropping it writes the remaining lines.
pub(crate) struct Telemetry {
    _guard: WorkerGuard,
}

impl Telemetry {
    /// Starts the log of this process. A second start changes nothing.
    pub(crate) fn start(log: &Log) -> Self {
        let (writer, guard) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(LINES_MAX)
            .thread_name("log")
            .finish(std::io::stderr());
        let dropped = writer.error_counter();
        let writer = BoundedLines::new(writer, log.format);
        let layer = match log.format {
            LogFormat::Json => json(writer).boxed(),
            LogFormat::Text => text(writer).boxed(),
        };
        let (filter, handle) = reload::Layer::new(targets(log.level));
        if tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().is_ok() {
            let _ = LOG.set(ActiveLog { dropped, filter: handle, level: Mutex::new(log.level) });
        }
        std::panic::set_hook(Box::new(note_panic));
        Self { _guard: guard }
    }
}

/// Logs the location of a panic, but not its message, which may contain parts of a request.
pub(crate) fn note_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    tracing::error!(place, "panicked");
}

/// Returns the number of lines dropped so far; 0 without a log.
pub(crate) fn dropped_lines() -> usize {
    LOG.get().map_or(0, |log| log.dropped.dropped_lines())
}

/// Returns the current level; `None` without a log.
pub(crate) fn level() -> Option<Level> {
    LOG.get().map(|log| *log.level.lock())
}

/// Changes the level. Returns `false` if there is no log or its filter cannot be replaced.
pub(crate) fn set_level(level: Level) -> bool {
    let Some(log) = LOG.get() else { return false };
    // Locked across the reload, so that `level` returns the level of the last of two concurrent changes.
    let mut current = log.level.lock();
    let is_set = log.filter.reload(targets(level)).is_ok();
    if is_set {
        *current = level;
    }
    is_set
}

/// Target of the audit log: relayed writes and admin actions.
pub(crate) const AUDIT: &str = "chatgate::audit";

/// Returns the filter for a level. The audit log is written at every level. Libraries are not logged: some of them log
/// what they send or receive, and calls to Chat contain a signature. chatgate logs their errors in its own words.
fn targets(level: Level) -> Targets {
    let level = LevelFilter::from_level(level);
    Targets::new().with_target("chatgate", level).with_target(AUDIT, level.max(LevelFilter::INFO))
}

fn json<S>(writer: BoundedLines) -> impl tracing_subscriber::Layer<S> + Send + Sync
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    fmt::layer().json().flatten_event(true).with_current_span(false).with_span_list(false).with_writer(writer)
}

fn text<S>(writer: BoundedLines) -> impl tracing_subscriber::Layer<S> + Send + Sync
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let use_colors =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    fmt::layer().with_ansi(use_colors).with_writer(writer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_not_logged() {
        let targets = targets(Level::TRACE);
        assert!(targets.would_enable("chatgate::gateway", &Level::TRACE));
        for library in ["h2::proto", "hyper", "rustls", "redis"] {
            assert!(!targets.would_enable(library, &Level::ERROR), "{library}");
        }
    }
}
