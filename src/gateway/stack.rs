//! The layers around the handler of a listener, in the order in which a request passes them.

use std::any::Any;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use rustls::ServerConfig;
use tower::{Service, ServiceBuilder, service_fn};
use tower_http::catch_panic::CatchPanicLayer;

use crate::error::GatewayError;
use crate::gateway::generation::ThreadWorker;
use crate::http::peer::ConnectionInfo;
use crate::http::request_id::{REQUEST_ID, RequestId};
use crate::server::request_body::RequestBody;
use crate::server::{ConnectionHandler, ConnectionService};
use crate::telemetry::metrics::labels::Outcome;

/// A complete response body, in the box that the panic layer puts it into.
pub(crate) type ResponseBody = tower_http::body::UnsyncBoxBody<Bytes, tower_http::BoxError>;

/// The data listener: each request takes the worker of its thread that is current when it begins.
impl ConnectionHandler for ThreadWorker {
    type ResponseBody = ResponseBody;

    fn service(&self, connection: ConnectionInfo) -> impl ConnectionService<ResponseBody> {
        let worker = self.clone();
        service(move |request, id| worker.load().handle(request, id, connection.clone()))
    }

    fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.load().gateway.config.server.tls.as_ref().map(|tls| Arc::clone(&tls.serving))
    }

    fn record_rejected(&self, error: &GatewayError, id: &RequestId) {
        let worker = self.load();
        worker.record_rejected(Outcome::rejected(error));
        worker.gateway.log_rejected(error, id);
    }
}

/// Builds the service of one connection. Every listener uses the same layers.
///
/// A layer must always be ready, see [`ConnectionService`].
pub(crate) fn service<H, F>(mut handler: H) -> impl ConnectionService<ResponseBody>
where
    H: FnMut(Request<RequestBody>, RequestId) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    ServiceBuilder::new()
        // Outermost, so that every response carries an ID, even one about a panic.
        .layer_fn(add_request_id)
        // Turns a panic into a response to the request that caused it; without it the connection would be cut.
        .layer(CatchPanicLayer::custom(respond_to_panic))
        .service(service_fn(move |request: Request<Identified>| {
            let (head, Identified { id, body }) = request.into_parts();
            // In a box: each layer moves what it wraps into its own future, and hyper moves that one.
            let responding = Box::pin(handler(Request::from_parts(head, body), id));
            async move { Ok::<_, Infallible>(responding.await) }
        }))
}

/// A request body with the ID of its request, which the outermost layer chooses and the handler needs. As an entry of
/// the request's extensions it would cost 760 instructions, 2.6 % of a cached response.
struct Identified {
    id: RequestId,
    body: RequestBody,
}

fn add_request_id<S>(mut inner: S) -> impl ConnectionService<ResponseBody>
where
    S: Service<Request<Identified>, Response = Response<ResponseBody>, Error = Infallible, Future: Send + 'static>
        + Clone
        + Send
        + 'static,
{
    service_fn(move |request: Request<RequestBody>| {
        let id = RequestId::of(request.headers());
        let header = id.clone();
        let responding = inner.call(request.map(|body| Identified { id, body }));
        async move {
            let Ok(mut response) = responding.await;
            response.headers_mut().insert(REQUEST_ID, header.into_header());
            Ok(response)
        }
    })
}

