//! New connections to Chat: TLS that is verified before the first byte, and a maximum age.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::ClientConfig;
use tower::{Service, ServiceExt as _};

use super::attempt::AttemptError;
use super::resolve::Resolver;
use crate::clock;
use crate::http::small_writes;

/// Opens connections that know when to retire.
#[derive(Clone)]
pub(super) struct Connector {
    inner: HttpsConnector<HttpConnector<Resolver>>,
    timeout: Duration,
    max_age: Duration,
}

type Stream = <HttpsConnector<HttpConnector<Resolver>> as Service<Uri>>::Response;

impl Connector {
    /// `timeout` covers DNS, TCP, and TLS together, for all addresses of a name.
    ///
    /// A connection retires after `max_age`, less a random part of up to 10 %, so that connections do not all retire at
    /// the same time. The next connection follows DNS again.
    pub(super) fn new(tls: ClientConfig, timeout: Duration, max_age: Duration) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(Resolver::default());
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(timeout));
        tcp.set_keepalive(Some(Duration::from_secs(30)));
        let inner =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
        Self { inner, timeout, max_age }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// [`AttemptError::NotSent`].
    pub(super) async fn connect(&self, endpoint: Uri) -> Result<ExpiringStream, AttemptError> {
        let connecting = tokio::time::timeout(self.timeout, self.inner.clone().oneshot(endpoint));
        let Ok(connected) = connecting.await else {
            return Err(AttemptError::NotSent("upstream.connect_timeout exceeded".to_owned()));
        };
        let stream = connected.map_err(|error| AttemptError::not_sent(&*error))?;
        let max_age = self.max_age.mul_f64(1.0 - 0.1 * f64::from(clock::random_u32()) / f64::from(u32::MAX));
        Ok(ExpiringStream { stream, retire_at: clock::now() + max_age })
    }
}

/// A connection with a maximum age.
pub(super) struct ExpiringStream {
    stream: Stream,
    retire_at: Instant,
}

impl ExpiringStream {
    /// Returns when it should carry no more calls.
    pub(super) fn retire_at(&self) -> Instant {
        self.retire_at
    }
}

impl Read for ExpiringStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl Write for ExpiringStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = &mut self.stream;
        let written = small_writes::write_merged(bufs, |bytes| Pin::new(&mut *stream).poll_write(cx, bytes));
        written.unwrap_or_else(|| Pin::new(stream).poll_write_vectored(cx, bufs))
    }
}
