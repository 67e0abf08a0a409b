//! Connections: accepted within a bound, served over HTTP/1.1 or HTTP/2, plain or TLS, drained at the end.

pub mod http1;
pub mod http2;
pub mod listener;
pub mod shutdown;
pub mod socket_activation;
pub mod timeouts;
pub mod tls;
mod tracked_body;

use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::header::CONNECTION;
use http::{HeaderValue, Request, Version};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use self::http1::guard::Http1Guard;
use self::listener::{Accept, Accepted};
use self::shutdown::Drain;
use self::timeouts::{InFlight, Limits, TimeoutStream};
use self::tls::Handshakes;
use self::tracked_body::TrackedBody;
use crate::capacity::{Capacity, CapacityGuard};
use crate::config;
use crate::domain::caller::QueueKey;
use crate::gateway::stack;
use crate::gateway::stack::Answers;
use crate::http::headers::HEAD_LEN_MAX;
use crate::http::peer::ConnectionInfo;
use crate::http::wakeups::WakeFilter;

/// Largest head that HTTP/2 takes in, in bytes as RFC 9113 section 6.5.2 counts them; beyond it the bare
/// status 431 is answered. Twice ours, so that heads a little too large get an answer in our words.
const H2_HEAD_LEN_MAX: u32 = 2 * HEAD_LEN_MAX as u32;
/// Requests that one HTTP/2 connection may have at work.
const STREAMS_MAX: u32 = 100;
/// Streams that a peer may have opened and reset before it is taken for an attack (CVE-2023-44487).
const RESET_STREAMS_MAX: usize = 20;
/// How long an idle connection is kept when the drain begins, for a request that is on its way; at
/// most a quarter of the time there is.
const LINGER_MAX: Duration = Duration::from_secs(1);
/// Pauses after a failed accept, so that a want of file descriptors does not make it spin.
const ACCEPT_PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// What the connections of all threads share.
#[derive(Debug, Clone)]
pub struct Connections {
    /// How many there may be.
    pub budget: Arc<Capacity>,
    /// Their time limits.
    pub limits: Limits,
    /// How those over TLS begin.
    pub handshakes: Handshakes,
    /// No new ones, and the present ones end after what they have at work.
    pub drain: Drain,
    linger: Duration,
}

impl Connections {
    /// From the configuration.
    pub fn new(server: &config::Server, drain: Drain) -> Self {
        Self {
            budget: Capacity::new(server.max_connections),
            limits: Limits { head: server.head_timeout, idle: server.idle_timeout, write: server.write_timeout },
            handshakes: Handshakes::new(server.handshake_timeout),
            drain,
            linger: LINGER_MAX.min(server.drain_timeout / 4),
        }
    }
}

/// Accepts until the drain begins; each connection is a task of the gateway's.
pub async fn accept(accept: Accept, answers: impl Answers, connections: Connections) {
    let mut pause = ACCEPT_PAUSES.0;
    loop {
        let next = tokio::select! {
            () = connections.drain.begun() => return,
            next = accept.next() => next,
        };
        match next {
            Ok((stream, peer)) => {
                pause = ACCEPT_PAUSES.0;
                // Over the bound it is closed unread: answering would take what there is too little of.
                let Some(place) = connections.budget.try_acquire(1) else {
                    tracing::warn!("a connection was closed: server.max_connections is reached");
                    continue;
                };
                let port = match &stream {
                    Accepted::Tcp(stream) => stream.local_addr().map_or(0, |local| local.port()),
                    Accepted::Unix(_) => 0,
                };
                let mut downstream = ConnectionInfo { peer, caller: caller_of(&stream), tls: false, port };
                let (answers, connections) = (answers.clone(), connections.clone());
                let tasks = answers.tasks();
                let serving = async move {
                    match stream {
                        Accepted::Tcp(stream) => match answers.tls() {
                            None => serve(stream, downstream, answers, connections, place).await,
                            // In a box, so that plain connections do not carry its size.
                            Some(tls) => {
                                downstream.tls = true;
                                Box::pin(serve_tls(stream, tls, downstream, answers, connections, place)).await
                            }
                        },
                        Accepted::Unix(stream) => serve(stream, downstream, answers, connections, place).await,
                    }
                };
                tasks.spawn(WakeFilter::new(Box::pin(serving)));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(ACCEPT_PAUSES.1);
            }
        }
    }
}

