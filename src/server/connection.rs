//! One connection, from its first byte to its last.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;

use http::header::{CONNECTION, CONTENT_LENGTH};
use http::{HeaderValue, Method, Request, Response, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot::Receiver;
use tower::Service;

use super::connection_limit::AdmittedConnection;
use super::http1::framing::Protocol;
use super::http1::guard::{self, Http1Guard};
use super::lent::lend;
use super::listener::AcceptedStream;
use super::request_body::{RequestBody, RestLimits};
use super::shutdown::Drain;
use super::timeouts::{InFlight, TimeoutStream};
use super::tls::{ALPN_H2, Handshake, client_names};
use super::tracked_body::TrackedBody;
use super::{ConnectionHandler, Connections};
use crate::error::GatewayError;
use crate::http::headers::HEAD_LEN_MAX;
use crate::http::peer::ConnectionInfo;
use crate::http::request_id::RequestId;

/// Maximum size of HTTP/2 request headers that hyper accepts, in bytes as RFC 9113 section 6.5.2 counts them. Beyond
/// it hyper answers a bare status 431. Twice chatgate's own limit, so that headers slightly too large get chatgate's
/// own response.
const H2_HEADERS_LEN_MAX: u32 = 2 * HEAD_LEN_MAX as u32;
/// Maximum number of requests in flight on one HTTP/2 connection.
const H2_STREAMS_MAX: u32 = 100;
/// Maximum number of streams that a peer may open and reset at once; more is an attack (CVE-2023-44487).
const H2_RESET_STREAMS_MAX: usize = 20;

/// Cause of the refusal of plain HTTP on a port that speaks TLS.
const PLAIN_TO_TLS: &str = "it is plain HTTP, and this port speaks TLS; use https://";

/// Serves a connection to its end.
pub(super) async fn serve(
    stream: AcceptedStream,
    mut info: ConnectionInfo,
    handler: impl ConnectionHandler,
    connections: Connections,
    admitted: AdmittedConnection,
) {
    match stream {
        AcceptedStream::Unix(stream) => {
            serve_http(stream, Protocol::Any, info, handler, connections, admitted).await;
        }
        AcceptedStream::Tcp(stream) => match handler.tls() {
            None => serve_http(stream, Protocol::Any, info, handler, connections, admitted).await,
            // In a box, so that plain connections do not carry its size.
            Some(tls) => {
                info.tls = true;
                Box::pin(serve_tls(stream, tls, info, handler, connections, admitted)).await;
            }
        },
    }
}

async fn serve_tls(
    stream: TcpStream,
    tls: Arc<ServerConfig>,
    mut info: ConnectionInfo,
    handler: impl ConnectionHandler,
    connections: Connections,
    admitted: AdmittedConnection,
) {
    let Connections { handshakes, close, linger, .. } = &connections;
    match handshakes.accept(stream, tls, close, *linger).await {
        Handshake::Completed(stream) => {
            // RFC 9113 section 3.2: HTTP/2 over TLS only if ALPN agreed on it.
            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(ALPN_H2);
            let protocol = if is_http2 { Protocol::Http2 } else { Protocol::Http1 };
            info.certificate = client_names(stream.get_ref().1);
            serve_http(stream, protocol, info, handler, connections, admitted).await;
        }
        Handshake::PlainHttp(stream) => {
            let (error, id) = (GatewayError::BadRequest(PLAIN_TO_TLS), RequestId::generate());
            handler.record_rejected(&error, &id);
            let (limits, closing) = (connections.linger_limits(), connections.closing());
            tokio::select! {
                () = guard::refuse(stream, &error, &id, &limits) => {}
                () = closing => {}
            }
        }
        Handshake::Failed => {}
    }
}

async fn serve_http<S>(
    stream: S,
    protocol: Protocol,
    info: ConnectionInfo,
    handler: impl ConnectionHandler,
    connections: Connections,
    admitted: AdmittedConnection,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let in_flight = admitted.in_flight.clone();
    let stream = TimeoutStream::new(stream, connections.timeouts, in_flight.clone());
    let (service, lingering) = (handler.service(info), connections.linger_limits());
    let record_rejected = move |error: &GatewayError, id: &RequestId| handler.record_rejected(error, id);
    let stream = Http1Guard::new(stream, protocol, in_flight.clone(), record_rejected, lingering);
    let (stream, returned) = lend(stream);
    let stream = TokioIo::new(stream);
    let (requests, drain) = (in_flight.clone(), connections.drain.clone());
    let rest = Arc::new(RestLimits { lingering: Arc::clone(&connections.lingering), close: connections.close.clone() });
    let service = service_fn(move |request: Request<Incoming>| {
        let is_http2 = request.version() >= Version::HTTP_2;
        let request = request.map(|body| RequestBody::new(body, is_http2.then(|| Arc::clone(&rest))));
        respond(&service, &requests, &drain, request)
    });
    let builder = http_builder(protocol, connections.answers_half_closed);
    let result = {
        let connection = builder.serve_connection(stream, service);
        tokio::pin!(connection);
        tokio::select! {
            biased;
            result = connection.as_mut() => result,
            // A request may be on its way on a kept connection: it is still served, with `Connection: close`. A connection
            // that stays idle closes after `linger`.
            () = connections.close.begun() => match tokio::time::timeout(connections.linger, connection.as_mut()).await {
                Ok(result) => result,
                // All that is left is to drop what the peer still sends.
                Err(_) if in_flight.is_lingering() => Ok(()),
                Err(_) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            },
            () = admitted.recycled() => {
                // Its place was taken while it was idle. A request that has begun since then is finished.
                connection.as_mut().graceful_shutdown();
                if in_flight.is_busy() { connection.await } else { Ok(()) }
            }
        }
    };
    match result {
        // hyper has shut the stream down, except after a request with `Upgrade` or CONNECT.
        Ok(()) => shut_down(returned, &connections, &admitted).await,
        // The peer disconnected, or did not send HTTP. The text is hyper's and contains no bytes of the peer.
        Err(error) => tracing::debug!(%error, "connection ended early"),
    }
}

/// Shuts down a stream that hyper has dropped, unless it is to end at once.
async fn shut_down<S>(mut returned: Receiver<S>, connections: &Connections, admitted: &AdmittedConnection)
where
    S: AsyncWrite + Unpin,
{
    let Ok(mut stream) = returned.try_recv() else { return };
    tokio::select! {
        biased;
        // Any error is the end, too.
        _ = stream.shutdown() => {}
        () = connections.closing() => {}
        () = admitted.recycled() => {}
    }
}

/// Calls the service, and tracks the request until it has a response, and over HTTP/2 the response until the peer has
/// taken it.
fn respond<S, B>(
    service: &S,
    in_flight: &InFlight,
    drain: &Drain,
    request: Request<RequestBody>,
) -> impl Future<Output = Result<Response<TrackedBody<B>>, Infallible>> + use<S, B>
where
    S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible> + Clone,
    B: Body,
{
    let is_http2 = request.version() >= Version::HTTP_2;
    // Over HTTP/1, hyper leaves out the body itself.
    let is_bodiless = is_http2 && request.method() == Method::HEAD;
    let guard = in_flight.begin(is_http2);
    let (in_flight, drain) = (in_flight.clone(), drain.clone());
    // Called here, not within the future, which would carry the request. `oneshot`, which also polls the readiness, is
    // such a future.
    let responding = service.clone().call(request);
    async move {
        let mut responding = pin!(responding);
        let Ok(response) = poll_fn(|cx| {
            let polled = responding.as_mut().poll(cx);
            if polled.is_pending() && in_flight.is_polled() {
                cx.waker().wake_by_ref();
            }
            polled
        })
        .await;
        let (mut head, body) = response.into_parts();
        if is_bodiless && let Some(length) = body.size_hint().exact() {
            // RFC 9110 section 8.6: the length that a GET would have.
            head.headers.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
        }
        // Over HTTP/1, the next request begins only after the rest of this one, which is not worth reading.
        if !is_http2 && (drain.has_begun() || in_flight.is_incomplete()) {
            head.headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let body = (!is_bodiless).then_some(body);
        let body = TrackedBody::new(body, is_http2.then(|| in_flight.begin_response()));
        drop(guard);
        Ok(Response::from_parts(head, body))
    }
}

/// HTTP/1.1 and HTTP/2 with every limit set.
fn http_builder(protocol: Protocol, answers_half_closed: bool) -> auto::Builder<TokioExecutor> {
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut builder = match protocol {
        Protocol::Any => builder,
        Protocol::Http1 => builder.http1_only(),
        Protocol::Http2 => builder.http2_only(),
    };
    builder.http1().half_close(answers_half_closed);
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
