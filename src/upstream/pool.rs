//! A pool of connections: acquired before a call takes its permit and its signature, released after its response.
//!
//! That order is why this is not hyper-util's pooled client. That client connects while it sends, so the round trips of
//! a new connection would lie between permit and socket, and calls with evenly spaced permits would reach Chat in
//! bursts.
//!
//! A connection has no task of its own. The call that holds it drives it, which saves four task switches per call. A
//! call that takes an idle connection drives it once first, to notice whether Chat has closed it. A sweep does the same
//! for idle connections.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use parking_lot::Mutex;

use super::attempt::AttemptError;
use super::connect::{Connector, ExpiringStream};
use crate::clock;

/// Maximum size of the headers of a response, in bytes.
const HEAD_LEN_MAX: usize = 64 * 1024;
/// The longest time until the sweep notices that Chat has closed an idle connection.
const SWEEP_INTERVAL_MAX: Duration = Duration::from_secs(1);
/// The cause if Chat closes a connection before it can carry a call.
const CLOSED_AT_ONCE: &str = "the new connection was closed at once";

/// A call as hyper sends it.
type HttpCall = Request<Full<Bytes>>;

/// The connections of one thread to one endpoint.
pub(super) struct Pool {
    connector: Connector,
    endpoint: Uri,
    idle: Arc<IdleSet>,
    idle_timeout: Duration,
    idle_max: usize,
}

#[derive(Default)]
struct IdleSet {
    /// The idle connections; the one used last is at the end.
    connections: Mutex<Vec<Idle>>,
    /// Whether the sweep is running.
    is_swept: AtomicBool,
}

struct Idle {
    connection: Connection,
    until: Instant,
}

struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// Reads and writes when it is polled; `None` once the connection has ended.
    driver: Option<Box<http1::Connection<ExpiringStream, Full<Bytes>>>>,
    retire_at: Instant,
}

/// A connection that carries one call.
pub(super) struct PooledConnection {
    connection: Connection,
    /// Whether it has carried a call before. Chat may have closed it since.
    pub(super) reused: bool,
}

impl Pool {
    /// Returns a pool of at most `idle_max` idle connections, each kept for `idle_timeout` after its last call.
    pub(super) fn new(connector: Connector, endpoint: Uri, idle_timeout: Duration, idle_max: usize) -> Self {
        Self { connector, endpoint, idle: Arc::default(), idle_timeout, idle_max }
    }

    /// Returns whether new connections go through a proxy.
    pub(super) fn has_proxy(&self) -> bool {
        self.connector.has_proxy()
    }

    /// Returns an idle connection, or a new one.
    ///
    /// # Errors
    /// [`AttemptError::NotSent`] or [`AttemptError::Proxy`].
    pub(super) async fn acquire(&self, now: Instant) -> Result<PooledConnection, AttemptError> {
        while let Some(mut connection) = self.pop(now) {
            // A connection that is still busy, as after an early response, would delay this call.
            if connection.is_ready_now() {
                return Ok(PooledConnection { connection, reused: true });
            }
        }
        // Boxed wherever a connection is opened: most calls find an idle one, and their futures must not be thousands
        // of bytes large.
        Box::pin(self.connect()).await
    }

    /// Opens a new connection.
    ///
    /// # Errors
    /// [`AttemptError::NotSent`] or [`AttemptError::Proxy`].
    pub(super) async fn connect(&self) -> Result<PooledConnection, AttemptError> {
        let stream = self.connector.connect(self.endpoint.clone()).await?;
        let retire_at = stream.retire_at();
        let handshake = http1::Builder::new().max_buf_size(HEAD_LEN_MAX).handshake::<_, Full<Bytes>>(stream).await;
        let (sender, driver) = handshake.map_err(|error| AttemptError::not_sent(&error))?;
        let mut connection = Connection { sender, driver: Some(Box::new(driver)), retire_at };
        match connection.ready().await {
            true => Ok(PooledConnection { connection, reused: false }),
            false => Err(AttemptError::NotSent(CLOSED_AT_ONCE.to_owned())),
        }
    }

    /// Sends a call and reads the head of its response. If Chat had closed an idle connection before a byte of the call
    /// was sent, a new connection replaces it.
    ///
    /// # Errors
    /// [`AttemptError`].
    pub(super) async fn send(
        &self,
        connection: &mut PooledConnection,
        mut call: HttpCall,
    ) -> Result<Response<Incoming>, AttemptError> {
        loop {
            let mut error = match connection.try_send(call).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            call = match error.take_message() {
                Some(unsent) if connection.reused => unsent,
                Some(_) => return Err(AttemptError::NotSent(CLOSED_AT_ONCE.to_owned())),
                None => return Err(AttemptError::broken(&error.into_error())),
            };
            *connection = Box::pin(self.connect()).await?;
        }
    }

    /// Takes back a connection after a complete response. It is closed if it has reached its maximum age or if Chat
    /// closes it.
    pub(super) fn release(&self, pooled: PooledConnection) {
        let now = clock::now();
        let mut idle = self.idle.connections.lock();
        let connection = pooled.connection;
        if connection.driver.is_none() || now >= connection.retire_at || idle.len() >= self.idle_max {
            return;
        }
        let until = (now + self.idle_timeout).min(connection.retire_at);
        idle.push(Idle { connection, until });
        if !self.idle.is_swept.swap(true, Ordering::AcqRel) {
            tokio::spawn(sweep(Arc::downgrade(&self.idle), self.idle_timeout.min(SWEEP_INTERVAL_MAX)));
        }
    }

