//! One connection, from its first byte to its last.

use std::convert::Infallible;
use std::sync::Arc;

use http::header::{CONNECTION, CONTENT_LENGTH};
use http::{HeaderValue, Method, Request, Response, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tower::Service;

use super::http1::guard::Http1Guard;
use super::listener::AcceptedStream;
use super::shutdown::Drain;
use super::timeouts::{InFlight, TimeoutStream};
use super::tracked_body::TrackedBody;
use super::{ConnectionHandler, Connections};
use crate::capacity::CapacityGuard;
use crate::http::headers::HEAD_LEN_MAX;
use crate::http::peer::ConnectionInfo;

/// Maximum size of HTTP/2 request headers that hyper accepts, in bytes as RFC 9113 section 6.5.2 counts them. Beyond
/// it hyper answers a bare status 431. Twice chatgate's own limit, so that headers slightly too large get chatgate's
/// own response.
const H2_HEADERS_LEN_MAX: u32 = 2 * HEAD_LEN_MAX as u32;
/// Maximum number of requests in flight on one HTTP/2 connection.
const H2_STREAMS_MAX: u32 = 100;
/// Maximum number of streams that a peer may open and reset at once; more is an attack (CVE-2023-44487).
const H2_RESET_STREAMS_MAX: usize = 20;

/// Serves a connection to its end. `_slot` counts it among the open connections.
pub(super) async fn serve(
    stream: AcceptedStream,
    mut info: ConnectionInfo,
    handler: impl ConnectionHandler,
    connections: Connections,
    _slot: CapacityGuard,
) {
    match stream {
        AcceptedStream::Unix(stream) => serve_http(stream, info, handler, connections).await,
        AcceptedStream::Tcp(stream) => match handler.tls() {
            None => serve_http(stream, info, handler, connections).await,
            // In a box, so that plain connections do not carry its size.
            Some(tls) => {
                info.tls = true;
                Box::pin(serve_tls(stream, tls, info, handler, connections)).await;
            }
        },
    }
}

async fn serve_tls(
    stream: TcpStream,
    tls: Arc<ServerConfig>,
    info: ConnectionInfo,
    handler: impl ConnectionHandler,
    connections: Connections,
) {
    let Connections { handshakes, close, linger, .. } = &connections;
    if let Some(stream) = handshakes.accept(stream, tls, close, *linger).await {
        serve_http(stream, info, handler, connections).await;
    }
}

async fn serve_http<S>(stream: S, info: ConnectionInfo, handler: impl ConnectionHandler, connections: Connections)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let in_flight = InFlight::default();
    let stream = TimeoutStream::new(stream, connections.timeouts, in_flight.clone());
    let stream = TokioIo::new(Http1Guard::new(stream, in_flight.clone()));
    let (service, requests, drain) = (handler.service(info), in_flight.clone(), connections.drain.clone());
    let service = service_fn(move |request| respond(&service, &requests, &drain, request));
    let builder = http_builder();
    let connection = builder.serve_connection(stream, service);
    tokio::pin!(connection);
    let result = tokio::select! {
        biased;
        result = connection.as_mut() => result,
        // A request may be on its way on a kept connection: it is still served, with `Connection: close`. A connection
        // that stays idle closes after `linger`.
        () = connections.close.begun() => match tokio::time::timeout(connections.linger, connection.as_mut()).await {
            Ok(result) => result,
            Err(_) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        },
    };
    if let Some(error) = in_flight.rejection() {
        handler.record_rejected(error);
    }
    if let Err(error) = result {
        // The peer disconnected, or did not send HTTP. The text is hyper's and contains no bytes of the peer.
        tracing::debug!(%error, "connection ended early");
    }
}

/// Calls the service, and tracks the request until it has a response, and over HTTP/2 the response until the peer has
/// taken it.
fn respond<S, B>(
    service: &S,
    in_flight: &InFlight,
    drain: &Drain,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<TrackedBody<B>>, Infallible>> + use<S, B>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone,
    B: Body,
{
    let is_http2 = request.version() >= Version::HTTP_2;
    // Over HTTP/1, hyper leaves out the body itself.
    let is_bodiless = is_http2 && request.method() == Method::HEAD;
    let guard = in_flight.begin(is_http2);
    let (in_flight, drain) = (is_http2.then(|| in_flight.clone()), drain.clone());
    // Called here, not within the future, which would carry the request. `oneshot`, which also polls the readiness, is
    // such a future.
    let responding = service.clone().call(request);
    async move {
        let Ok(response) = responding.await;
        let (mut head, body) = response.into_parts();
        if is_bodiless && let Some(length) = body.size_hint().exact() {
            // RFC 9110 section 8.6: the length that a GET would have.
            head.headers.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
        }
        let body = (!is_bodiless).then_some(body);
        let body = TrackedBody::new(body, in_flight.map(|in_flight| in_flight.begin_response()));
        let mut response = Response::from_parts(head, body);
        if !is_http2 && drain.has_begun() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        drop(guard);
        Ok(response)
    }
}

/// HTTP/1.1 and HTTP/2 with every limit set.
fn http_builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // `TimeoutStream` has the limits for headers and idle connections.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HEAD_LEN_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_pending_accept_reset_streams(H2_RESET_STREAMS_MAX)
        .max_local_error_reset_streams(H2_RESET_STREAMS_MAX)
        .max_header_list_size(H2_HEADERS_LEN_MAX);
    builder
}
