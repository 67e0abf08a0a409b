//! The log: structured lines on stderr, written by a thread of their own, so that a log nobody reads
//! holds up no request. Lines that find no room are dropped and counted.
//!
//! A process has one log, so what is known of it and said to it goes through functions of this module.

use std::io::IsTerminal as _;
use std::panic::PanicHookInfo;
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing::Level;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::{fmt, reload};

use crate::config::{Log, LogFormat};

/// Lines that may wait to be written, some 200 bytes each.
const LINES_MAX: usize = 16 * 1024;

static LOG: OnceLock<Running> = OnceLock::new();

/// What can be asked of the running log.
struct Running {
    dropped: ErrorCounter,
    filter: reload::Handle<Targets, Registry>,
    level: Mutex<Level>,
}

/// The running log. Dropped, it writes what is left.
pub struct Telemetry {
    _guard: WorkerGuard,
}

impl Telemetry {
    /// Starts the log of this process; a second start changes nothing.
    pub fn start(log: &Log) -> Self {
        let (writer, guard) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(LINES_MAX)
            .thread_name("log")
            .finish(std::io::stderr());
        let dropped = writer.error_counter();
        let layer = match log.format {
            LogFormat::Json => json(writer).boxed(),
            LogFormat::Text => text(writer).boxed(),
        };
        let (filter, handle) = reload::Layer::new(targets(log.level));
        if tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().is_ok() {
            let _ = LOG.set(Running { dropped, filter: handle, level: Mutex::new(log.level) });
        }
        std::panic::set_hook(Box::new(note_panic));
        Self { _guard: guard }
    }
}

/// Tells where, but not what: the message may hold anything that a request held.
pub(crate) fn note_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    tracing::error!(place, "panicked");
}

/// Lines dropped so far; 0 if there is no log.
pub fn dropped_lines() -> usize {
    LOG.get().map_or(0, |log| log.dropped.dropped_lines())
}

/// The least important events that are logged; `None` if there is no log.
pub fn level() -> Option<Level> {
    LOG.get().map(|log| *log.level.lock().unwrap_or_else(PoisonError::into_inner))
}

/// From now on events down to this level are logged. Says whether there is a log.
pub fn set_level(level: Level) -> bool {
    let Some(log) = LOG.get() else { return false };
    // Held meanwhile, so that of two orders the later one is also the one that is told.
    let mut current = log.level.lock().unwrap_or_else(PoisonError::into_inner);
    let done = log.filter.reload(targets(level)).is_ok();
    if done {
        *current = level;
    }
    done
}

/// Libraries are kept to warnings: at finer levels some of them print what they send, and what is sent
/// to Chat is signed.
fn targets(level: Level) -> Targets {
    let level = LevelFilter::from_level(level);
    Targets::new().with_target("chatgate", level).with_default(level.min(LevelFilter::WARN))
}

fn json<S>(writer: NonBlocking) -> impl tracing_subscriber::Layer<S> + Send + Sync
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    fmt::layer().json().flatten_event(true).with_current_span(false).with_span_list(false).with_writer(writer)
}

fn text<S>(writer: NonBlocking) -> impl tracing_subscriber::Layer<S> + Send + Sync
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    fmt::layer().with_ansi(colours).with_writer(writer)
}
