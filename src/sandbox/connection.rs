//! A connection as its calls see it, and response bodies that break it off.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use socket2::Socket;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

/// Time for the first half of a truncated response to leave before the connection ends.
const FLUSH_WAIT: Duration = Duration::from_millis(50);

/// The part of a connection that calls use.
pub(super) struct Connection {
    pub(super) id: u64,
    pub(super) peer: SocketAddr,
    /// Whether a request has arrived.
    pub(super) used: AtomicBool,
    /// Cancelled to end the connection at once.
    pub(super) ended: CancellationToken,
    /// A second handle of the socket, for the socket option that a reset needs.
    socket: Mutex<Option<Socket>>,
}

impl Connection {
    pub(super) fn new(id: u64, peer: SocketAddr, socket: Option<Socket>) -> Self {
        Self { id, peer, used: AtomicBool::new(false), ended: CancellationToken::new(), socket: Mutex::new(socket) }
    }

    pub(super) fn mark_used(&self) {
        self.used.store(true, Ordering::Relaxed);
    }

    /// Closes the connection normally.
    pub(super) fn end(&self) {
        self.take_socket();
        self.ended.cancel();
    }

    /// Resets the connection with a TCP RST: a socket with a linger time of 0 is reset when its last
    /// handle closes.
    pub(super) fn reset(&self) {
        if let Some(socket) = self.take_socket() {
            // This fails only if the peer has closed the connection already.
            let _ = socket.set_linger(Some(Duration::ZERO));
        }
        self.ended.cancel();
    }

    fn take_socket(&self) -> Option<Socket> {
        self.socket.lock().take()
    }
}

/// The body of a response: whole, or its first half followed by the end of the connection.
pub(super) struct ResponseBody {
    data: Option<Bytes>,
    declared: u64,
    cut: Option<(Pin<Box<Sleep>>, Arc<Connection>)>,
}

impl ResponseBody {
    pub(super) fn whole(data: impl Into<Bytes>) -> Self {
        let data = data.into();
        Self { declared: data.len() as u64, data: (!data.is_empty()).then_some(data), cut: None }
    }

    /// Returns a body that declares the whole length and sends half of it.
    pub(super) fn half(data: impl Into<Bytes>, connection: Arc<Connection>) -> Self {
        let mut body = Self::whole(data);
        body.data = body.data.map(|data| data.slice(..data.len() / 2));
        body.cut = Some((Box::pin(tokio::time::sleep(FLUSH_WAIT)), connection));
        body
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(data) = self.data.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let Some((wait, connection)) = &mut self.cut else { return Poll::Ready(None) };
        ready!(wait.as_mut().poll(cx));
        connection.end();
        Poll::Ready(Some(Err(io::Error::other("truncated by an injected fault"))))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.cut.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.declared)
    }
}
