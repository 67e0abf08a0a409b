//! Connections that are kept: taken before a call has its permit and its signature, given back after
//! its answer.
//!
//! The order is why this is not hyper-util's pooled client: that one connects inside of sending, so a
//! new connection's round trips would lie between permit and socket, and calls let go one by one
//! would reach Chat in a bunch.
//!
//! A connection has no task of its own. The call that has it drives it, which spares each call four switches
//! between tasks; whoever takes one that was idle drives it once first and so learns whether Chat has closed it,
//! and a sweep does the same for those that nobody takes.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use tower::{Service, ServiceExt as _};

use super::connect::{ConnectError, Connector, ExpiringStream};
use crate::clock;

/// Largest head of an answer, in bytes.
const HEAD_LEN_MAX: usize = 64 * 1024;
/// How long at most a connection that Chat has closed stays unnoticed if nobody wants it.
const SWEPT_EVERY_MAX: Duration = Duration::from_secs(1);

/// The connections of one thread to one endpoint.
pub(super) struct Pool {
    connector: Connector,
    endpoint: Uri,
    kept: Arc<IdleSet>,
    idle_timeout: Duration,
    idle_max: usize,
}

#[derive(Default)]
struct IdleSet {
    /// Those not in use, the one used last at the end.
    idle: Mutex<Vec<Idle>>,
    /// Somebody looks after those that nobody wants any more.
    swept: AtomicBool,
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

/// A connection that one call has to itself.
pub(super) struct PooledConnection {
    connection: Connection,
    /// It has carried calls before, so Chat may have closed it meanwhile.
    pub(super) reused: bool,
}

/// A call that brought no head of an answer.
pub(super) enum SendError {
    /// Not a byte of it left; here it is again.
    NotSent(Box<Request<Full<Bytes>>>),
    /// Some of it may have left.
    MaybeSent(hyper::Error),
}

impl Pool {
    /// Keeps at most `idle_max` connections, each for `idle_timeout` after its last call.
    pub(super) fn new(connector: Connector, endpoint: Uri, idle_timeout: Duration, idle_max: usize) -> Self {
        Self { connector, endpoint, kept: Arc::default(), idle_timeout, idle_max }
    }

    /// A connection that is kept at this moment, or a new one.
    ///
    /// # Errors
    /// Name lookup, TCP or TLS; nothing was sent.
    pub(super) async fn acquire(&self, now: Instant) -> Result<PooledConnection, ConnectError> {
        while let Some(mut connection) = self.pop(now) {
            // One for which the last call is not over, as after an answer that came early, would keep this one waiting.
            if connection.is_ready_now() {
                return Ok(PooledConnection { connection, reused: true });
            }
        }
        // Boxed, as everywhere a connection is opened: most calls find one that is kept, and theirs must not
        // be futures of thousands of bytes.
        Box::pin(self.connect()).await
    }

    /// A new connection.
    ///
    /// # Errors
    /// As [`Pool::take`].
    pub(super) async fn connect(&self) -> Result<PooledConnection, ConnectError> {
        let mut connector = self.connector.clone();
        let stream = connector.ready().await?.call(self.endpoint.clone()).await?;
        let retire_at = stream.retire_at();
        let (sender, driver) =
            http1::Builder::new().max_buf_size(HEAD_LEN_MAX).handshake::<_, Full<Bytes>>(stream).await?;
        let mut connection = Connection { sender, driver: Some(Box::new(driver)), retire_at };
        match connection.ready().await {
            true => Ok(PooledConnection { connection, reused: false }),
            false => Err("it was closed at once".into()),
        }
    }

    /// Takes a connection back whose answer has been read whole. One that is too old, or that Chat
    /// wants closed, goes.
    pub(super) fn release(&self, lease: PooledConnection) {
        let now = clock::now();
        let mut idle = self.kept.idle();
        let connection = lease.connection;
        if connection.driver.is_none() || now >= connection.retire_at || idle.len() >= self.idle_max {
            return;
        }
        let until = (now + self.idle_timeout).min(connection.retire_at);
        idle.push(Idle { connection, until });
        if !self.kept.swept.swap(true, Ordering::AcqRel) {
            tokio::spawn(sweep(Arc::downgrade(&self.kept), self.idle_timeout.min(SWEPT_EVERY_MAX)));
        }
    }

