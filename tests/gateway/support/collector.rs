//! A trace collector: accepts OTLP over HTTP/1.1, with or without TLS, or fails on demand.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span as Sent;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::eventually;
use super::secrets;
use super::wire::Stream;

/// A collector on a loopback port. Dropping it closes the port and searches all received bytes for secrets.
pub(crate) struct Collector {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

/// How the collector treats a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Accepts it.
    Accept,
    /// Accepts it after this delay.
    Delayed(Duration),
    /// Reads it and never responds.
    Silent,
    /// Responds with this status, and with `Retry-After: 1` if it is 503.
    Fail(u16),
    /// Responds once with status 503 and `Retry-After: 1`, then accepts.
    BusyOnce,
    /// Accepts it, and reports this number of spans as rejected.
    Reject(i64),
    /// Accepts it, with a response body of 1 MiB.
    Verbose,
}

struct Shared {
    mode: Mutex<Mode>,
    spans: Mutex<Vec<Span>>,
    resource: Mutex<Vec<KeyValue>>,
    bytes: Mutex<Vec<u8>>,
    head: Mutex<HeaderMap>,
    path: Mutex<String>,
    requests: AtomicUsize,
    connections: AtomicUsize,
}

/// A received span.
#[derive(Debug, Clone)]
pub(crate) struct Span(Sent);

impl Span {
    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    pub(crate) fn trace_id(&self) -> String {
        hex(&self.0.trace_id)
    }

    pub(crate) fn id(&self) -> String {
        hex(&self.0.span_id)
    }

    /// Returns the parent span's ID, empty if there is none.
    pub(crate) fn parent_id(&self) -> String {
        hex(&self.0.parent_span_id)
    }

    /// Returns whether the span's kind is server (2). Any kind but server and client (3) is an error.
    pub(crate) fn is_request(&self) -> bool {
        assert!([2, 3].contains(&self.0.kind), "{self:?}");
        self.0.kind == 2
    }

    /// Returns an attribute as text.
    pub(crate) fn attribute(&self, name: &str) -> Option<String> {
        find_attribute(&self.0.attributes, name)
    }

    /// Asserts attributes; an empty value means that the attribute must be absent.
    #[track_caller]
    pub(crate) fn assert_attributes(&self, wanted: &[(&str, &str)]) {
        for (name, value) in wanted {
            assert_eq!(self.attribute(name).unwrap_or_default(), *value, "{name} in {self:#?}");
        }
    }

    pub(crate) fn attribute_names(&self) -> Vec<&str> {
        self.0.attributes.iter().map(|attribute| attribute.key.as_str()).collect()
    }

    /// Returns whether the span's status is an error. The status must have no message.
    pub(crate) fn is_error(&self) -> bool {
        let status = self.0.status.clone().unwrap_or_default();
        assert!([0, 2].contains(&status.code) && status.message.is_empty(), "{self:?}");
        status.code == 2
    }

    /// Returns the IDs of linked spans.
    pub(crate) fn links(&self) -> Vec<String> {
        self.0.links.iter().map(|link| hex(&link.span_id)).collect()
    }

    /// Returns start and end, in nanoseconds since 1970.
    pub(crate) fn times(&self) -> (u64, u64) {
        (self.0.start_time_unix_nano, self.0.end_time_unix_nano)
    }
}

impl Collector {
    /// Starts without TLS on a free port.
    pub(crate) async fn start() -> Collector {
        Collector::start_with(None).await
    }

    /// Starts with TLS and this certificate.
    pub(crate) async fn start_tls(tls: TlsAcceptor) -> Collector {
        Collector::start_with(Some(tls)).await
    }

