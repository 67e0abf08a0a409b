//! The layers around whoever answers requests, in the order a request meets them.

use std::any::Any;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use rustls::ServerConfig;
use tokio_util::task::TaskTracker;
use tower::{Service as _, ServiceBuilder, service_fn};
use tower_http::catch_panic::CatchPanicLayer;

use crate::error::GatewayError;
use crate::gateway::generation::ThreadWorker;
use crate::http::peer::ConnectionInfo;
use crate::http::request_id::{REQUEST_ID, RequestId};
use crate::telemetry::metrics::labels::Outcome;

/// A whole answer, in the box that the panic layer puts it into.
pub type ResponseBody = tower_http::body::UnsyncBoxBody<Bytes, tower_http::BoxError>;

/// Who answers the requests of a listener.
pub trait Answers: Clone + Send + 'static {
    /// Answers one. Never fails: what goes wrong becomes an answer.
    fn answer(
        self,
        request: Request<Incoming>,
        id: RequestId,
        downstream: ConnectionInfo,
    ) -> impl Future<Output = Response<Full<Bytes>>> + Send;

    /// What was to be a request was refused before it became one.
    fn refused(&self, _: Outcome) {}

    /// The tasks that a stop waits for; connections are among them.
    fn tasks(&self) -> TaskTracker;

    /// How TLS is served to a TCP connection that begins now; `None`: the connection is plain.
    fn tls(&self) -> Option<Arc<ServerConfig>>;
}

impl Answers for ThreadWorker {
    fn answer(
        self,
        request: Request<Incoming>,
        id: RequestId,
        downstream: ConnectionInfo,
    ) -> impl Future<Output = Response<Full<Bytes>>> + Send {
        self.load().handle(request, id, downstream)
    }

    fn refused(&self, outcome: Outcome) {
        self.load().record_rejected(outcome);
    }

    fn tasks(&self) -> TaskTracker {
        self.load().gateway.tasks.clone()
    }

    fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.load().gateway.config.server.tls.as_ref().map(|tls| Arc::clone(&tls.serving))
    }
}

/// Answers one request through all layers.
///
/// What is done with the request itself is done at once: a future that carried it would be moved with it.
pub fn answer(
    answers: impl Answers,
    downstream: ConnectionInfo,
    request: Request<Incoming>,
) -> impl Future<Output = Response<ResponseBody>> + Send {
    // Outermost, so that every answer carries an id, also one about a panic.
    let id = RequestId::of(request.headers());
    let named = id.clone();
    let answering = ServiceBuilder::new()
        // A fault in one request is an answer to that request.
        .layer(CatchPanicLayer::custom(panicked))
        .service(service_fn(move |request| {
            // In a box: each layer puts what it wraps into its own future, and hyper moves that one about.
            let answering = Box::pin(answers.clone().answer(request, named.clone(), downstream));
            async move { Ok::<_, Infallible>(answering.await) }
        }))
        // Without asking whether they are ready, as `oneshot` would: that is a future that carries the request. A layer
        // that can be not ready must not be put here.
        .call(request);
    async move {
        let mut answer = answering.await.unwrap_or_else(|never| match never {});
        answer.headers_mut().insert(REQUEST_ID, id.into_header());
        answer
    }
}

fn panicked(_: Box<dyn Any + Send + 'static>) -> Response<Full<Bytes>> {
    // The panic hook has logged where; what it said may hold anything and is not repeated.
    tracing::error!("a request panicked");
    GatewayError::Internal.into_response()
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::Mutex;

    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::domain::caller::QueueKey;
    use crate::http::peer::Peer;
    use crate::telemetry::log::note_panic;

    /// In the form of a signature, as nobody may ever see one.
    const SECRET: &str = "eJyrVgrxCdZLrSjILEpVsjI0NjY0NjEwMNABi5alFilZKRnpGSjB*MUp2YmmFQVFqsZGhobGRgYQ";

    /// Fails in a way that shows everything it has.
    #[derive(Clone)]
    struct Fails(String);

    impl Answers for Fails {
        async fn answer(self, request: Request<Incoming>, _: RequestId, _: ConnectionInfo) -> Response<Full<Bytes>> {
            let target = format!("{}?usersig={}", request.uri(), self.0);
            panic!("cannot send to {target}");
        }

        fn tasks(&self) -> TaskTracker {
            TaskTracker::new()
        }

        fn tls(&self) -> Option<Arc<ServerConfig>> {
            None
        }
    }

    /// All that is logged.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic under it").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn of_a_panic_neither_the_answer_nor_the_log_repeats_a_word() {
        let kept = Kept::default();
        let writer = kept.clone();
        let layer = tracing_subscriber::fmt::layer().json().with_writer(move || writer.clone());
        let _log = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
        // Of this thread only; what other tests have to say of theirs goes where it would have gone.
        let (before, ours) = (std::panic::take_hook(), std::thread::current().id());
        std::panic::set_hook(Box::new(move |panic| match std::thread::current().id() == ours {
            true => note_panic(panic),
            false => before(panic),
        }));
        let (mut caller, ours) = tokio::io::duplex(64 * 1024);
        let downstream = ConnectionInfo { peer: Peer::Unix { uid: None }, caller: QueueKey::SELF, tls: false, port: 0 };
        let service = hyper::service::service_fn(|request| async move {
            Ok::<_, Infallible>(answer(Fails(SECRET.to_owned()), downstream, request).await)
        });
        let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(ours), service);
        let asking = async {
            let request = "POST /v4/a/b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
            caller.write_all(request.as_bytes()).await.expect("room for it");
            let mut answer = String::new();
            caller.read_to_string(&mut answer).await.expect("text");
            answer
        };
        let (served, answer) = tokio::join!(serving, asking);
        served.expect("an answer is one, whatever it says");
        let log = String::from_utf8(kept.0.lock().expect("no panic under it").clone()).expect("text");
        assert!(answer.starts_with("HTTP/1.1 500 ") && answer.contains("\"ErrorCode\":"), "{answer}");
        assert!(log.contains("\"panicked\"") && log.contains("stack.rs"), "{log}");
        for text in [&answer, &log] {
            assert!(!text.contains(&SECRET[..16]) && !text.contains("cannot send"), "{text}");
        }
    }
}
