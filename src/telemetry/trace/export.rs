//! The export of spans: a bounded queue, and one task that sends its spans to the collector in batches.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry::KeyValue;
use opentelemetry_otlp::{RetryPolicy, SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::sync::{Notify, mpsc, oneshot};
use tonic::transport::Endpoint;

use crate::clock;
use crate::config;
use crate::error::display_chain;

/// Capacity of the queue in spans, about 1 KiB each: the spans that a busy gateway ends in a second.
pub(super) const QUEUE_MAX: usize = 8192;
/// Maximum number of spans in a batch: OpenTelemetry's default.
const BATCH_MAX: usize = 512;
/// Interval between two exports. A queue that is half full is exported earlier.
const EXPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Timeout for a batch and its response, including the connection and retries.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout for connecting, including the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval of HTTP/2 pings while a batch is in flight.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Timeout for the response to a ping; the connection is closed after it.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Minimum interval between two log lines about a failing collector.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// Why spans were dropped, in the order of [`ExportStats::dropped`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DropCause {
    /// The queue was full.
    QueueFull,
    /// The export to the collector failed.
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

/// Why spans cannot be exported. The messages contain no secrets.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The TLS library rejects a certificate of `trace.ca_file`.
    #[error("invalid certificate in trace.ca_file")]
    Certificate(#[source] rustls::Error),
    /// The exporter rejects the address or an OpenTelemetry environment variable.
    #[error("invalid trace.otlp or OTEL_* variable: {0}")]
    Exporter(String),
}

/// The queue of spans. [`SpanQueue::run`] exports its spans.
#[derive(Debug)]
pub(super) struct SpanQueue {
    spans: mpsc::Sender<SpanData>,
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
    spans: mpsc::Receiver<SpanData>,
    flush_requests: mpsc::Receiver<oneshot::Sender<()>>,
    exporter: Exporter,
}

impl SpanQueue {
    pub(super) fn new(exporter: Exporter) -> Self {
        let (spans, spans_rx) = mpsc::channel(QUEUE_MAX);
        let (flush_requests, flush_rx) = mpsc::channel(1);
        let consumer = QueueConsumer { spans: spans_rx, flush_requests: flush_rx, exporter };
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
    pub(super) fn put(&self, span: SpanData) {
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
        let Some(QueueConsumer { mut spans, mut flush_requests, exporter }) = consumer else { return };
        let exporter = match exporter.build() {
            Ok(exporter) => exporter,
            // The receiver is dropped here, so from now on every span is dropped and counted.
            Err(error) => return tracing::error!(%error, "cannot export traces; dropping all spans"),
        };
        let mut errors = ErrorLog::default();
        loop {
            let flush_request = tokio::select! {
                request = flush_requests.recv() => request,
                () = self.half_full.notified() => None,
                () = tokio::time::sleep(EXPORT_INTERVAL) => None,
            };
            self.export_all(&mut spans, &exporter, &mut errors).await;
            if let Some(done) = flush_request {
                let _ = done.send(());
            }
        }
    }

    /// Exports the queued spans in batches until one fails. The spans after it stay queued for the next export.
    async fn export_all(&self, spans: &mut mpsc::Receiver<SpanData>, exporter: &SpanExporter, errors: &mut ErrorLog) {
        loop {
            let batch: Vec<SpanData> = std::iter::from_fn(|| spans.try_recv().ok()).take(BATCH_MAX).collect();
            if batch.is_empty() {
                return;
            }
            let (count, is_last) = (batch.len() as u64, batch.len() < BATCH_MAX);
            let result = tokio::time::timeout(TIMEOUT, exporter.export(batch)).await;
            match result.unwrap_or(Err(OTelSdkError::Timeout(TIMEOUT))) {
                Ok(()) => {
                    self.exported.fetch_add(count, Ordering::Relaxed);
                    errors.on_success();
                }
                Err(error) => {
                    self.count_dropped(DropCause::ExportFailed, count);
                    errors.on_error(&error, self.stats());
                    return;
                }
            }
            if is_last {
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
    fn on_error(&mut self, error: &OTelSdkError, stats: ExportStats) {
        let now = clock::now();
        if self.last_warning.is_none_or(|last| now - last >= WARN_INTERVAL) {
            self.last_warning = Some(now);
            let dropped: u64 = stats.dropped.iter().sum();
            tracing::warn!(dropped, error = display_chain(error), "trace export failed; dropping spans");
        }
    }

    fn on_success(&mut self) {
        if self.last_warning.take().is_some() {
            tracing::info!("trace export recovered");
        }
    }
}

/// The connection settings of the collector. chatgate builds the connector, so that TLS has the same settings as for
/// Chat.
#[derive(Debug)]
pub(super) struct Exporter {
    endpoint: Endpoint,
    tls: ClientConfig,
    resource: Resource,
}

impl Exporter {
    pub(super) fn new(trace: &config::Trace) -> Result<Self, TraceError> {
        let tls = config::client_config(&trace.extra_roots, None).map_err(TraceError::Certificate)?;
        let endpoint = Endpoint::from_shared(trace.otlp.to_string())
            .map_err(|error| TraceError::Exporter(display_chain(&error)))?
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT);
        let attributes = trace.resource.iter().map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let sdk =
            [KeyValue::new("telemetry.sdk.name", "opentelemetry"), KeyValue::new("telemetry.sdk.language", "rust")];
        // Later attributes win, so a configured version replaces this one.
        let resource = Resource::builder_empty().with_attributes(sdk).with_attribute(version);
        Ok(Self { endpoint, tls, resource: resource.with_attributes(attributes).build() })
    }

    /// Creates the exporter, without connecting yet. Must run in the runtime that drives the connection.
    fn build(self) -> Result<SpanExporter, TraceError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let https =
            HttpsConnectorBuilder::new().with_tls_config(self.tls).https_or_http().enable_http2().wrap_connector(tcp);
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_channel(self.endpoint.connect_with_connector_lazy(https))
            .with_timeout(TIMEOUT)
            // One retry, for a collector that has just closed an old connection.
            .with_retry_policy(RetryPolicy::recommended().with_max_retries(1))
            .build();
        let mut exporter = exporter.map_err(|error| TraceError::Exporter(display_chain(&error)))?;
        exporter.set_resource(&self.resource);
        Ok(exporter)
    }
}