    fn pop(&self, now: Instant) -> Option<Connection> {
        let mut idle = self.idle.connections.lock();
        while let Some(last) = idle.pop() {
            if last.until > now {
                return Some(last.connection);
            }
        }
        None
    }
}

/// Closes connections that have been idle for too long or that Chat has closed, until none is left or the pool is
/// dropped.
async fn sweep(idle: Weak<IdleSet>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(idle) = idle.upgrade() else { return };
        let mut connections = idle.connections.lock();
        let now = clock::now();
        connections.retain_mut(|idle| idle.until > now && idle.connection.is_ready_now());
        if connections.is_empty() {
            idle.is_swept.store(false, Ordering::Release);
            return;
        }
    }
}

impl Connection {
    /// Reads and writes without waiting, and registers the task to be woken.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && Pin::new(driver).poll(cx).is_ready()
        {
            // The call on the connection gets the error. A call that was not begun comes back unsent.
            self.driver = None;
        }
    }

    /// Whether it can carry a call, as far as is known without waiting.
    fn is_ready_now(&mut self) -> bool {
        // The next poll registers a task again.
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.driver.is_some() && self.sender.is_ready()
    }

    /// Waits until it can carry a call. Returns `false` if it has ended.
    async fn ready(&mut self) -> bool {
        poll_fn(|cx| {
            self.drive(cx);
            match self.driver {
                None => Poll::Ready(false),
                Some(_) if self.sender.is_ready() => Poll::Ready(true),
                Some(_) => Poll::Pending,
            }
        })
        .await
    }
}

impl PooledConnection {
    /// Hands a call to the connection at once, and returns a future that sends it and reads the head of its response.
    ///
    /// # Errors
    /// hyper's error, with the call if no byte of it was sent.
    fn try_send(
        &mut self,
        call: HttpCall,
    ) -> impl Future<Output = Result<Response<Incoming>, Box<TrySendError<HttpCall>>>> {
        let connection = &mut self.connection;
        // Handed over before the future exists, so that no future contains the call.
        let response = connection.sender.try_send_request(call);
        async move {
            // Only driving brings the response, so nothing needs a waker for it. Unconstrained, because tokio makes the
            // futures of a busy task pause and then wakes them, which would reach no task here.
            let mut response = pin!(tokio::task::unconstrained(response));
            let received = poll_fn(|cx| {
                connection.drive(cx);
                response.as_mut().poll(&mut Context::from_waker(Waker::noop()))
            });
            received.await.map_err(Box::new)
        }
    }

    /// Returns the body of the response, which arrives as it is read.
    pub(super) fn body(&mut self, body: Incoming) -> DrivenBody<'_> {
        DrivenBody { body, connection: &mut self.connection }
    }
}

/// A body that drives the connection that it arrives on.
pub(super) struct DrivenBody<'a> {
    body: Incoming,
    connection: &'a mut Connection,
}

impl Body for DrivenBody<'_> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut no_waker = Context::from_waker(Waker::noop());
        // A small body has arrived with the head.
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(&mut no_waker) {
            return Poll::Ready(frame);
        }
        self.connection.drive(cx);
        Pin::new(&mut self.body).poll_frame(&mut no_waker)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// Waits until a condition holds.
    async fn until(mut reached: impl FnMut() -> bool) {
        let waiting = async {
            while !reached() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LONG, waiting).await.expect("in time");
    }

    /// Returns a pool with one idle connection, and its peer.
    async fn pool() -> (Pool, TcpListener, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = format!("http://{}/", listener.local_addr().expect("it is bound"));
        let tls = crate::config::client_config(&[], None).expect("no further roots");
        let pool = Pool::new(Connector::new(tls, LONG, LONG), endpoint.parse().expect("a URI"), LONG, 8);
        let connection = pool.acquire(clock::now()).await.expect("a listening peer");
        let (peer, _) = listener.accept().await.expect("a connection");
        assert!(!connection.reused);
        pool.release(connection);
        (pool, listener, peer)
    }

    #[tokio::test]
    async fn idle_connection_is_reused() {
        let (pool, _listener, _peer) = pool().await;
        assert!(pool.acquire(clock::now()).await.expect("an open connection").reused);
        assert!(pool.idle.connections.lock().is_empty());
    }

    #[tokio::test]
    async fn connection_closed_by_the_peer_is_swept() {
        let (pool, _listener, peer) = pool().await;
        drop(peer);
        until(|| pool.idle.connections.lock().is_empty()).await;
    }

    #[tokio::test]
    async fn connection_closed_by_the_peer_is_not_reused() {
        let (pool, _listener, peer) = pool().await;
        drop(peer);
        // The close takes time to arrive.
        let is_ready = || pool.idle.connections.lock().last_mut().is_some_and(|idle| idle.connection.is_ready_now());
        until(|| !is_ready()).await;
        assert!(!pool.acquire(clock::now()).await.expect("a listening peer").reused);
    }
}
