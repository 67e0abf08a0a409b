//! One attempt of a call to Chat: connected first, signed last, answered whole or not at all.

mod connect;
mod pool;
mod redact;
mod resolve;
pub mod signer;

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE, DATE, HOST};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version};
use http_body_util::Full;

use self::connect::Connector;
use self::pool::{Pool, SendError};
use crate::capacity::{Capacity, CapacityGuard};
use crate::clock;
use crate::config;
use crate::domain::chat::command::CommandName;
use crate::domain::chat::envelope::Envelope;
use crate::domain::policy::failover::{Failover, Side};
use crate::domain::policy::outcome::AttemptOutcome;
use crate::error::{GatewayError, display_chain};
use crate::http::body::{BodyError, read_whole};
use crate::http::traceparent::TRACEPARENT;
use crate::http::wakeups::FilteredBody;
use crate::upstream::signer::{Signature, Signer};

const NOT_SENT: &str = "name lookup, connecting or TLS failed, nothing was sent";
const BROKEN: &str = "the connection broke before the answer was whole";
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// One app's way to Chat, as one worker thread has it: connections are not shared between threads,
/// nor between apps.
pub struct Upstream {
    app: String,
    primary: Arc<Domain>,
    standby: Option<Arc<Domain>>,
    failover: Arc<SharedFailover>,
    attempt_timeout: Duration,
    max_answer: usize,
    buffered: Arc<Capacity>,
}

/// One of the domains.
struct Domain {
    pool: Pool,
    /// What every call to it has.
    headers: HeaderMap,
}

/// What all threads know of the way to Chat.
#[derive(Debug)]
pub struct SharedFailover(Mutex<Failover>);

impl SharedFailover {
    /// The primary serves.
    pub fn new(has_standby: bool) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Failover::new(has_standby))))
    }

    /// Where calls go.
    pub fn side(&self) -> Side {
        self.state().side()
    }

    fn state(&self) -> MutexGuard<'_, Failover> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that one call has to itself.
pub struct LeasedConnection {
    inner: pool::PooledConnection,
    side: Side,
}

impl LeasedConnection {
    /// Where it leads.
    pub fn side(&self) -> Side {
        self.side
    }
}

/// An attempt that brought no answer of Chat.
#[derive(Debug, Clone)]
pub enum AttemptError {
    /// Not a byte of the call left. With the cause in words.
    NotSent(String),
    /// The connection broke. With the cause in words.
    Broken(String),
    /// No whole answer in time.
    TimedOut,
    /// What came is no answer of Chat; with its HTTP status, 0 if it has none.
    Invalid(&'static str, u16),
    /// The answer found no room among the buffered bytes.
    OverCapacity,
}

impl AttemptError {
    /// As the table of outcomes knows it.
    pub fn outcome(&self) -> AttemptOutcome {
        match self {
            AttemptError::NotSent(_) => AttemptOutcome::NotSent,
            AttemptError::Broken(_) => AttemptOutcome::Broken,
            AttemptError::TimedOut => AttemptOutcome::TimedOut,
            AttemptError::Invalid(_, status) => AttemptOutcome::Invalid(*status),
            AttemptError::OverCapacity => AttemptOutcome::OverCapacity,
        }
    }
}

impl From<AttemptError> for GatewayError {
    /// What the caller reads, and what the log has in addition. Neither names the request's target: it
    /// holds the signature.
    fn from(fault: AttemptError) -> Self {
        match fault {
            AttemptError::NotSent(cause) => GatewayError::UpstreamUnreachable { what: NOT_SENT, cause },
            AttemptError::Broken(cause) => GatewayError::UpstreamUnreachable { what: BROKEN, cause },
            AttemptError::TimedOut => GatewayError::UpstreamTimeout,
            AttemptError::Invalid(what, _) => GatewayError::UpstreamInvalid(what),
            AttemptError::OverCapacity => GatewayError::Overloaded("buffered bytes (server.max_buffered)"),
        }
    }
}

/// What is to be sent.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    /// Becomes the path.
    pub name: CommandName<'a>,
    /// Goes out byte for byte.
    pub body: Bytes,
    /// The trace that it belongs to.
    pub traceparent: Option<HeaderValue>,
}

