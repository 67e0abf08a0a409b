//! One attempt of a call to Chat: connect first, sign last, and return a complete response or none.
//!
//! `failover` returns a connection, which `tunnel` leads through a proxy if there is one, `exchange` sends a call on it and reads the response, and `AttemptError` says what
//! happened on the socket.

mod attempt;
mod connect;
mod exchange;
mod failover;
mod pool;
mod redact;
mod resolve;
pub mod signer;
pub mod tunnel;

use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderValue, Uri};

use self::connect::Connector;
use self::exchange::LastDate;
use self::pool::Pool;
use crate::capacity::Capacity;
use crate::config;

pub(crate) use self::attempt::{AttemptError, AttemptTime, Call, ChatResponse};
pub(crate) use self::failover::{LeasedConnection, SharedFailover};

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// One app's connections to Chat on one worker thread. Connections are shared neither between threads nor between apps.
pub(crate) struct Upstream {
    app: String,
    primary: Arc<Domain>,
    standby: Option<Arc<Domain>>,
    failover: Arc<SharedFailover>,
    attempt_timeout: Duration,
    max_answer: usize,
    buffered: Arc<Capacity>,
    last_date: LastDate,
}

/// One of the two domains.
struct Domain {
    pool: Pool,
    /// The headers of every call.
    headers: HeaderMap,
}

impl Domain {
    fn new(
        endpoint: &config::Endpoint,
        settings: &config::Upstream,
        connector: Connector,
    ) -> Result<Arc<Self>, UpstreamError> {
        let authority = endpoint.authority();
        let scheme = if endpoint.tls { "https" } else { "http" };
        let uri = format!("{scheme}://{authority}/").parse::<Uri>().map_err(UpstreamError::Endpoint)?;
        let pool = Pool::new(connector, uri, settings.idle_timeout, settings.max_in_flight);
        let host = HeaderValue::try_from(authority).map_err(UpstreamError::Host)?;
        let headers = HeaderMap::from_iter([(HOST, host), (CONTENT_TYPE, JSON), (ACCEPT, JSON)]);
        Ok(Arc::new(Domain { pool, headers }))
    }
}

impl Upstream {
    /// Returns an upstream without connections.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub(crate) fn new(
        app: &config::App,
        settings: &config::Upstream,
        failover: Arc<SharedFailover>,
        buffered: Arc<Capacity>,
    ) -> Result<Self, UpstreamError> {
        let tls = config::client_config(&app.extra_roots, None).map_err(UpstreamError::Certificate)?;
        let direct = Connector::new(tls.clone(), settings.connect_timeout, settings.connection_max_age);
        let domain = |endpoint: &config::Endpoint| {
            let connector = match settings.proxy.as_ref().filter(|proxy| !proxy.is_bypassed_for(endpoint)) {
                Some(proxy) => direct.through(proxy, tls.clone()).map_err(UpstreamError::Endpoint)?,
                None => direct.clone(),
            };
            Domain::new(endpoint, settings, connector)
        };
        Ok(Self {
            app: app.name.to_string(),
            primary: domain(&app.endpoint)?,
            standby: app.standby.as_ref().map(domain).transpose()?,
            failover,
            attempt_timeout: settings.attempt_timeout,
            max_answer: settings.max_answer,
            buffered,
            last_date: LastDate::default(),
        })
    }
}

/// Why an upstream cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// A certificate in `ca_file` is not usable.
    #[error("a certificate in ca_file cannot be trusted")]
    Certificate(#[source] rustls::Error),
    /// The endpoint or the proxy is not a valid URI.
    #[error("the endpoint or upstream.proxy is invalid")]
    Endpoint(#[source] http::uri::InvalidUri),
    /// The host of the endpoint is not valid in a header.
    #[error("the host of the endpoint is not valid in a header")]
    Host(#[source] http::header::InvalidHeaderValue),
}
