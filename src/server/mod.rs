//! Connections: accepted within a limit, served over HTTP/1.1 or HTTP/2, in plain text or over TLS, and drained.
//!
//! Every listener runs [`serve`]. What it serves is up to its [`ConnectionHandler`], which builds one
//! [`tower::Service`] for each connection; this module knows nothing else about it.

mod connection;
pub(crate) mod connection_limit;
pub mod http1;
pub mod http2;
mod lent;
mod lingering;
pub(crate) mod listener;
pub mod request_body;
pub(crate) mod shutdown;
pub(crate) mod socket_activation;
pub(crate) mod timeouts;
pub(crate) mod tls;
mod tracked_body;

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use rustls::ServerConfig;
use tokio_util::task::TaskTracker;
use tower::Service;

use self::connection_limit::ConnectionLimit;
use self::lingering::LingerLimits;
use self::listener::Acceptor;
use self::request_body::RequestBody;
use self::shutdown::Drain;
use self::timeouts::Timeouts;
use self::tls::Handshakes;
use crate::capacity::Capacity;
use crate::clock;
use crate::config;
use crate::error::GatewayError;
use crate::http::peer::ConnectionInfo;
use crate::http::request_id::RequestId;
use crate::http::wakeups::WakeFilter;

/// Maximum time that an idle connection stays open after the drain began, for a request that is already on its way.
/// At most a quarter of `server.drain_timeout`.
const LINGER_MAX: Duration = Duration::from_secs(1);
/// Pauses after a failed accept, from the first to the longest: without file descriptors, accept fails at once.
const ACCEPT_PAUSE_MIN: Duration = Duration::from_millis(5);
const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Minimum interval of the log lines about connections over the limit, for each thread and listener.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The owner of a listener: builds the service of each connection.
pub(crate) trait ConnectionHandler: Clone + Send + Unpin + 'static {
    /// The body of its responses.
    type ResponseBody: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static;

    /// Builds the service of a new connection.
    fn service(&self, connection: ConnectionInfo) -> impl ConnectionService<Self::ResponseBody>;

    /// Returns the TLS configuration of a new TCP connection; `None` serves it in plain text.
    fn tls(&self) -> Option<Arc<ServerConfig>> {
        None
    }

    /// Counts and logs that bytes of a connection are rejected before they became a request. `id` is the `X-Request-Id`
    /// of the response.
    fn record_rejected(&self, error: &GatewayError, id: &RequestId);
}

/// The service of one connection, which is cloned for each request.
///
/// It must always be ready: the server calls it without polling its readiness.
pub trait ConnectionService<B>:
    Service<Request<RequestBody>, Response = Response<B>, Error = Infallible, Future: Send + 'static>
    + Clone
    + Send
    + 'static
{
}

impl<S, B> ConnectionService<B> for S where
    S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible, Future: Send + 'static>
        + Clone
        + Send
        + 'static
{
}

/// What the connections of a listener share, in all threads.
#[derive(Debug, Clone)]
pub(crate) struct Connections {
    /// Limit of open connections.
    pub limit: ConnectionLimit,
    /// Name of that limit, for the log.
    pub limit_name: &'static str,
    /// Limits in time.
    pub timeouts: Timeouts,
    /// TLS handshakes and their failures.
    pub handshakes: Handshakes,
    /// Limit of connections and HTTP/2 requests that linger after a refusal.
    pub lingering: Arc<Capacity>,
    /// A request is worked on to its end although its peer has closed its half of the connection. Otherwise it gets a
    /// response only if that is ready at once, and counts as abandoned if not.
    pub answers_half_closed: bool,
    /// Tasks of the connections, which a shutdown waits for.
    pub tasks: TaskTracker,
    /// Once begun, HTTP/1 responses carry `Connection: close`.
    pub drain: Drain,
    /// Once begun, no connection is accepted, and open connections end after their requests in flight. The same as
    /// `drain`, except on a listener that stays up while others drain.
    pub close: Drain,
    /// How long an idle connection stays open once `close` has begun.
    pub linger: Duration,
}