/// Who is to have a turn of its own: behind a Unix socket a process, behind another machine's address
/// that machine. Processes of this machine look alike over TCP, so there it is a connection.
fn caller_of(stream: &Accepted) -> QueueKey {
    static CONNECTIONS: AtomicU64 = AtomicU64::new(0);
    // Three kinds of numbers, kept apart by their lowest bits, beside 0 of callers with a name.
    let number = match stream {
        Accepted::Unix(stream) => match stream.peer_cred().ok().and_then(|peer| peer.pid()) {
            Some(pid) => u64::from(pid.unsigned_abs()) << 2 | 1,
            None => CONNECTIONS.fetch_add(1, Ordering::Relaxed) << 2 | 3,
        },
        Accepted::Tcp(stream) => match stream.peer_addr() {
            Ok(peer) if !peer.ip().to_canonical().is_loopback() => {
                let mut hasher = DefaultHasher::new();
                peer.ip().to_canonical().hash(&mut hasher);
                hasher.finish() << 2 | 2
            }
            _ => CONNECTIONS.fetch_add(1, Ordering::Relaxed) << 2 | 3,
        },
    };
    QueueKey(number)
}

async fn serve_tls(
    stream: TcpStream,
    tls: Arc<ServerConfig>,
    downstream: ConnectionInfo,
    answers: impl Answers,
    connections: Connections,
    place: CapacityGuard,
) {
    let Connections { handshakes, drain, linger, .. } = &connections;
    if let Some(stream) = handshakes.handshake(stream, tls, drain, *linger).await {
        serve(stream, downstream, answers, connections, place).await;
    }
}

async fn serve<S>(
    stream: S,
    downstream: ConnectionInfo,
    answers: impl Answers,
    connections: Connections,
    _place: CapacityGuard,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let at_work = InFlight::default();
    let io = wrap_stream(stream, connections.limits, at_work.clone());
    let refused = at_work.clone();
    let (answering, drain) = (answers.clone(), connections.drain.clone());
    let counted = hyper::service::service_fn(move |request: Request<Incoming>| {
        let keeps = request.version() >= Version::HTTP_2;
        let work = at_work.begin(keeps);
        let delivers = keeps.then(|| at_work.clone());
        let answering = stack::answer(answering.clone(), downstream, request);
        let drain = drain.clone();
        async move {
            let answer = answering.await;
            let mut answer = answer.map(|body| TrackedBody::new(body, delivers.map(|at_work| at_work.deliver())));
            if !keeps && drain.has_begun() {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            drop(work);
            Ok::<_, Infallible>(answer)
        }
    });
    let builder = builder();
    let connection = builder.serve_connection(io, counted);
    tokio::pin!(connection);
    let served = tokio::select! {
        biased;
        served = connection.as_mut() => served,
        () = connections.drain.begun() => {
            // A request may be on its way on a kept connection: it is served, told to come again on
            // another, and only then the connection goes. One that stays idle goes a little later.
            match tokio::time::timeout(connections.linger, connection.as_mut()).await {
                Ok(served) => served,
                Err(_) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
    };
    if let Some(outcome) = refused.refusal() {
        answers.refused(outcome);
    }
    if let Err(error) = served {
        // A peer that goes away or sends what is not HTTP. The text is hyper's and holds no bytes.
        tracing::debug!(%error, "a connection ended early");
    }
}

/// A connection as every listener serves it: within time limits, with one way to read each request.
pub(crate) fn wrap_stream<S>(stream: S, limits: Limits, at_work: InFlight) -> TokioIo<Http1Guard<TimeoutStream<S>>> {
    TokioIo::new(Http1Guard::new(TimeoutStream::new(stream, limits, at_work.clone()), at_work))
}

/// HTTP/1.1 and HTTP/2 with every bound set.
pub(crate) fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Head and idle limits are those of TimedIo.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HEAD_LEN_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .max_local_error_reset_streams(RESET_STREAMS_MAX)
        .max_header_list_size(H2_HEAD_LEN_MAX);
    builder
}
