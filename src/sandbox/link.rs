//! One connection, as the calls on it see it, and answers that end it half-way.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use socket2::Socket;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

/// How long a truncated answer's first half has to leave before the connection ends.
const FLUSH_WAIT: Duration = Duration::from_millis(50);

/// What calls can do to their connection.
pub(super) struct Link {
    /// A number of its own.
    pub(super) id: u64,
    pub(super) peer: SocketAddr,
    /// Whether a request has come.
    pub(super) used: AtomicBool,
    /// Cancelled when the connection is to end now.
    pub(super) ended: CancellationToken,
    /// A second handle of the socket, for the one option that a reset needs.
    socket: Mutex<Option<Socket>>,
}

impl Link {
    pub(super) fn new(id: u64, peer: SocketAddr, socket: Option<Socket>) -> Self {
        Self { id, peer, used: AtomicBool::new(false), ended: CancellationToken::new(), socket: Mutex::new(socket) }
    }

    pub(super) fn mark_used(&self) {
        self.used.store(true, Ordering::Relaxed);
    }

    /// Ends the connection as any close does.
    pub(super) fn end(&self) {
        self.take_socket();
        self.ended.cancel();
    }

    /// Ends the connection with a TCP RST: a socket that lingers for no time is reset when its last
    /// handle closes.
    pub(super) fn reset(&self) {
        if let Some(socket) = self.take_socket() {
            // It can only fail if the peer is gone already, and then there is nobody to reset.
            let _ = socket.set_linger(Some(Duration::ZERO));
        }
        self.ended.cancel();
    }

    fn take_socket(&self) -> Option<Socket> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// An answer's body: whole, or its first half and then the end of the connection.
pub(super) struct Body {
    data: Option<Bytes>,
    declared: u64,
    cut: Option<(Pin<Box<Sleep>>, Arc<Link>)>,
}

impl Body {
    pub(super) fn whole(data: impl Into<Bytes>) -> Self {
        let data = data.into();
        Self { declared: data.len() as u64, data: (!data.is_empty()).then_some(data), cut: None }
    }

    /// Declares the whole length and sends half of it.
    pub(super) fn half(data: impl Into<Bytes>, link: Arc<Link>) -> Self {
        let mut body = Self::whole(data);
        body.data = body.data.map(|data| data.slice(..data.len() / 2));
        body.cut = Some((Box::pin(tokio::time::sleep(FLUSH_WAIT)), link));
        body
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(data) = self.data.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let Some((wait, link)) = &mut self.cut else { return Poll::Ready(None) };
        ready!(wait.as_mut().poll(cx));
        link.end();
        Poll::Ready(Some(Err(io::Error::other("truncated on order"))))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.cut.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.declared)
    }
}
