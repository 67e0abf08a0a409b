//! One call to Chat: connected first, signed last, answered whole or not at all.

mod connect;
mod mask;
mod pool;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE, HOST};
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::Full;

use self::connect::Connector;
use self::pool::{Pool, Unsent};
use crate::body::{BodyError, read_whole};
use crate::bounds::{Budget, Held};
use crate::clock;
use crate::config;
use crate::domain::command::CommandName;
use crate::domain::envelope::Envelope;
use crate::error::{GatewayError, chain};
use crate::sign::Signer;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const NOT_SENT: &str = "name lookup, connecting or TLS failed, nothing was sent";
const BROKEN: &str = "the connection broke before the answer was whole";
const JSON: HeaderValue = HeaderValue::from_static("application/json");

pub use self::pool::Lease;

/// One app's way to Chat, as one worker thread has it: connections are not shared between threads,
/// nor between apps.
pub struct Upstream {
    pool: Pool,
    host: HeaderValue,
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
        let authority = app.endpoint.authority();
        let scheme = if app.endpoint.tls { "https" } else { "http" };
        let endpoint = format!("{scheme}://{authority}/").parse::<Uri>().map_err(UpstreamError::Endpoint)?;
        Ok(Self {
            pool: Pool::new(connector, endpoint, settings.idle_timeout, settings.max_in_flight),
            host: HeaderValue::try_from(authority).map_err(UpstreamError::Host)?,
            attempt_timeout: settings.attempt_timeout,
            max_answer: settings.max_answer,
            buffered,
        })
    }

    /// A connection for one call, to be had before its permit: connecting takes a time that must not
    /// lie between permit and socket. Bounded by `upstream.connect_timeout`.
    ///
    /// # Errors
    /// `upstream_unreachable`; nothing was sent.
    pub async fn connect(&self) -> Result<Lease, GatewayError> {
        self.pool.take().await.map_err(|fault| unreachable(NOT_SENT, &*fault))
    }

    /// Takes a connection back that no call was sent on.
    pub fn give_back(&self, lease: Lease) {
        self.pool.give_back(lease);
    }

    /// Signs and sends a call, and reads the whole answer. Permit and room must have been taken.
    ///
    /// Whatever happens ends before `deadline` and before `upstream.attempt_timeout` is over.
    /// Dropping the future breaks the call off, so a write must not be dropped.
    ///
    /// # Errors
    /// `upstream_unreachable`, `upstream_invalid`, `upstream_timeout` or `overloaded`.
    pub async fn send(
        &self,
        lease: Lease,
        signer: &Signer,
        call: Call<'_>,
        deadline: Instant,
    ) -> Result<Answer, GatewayError> {
        let until = deadline.min(clock::now() + self.attempt_timeout);
        match tokio::time::timeout_at(until.into(), self.exchange(lease, signer, call)).await {
            Ok(result) => result,
            Err(_) => Err(GatewayError::UpstreamTimeout),
        }
    }

    async fn exchange(&self, mut lease: Lease, signer: &Signer, call: Call<'_>) -> Result<Answer, GatewayError> {
        let signature = signer.current(clock::unix_now());
        let mut request = Request::new(Full::new(call.body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = signature.target(call.name, clock::call_number()).into();
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        headers.insert(CONTENT_TYPE, JSON);
        headers.insert(ACCEPT, JSON);
        if let Some(traceparent) = call.traceparent {
            headers.insert(TRACEPARENT, traceparent);
        }

        let response = loop {
            match lease.send(request).await {
                Ok(response) => break response,
                // Chat had closed the connection before a byte of this call left: a new one is as good.
                Err(Unsent::Whole(whole)) if lease.reused => {
                    request = *whole;
                    lease = self.pool.open().await.map_err(|fault| unreachable(NOT_SENT, &*fault))?;
                }
                Err(Unsent::Whole(_)) => {
                    let cause = "a new connection was closed at once".to_owned();
                    return Err(GatewayError::UpstreamUnreachable { what: NOT_SENT, cause });
                }
                Err(Unsent::Perhaps(error)) => return Err(unreachable(BROKEN, &error)),
            }
        };
        let (head, body) = response.into_parts();
        if head.headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
            return Err(GatewayError::UpstreamInvalid("it is compressed, which was not asked for"));
        }
        let (body, held) = read_whole(body, self.max_answer, &self.buffered).await.map_err(|error| match error {
            BodyError::TooLarge => GatewayError::UpstreamInvalid("it is larger than upstream.max_answer"),
            BodyError::NoRoom => GatewayError::Overloaded("buffered bytes (server.max_buffered)"),
            BodyError::Broken(error) => unreachable(BROKEN, &error),
        })?;
        self.pool.give_back(lease);
        let error_code = Envelope::parse(&body)
            .map_err(|_| GatewayError::UpstreamInvalid("it is no JSON object with an integer ErrorCode"))?
            .error_code;
        let content_type = head.headers.get(CONTENT_TYPE).map(|value| mask::mask_header(value, signature.usersig()));
        Ok(Answer { status: head.status, content_type, body: mask::mask(body, signature.usersig()), error_code, held })
    }
}

/// An app whose way to Chat cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// A certificate of `ca_file`.
    #[error("a certificate of ca_file cannot be trusted")]
    Certificate(#[source] rustls::Error),
    /// The endpoint.
    #[error("the endpoint is not valid")]
    Endpoint(#[source] http::uri::InvalidUri),
    /// The endpoint's host.
    #[error("the endpoint's host is not valid in a header")]
    Host(#[source] http::header::InvalidHeaderValue),
}

/// What the caller reads, and what the log has in addition. Neither names the request's target: it
/// holds the signature.
fn unreachable(what: &'static str, error: &(dyn std::error::Error + 'static)) -> GatewayError {
    GatewayError::UpstreamUnreachable { what, cause: chain(error) }
}