fn respond_to_panic(_: Box<dyn Any + Send + 'static>) -> Response<Full<Bytes>> {
    // The panic hook has logged the place. The panic's message may contain secrets and is not repeated.
    tracing::error!("request panicked");
    GatewayError::Internal.into_response()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{self, Write};

    use parking_lot::Mutex;
    use tracing_subscriber::layer::{Identity, Layered, SubscriberExt as _};
    use tracing_subscriber::{Layer, Registry};

    use super::*;
    use crate::gateway::generation::Generations;
    use crate::server::tests::exchange;
    use crate::telemetry::log::note_panic;

    /// Value of the environment variable TOKEN in [`generations`].
    pub(crate) const ADMIN_TOKEN: &str = "the-admin-token-of-tests";

    /// Has the form of a UserSig, which must not appear anywhere.
    const SECRET: &str = "eJyrVgrxCdZLrSjILEpVsjI0NjY0NjEwMNABi5alFilZKRnpGSjB*MUp2YmmFQVFqsZGhobGRgYQ";

    /// Panics with a message that contains all it has.
    #[derive(Clone)]
    struct PanickingHandler(String);

    impl ConnectionHandler for PanickingHandler {
        type ResponseBody = ResponseBody;

        fn record_rejected(&self, _: &GatewayError, _: &RequestId) {}

        fn service(&self, _: ConnectionInfo) -> impl ConnectionService<ResponseBody> {
            let secret = self.0.clone();
            service(move |request, _| {
                let target = format!("{}?usersig={secret}", request.uri());
                async move { panic!("cannot send to {target}") }
            })
        }
    }

    /// Builds generations with one app and these further sections.
    pub(crate) fn generations(sections: &str) -> Arc<Generations> {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("chatgate.toml");
        let app = "[[app]]\nname = 'main'\nsdkappid = 1\nregion = 'tokyo'\nsecret_key_env = 'KEY'\n";
        std::fs::write(&file, format!("{app}{sections}")).expect("a writable directory");
        let config = crate::config::load(&file, &[("KEY", "key"), ("TOKEN", ADMIN_TOKEN)].into_iter().collect());
        let config = config.unwrap_or_else(|problems| panic!("{problems}"));
        Generations::new(config, 1).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Everything that is logged.
    #[derive(Clone, Default)]
    struct LogBuffer(Arc<Mutex<Vec<u8>>>);

    impl Write for LogBuffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    type LogSubscriber = Layered<Box<dyn Layer<Registry> + Send + Sync>, Registry>;

    /// Logs panics of this thread as the program does. Panics of other tests go to the previous hook.
    fn note_panics_of_this_thread() {
        static HOOK: Mutex<()> = Mutex::new(());
        let _one_at_a_time = HOOK.lock();
        let (previous, this) = (std::panic::take_hook(), std::thread::current().id());
        std::panic::set_hook(Box::new(move |panic| match std::thread::current().id() == this {
            true => note_panic(panic),
            false => previous(panic),
        }));
    }

    /// Asserts that a handler that panics while it handles `request` answers 500 and logs it. `further` observes the log
    /// too. Returns the response and the log.
    pub(crate) async fn assert_panic_is_answered(
        handler: impl ConnectionHandler,
        request: &str,
        further: impl Layer<LogSubscriber> + Send + Sync,
    ) -> (String, String) {
        let buffer = LogBuffer::default();
        let writer = buffer.clone();
        let layer = tracing_subscriber::fmt::layer().json().with_writer(move || writer.clone()).boxed();
        let _log = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer).with(further));
        note_panics_of_this_thread();
        let response = exchange(handler, request).await;
        let log = String::from_utf8(buffer.0.lock().clone()).expect("text");
        assert!(response.starts_with("HTTP/1.1 500 ") && response.contains("\"ErrorCode\":"), "{response}");
        assert!(response.contains("\r\nx-request-id: "), "{response}");
        assert!(log.contains("\"request panicked\""), "{log}");
        (response, log)
    }

    #[tokio::test]
    async fn panic_message_reaches_neither_response_nor_log() {
        let request = "POST /v4/a/b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        let (response, log) =
            assert_panic_is_answered(PanickingHandler(SECRET.to_owned()), request, Identity::new()).await;
        assert!(log.contains("stack.rs"), "{log}");
        for text in [&response, &log] {
            assert!(!text.contains(&SECRET[..16]) && !text.contains("cannot send"), "{text}");
        }
    }
}
