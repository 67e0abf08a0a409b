//! The app behind `webhook.forward`: a server that records every request and answers as the test scripts it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::eventually;
use super::reply::{Reply, ReplyKind, render};
use super::wire::{Call, Reader, Stream, reset_on_drop};

/// A server on a loopback port. Dropping it closes the port.
pub(crate) struct AppServer {
    address: SocketAddr,
    scheme: &'static str,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

struct Shared {
    reply: Mutex<Reply>,
    requests: Mutex<Vec<Call>>,
    violations: Mutex<Vec<String>>,
    accepted: AtomicUsize,
}

impl AppServer {
    /// Starts plain HTTP on a free port. Answers 200 and an empty JSON object.
    pub(crate) async fn start() -> AppServer {
        AppServer::serve(None).await
    }

    /// Starts HTTPS with this certificate.
    pub(crate) async fn start_tls(acceptor: TlsAcceptor) -> AppServer {
        AppServer::serve(Some(acceptor)).await
    }

    async fn serve(tls: Option<TlsAcceptor>) -> AppServer {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared {
            reply: Mutex::new(Reply::json("{}")),
            requests: Mutex::default(),
            violations: Mutex::default(),
            accepted: AtomicUsize::new(0),
        });
        let (stop, scheme) = (CancellationToken::new(), if tls.is_some() { "https" } else { "http" });
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept(listener, Arc::clone(&shared), tls)));
        AppServer { address, scheme, shared, stop }
    }

    /// Returns the URL of a path.
    pub(crate) fn url(&self, path: &str) -> String {
        let host = if self.scheme == "https" { "localhost" } else { "127.0.0.1" };
        format!("{}://{host}:{}{path}", self.scheme, self.address.port())
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers every later request with this reply.
    pub(crate) fn reply(&self, reply: Reply) {
        *self.shared.reply.lock() = reply;
    }

    /// Returns every request so far, in order of arrival.
    pub(crate) fn requests(&self) -> Vec<Call> {
        self.shared.requests.lock().clone()
    }

    /// Returns the number of connections accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Waits until at least `count` requests have arrived.
    pub(crate) async fn wait_for_requests(&self, count: usize) {
        let arrived = async || (self.shared.requests.lock().len() >= count).then_some(());
        eventually(&format!("{count} webhooks at the app"), arrived).await;
    }
}

impl Drop for AppServer {
    fn drop(&mut self) {
        self.stop.cancel();
        if !std::thread::panicking() {
            let violations = self.shared.violations.lock();
            assert!(violations.is_empty(), "forwarded webhooks are malformed: {violations:?}");
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, tls: Option<TlsAcceptor>) {
    while let Ok((stream, _)) = listener.accept().await {
        let number = shared.accepted.fetch_add(1, Ordering::Relaxed);
        let (shared, tls) = (Arc::clone(&shared), tls.clone());
        tokio::spawn(async move {
            match tls {
                None => {
                    let mut stream = stream;
                    if respond(&mut stream, &shared, number).await.is_some() {
                        reset_on_drop(&stream);
                    }
                }
                Some(tls) => {
                    let Ok(mut stream) = tls.accept(stream).await else { return };
                    respond(&mut stream, &shared, number).await;
                }
            }
        });
    }
}

/// Answers the requests of one connection. Returns `Some` if it must be reset.
async fn respond(stream: &mut impl Stream, shared: &Shared, number: usize) -> Option<()> {
    let mut reader = Reader::new(number);
    loop {
        let request = match reader.next(stream).await {
            Ok(request) => request?,
            Err(violation) => {
                shared.violations.lock().push(violation);
                return None;
            }
        };
        shared.requests.lock().push(request);
        let Reply { gate, kind } = shared.reply.lock().clone();
        if let Some(gate) = gate {
            gate.wait_open().await;
        }
        let bytes = match &kind {
            ReplyKind::Response { status, content_type, body } => render(*status, content_type.as_deref(), body),
            ReplyKind::Bytes(bytes) | ReplyKind::Reset(bytes) | ReplyKind::Stall(bytes) => bytes.clone(),
            ReplyKind::Endless { first, .. } => first.clone(),
            ReplyKind::FromGraph => panic!("an app has no follow graph"),
        };
        stream.write_all(&bytes).await.ok()?;
        stream.flush().await.ok()?;
        match kind {
            ReplyKind::Reset(_) => return Some(()),
            ReplyKind::Bytes(_) => return None,
            ReplyKind::Stall(_) => while let Ok(1..) = stream.read(&mut [0; 1024]).await {},
            ReplyKind::Endless { more, .. } => while stream.write_all(&more).await.is_ok() {},
            ReplyKind::Response { .. } | ReplyKind::FromGraph => {}
        }
    }
}