    fn pop(&self, now: Instant) -> Option<Connection> {
        let mut idle = self.kept.idle();
        while let Some(last) = idle.pop() {
            if last.until > now {
                return Some(last.connection);
            }
        }
        None
    }
}

impl IdleSet {
    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes connections that nobody has wanted for a while, or that Chat has closed, until there are none or the pool
/// is gone.
async fn sweep(kept: Weak<IdleSet>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(kept) = kept.upgrade() else { return };
        let mut idle = kept.idle();
        let now = clock::now();
        idle.retain_mut(|idle| idle.until > now && idle.connection.is_ready_now());
        if idle.is_empty() {
            kept.swept.store(false, Ordering::Release);
            return;
        }
    }
}

impl Connection {
    /// Reads and writes what can be, and has the task woken when there is more to do.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && Pin::new(driver).poll(cx).is_ready()
        {
            // What has ended it is told to the call that it carries. A call that it has not begun comes back whole.
            self.driver = None;
        }
    }

    /// Whether it can carry a call, as far as is known without waiting.
    fn is_ready_now(&mut self) -> bool {
        // Whoever polls it next says again whom to wake.
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.driver.is_some() && self.sender.is_ready()
    }

    /// Waits until it can carry a call; `false` if it has ended.
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
    /// Sends a call and reads the head of its answer. The call is handed to the connection here and now, and leaves when
    /// the future is polled.
    ///
    /// # Errors
    /// See [`SendError`].
    pub(super) fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> impl Future<Output = Result<Response<Incoming>, SendError>> {
        let connection = &mut self.connection;
        // Handed over before anything waits, so that no future carries it about.
        let answer = connection.sender.try_send_request(request);
        async move {
            // It is brought by driving and by nothing else, so that nobody need be woken for it. (Unconstrained, as
            // tokio makes futures pause in a task that has been busy, and wakes them: here, nobody.)
            let mut answer = pin!(tokio::task::unconstrained(answer));
            let answered = poll_fn(|cx| {
                connection.drive(cx);
                answer.as_mut().poll(&mut Context::from_waker(Waker::noop()))
            });
            answered.await.map_err(|mut error| match error.take_message() {
                Some(request) => SendError::NotSent(Box::new(request)),
                None => SendError::MaybeSent(error.into_error()),
            })
        }
    }

    /// The body of that answer, which comes as it is read.
    pub(super) fn body(&mut self, body: Incoming) -> DrivenBody<'_> {
        DrivenBody { body, connection: &mut self.connection }
    }
}

/// A body that drives the connection that it comes over.
pub(super) struct DrivenBody<'a> {
    body: Incoming,
    connection: &'a mut Connection,
}

impl Body for DrivenBody<'_> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut nobody = Context::from_waker(Waker::noop());
        // A small one has come with its head.
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(&mut nobody) {
            return Poll::Ready(frame);
        }
        self.connection.drive(cx);
        Pin::new(&mut self.body).poll_frame(&mut nobody)
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

    /// Something that can be waited for.
    async fn until(mut reached: impl FnMut() -> bool) {
        let waiting = async {
            while !reached() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LONG, waiting).await.expect("in time");
    }

    /// A pool with a connection that has been given back, and its other end.
    async fn pool() -> (Pool, TcpListener, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = format!("http://{}/", listener.local_addr().expect("it is bound"));
        let tls = crate::config::client_config(&[], None).expect("no further roots");
        let pool = Pool::new(Connector::new(tls, LONG, LONG), endpoint.parse().expect("a URI"), LONG, 8);
        let lease = pool.acquire(clock::now()).await.expect("it listens");
        let (peer, _) = listener.accept().await.expect("it has connected");
        assert!(!lease.reused);
        pool.release(lease);
        (pool, listener, peer)
    }

    #[tokio::test]
    async fn a_connection_that_is_kept_is_taken_again() {
        let (pool, _listener, _peer) = pool().await;
        assert!(pool.acquire(clock::now()).await.expect("it is open").reused);
        assert!(pool.kept.idle().is_empty());
    }

    #[tokio::test]
    async fn one_that_the_other_end_has_closed_goes_though_nobody_wants_it() {
        let (pool, _listener, peer) = pool().await;
        drop(peer);
        until(|| pool.kept.idle().is_empty()).await;
    }

    #[tokio::test]
    async fn one_that_the_other_end_has_closed_is_not_handed_out() {
        let (pool, _listener, peer) = pool().await;
        drop(peer);
        // Closing takes its way, too.
        until(|| !pool.kept.idle().last_mut().is_some_and(|idle| idle.connection.is_ready_now())).await;
        assert!(!pool.acquire(clock::now()).await.expect("it listens").reused);
    }
}
