//! Connections: accepted, bounded, served over HTTP/1.1 or HTTP/2, ended.

use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

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

use super::chat::Chat;
use super::date::http_date;
use super::faults::Kind;
use super::link::{Body, Link};
use super::orders;

/// Most connections at once; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;
/// Most requests whose body is in memory at once; further ones wait.
const BODIES_MAX: usize = 256;
/// Longest body, in bytes.
const BODY_LEN_MAX: usize = 2 * 1024 * 1024;
/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may go without a (further) request's head.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 250;
/// Longest head, in bytes.
const HEAD_LEN_MAX: usize = 64 * 1024;
/// How long calls under way may go on after the shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after an accept that failed, for instance because no more files can be opened.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What every connection shares.
struct Server {
    chat: Arc<Chat>,
    tls: Option<TlsAcceptor>,
    bodies: Semaphore,
    /// Finish what is under way.
    shutdown: CancellationToken,
    /// Stop at once.
    abort: CancellationToken,
}

/// The connection ends without an answer.
#[derive(Debug, thiserror::Error)]
#[error("ended without an answer")]
struct Ended;

/// Serves until the shutdown, then until what is under way is done or its time is over.
pub(super) async fn serve(
    listener: TcpListener,
    chat: Arc<Chat>,
    tls: Option<TlsAcceptor>,
    shutdown: CancellationToken,
    tracker: TaskTracker,
) {
    let abort = CancellationToken::new();
    let server = Arc::new(Server {
        chat,
        tls,
        bodies: Semaphore::new(BODIES_MAX),
        shutdown: shutdown.clone(),
        abort: abort.clone(),
    });
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut id = 0;
    loop {
        let next = async {
            let permit = Arc::clone(&room).acquire_owned().await;
            (listener.accept().await, permit.expect("the semaphore is never closed"))
        };
        let Some((accepted, permit)) = shutdown.run_until_cancelled(next).await else { break };
        match accepted {
            Ok((stream, peer)) => {
                id += 1;
                let socket = stream.as_fd().try_clone_to_owned().ok().map(Socket::from);
                let link = Arc::new(Link::new(id, peer, socket));
                tracker.spawn(Arc::clone(&server).connection(stream, link, permit));
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

impl Server {
    async fn connection(self: Arc<Self>, stream: TcpStream, link: Arc<Link>, _room: OwnedSemaphorePermit) {
        // Answers are small and whole; a failure only costs speed.
        let _ = stream.set_nodelay(true);
        match &self.tls {
            None => self.drive(stream, &link).await,
            Some(tls) => match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
                Ok(Ok(stream)) => self.drive(stream, &link).await,
                Ok(Err(error)) => debug!(%error, "TLS handshake failed"),
                Err(_) => debug!("TLS handshake took too long"),
            },
        }
        link.end();
    }

    async fn drive(self: &Arc<Self>, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, link: &Arc<Link>) {
        let service = service_fn(|request| {
            let (server, link) = (Arc::clone(self), Arc::clone(link));
            async move { server.request(request, &link).await }
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
        let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
        // The library waits without end for the bytes that tell HTTP/1 from HTTP/2.
        let mut first_request = pin!(tokio::time::sleep(IDLE_TIMEOUT));
        let (mut waiting, mut draining) = (true, false);
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        debug!(%error, "connection ended");
                    }
                    return;
                }
                () = link.ended.cancelled() => return,
                () = self.abort.cancelled() => return,
                () = self.shutdown.cancelled(), if !draining => {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = first_request.as_mut(), if waiting => {
                    waiting = false;
                    if !link.used.load(Ordering::Relaxed) {
                        return;
                    }
                }
            }
        }
    }

    async fn request(&self, request: Request<Incoming>, link: &Arc<Link>) -> Result<Response<Body>, Ended> {
        link.mark_used();
        let (head, body) = request.into_parts();
        if let Some(order) = head.uri.path().strip_prefix(orders::PREFIX) {
            let _room = self.bodies.acquire().await.map_err(|_| Ended)?;
            let body = match read(body).await {
                Ok(body) => body,
                Err(failed) => return self.unread(failed),
            };
            let (status, content_type, body) = orders::carry_out(&self.chat, &head.method, order, &body);
            return Ok(self.respond(status, content_type, Body::whole(body)));
        }
        // The vendor's page offers this as a probe (1047/34620).
        if head.method == Method::HEAD && head.uri.path() == "/" {
            return Ok(self.respond(StatusCode::OK, "text/html", Body::whole(Bytes::new())));
        }
        let arrival = self.chat.arrive(&head);
        let outcome = {
            let _room = self.bodies.acquire().await.map_err(|_| Ended)?;
            match read(body).await {
                Ok(body) => self.chat.answer(&head, &body, arrival, link),
                Err(failed) => return self.unread(failed),
            }
        };
        if !outcome.latency.is_zero() {
            tokio::time::sleep(outcome.latency).await;
        }
        let body = match outcome.fault {
            Some(Kind::Reset) => {
                link.reset();
                return Err(Ended);
            }
            Some(Kind::Drop) => {
                link.end();
                return Err(Ended);
            }
            Some(Kind::Truncate) => Body::half(outcome.body, Arc::clone(link)),
            _ => Body::whole(outcome.body),
        };
        Ok(self.respond(outcome.status, outcome.content_type, body))
    }

    fn unread(&self, failed: Unread) -> Result<Response<Body>, Ended> {
        let (status, sentence) = match failed {
            Unread::TooLong => (StatusCode::PAYLOAD_TOO_LARGE, "the body is longer than 2 MiB\n"),
            Unread::TooSlow => (StatusCode::REQUEST_TIMEOUT, "the body took too long\n"),
            Unread::Broken => return Err(Ended),
        };
        let mut answer = self.respond(status, "text/plain; charset=utf-8", Body::whole(sentence));
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        Ok(answer)
    }

    fn respond(&self, status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
        let length = http_body::Body::size_hint(&body).exact();
        let mut answer = Response::new(body);
        *answer.status_mut() = status;
        let headers = answer.headers_mut();
        headers.insert(header::SERVER, HeaderValue::from_static("chatgate-sandbox"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(length) = length {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        // The library would put the machine's own time.
        if let Ok(date) = HeaderValue::from_str(&http_date(self.chat.clock.unix_now())) {
            headers.insert(header::DATE, date);
        }
        answer
    }
}

/// Why there is no body.
enum Unread {
    TooLong,
    TooSlow,
    Broken,
}

async fn read(body: Incoming) -> Result<Bytes, Unread> {
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_LEN_MAX).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Unread::TooLong),
        Ok(Err(_)) => Err(Unread::Broken),
        Err(_) => Err(Unread::TooSlow),
    }
}