impl Connections {
    /// Applies the configuration. `tasks` are waited for by the shutdown, which begins with `drain`.
    pub(crate) fn new(server: &config::Server, drain: Drain, tasks: TaskTracker) -> Self {
        Self {
            limit: ConnectionLimit::fixed(server.max_connections),
            limit_name: "server.max_connections",
            timeouts: Timeouts { head: server.head_timeout, idle: server.idle_timeout, write: server.write_timeout },
            handshakes: Handshakes::new(server.handshake_timeout),
            lingering: Capacity::new(lingering::CONNECTIONS_MAX),
            answers_half_closed: false,
            tasks,
            close: drain.clone(),
            drain,
            linger: LINGER_MAX.min(server.drain_timeout / 4),
        }
    }
}

impl Connections {
    /// Returns how connections of this listener linger.
    fn linger_limits(&self) -> LingerLimits {
        LingerLimits { slots: Arc::clone(&self.lingering), close: self.close.clone(), at_close: self.linger }
    }

    /// Waits until an idle connection must end: a moment after the listener has closed.
    async fn closing(&self) {
        self.close.begun().await;
        tokio::time::sleep(self.linger).await;
    }
}

/// Accepts connections until `connections.close` begins. Each connection is a task of `connections.tasks`.
pub(crate) async fn serve(listener: Acceptor, handler: impl ConnectionHandler, connections: Connections) {
    let (mut pause, mut refusals) = (ACCEPT_PAUSE_MIN, Refusals::default());
    loop {
        let accepted = tokio::select! {
            () = connections.close.begun() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, info) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(ACCEPT_PAUSE_MAX);
                continue;
            }
        };
        pause = ACCEPT_PAUSE_MIN;
        // Closed unread beyond the limit: a response would take more of what has run out.
        let Some(admitted) = connections.limit.admit(info.peer.is_remote()) else {
            if let Some(closed) = refusals.add(clock::now()) {
                let limit = connections.limit_name;
                tracing::warn!(limit, closed, "closed new connections; limit of connections reached");
            }
            continue;
        };
        let serving = connection::serve(stream, info, handler.clone(), connections.clone(), admitted);
        connections.tasks.spawn(WakeFilter::new(Box::pin(serving)));
    }
}

/// Connections that were closed because of the limit, for a log that a flood of them does not fill.
#[derive(Debug, Default)]
struct Refusals {
    logged: Option<Instant>,
    count: u64,
}

impl Refusals {
    /// Adds one. Returns the number since the last line, if a line is due.
    fn add(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        let is_due = self.logged.is_none_or(|logged| now - logged >= REFUSAL_LOG_INTERVAL);
        is_due.then(|| {
            self.logged = Some(now);
            std::mem::take(&mut self.count)
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::listener::Listener;
    use super::*;
    use crate::config::ListenAddr;

    #[test]
    fn refused_connections_are_logged_with_their_number_and_seldom() {
        let (mut refusals, begin) = (Refusals::default(), clock::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert_eq!(
            [0, 1, 9, 10, 11, 25].map(|seconds| refusals.add(at(seconds))),
            [Some(1), None, None, Some(3), None, Some(2)]
        );
    }

    /// Serves one connection of a handler through the loop of all listeners. Sends `request` and returns everything
    /// that comes back until the connection closes.
    pub(crate) async fn exchange(handler: impl ConnectionHandler, request: &str) -> String {
        let any = ListenAddr::Tcp("127.0.0.1:0".parse().expect("an address"));
        let listener = Listener::bind(&any, 0).expect("a free port");
        let ListenAddr::Tcp(address) = listener.address() else { panic!("not TCP") };
        let connections = Connections::new(&config::Server::default(), Drain::default(), TaskTracker::new());
        let (tasks, drain) = (connections.tasks.clone(), connections.drain.clone());
        let serving = tokio::spawn(serve(listener.acceptor().expect("a descriptor"), handler, connections));
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(request.as_bytes()).await.expect("open");
        let mut response = String::new();
        stream.read_to_string(&mut response).await.expect("text");
        drain.begin();
        serving.await.expect("no panic outside of a handler");
        tasks.close();
        tasks.wait().await;
        response
    }
}
