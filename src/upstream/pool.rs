//! Connections that are kept: taken before a call has its permit and its signature, given back after
//! its answer.
//!
//! The order is why this is not hyper-util's pooled client: that one connects inside of sending, so a
//! new connection's round trips would lie between permit and socket, and calls let go one by one
//! would reach Chat in a bunch.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use tower::{Service, ServiceExt as _};

use super::connect::{Connector, Fault};
use crate::clock;

/// Largest head of an answer, in bytes.
const HEAD_LEN_MAX: usize = 64 * 1024;

/// The connections of one thread to one endpoint.
pub(super) struct Pool {
    connector: Connector,
    endpoint: Uri,
    kept: Arc<Kept>,
    idle_timeout: Duration,
    idle_max: usize,
}

#[derive(Default)]
struct Kept {
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
    retire_at: Instant,
}

/// A connection that one call has to itself.
pub(super) struct Lease {
    connection: Connection,
    /// It has carried calls before, so Chat may have closed it meanwhile.
    pub(super) reused: bool,
}

/// A call that brought no head of an answer.
pub(super) enum Unsent {
    /// Not a byte of it left; here it is again.
    Whole(Box<Request<Full<Bytes>>>),
    /// Some of it may have left.
    Perhaps(hyper::Error),
}

impl Pool {
    /// Keeps at most `idle_max` connections, each for `idle_timeout` after its last call.
    pub(super) fn new(connector: Connector, endpoint: Uri, idle_timeout: Duration, idle_max: usize) -> Self {
        Self { connector, endpoint, kept: Arc::default(), idle_timeout, idle_max }
    }

    /// A kept connection, or a new one.
    ///
    /// # Errors
    /// Name lookup, TCP or TLS; nothing was sent.
    pub(super) async fn take(&self) -> Result<Lease, Fault> {
        while let Some(mut connection) = self.pop() {
            if connection.sender.ready().await.is_ok() {
                return Ok(Lease { connection, reused: true });
            }
        }
        // Boxed, as everywhere a connection is opened: most calls find one that is kept, and theirs must not
        // be futures of thousands of bytes.
        Box::pin(self.open()).await
    }

    /// A new connection.
    ///
    /// # Errors
    /// As [`Pool::take`].
    pub(super) async fn open(&self) -> Result<Lease, Fault> {
        let mut connector = self.connector.clone();
        let stream = connector.ready().await?.call(self.endpoint.clone()).await?;
        let retire_at = stream.retire_at();
        let (mut sender, connection) =
            http1::Builder::new().max_buf_size(HEAD_LEN_MAX).handshake::<_, Full<Bytes>>(stream).await?;
        // It ends when its sender is gone, and what ends it early is told to the call that it carries.
        tokio::spawn(connection);
        sender.ready().await?;
        Ok(Lease { connection: Connection { sender, retire_at }, reused: false })
    }

    /// Takes a connection back whose answer has been read whole. One that is too old, or that Chat
    /// wants closed, goes.
    pub(super) fn give_back(&self, lease: Lease) {
        let now = clock::now();
        let mut idle = self.kept.idle();
        let connection = lease.connection;
        if connection.sender.is_closed() || now >= connection.retire_at || idle.len() >= self.idle_max {
            return;
        }
        let until = (now + self.idle_timeout).min(connection.retire_at);
        idle.push(Idle { connection, until });
        if !self.kept.swept.swap(true, Ordering::AcqRel) {
            tokio::spawn(sweep(Arc::downgrade(&self.kept), self.idle_timeout));
        }
    }

    fn pop(&self) -> Option<Connection> {
        let now = clock::now();
        let mut idle = self.kept.idle();
        while let Some(last) = idle.pop() {
            if last.until > now && !last.connection.sender.is_closed() {
                return Some(last.connection);
            }
        }
        None
    }
}

impl Kept {
    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes connections that nobody has wanted for a while, until there are none or the pool is gone.
async fn sweep(kept: Weak<Kept>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(kept) = kept.upgrade() else { return };
        let mut idle = kept.idle();
        let now = clock::now();
        idle.retain(|idle| idle.until > now && !idle.connection.sender.is_closed());
        if idle.is_empty() {
            kept.swept.store(false, Ordering::Release);
            return;
        }
    }
}

impl Lease {
    /// Sends a call and reads the head of its answer.
    ///
    /// # Errors
    /// See [`Unsent`].
    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Unsent> {
        self.connection.sender.try_send_request(request).await.map_err(|mut error| match error.take_message() {
            Some(request) => Unsent::Whole(Box::new(request)),
            None => Unsent::Perhaps(error.into_error()),
        })
    }
}
