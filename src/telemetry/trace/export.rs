//! The export of spans: a bounded queue, and one task that sends its spans to the collector in batches.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};

use super::Span;
use super::collector::Collector;
use crate::clock;

/// Capacity of the queue in spans, about 1 KiB each: the spans that a busy gateway ends in a second.
pub(super) const QUEUE_MAX: usize = 8192;
/// Maximum number of spans in a batch: OpenTelemetry's default.
const BATCH_MAX: usize = 512;
/// Interval between two exports. A queue that is half full is exported earlier.
const EXPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum interval between two log lines about a failing collector.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// Why spans were dropped, in the order of [`ExportStats::dropped`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DropCause {
    /// The queue was full.
    QueueFull,
    /// The collector did not accept the span.
    ExportFailed,
}

impl DropCause {
    /// All causes.
    pub(crate) const ALL: [DropCause; 2] = [DropCause::QueueFull, DropCause::ExportFailed];

    /// Returns the value of the label `cause`.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            DropCause::QueueFull => "queue_full",
            DropCause::ExportFailed => "export_failed",
        }
    }
}

/// Counts of spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExportStats {
    /// Spans in the queue.
    pub(crate) queued: usize,
    /// Spans accepted by the collector.
    pub(crate) exported: u64,
    /// Dropped spans, in the order of [`DropCause::ALL`].
    pub(crate) dropped: [u64; DropCause::ALL.len()],
}

/// The queue of spans. [`SpanQueue::run`] exports its spans.
#[derive(Debug)]
pub(super) struct SpanQueue {
    spans: mpsc::Sender<Span>,
    flush_requests: mpsc::Sender<oneshot::Sender<()>>,
    /// Notified when the queue is half full.
    half_full: Notify,
    /// Taken by the first call of [`SpanQueue::run`].
    consumer: Mutex<Option<QueueConsumer>>,
    exported: AtomicU64,
    dropped: [AtomicU64; DropCause::ALL.len()],
}

/// What the task that exports spans owns.
#[derive(Debug)]
struct QueueConsumer {
    spans: mpsc::Receiver<Span>,
    flush_requests: mpsc::Receiver<oneshot::Sender<()>>,
    collector: Collector,
}

impl SpanQueue {
    pub(super) fn new(collector: Collector) -> Self {
        let (spans, spans_rx) = mpsc::channel(QUEUE_MAX);
        let (flush_requests, flush_rx) = mpsc::channel(1);
        let consumer = QueueConsumer { spans: spans_rx, flush_requests: flush_rx, collector };
        Self {
            spans,
            flush_requests,
            half_full: Notify::new(),
            consumer: Mutex::new(Some(consumer)),
            exported: AtomicU64::default(),
            dropped: Default::default(),
        }
    }

    /// Adds a span, or drops it if the queue is full. Never waits.
    pub(super) fn put(&self, span: Span) {
        if self.spans.try_send(span).is_err() {
            self.count_dropped(DropCause::QueueFull, 1);
        } else if self.spans.capacity() <= QUEUE_MAX / 2 {
            self.half_full.notify_one();
        }
    }

    pub(super) fn stats(&self) -> ExportStats {
        ExportStats {
            queued: QUEUE_MAX - self.spans.capacity(),
            exported: self.exported.load(Ordering::Relaxed),
            dropped: self.dropped.each_ref().map(|count| count.load(Ordering::Relaxed)),
        }
    }

    pub(super) async fn run(&self) {
        let consumer = self.consumer.lock().take();
        let Some(QueueConsumer { mut spans, mut flush_requests, collector }) = consumer else { return };
        let mut errors = ErrorLog::default();
        loop {
            let flush_request = tokio::select! {
                request = flush_requests.recv() => request,
                () = self.half_full.notified() => None,
                () = tokio::time::sleep(EXPORT_INTERVAL) => None,
            };
            self.export_all(&mut spans, &collector, &mut errors).await;
            if let Some(done) = flush_request {
                let _ = done.send(());
            }
        }
    }

    /// Exports the queued spans in batches until one fails. The spans after it stay queued for the next export.
    async fn export_all(&self, spans: &mut mpsc::Receiver<Span>, collector: &Collector, errors: &mut ErrorLog) {
        loop {
            let batch: Vec<Span> = std::iter::from_fn(|| spans.try_recv().ok()).take(BATCH_MAX).collect();
            if batch.is_empty() {
                return;
            }
            let count = batch.len() as u64;
            match collector.send(&batch).await {
                Ok(rejected) => {
                    let rejected = rejected.min(count);
                    self.exported.fetch_add(count - rejected, Ordering::Relaxed);
                    if rejected == 0 {
                        errors.on_success();
                    } else {
                        self.count_dropped(DropCause::ExportFailed, rejected);
                        errors.on_error(&"the collector rejected some of the spans", self.stats());
                    }
                }
                Err(error) => {
                    self.count_dropped(DropCause::ExportFailed, count);
                    errors.on_error(&error, self.stats());
                    return;
                }
            }
            if batch.len() < BATCH_MAX {
                return;
            }
        }
    }

    pub(super) async fn flush(&self, timeout: Duration) {
        let flushing = async {
            let (done, is_done) = oneshot::channel();
            if self.flush_requests.send(done).await.is_ok() {
                let _ = is_done.await;
            }
        };
        let _ = tokio::time::timeout(timeout, flushing).await;
        let left = self.stats().queued;
        if left > 0 {
            tracing::warn!(spans = left, "trace flush timed out; dropping the queued spans");
        }
    }

    fn count_dropped(&self, cause: DropCause, spans: u64) {
        self.dropped[cause as usize].fetch_add(spans, Ordering::Relaxed);
    }
}

/// Logs the failures of the collector, at most once per [`WARN_INTERVAL`], and its recovery.
#[derive(Default)]
struct ErrorLog {
    last_warning: Option<Instant>,
}

impl ErrorLog {
    fn on_error(&mut self, error: &dyn Display, stats: ExportStats) {
        let now = clock::now();
        if self.last_warning.is_none_or(|last| now - last >= WARN_INTERVAL) {
            self.last_warning = Some(now);
            let dropped: u64 = stats.dropped.iter().sum();
            tracing::warn!(dropped, %error, "trace export failed; dropping spans");
        }
    }

    fn on_success(&mut self) {
        if self.last_warning.take().is_some() {
            tracing::info!("trace export recovered");
        }
    }
}
