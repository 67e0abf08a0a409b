//! Connections of the simulator: HTTP/1.1 or HTTP/2, with bounds and timeouts.

use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use socket2::Socket;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::chat::SimulatedChat;
use super::connection::{Connection, ResponseBody};
use super::control;
use super::control::ControlResponse;
use super::faults::FaultKind;

/// Maximum number of connections; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;
/// Maximum number of request bodies in memory; further requests wait.
const BODIES_MAX: usize = 256;
/// Maximum length of a body, in bytes.
const BODY_LEN_MAX: usize = 2 * 1024 * 1024;
/// Timeout for receiving a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout for a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout for receiving the headers of the next request on a connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// Maximum number of concurrent requests on an HTTP/2 connection.
const STREAMS_MAX: u32 = 250;
/// Largest request headers, in bytes.
const HEAD_LEN_MAX: usize = 64 * 1024;
/// Timeout for calls in flight after the shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a failed accept, for example because the limit of open files is reached.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The state that all connections share.
struct SimulatorServer {
    chat: Arc<SimulatedChat>,
    tls: Option<TlsAcceptor>,
    bodies: Semaphore,
    /// Cancelled to finish the requests in flight and accept no more.
    shutdown: CancellationToken,
    /// Cancelled to close all connections at once.
    abort: CancellationToken,
}

/// The connection ends without a response.
#[derive(Debug, thiserror::Error)]
#[error("connection ended without a response")]
struct ConnectionEnded;

