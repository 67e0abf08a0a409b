//! A stream that comes back when its borrower drops it.
//!
//! hyper ends a connection by shutting down its stream, except after a request with `Upgrade` or CONNECT: then it only
//! drops the stream, as if another protocol had taken over. chatgate never switches protocols, so [`lend`] keeps the
//! stream for the shutdown that such a connection needs like any other.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// A stream until it is dropped.
#[derive(Debug)]
pub(super) struct Lent<S> {
    /// `None` only within `drop`.
    stream: Option<S>,
    /// `None` only within `drop`.
    back: Option<oneshot::Sender<S>>,
}

/// Lends a stream. The receiver returns it when the loan is dropped.
pub(super) fn lend<S>(stream: S) -> (Lent<S>, oneshot::Receiver<S>) {
    let (back, returned) = oneshot::channel();
    (Lent { stream: Some(stream), back: Some(back) }, returned)
}

impl<S: Unpin> Lent<S> {
    fn stream(&mut self) -> Pin<&mut S> {
        Pin::new(self.stream.as_mut().expect("taken only within drop"))
    }
}

impl<S> Drop for Lent<S> {
    fn drop(&mut self) {
        if let (Some(stream), Some(back)) = (self.stream.take(), self.back.take()) {
            // Without a receiver, the whole connection was dropped.
            let _ = back.send(stream);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lent<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Lent<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn stream_comes_back_open_after_its_use() {
        let (mut peer, stream) = duplex(16);
        let (mut lent, mut returned) = lend(stream);
        lent.write_all(b"one").await.expect("room");
        assert!(returned.try_recv().is_err());
        drop(lent);
        let mut stream = returned.try_recv().expect("it is back");
        stream.write_all(b"two").await.expect("it is open");
        stream.shutdown().await.expect("open");
        let mut got = String::new();
        peer.read_to_string(&mut got).await.expect("text");
        assert_eq!(got, "onetwo");
    }
}
