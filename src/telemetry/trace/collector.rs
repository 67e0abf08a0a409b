//! The collector: posts batches of spans to it in OTLP over HTTP (opentelemetry.io/docs/specs/otlp/#otlphttp).
//!
//! chatgate builds the connector, so that TLS has the same settings as for Chat. A batch is sent at most twice: again
//! only if the collector could not be reached or answered with a status that the specification calls retryable.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::Span;
use super::otlp::{self, Source};
use crate::clock;
use crate::config;
use crate::error::display_chain;

/// Timeout for a batch and its response, including the connection and the retry.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout for a TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time after which an idle connection is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum size of the headers of a response, in bytes.
const HEAD_LEN_MAX: usize = 64 * 1024;
/// Maximum size of the body of a response, in bytes. A larger one is not read.
const RESPONSE_LEN_MAX: usize = 64 * 1024;
/// Mean delay before the retry, if the collector names none.
const RETRY_DELAY: Duration = Duration::from_secs(1);

const USER_AGENT_VALUE: &str = concat!("chatgate/", env!("CARGO_PKG_VERSION"));

/// Why spans cannot be exported. The messages contain no secrets.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The TLS library rejects a certificate of `trace.ca_file`.
    #[error("invalid certificate in trace.ca_file")]
    Certificate(#[source] rustls::Error),
    /// `trace.otlp` is not a URI.
    #[error("invalid trace.otlp")]
    Url(#[source] http::uri::InvalidUri),
}

/// Why the collector did not accept a batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ExportError {
    /// No response, because the connection failed or broke.
    #[error("{0}")]
    Unreachable(String),
    /// A status other than 200, and the time to wait before the retry.
    #[error("the collector answered with HTTP status {}", .0.as_u16())]
    Status(StatusCode, Option<Duration>),
    /// No response within [`TIMEOUT`].
    #[error("no response within {} s", TIMEOUT.as_secs())]
    TimedOut,
}

/// A client of the collector. It connects when it sends the first batch.
#[derive(Debug)]
pub(super) struct Collector {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    url: Uri,
    headers: HeaderMap,
    source: Source,
}

impl Collector {
    pub(super) fn new(trace: &config::Trace) -> Result<Self, TraceError> {
        let tls = config::client_config(&trace.extra_roots, None).map_err(TraceError::Certificate)?;
        let url = trace.otlp.to_string().parse().map_err(TraceError::Url)?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let https =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .http1_max_buf_size(HEAD_LEN_MAX)
            .build(https);
        let mut headers: HeaderMap = trace.headers.iter().cloned().collect();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        headers.entry(USER_AGENT).or_insert(HeaderValue::from_static(USER_AGENT_VALUE));
        Ok(Self { client, url, headers, source: Source::new(&trace.resource) })
    }

    /// Sends a batch within [`TIMEOUT`]. Returns the number of its spans that the collector rejected.
    ///
    /// # Errors
    /// If the collector did not accept the batch, or its response did not arrive in time.
    pub(super) async fn send(&self, spans: &[Span]) -> Result<u64, ExportError> {
        let message = Bytes::from(self.source.encode(spans));
        let deadline = clock::now() + TIMEOUT;
        let sending = async {
            let error = match self.post(message.clone()).await {
                Ok(rejected) => return Ok(rejected),
                Err(error) => error,
            };
            match error.retry_delay() {
                // A collector that asks for more time would answer the same before it.
                Some(delay) if clock::now() + delay < deadline => tokio::time::sleep(delay).await,
                _ => return Err(error),
            }
            self.post(message).await
        };
        tokio::time::timeout_at(deadline.into(), sending).await.unwrap_or(Err(ExportError::TimedOut))
    }

    async fn post(&self, message: Bytes) -> Result<u64, ExportError> {
        let mut request = Request::post(self.url.clone()).body(Full::new(message)).expect("method and URI are valid");
        *request.headers_mut() = self.headers.clone();
        let sent = self.client.request(request).await;
        let response = sent.map_err(|error| ExportError::Unreachable(display_chain(&error)))?;
        let (status, delay) = (response.status(), retry_after(&response));
        // Read in every case, so that the connection can be used again.
        let body = read_response(response).await;
        if status == StatusCode::OK { Ok(otlp::rejected_spans(&body)) } else { Err(ExportError::Status(status, delay)) }
    }
}

impl ExportError {
    /// Returns the delay before the retry; `None` if the same batch would fail again.
    fn retry_delay(&self) -> Option<Duration> {
        match self {
            ExportError::Status(status, delay) if is_retryable(*status) => Some(delay.unwrap_or_else(random_delay)),
            ExportError::Unreachable(_) => Some(random_delay()),
            ExportError::Status(..) | ExportError::TimedOut => None,
        }
    }
}

/// Returns whether the specification of OTLP calls the status retryable.
fn is_retryable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504)
}

/// Returns from half to one and a half of [`RETRY_DELAY`], so that replicas do not retry at the same time.
fn random_delay() -> Duration {
    RETRY_DELAY.mul_f64(0.5 + f64::from(clock::random_u32()) / f64::from(u32::MAX))
}

/// Returns `Retry-After` if it is a number of seconds.
fn retry_after(response: &Response<Incoming>) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse::<u32>().ok()?;
    Some(Duration::from_secs(seconds.into()))
}

/// Returns the body; empty if it is too large or broken, because the status has already decided.
async fn read_response(response: Response<Incoming>) -> Bytes {
    let body = Limited::new(response.into_body(), RESPONSE_LEN_MAX).collect().await;
    body.map(|body| body.to_bytes()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_retryable_statuses_have_a_delay() {
        let delay = |status: u16, named| {
            ExportError::Status(StatusCode::from_u16(status).expect("a status"), named).retry_delay()
        };
        let named = Some(Duration::from_secs(3));
        for status in [429, 502, 503, 504] {
            assert_eq!(delay(status, named), named);
            let own = delay(status, None).expect("retryable");
            assert!((RETRY_DELAY / 2..=RETRY_DELAY * 3 / 2).contains(&own), "{own:?}");
        }
        for status in [201, 301, 400, 401, 404, 415, 500, 501] {
            assert_eq!(delay(status, named), None, "{status}");
        }
        assert!(ExportError::Unreachable(String::new()).retry_delay().is_some());
        assert_eq!(ExportError::TimedOut.retry_delay(), None);
    }
}