/// Serves until the shutdown, then until the requests in flight have ended or [`DRAIN_TIMEOUT`] has passed.
pub(super) async fn serve(
    listener: TcpListener,
    chat: Arc<SimulatedChat>,
    tls: Option<TlsAcceptor>,
    shutdown: CancellationToken,
    tracker: TaskTracker,
) {
    let abort = CancellationToken::new();
    let server = Arc::new(SimulatorServer {
        chat,
        tls,
        bodies: Semaphore::new(BODIES_MAX),
        shutdown: shutdown.clone(),
        abort: abort.clone(),
    });
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut id = 0;
    loop {
        let next = async {
            let permit = Arc::clone(&connections).acquire_owned().await;
            (listener.accept().await, permit.expect("the semaphore is never closed"))
        };
        let Some((accepted, permit)) = shutdown.run_until_cancelled(next).await else { break };
        match accepted {
            Ok((stream, peer)) => {
                id += 1;
                let socket = stream.as_fd().try_clone_to_owned().ok().map(Socket::from);
                let connection = Arc::new(Connection::new(id, peer, socket));
                tracker.spawn(Arc::clone(&server).handle_connection(stream, connection, permit));
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    tracker.close();
    if tokio::time::timeout(DRAIN_TIMEOUT, tracker.wait()).await.is_err() {
        abort.cancel();
        tracker.wait().await;
    }
}

impl SimulatorServer {
    async fn handle_connection(
        self: Arc<Self>,
        stream: TcpStream,
        connection: Arc<Connection>,
        _permit: OwnedSemaphorePermit,
    ) {
        // Responses are small and written at once. If this fails, they are only slower.
        let _ = stream.set_nodelay(true);
        match &self.tls {
            None => self.serve_http(stream, &connection).await,
            Some(tls) => match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
                Ok(Ok(stream)) => self.serve_http(stream, &connection).await,
                Ok(Err(error)) => debug!(%error, "TLS handshake failed"),
                Err(_) => debug!("TLS handshake timed out"),
            },
        }
        connection.end();
    }

    async fn serve_http(
        self: &Arc<Self>,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        connection: &Arc<Connection>,
    ) {
        let service = service_fn(|request| {
            let (server, connection) = (Arc::clone(self), Arc::clone(connection));
            async move { server.handle_request(request, &connection).await }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_TIMEOUT)
            .max_buf_size(HEAD_LEN_MAX)
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEAD_LEN_MAX as u32)
            .keep_alive_interval(IDLE_TIMEOUT)
            .keep_alive_timeout(HANDSHAKE_TIMEOUT);
        let mut http = pin!(builder.serve_connection(TokioIo::new(io), service));
        // hyper has no timeout for the first bytes, which distinguish HTTP/1 from HTTP/2.
        let mut first_request = pin!(tokio::time::sleep(IDLE_TIMEOUT));
        let (mut waiting, mut draining) = (true, false);
        loop {
            tokio::select! {
                result = http.as_mut() => {
                    if let Err(error) = result {
                        debug!(%error, "connection ended");
                    }
                    return;
                }
                () = connection.ended.cancelled() => return,
                () = self.abort.cancelled() => return,
                () = self.shutdown.cancelled(), if !draining => {
                    draining = true;
                    http.as_mut().graceful_shutdown();
                }
                () = first_request.as_mut(), if waiting => {
                    waiting = false;
                    if !connection.used.load(Ordering::Relaxed) {
                        return;
                    }
                }
            }
        }
    }

    async fn handle_request(
        &self,
        request: Request<Incoming>,
        connection: &Arc<Connection>,
    ) -> Result<Response<ResponseBody>, ConnectionEnded> {
        connection.mark_used();
        let (head, body) = request.into_parts();
        if let Some(name) = head.uri.path().strip_prefix(control::PREFIX) {
            let _permit = self.bodies.acquire().await.map_err(|_| ConnectionEnded)?;
            let body = match read(body).await {
                Ok(body) => body,
                Err(error) => return self.body_error(error),
            };
            let ControlResponse { status, content_type, body } = control::handle(&self.chat, &head.method, name, &body);
            return Ok(self.respond(status, content_type, ResponseBody::whole(body)));
        }
        // The vendor documents this request as a probe (1047/34620).
        if head.method == Method::HEAD && head.uri.path() == "/" {
            return Ok(self.respond(StatusCode::OK, "text/html", ResponseBody::whole(Bytes::new())));
        }
        let arrival = self.chat.arrive(&head);
        let response = {
            let _permit = self.bodies.acquire().await.map_err(|_| ConnectionEnded)?;
            match read(body).await {
                Ok(body) => self.chat.answer(&head, &body, arrival, connection),
                Err(error) => return self.body_error(error),
            }
        };
        if !response.latency.is_zero() {
            tokio::time::sleep(response.latency).await;
        }
        let body = match response.fault {
            Some(FaultKind::Reset) => {
                connection.reset();
                return Err(ConnectionEnded);
            }
            Some(FaultKind::Drop) => {
                connection.end();
                return Err(ConnectionEnded);
            }
            Some(FaultKind::Truncate) => ResponseBody::half(response.body, Arc::clone(connection)),
            _ => ResponseBody::whole(response.body),
        };
        Ok(self.respond(response.status, response.content_type, body))
    }

    fn body_error(&self, error: BodyReadError) -> Result<Response<ResponseBody>, ConnectionEnded> {
        let (status, text) = match error {
            BodyReadError::TooLong => (StatusCode::PAYLOAD_TOO_LARGE, "the body exceeds 2 MiB\n"),
            BodyReadError::TooSlow => (StatusCode::REQUEST_TIMEOUT, "the body did not arrive within 30 s\n"),
            BodyReadError::Broken => return Err(ConnectionEnded),
        };
        let mut response = self.respond(status, "text/plain; charset=utf-8", ResponseBody::whole(text));
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        Ok(response)
    }

    fn respond(&self, status: StatusCode, content_type: &'static str, body: ResponseBody) -> Response<ResponseBody> {
        let length = http_body::Body::size_hint(&body).exact();
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::SERVER, HeaderValue::from_static("chatgate-sandbox"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(length) = length {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        // hyper would add the machine's time. The skew is at most ten years, so the year has four digits.
        let date = httpdate::fmt_http_date(UNIX_EPOCH + self.chat.clock.unix_now());
        if let Ok(date) = HeaderValue::from_str(&date) {
            headers.insert(header::DATE, date);
        }
        response
    }
}

/// Why a body could not be read.
enum BodyReadError {
    TooLong,
    TooSlow,
    Broken,
}

async fn read(body: Incoming) -> Result<Bytes, BodyReadError> {
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_LEN_MAX).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(BodyReadError::TooLong),
        Ok(Err(_)) => Err(BodyReadError::Broken),
        Err(_) => Err(BodyReadError::TooSlow),
    }
}