    async fn start_with(tls: Option<TlsAcceptor>) -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared {
            mode: Mutex::new(Mode::Accept),
            spans: Mutex::default(),
            resource: Mutex::default(),
            bytes: Mutex::default(),
            head: Mutex::default(),
            path: Mutex::default(),
            requests: AtomicUsize::default(),
            connections: AtomicUsize::default(),
        });
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept(listener, tls, shared.clone())));
        Collector { address, shared, stop }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Returns the line of `[trace]` that names this collector.
    pub(crate) fn config_line(&self) -> String {
        format!("otlp = \"http://{}\"", self.address)
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        *self.shared.mode.lock() = mode;
    }

    /// Returns all spans so far.
    pub(crate) fn spans(&self) -> Vec<Span> {
        self.shared.spans.lock().clone()
    }

    /// Waits for `count` spans, and asserts that no more have arrived.
    pub(crate) async fn wait_for_spans(&self, count: usize) -> Vec<Span> {
        let what = format!("{count} spans");
        let spans = eventually(&what, async || Some(self.spans()).filter(|spans| spans.len() >= count)).await;
        assert_eq!(spans.len(), count, "{spans:#?}");
        spans
    }

    /// Waits for the request span with this outcome.
    pub(crate) async fn wait_for_request_span(&self, outcome: &str) -> Span {
        let matches = |span: &Span| span.is_request() && span.attribute("chatgate.outcome").as_deref() == Some(outcome);
        eventually(&format!("the request span with the outcome {outcome}"), async || {
            self.spans().into_iter().find(matches)
        })
        .await
    }

    /// Returns a resource attribute of the spans.
    pub(crate) fn resource(&self, name: &str) -> Option<String> {
        find_attribute(&self.shared.resource.lock(), name)
    }

    /// Returns a header of the last message.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let head = self.shared.head.lock();
        head.get(name).map(|value| value.to_str().expect("text").to_owned())
    }

    /// Returns the path of the last message.
    pub(crate) fn path(&self) -> String {
        self.shared.path.lock().clone()
    }

    /// Returns the number of messages so far, accepted or not.
    pub(crate) fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// Returns the number of connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Returns all received bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.shared.bytes.lock().clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop.cancel();
        if !std::thread::panicking() {
            secrets::assert_none_in("a span", &self.bytes());
        }
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        shared.connections.fetch_add(1, Ordering::SeqCst);
        let (tls, shared) = (tls.clone(), shared.clone());
        tokio::spawn(async move {
            match tls {
                None => serve(stream, shared).await,
                // A client that does not trust the certificate ends here.
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, shared).await;
                    }
                }
            }
        });
    }
}

async fn serve(stream: impl Stream + 'static, shared: Arc<Shared>) {
    let service = service_fn(move |request| respond(request, shared.clone()));
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn respond(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Full<Bytes>>, Infallible> {
    assert_eq!(request.method(), Method::POST);
    assert_eq!(request.headers()["content-type"], "application/x-protobuf");
    *shared.path.lock() = request.uri().to_string();
    *shared.head.lock() = request.headers().clone();
    shared.requests.fetch_add(1, Ordering::SeqCst);
    let Ok(body) = request.into_body().collect().await else { return Ok(reply(400, Bytes::new())) };
    let body = body.to_bytes();
    let mode = *shared.mode.lock();
    let mut response = Vec::new();
    match mode {
        Mode::Accept => {}
        Mode::Delayed(delay) => tokio::time::sleep(delay).await,
        Mode::Silent => std::future::pending().await,
        Mode::Fail(status) => return Ok(reply(status, Bytes::new())),
        Mode::BusyOnce => {
            *shared.mode.lock() = Mode::Accept;
            return Ok(reply(503, Bytes::new()));
        }
        Mode::Reject(rejected_spans) => {
            let error_message = "a reason of the collector".to_owned();
            let partial_success = Some(ExportTracePartialSuccess { rejected_spans, error_message });
            response = ExportTraceServiceResponse { partial_success }.encode_to_vec();
        }
        Mode::Verbose => response = vec![b'x'; 1024 * 1024],
    }
    let message = ExportTraceServiceRequest::decode(&*body).expect("an OTLP message");
    shared.bytes.lock().extend_from_slice(&body);
    for group in message.resource_spans {
        *shared.resource.lock() = group.resource.unwrap_or_default().attributes;
        let spans = group.scope_spans.into_iter().flat_map(|scope| scope.spans);
        shared.spans.lock().extend(spans.map(Span));
    }
    Ok(reply(200, response.into()))
}

fn reply(status: u16, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::builder().status(status).header("content-type", "application/x-protobuf");
    if status == 503 {
        response = response.header("retry-after", "1");
    }
    response.body(Full::new(body)).expect("valid")
}

fn find_attribute(attributes: &[KeyValue], name: &str) -> Option<String> {
    let mut found = attributes.iter().filter(|attribute| attribute.key == name);
    let value = found.next()?.value.clone()?.value?;
    assert!(found.next().is_none(), "repeated attribute {name}");
    Some(match value {
        any_value::Value::StringValue(text) => text,
        any_value::Value::IntValue(number) => number.to_string(),
        other => panic!("{name} is {other:?}"),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
