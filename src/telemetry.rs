//! The log: structured lines on stderr, written by a thread of their own, so that a log nobody reads
//! holds up no request. Lines that find no room are dropped and counted.

use std::io::IsTerminal as _;

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

use crate::config::{Log, LogFormat};

/// Lines that may wait to be written, some 200 bytes each.
const LINES_MAX: usize = 16 * 1024;

/// The running log. Dropped, it writes what is left.
pub struct Telemetry {
    _guard: WorkerGuard,
    dropped: ErrorCounter,
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
        // Libraries are kept to warnings: at finer levels some of them print what they send, and
        // what is sent to Chat is signed.
        let level = LevelFilter::from_level(log.level);
        let filter = tracing_subscriber::filter::Targets::new()
            .with_target("chatgate", level)
            .with_default(level.min(LevelFilter::WARN));
        let _ = tracing_subscriber::registry().with(layer.with_filter(filter)).try_init();
        std::panic::set_hook(Box::new(|panic| {
            // Where, but not what: the message may hold anything that a request held.
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            tracing::error!(place, "panicked");
        }));
        Self { _guard: guard, dropped }
    }

    /// Lines dropped so far.
    pub fn dropped_lines(&self) -> usize {
        self.dropped.dropped_lines()
    }
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
