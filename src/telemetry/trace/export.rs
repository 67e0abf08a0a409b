//! The way to the collector: a bounded queue, and one task that empties it in batches.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry::KeyValue;
use opentelemetry_otlp::{RetryPolicy, SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use rustls::ClientConfig;
use tokio::sync::{Notify, mpsc, oneshot};
use tonic::transport::Endpoint;

use crate::clock;
use crate::config;
use crate::error::display_chain;

/// Spans that may wait, some 1 KiB each: what a busy gateway ends in a second.
pub const QUEUE_MAX: usize = 8192;
/// Spans in one message: OpenTelemetry's own default.
const BATCH_MAX: usize = 512;
/// How often the queue is emptied, unless it is half full before.
const EVERY: Duration = Duration::from_secs(1);
/// For one message with its answer, connecting and trying again included.
const TIMEOUT: Duration = Duration::from_secs(5);
/// For a connection with its TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that answers no ping for so long, while a message is under way, is given up.
const PING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// A collector that is away is complained of so often.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Why spans were dropped, in the order of [`ExportStats::dropped`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drops {
    /// There were too many for the queue.
    QueueFull,
    /// The collector did not take them.
    ExportFailed,
}

impl Drops {
    /// Each of them.
    pub const ALL: [Drops; 2] = [Drops::QueueFull, Drops::ExportFailed];

    /// As a label.
    pub const fn label(self) -> &'static str {
        match self {
            Drops::QueueFull => "queue_full",
            Drops::ExportFailed => "export_failed",
        }
    }
}

/// What became of spans so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportStats {
    /// Those that wait.
    pub queued: usize,
    /// Those that the collector has taken.
    pub exported: u64,
    /// Those that are lost, as [`Drops::ALL`] lists the reasons.
    pub dropped: [u64; Drops::ALL.len()],
}

/// A collector that cannot be talked to. The messages hold no secret.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// A certificate of `trace.ca_file`.
    #[error("a certificate of trace.ca_file cannot be trusted")]
    Certificate(#[source] rustls::Error),
    /// The address, or the variables that OpenTelemetry reads.
    #[error("trace.otlp cannot be used: {0}")]
    Exporter(String),
}

/// Spans that wait, and the end that empties it.
#[derive(Debug)]
pub(super) struct Queue {
    spans: mpsc::Sender<SpanData>,
    orders: mpsc::Sender<oneshot::Sender<()>>,
    /// Rung when the queue is half full.
    bell: Notify,
    /// Taken by the task that empties it.
    end: Mutex<Option<End>>,
    exported: AtomicU64,
    dropped: [AtomicU64; Drops::ALL.len()],
}

/// What the task has to itself.
#[derive(Debug)]
struct End {
    spans: mpsc::Receiver<SpanData>,
    orders: mpsc::Receiver<oneshot::Sender<()>>,
    outlet: Exporter,
}

impl Queue {
    pub(super) fn new(outlet: Exporter) -> Self {
        let (spans, spans_end) = mpsc::channel(QUEUE_MAX);
        let (orders, orders_end) = mpsc::channel(1);
        let end = End { spans: spans_end, orders: orders_end, outlet };
        let (bell, end) = (Notify::new(), Mutex::new(Some(end)));
        Self { spans, orders, bell, end, exported: AtomicU64::default(), dropped: Default::default() }
    }

    /// Takes a span, or drops it if there is no room. Never waits.
    pub(super) fn put(&self, span: SpanData) {
        if self.spans.try_send(span).is_err() {
            self.count(Drops::QueueFull, 1);
        } else if self.spans.capacity() <= QUEUE_MAX / 2 {
            self.bell.notify_one();
        }
    }

    pub(super) fn figures(&self) -> ExportStats {
        ExportStats {
            queued: QUEUE_MAX - self.spans.capacity(),
            exported: self.exported.load(Ordering::Relaxed),
            dropped: self.dropped.each_ref().map(|count| count.load(Ordering::Relaxed)),
        }
    }

