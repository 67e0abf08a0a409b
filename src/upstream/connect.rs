//! New connections to Chat, directly or through a proxy: TLS that is verified before the first byte, and a maximum age.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;
use tower::{Service, ServiceExt as _};

use super::attempt::AttemptError;
use super::resolve::Resolver;
use super::tunnel::{self, Target};
use crate::clock;
use crate::config::Proxy;
use crate::domain::policy::proxy::{ConnectFailure, ProxyFailure};
use crate::error::display_chain;
use crate::http::small_writes;

/// The cause if a connection is not there in time.
const TOO_LATE: &str = "upstream.connect_timeout exceeded";
/// The same, while the proxy connects to the target.
const PROXY_WAITS: &str = "upstream.connect_timeout exceeded while the proxy was connecting";

/// Opens connections that know when to retire.
#[derive(Clone)]
pub(super) struct Connector {
    inner: HttpsConnector<HttpConnector<Resolver>>,
    /// `None`: directly.
    tunnel: Option<Arc<Tunnel>>,
    timeout: Duration,
    max_age: Duration,
}

/// What a connection through a proxy needs.
struct Tunnel {
    proxy: Proxy,
    uri: Uri,
    tcp: HttpConnector<Resolver>,
    tls: TlsConnector,
}

type Stream = <HttpsConnector<HttpConnector<Resolver>> as Service<Uri>>::Response;

impl Connector {
    /// `timeout` covers DNS, TCP, the proxy, and TLS together, for all addresses of a name.
    ///
    /// A connection retires after `max_age`, less a random part of up to 10 %, so that connections do not all retire at
    /// the same time. The next connection follows DNS again.
    pub(super) fn new(tls: ClientConfig, timeout: Duration, max_age: Duration) -> Self {
        let inner = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp_connector(timeout));
        Self { inner, tunnel: None, timeout, max_age }
    }

    /// Returns a connector with the same timeouts that goes through a proxy. It is for TLS endpoints only.
    ///
    /// # Errors
    /// If the address of the proxy is not a valid URI.
    pub(super) fn through(&self, proxy: &Proxy, tls: ClientConfig) -> Result<Self, http::uri::InvalidUri> {
        let uri = format!("http://{}:{}/", proxy.host, proxy.port).parse()?;
        let (tcp, tls) = (tcp_connector(self.timeout), TlsConnector::from(Arc::new(tls)));
        Ok(Self { tunnel: Some(Arc::new(Tunnel { proxy: proxy.clone(), uri, tcp, tls })), ..self.clone() })
    }

    /// Returns whether connections go through a proxy.
    pub(super) fn has_proxy(&self) -> bool {
        self.tunnel.is_some()
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// [`AttemptError::NotSent`] or [`AttemptError::Proxy`].
    pub(super) async fn connect(&self, endpoint: Uri) -> Result<ExpiringStream, AttemptError> {
        let stream = match &self.tunnel {
            None => self.connect_directly(endpoint).await,
            Some(tunnel) => tunnel.connect(&endpoint, self.timeout).await,
        }?;
        let max_age = self.max_age.mul_f64(1.0 - 0.1 * f64::from(clock::random_u32()) / f64::from(u32::MAX));
        Ok(ExpiringStream { stream, retire_at: clock::now() + max_age })
    }

    async fn connect_directly(&self, endpoint: Uri) -> Result<Stream, AttemptError> {
        let connecting = tokio::time::timeout(self.timeout, self.inner.clone().oneshot(endpoint));
        let Ok(connected) = connecting.await else {
            return Err(AttemptError::NotSent(TOO_LATE.to_owned()));
        };
        connected.map_err(|error| AttemptError::not_sent(&*error))
    }
}

fn tcp_connector(timeout: Duration) -> HttpConnector<Resolver> {
    let mut tcp = HttpConnector::new_with_resolver(Resolver::default());
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(timeout));
    tcp.set_keepalive(Some(Duration::from_secs(30)));
    tcp
}

impl Tunnel {
    async fn connect(&self, endpoint: &Uri, timeout: Duration) -> Result<Stream, AttemptError> {
        let mut asked = false;
        let connecting = tokio::time::timeout(timeout, self.open(endpoint, &mut asked)).await;
        match connecting {
            Ok(connected) => connected,
            // A target that drops packets makes a proxy wait for longer than this timeout, so its silence is the
            // target's failure: calls must move to the standby domain then.
            Err(_) if asked => Err(AttemptError::NotSent(PROXY_WAITS.to_owned())),
            Err(_) => Err(AttemptError::Proxy(ProxyFailure::Unreachable, TOO_LATE.to_owned())),
        }
    }

    async fn open(&self, endpoint: &Uri, asked: &mut bool) -> Result<Stream, AttemptError> {
        let unreachable = |error| AttemptError::Proxy(ProxyFailure::Unreachable, display_chain(&error));
        let mut tcp = self.tcp.clone().oneshot(self.uri.clone()).await.map_err(unreachable)?.into_inner();
        let host = endpoint.host().unwrap_or_default();
        let target = Target { host, port: endpoint.port_u16().unwrap_or(443) };
        tunnel::open(&mut tcp, &self.proxy, target, asked).await.map_err(|error| match error.failure {
            ConnectFailure::Domain => AttemptError::NotSent(error.cause),
            ConnectFailure::Proxy(failure) => AttemptError::Proxy(failure, error.cause),
        })?;
        let name =
            ServerName::try_from(host.trim_matches(['[', ']'])).map_err(|error| AttemptError::not_sent(&error))?;
        let handshake = self.tls.connect(name.to_owned(), TokioIo::new(TokioIo::new(tcp)));
        Ok(handshake.await.map_err(|error| AttemptError::not_sent(&error))?.into())
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
