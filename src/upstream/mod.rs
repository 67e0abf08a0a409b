//! One call to Chat: signed last, sent over a pooled connection, answered whole or not at all.

mod connect;
mod mask;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE};
use http::uri::{Authority, Scheme};
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::Full;
use hyper_util::client::legacy::connect::capture_connection;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use self::connect::{Connector, RetireAt};
use crate::body::{BodyError, read_whole};
use crate::bounds::{Budget, Held};
use crate::clock;
use crate::config;
use crate::domain::command::CommandName;
use crate::domain::envelope::Envelope;
use crate::error::GatewayError;
use crate::sign::Signer;

/// Largest head of an answer, in bytes.
const ANSWER_HEAD_MAX: usize = 64 * 1024;
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// One app's way to Chat, as one worker thread has it: connections are not shared between threads,
/// nor between apps.
pub struct Upstream {
    client: Client<Connector, Full<Bytes>>,
    scheme: Scheme,
    authority: Authority,
    attempt_timeout: Duration,
    max_answer: usize,
    buffered: Arc<Budget>,
}

/// What is to be sent.
pub struct Call<'a> {
    /// Becomes the path.
    pub name: CommandName<'a>,
    /// Goes out byte for byte.
    pub body: Bytes,
    /// The caller's trace, handed on.
    pub traceparent: Option<HeaderValue>,
}

/// A whole answer of Chat: a JSON object with an integer ErrorCode.
#[derive(Debug)]
pub struct Answer {
    /// 200 unless something between here and Chat changed it.
    pub status: StatusCode,
    /// As Chat sent it.
    pub content_type: Option<HeaderValue>,
    /// As Chat sent it, but for a usersig of ours.
    pub body: Bytes,
    /// 0 is success.
    pub error_code: i64,
    /// Counts the body's bytes as long as it lives.
    pub held: Held,
}

impl Upstream {
    /// Opens no connection yet.
    ///
    /// # Errors
    /// If a certificate that the app names cannot be trusted.
    pub fn new(app: &config::App, settings: &config::Upstream, buffered: Arc<Budget>) -> Result<Self, UpstreamError> {
        let tls = connect::tls_config(&app.extra_roots).map_err(UpstreamError::Certificate)?;
        let connector = Connector::new(tls, settings.connect_timeout, settings.connection_max_age);
        // Without a timer the pool would ignore its idle timeout. A request that was not begun on a
        // connection that Chat has just closed is sent on another; no other retry happens in here.
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_idle_timeout(settings.idle_timeout)
            .pool_max_idle_per_host(settings.max_in_flight)
            .retry_canceled_requests(true)
            .http1_max_buf_size(ANSWER_HEAD_MAX)
            .http2_max_header_list_size(ANSWER_HEAD_MAX as u32)
            .build(connector);
        let authority = app.endpoint.authority().parse().map_err(UpstreamError::Authority)?;
        Ok(Self {
            client,
            scheme: if app.endpoint.tls { Scheme::HTTPS } else { Scheme::HTTP },
            authority,
            attempt_timeout: settings.attempt_timeout,
            max_answer: settings.max_answer,
            buffered,
        })
    }

    /// Signs and sends a call, and reads the whole answer. Permit and room must have been taken.
    ///
    /// Whatever happens ends before `deadline` and before `upstream.attempt_timeout` is over.
    /// Dropping the future breaks the call off, so a write must not be dropped.
    ///
    /// # Errors
    /// `upstream_unreachable`, `upstream_invalid`, `upstream_timeout` or `overloaded`.
    pub async fn send(&self, signer: &Signer, call: Call<'_>, deadline: Instant) -> Result<Answer, GatewayError> {
        let until = deadline.min(clock::now() + self.attempt_timeout);
        match tokio::time::timeout_at(until.into(), self.exchange(signer, call)).await {
            Ok(result) => result,
            Err(_) => Err(GatewayError::UpstreamTimeout),
        }
    }

    async fn exchange(&self, signer: &Signer, call: Call<'_>) -> Result<Answer, GatewayError> {
        let signature = signer.current(clock::unix_now());
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(signature.target(call.name, clock::call_number()));
        let mut request = Request::new(Full::new(call.body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_parts(parts).expect("scheme, authority and path are there");
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, JSON);
        headers.insert(ACCEPT, JSON);
        if let Some(traceparent) = call.traceparent {
            headers.insert(TRACEPARENT, traceparent);
        }

        let connection = capture_connection(&mut request);
        let response = self.client.request(request).await.map_err(|error| unreachable(&error))?;
        // An old connection finishes what it carries and goes, so that the next one asks DNS again.
        if response.extensions().get::<RetireAt>().is_some_and(|RetireAt(at)| clock::now() >= *at)
            && let Some(connection) = &*connection.connection_metadata()
        {
            connection.poison();
        }
        let (head, body) = response.into_parts();
        if head.headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
            return Err(GatewayError::UpstreamInvalid("it is compressed, which was not asked for"));
        }
        let (body, held) = read_whole(body, self.max_answer, &self.buffered).await.map_err(|error| match error {
            BodyError::TooLarge => GatewayError::UpstreamInvalid("it is larger than upstream.max_answer"),
            BodyError::NoRoom => GatewayError::Overloaded("buffered bytes (server.max_buffered)"),
            BodyError::Broken(error) => GatewayError::UpstreamUnreachable {
                what: "the connection broke before the answer was whole",
                cause: chain(&error),
            },
        })?;
        let error_code = Envelope::parse(&body)
            .map_err(|_| GatewayError::UpstreamInvalid("it is no JSON object with an integer ErrorCode"))?
            .error_code;
        let content_type = head.headers.get(CONTENT_TYPE).cloned();
        Ok(Answer { status: head.status, content_type, body: mask::mask(body, signature.usersig()), error_code, held })
    }
}

/// An app whose way to Chat cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// A certificate of `ca_file`.
    #[error("a certificate of ca_file cannot be trusted")]
    Certificate(#[source] rustls::Error),
    /// The endpoint's host.
    #[error("the endpoint's host is not valid")]
    Authority(#[source] http::uri::InvalidUri),
}

/// What the caller reads, and what the log has in addition. Neither names the request's target: it
/// holds the signature.
fn unreachable(error: &ClientError) -> GatewayError {
    let what = if error.is_connect() {
        "name lookup, connecting or TLS failed, nothing was sent"
    } else {
        "the connection broke before an answer came"
    };
    GatewayError::UpstreamUnreachable { what, cause: chain(error) }
}

/// An error and what caused it, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