/// A whole answer of Chat: a JSON object with an integer ErrorCode.
#[derive(Debug)]
pub struct ChatResponse {
    /// 200 unless something between here and Chat changed it.
    pub status: StatusCode,
    /// Of HTTP, as Chat answered.
    pub version: Version,
    /// As Chat sent it.
    pub content_type: Option<HeaderValue>,
    /// As Chat sent it, but for a usersig of ours.
    pub body: Bytes,
    /// 0 is success.
    pub error_code: i64,
    /// Counts the body's bytes as long as it lives.
    pub held: CapacityGuard,
}

impl Upstream {
    /// Opens no connection yet.
    ///
    /// # Errors
    /// If a certificate that the app names cannot be trusted.
    pub fn new(
        app: &config::App,
        settings: &config::Upstream,
        failover: Arc<SharedFailover>,
        buffered: Arc<Capacity>,
    ) -> Result<Self, UpstreamError> {
        let tls = config::client_config(&app.extra_roots, None).map_err(UpstreamError::Certificate)?;
        let connector = Connector::new(tls, settings.connect_timeout, settings.connection_max_age);
        let end = |endpoint: &config::Endpoint| {
            let authority = endpoint.authority();
            let scheme = if endpoint.tls { "https" } else { "http" };
            let uri = format!("{scheme}://{authority}/").parse::<Uri>().map_err(UpstreamError::Endpoint)?;
            let pool = Pool::new(connector.clone(), uri, settings.idle_timeout, settings.max_in_flight);
            let host = HeaderValue::try_from(authority).map_err(UpstreamError::Host)?;
            let headers = HeaderMap::from_iter([(HOST, host), (CONTENT_TYPE, JSON), (ACCEPT, JSON)]);
            Ok(Arc::new(Domain { pool, headers }))
        };
        Ok(Self {
            app: app.name.to_string(),
            primary: end(&app.endpoint)?,
            standby: app.standby.as_ref().map(end).transpose()?,
            failover,
            attempt_timeout: settings.attempt_timeout,
            max_answer: settings.max_answer,
            buffered,
        })
    }

    /// A connection for one call, to be had before its permit: connecting takes a time that must not
    /// lie between permit and socket. Bounded by twice `upstream.connect_timeout`, and a pause of at most
    /// a second after failures in a row.
    ///
    /// # Errors
    /// [`AttemptError::NotSent`], when no side can be reached.
    pub async fn connect(&self) -> Result<LeasedConnection, AttemptError> {
        let now = clock::now();
        let (pause, side) = {
            let (mut failover, now) = (self.failover.state(), clock::tick_at(now));
            if failover.start_probe(now) {
                self.probe_primary();
            }
            (failover.pause(now), failover.side())
        };
        let (now, side) = if pause > Duration::ZERO {
            tokio::time::sleep(pause).await;
            (clock::now(), self.failover.side())
        } else {
            (now, side)
        };
        let fault = match pin!(self.connect_to(side, now)).await {
            Ok(lease) => return Ok(lease),
            Err(fault) => fault,
        };
        if self.standby.is_some()
            && let Ok(lease) = Box::pin(self.connect_to(side.other(), clock::now())).await
        {
            return Ok(lease);
        }
        self.failover.state().on_failed(clock::tick());
        Err(fault)
    }

    async fn connect_to(&self, side: Side, now: Instant) -> Result<LeasedConnection, AttemptError> {
        let inner =
            self.end(side).pool.acquire(now).await.map_err(|fault| AttemptError::NotSent(display_chain(&*fault)))?;
        if !inner.reused && self.failover.state().on_connected(side, clock::tick()) {
            tracing::warn!(
                app = self.app,
                ?side,
                "the other domain cannot be reached, calls go to this one from now on"
            );
        }
        Ok(LeasedConnection { inner, side })
    }

    /// Knocks at the primary while the standby serves: a connection with its TLS handshake, no call.
    fn probe_primary(&self) {
        let (primary, failover, app) = (Arc::clone(&self.primary), Arc::clone(&self.failover), self.app.clone());
        tokio::spawn(async move {
            let opened = primary.pool.connect().await;
            let back = failover.state().on_probe(opened.is_ok());
            if let Ok(lease) = opened {
                primary.pool.release(lease);
            }
            if back {
                tracing::info!(app, "the primary domain can be reached again, calls go there");
            }
        });
    }

