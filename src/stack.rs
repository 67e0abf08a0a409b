//! The layers around whoever answers requests, in the order a request meets them.

use std::any::Any;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use rustls::ServerConfig;
use tokio_util::task::TaskTracker;
use tower::{Service, ServiceBuilder, service_fn};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};

use crate::clock;
use crate::error::GatewayError;
use crate::gateway::Downstream;
use crate::gateway::current::ThreadWorker;
use crate::metrics::labels::Outcome;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id that is taken from a caller, in bytes.
const REQUEST_ID_LEN_MAX: usize = 128;

/// A whole answer, in the box that the panic layer puts it into.
pub type AnswerBody = tower_http::body::UnsyncBoxBody<Bytes, tower_http::BoxError>;

/// Who answers the requests of a listener.
pub trait Answers: Clone + Send + 'static {
    /// Answers one. Never fails: what goes wrong becomes an answer.
    fn answer(
        self,
        request: Request<Incoming>,
        downstream: Downstream,
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
        downstream: Downstream,
    ) -> impl Future<Output = Response<Full<Bytes>>> + Send {
        self.now().handle(request, downstream)
    }

    fn refused(&self, outcome: Outcome) {
        self.now().refused(outcome);
    }

    fn tasks(&self) -> TaskTracker {
        self.now().gateway.tasks.clone()
    }

    fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.now().gateway.config.server.tls.as_ref().map(|tls| Arc::clone(&tls.serving))
    }
}

/// What answers the requests of one connection.
pub fn service(
    answers: impl Answers,
    downstream: Downstream,
) -> impl Service<
    Request<Incoming>,
    Response = Response<AnswerBody>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<AnswerBody>, Infallible>> + Send,
> + Clone {
    ServiceBuilder::new()
        // First, so that every answer carries an id, also one about a panic.
        .map_request(drop_odd_request_id)
        .layer(SetRequestIdLayer::new(REQUEST_ID, Numbers))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        // A fault in one request is an answer to that request.
        .layer(CatchPanicLayer::custom(panicked))
        .service(service_fn(move |request| {
            // In a box: each layer puts what it wraps into its own future, and hyper moves that one about.
            let answering = Box::pin(answers.clone().answer(request, downstream));
            async move { Ok::<_, Infallible>(answering.await) }
        }))
}

/// A caller's id is kept if it can stand in a log line and in a header: 1 to 128 visible ASCII
/// characters, given once.
fn drop_odd_request_id<B>(mut request: Request<B>) -> Request<B> {
    let mut ids = request.headers().get_all(&REQUEST_ID).iter();
    let good = match (ids.next(), ids.next()) {
        (None, _) => return request,
        (Some(id), None) => {
            (1..=REQUEST_ID_LEN_MAX).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
        }
        (Some(_), Some(_)) => false,
    };
    if !good {
        request.headers_mut().remove(&REQUEST_ID);
    }
    request
}

/// Names requests that come without a name.
#[derive(Clone, Copy)]
struct Numbers;

impl MakeRequestId for Numbers {
    fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
        let id = hex(clock::request_number());
        HeaderValue::from_bytes(&id).ok().map(RequestId::new)
    }
}

/// 32 digits. By hand, since every request has one made and formatting takes ten times as long.
fn hex(number: u128) -> [u8; 32] {
    let mut digits = [0; 32];
    for (at, digit) in digits.iter_mut().enumerate() {
        let four_bits = (number >> (4 * (31 - at))) & 0xf;
        *digit = b"0123456789abcdef"[four_bits as usize];
    }
    digits
}

fn panicked(_: Box<dyn Any + Send + 'static>) -> Response<Full<Bytes>> {
    // The panic hook has logged where; what it said may hold anything and is not repeated.
    tracing::error!("a request panicked");
    GatewayError::Internal.into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_hexadecimal_digits() {
        for number in [0, 1, 0xf, 0x10, u128::MAX, 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210, 1 << 127] {
            assert_eq!(std::str::from_utf8(&hex(number)), Ok(format!("{number:032x}").as_str()));
        }
    }
}