    pub(super) async fn run(&self) {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(End { mut spans, mut orders, outlet }) = end else { return };
        let exporter = match outlet.exporter() {
            Ok(exporter) => exporter,
            // The receiver goes: from now on all are dropped, and counted.
            Err(error) => return tracing::error!("traces are not exported: {error}"),
        };
        let mut complaints = ErrorLog::default();
        loop {
            let order = tokio::select! {
                order = orders.recv() => order,
                () = self.bell.notified() => None,
                () = tokio::time::sleep(EVERY) => None,
            };
            self.empty(&mut spans, &exporter, &mut complaints).await;
            if let Some(done) = order {
                let _ = done.send(());
            }
        }
    }

    /// Sends what there is, batch by batch, until one fails: the others wait for the next time, or are crowded out.
    async fn empty(&self, spans: &mut mpsc::Receiver<SpanData>, exporter: &SpanExporter, complaints: &mut ErrorLog) {
        loop {
            let batch: Vec<SpanData> = std::iter::from_fn(|| spans.try_recv().ok()).take(BATCH_MAX).collect();
            if batch.is_empty() {
                return;
            }
            let (count, is_last) = (batch.len() as u64, batch.len() < BATCH_MAX);
            let sent = tokio::time::timeout(TIMEOUT, exporter.export(batch)).await;
            match sent.unwrap_or(Err(OTelSdkError::Timeout(TIMEOUT))) {
                Ok(()) => {
                    self.exported.fetch_add(count, Ordering::Relaxed);
                    complaints.over();
                }
                Err(error) => {
                    self.count(Drops::ExportFailed, count);
                    complaints.about(&error, self.figures());
                    return;
                }
            }
            if is_last {
                return;
            }
        }
    }

    pub(super) async fn flush(&self, patience: Duration) {
        let flushing = async {
            let (done, is_done) = oneshot::channel();
            if self.orders.send(done).await.is_ok() {
                let _ = is_done.await;
            }
        };
        let _ = tokio::time::timeout(patience, flushing).await;
        let left = self.figures().queued;
        if left > 0 {
            tracing::warn!(spans = left, "spans are lost: the collector has not taken them in time");
        }
    }

    fn count(&self, why: Drops, spans: u64) {
        self.dropped[why as usize].fetch_add(spans, Ordering::Relaxed);
    }
}

/// Speaks up when the collector is away, and then now and then.
#[derive(Default)]
struct ErrorLog(Option<Instant>);

impl ErrorLog {
    fn about(&mut self, error: &OTelSdkError, figures: ExportStats) {
        let now = clock::now();
        if self.0.is_none_or(|last| now - last >= COMPLAIN_EVERY) {
            self.0 = Some(now);
            let dropped: u64 = figures.dropped.iter().sum();
            tracing::warn!(dropped, error = display_chain(error), "the collector of [trace] takes no spans");
        }
    }

    fn over(&mut self) {
        if self.0.take().is_some() {
            tracing::info!("the collector of [trace] takes spans again");
        }
    }
}

/// How the collector is reached. The connection is of our own making, so that TLS is the same as to Chat.
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
            .http2_keep_alive_interval(PING.0)
            .keep_alive_timeout(PING.1);
        let attributes = trace.resource.iter().map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let sdk =
            [KeyValue::new("telemetry.sdk.name", "opentelemetry"), KeyValue::new("telemetry.sdk.language", "rust")];
        // Later ones win: whoever names a version means it.
        let resource = Resource::builder_empty().with_attributes(sdk).with_attribute(version);
        Ok(Self { endpoint, tls, resource: resource.with_attributes(attributes).build() })
    }

    /// Within the runtime that is to carry the connection. Nothing is sent yet.
    fn exporter(self) -> Result<SpanExporter, TraceError> {
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
            // Once more, for a collector that has just closed an old connection.
            .with_retry_policy(RetryPolicy::recommended().with_max_retries(1))
            .build();
        let mut exporter = exporter.map_err(|error| TraceError::Exporter(display_chain(&error)))?;
        exporter.set_resource(&self.resource);
        Ok(exporter)
    }
}