    fn end(&self, side: Side) -> &Domain {
        match (side, &self.standby) {
            (Side::Standby, Some(standby)) => standby,
            _ => &self.primary,
        }
    }

    /// Takes a connection back that no call was sent on.
    pub fn release(&self, lease: LeasedConnection) {
        self.end(lease.side).pool.release(lease.inner);
    }

    /// Signs and sends a call, and reads the whole answer. Permit and room must have been taken.
    ///
    /// Whatever happens ends before `deadline` and before `upstream.attempt_timeout`, counted from `begun`, is over.
    /// Dropping the future breaks the call off, so a write must not be dropped.
    ///
    /// # Errors
    /// See [`AttemptError`].
    pub async fn send(
        &self,
        lease: LeasedConnection,
        signer: &Signer,
        signature: &Signature,
        call: Call<'_>,
        (begun, deadline): (Instant, Instant),
    ) -> Result<ChatResponse, AttemptError> {
        let until = deadline.min(begun + self.attempt_timeout);
        let exchange = pin!(self.exchange(lease, signer, signature, call));
        tokio::time::timeout_at(until.into(), exchange).await.unwrap_or(Err(AttemptError::TimedOut))
    }

    async fn exchange(
        &self,
        lease: LeasedConnection,
        signer: &Signer,
        signature: &Signature,
        call: Call<'_>,
    ) -> Result<ChatResponse, AttemptError> {
        let LeasedConnection { mut inner, side } = lease;
        let end = self.end(side);
        // After whatever else is ready now: calls that leave together wake the other end once.
        tokio::task::yield_now().await;
        let mut request = Request::new(Full::new(call.body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = signature.target(call.name, clock::random_u32()).into();
        *request.headers_mut() = end.headers.clone();
        if let Some(traceparent) = call.traceparent {
            request.headers_mut().insert(TRACEPARENT, traceparent);
        }

        let response = loop {
            match inner.send(request).await {
                Ok(response) => break response,
                // Chat had closed the connection before a byte of this call left: a new one is as good.
                Err(SendError::NotSent(whole)) if inner.reused => {
                    request = *whole;
                    inner = Box::pin(end.pool.connect())
                        .await
                        .map_err(|fault| AttemptError::NotSent(display_chain(&*fault)))?;
                }
                Err(SendError::NotSent(_)) => {
                    return Err(AttemptError::NotSent("a new connection was closed at once".to_owned()));
                }
                // Nobody said with which status.
                Err(SendError::MaybeSent(error)) if error.is_parse() => {
                    return Err(AttemptError::Invalid("it is not HTTP", 0));
                }
                Err(SendError::MaybeSent(error)) => return Err(AttemptError::Broken(display_chain(&error))),
            }
        };
        let (head, body) = response.into_parts();
        let status = head.status.as_u16();
        if head.headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
            return Err(AttemptError::Invalid("it is compressed, which was not asked for", status));
        }
        let body = FilteredBody::new(inner.body(body), head.version);
        let read = pin!(read_whole(body, self.max_answer, &self.buffered)).await;
        let (body, held) = read.map_err(|error| match error {
            BodyError::TooLarge => AttemptError::Invalid("it is larger than upstream.max_answer", status),
            BodyError::NoRoom => AttemptError::OverCapacity,
            BodyError::Broken(error) => AttemptError::Broken(display_chain(&error)),
        })?;
        end.pool.release(inner);
        let error_code = Envelope::error_code(&body)
            .map_err(|_| AttemptError::Invalid("it is no JSON object with an integer ErrorCode", status))?;
        // Only what is surely from Chat tells its time.
        let date = head.headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        if let Some(since) = date.and_then(|date| date.duration_since(std::time::UNIX_EPOCH).ok()) {
            signer.observe(since.as_secs(), clock::unix_now());
        }
        let content_type =
            head.headers.get(CONTENT_TYPE).map(|value| redact::redact_header(value, signature.usersig()));
        let (status, version) = (head.status, head.version);
        let body = redact::redact(body, signature.usersig());
        Ok(ChatResponse { status, version, content_type, body, error_code, held })
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
