//! Forwards webhooks to the app: the request of Chat to the app, and the response of the app to Chat.
//!
//! Each webhook has a connection of its own and is sent once. An app may close an idle connection at the moment when a
//! webhook is written to it. It would then be unknown whether the app has received the webhook, so chatgate could
//! neither send it again nor answer it.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use tower::ServiceExt as _;

use super::log::LogInterval;
use crate::capacity::{Capacity, CapacityGuard};
use crate::clock;
use crate::config::{ForwardTarget, Webhook, client_config};
use crate::error::{ForwardError, GatewayError, display_chain};
use crate::gateway::{App, counted};
use crate::http::body::{BAD_TRAILER, BodyError, read_whole};
use crate::telemetry::metrics::labels::Outcome;

/// Maximum size of a response of an app, in bytes. A "before" webhook may be answered with a changed message, which has
/// up to 12 KiB (vendor page "Use Limits", 1047/34381).
const RESPONSE_LEN_MAX: usize = 1024 * 1024;
/// Maximum size of the headers of a response, in bytes.
const HEAD_LEN_MAX: usize = 64 * 1024;

/// Timeout for TCP connections, which all addresses of a name share. `webhook.forward_timeout` applies in addition.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends webhooks to apps.
pub(super) struct Forwarder {
    connector: HttpsConnector<HttpConnector>,
    buffered: Arc<Capacity>,
    failures: LogInterval,
}

impl Forwarder {
    /// Bytes of responses count against `buffered`.
    pub(super) fn new(buffered: Arc<Capacity>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let tls = client_config(&[], None).expect("the public roots are valid");
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
        Self { connector, buffered, failures: LogInterval::default() }
    }

    /// Sends a verified webhook to its app, and returns the response of the app. Counts and logs the outcome.
    ///
    /// # Errors
    /// `overloaded`, `upstream_unreachable`, `upstream_timeout`, or `upstream_invalid`.
    pub(super) async fn forward(
        &self,
        app: &App,
        target: &ForwardTarget,
        config: &Webhook,
        head: &Parts,
        body: Bytes,
    ) -> Result<Response<Full<Bytes>>, GatewayError> {
        let started = clock::now();
        let result = pin!(self.send(app, target, config.forward_timeout, head, body)).await;
        let outcome = match &result {
            Ok(response) if response.status() == StatusCode::OK => Outcome::OK,
            Ok(_) => Outcome::FAILED,
            Err(error) => Outcome::rejected(error),
        };
        app.webhooks.forwards.add(outcome, clock::now() - started);
        if let Err(error) = &result {
            self.log(app, error);
        }
        result
    }

    /// Counts and logs a webhook that its app does not receive because it could not be read.
    pub(super) fn record_unread(&self, app: &App, error: &GatewayError) {
        app.webhooks.forwards.add(Outcome::rejected(error), Duration::ZERO);
        self.log(app, error);
    }

    fn log(&self, app: &App, error: &GatewayError) {
        let Some(count) = self.failures.count() else { return };
        let cause = match error {
            GatewayError::NotForwarded(error) => error.cause(),
            _ => None,
        };
        tracing::warn!(count, app = %app.name, last_error = %error, cause, "webhooks were not answered by the app");
    }

    async fn send(
        &self,
        app: &App,
        target: &ForwardTarget,
        timeout: Duration,
        head: &Parts,
        body: Bytes,
    ) -> Result<Response<Full<Bytes>>, GatewayError> {
        let slot = app.webhooks.in_flight.try_acquire(1);
        let _slot = slot.ok_or(GatewayError::Overloaded("webhooks in flight to the app"))?;
        let request = request(target, head, body)?;
        let answered = tokio::time::timeout(timeout, Box::pin(self.exchange(request))).await;
        let (head, body, guard) = answered.map_err(|_| GatewayError::NotForwarded(ForwardError::Timeout))??;
        let mut response = Response::new(Full::new(counted(body, Some(guard))));
        *response.status_mut() = head.status;
        if let Some(content_type) = head.headers.get(CONTENT_TYPE) {
            response.headers_mut().insert(CONTENT_TYPE, content_type.clone());
        }
        Ok(response)
    }

    /// Connects, sends, and reads the whole response.
    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(http::response::Parts, Bytes, CapacityGuard), GatewayError> {
        let connecting = self.connector.clone().oneshot(request.uri().clone());
        let stream = connecting.await.map_err(|error| unreachable(&*error))?;
        let mut request = request;
        *request.uri_mut() = origin_form(request.uri());
        let builder = http1::Builder::new().max_buf_size(HEAD_LEN_MAX).handshake(stream).await;
        let (mut sender, connection) = builder.map_err(|error| unreachable(&error))?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
            self.read(response).await
        };
        let (mut exchange, connection) = (pin!(exchange), pin!(connection));
        // The exchange advances only while its connection is polled. A connection that has ended, as after the last
        // byte of a response, leaves behind what it has received.
        tokio::select! {
            result = &mut exchange => result,
            _ = connection => exchange.await,
        }
    }

    async fn read(
        &self,
        response: Response<Incoming>,
    ) -> Result<(http::response::Parts, Bytes, CapacityGuard), GatewayError> {
        let (head, body) = response.into_parts();
        if head.status.is_informational() {
            return Err(GatewayError::NotForwarded(ForwardError::Invalid("a status below 200")));
        }
        let read = read_whole(body, RESPONSE_LEN_MAX, &self.buffered).await;
        let (bytes, guard) = read.map_err(|error| match error {
            BodyError::TooLarge => GatewayError::NotForwarded(ForwardError::Invalid("more than 1 MiB")),
            BodyError::NoRoom => GatewayError::Overloaded(super::BUFFERED),
            BodyError::Broken(error) => broken(&error),
            BodyError::Trailer => GatewayError::NotForwarded(ForwardError::Invalid(BAD_TRAILER)),
        })?;
        Ok((head, bytes, guard))
    }
}

/// Returns the request for the app: the query, the Content-Type, and the body of Chat.
fn request(target: &ForwardTarget, head: &Parts, body: Bytes) -> Result<Request<Full<Bytes>>, GatewayError> {
    let invalid = |_: http::Error| GatewayError::BadRequest("the query of the webhook is malformed");
    let authority = target.endpoint.authority();
    let query = head.uri.query().unwrap_or_default();
    let scheme = if target.endpoint.tls { "https" } else { "http" };
    let uri = Uri::builder().scheme(scheme).authority(&*authority).path_and_query(format!("{}?{query}", target.path));
    let mut request = Request::post(uri.build().map_err(invalid)?)
        .header(HOST, authority)
        // hyper leaves it out if the body is empty, although RFC 9110 section 8.6 wants it.
        .header(CONTENT_LENGTH, body.len())
        .header(CONNECTION, HeaderValue::from_static("close"));
    if let Some(content_type) = head.headers.get(CONTENT_TYPE) {
        request = request.header(CONTENT_TYPE, content_type);
    }
    request.body(Full::new(body)).map_err(invalid)
}

/// Returns the target as it is on the wire: path and query.
fn origin_form(uri: &Uri) -> Uri {
    uri.path_and_query().map_or_else(Uri::default, |target| Uri::from(target.clone()))
}

fn unreachable(error: &(dyn std::error::Error + 'static)) -> GatewayError {
    GatewayError::NotForwarded(ForwardError::Unreachable { cause: display_chain(error) })
}

fn broken(error: &hyper::Error) -> GatewayError {
    GatewayError::NotForwarded(match error.is_parse() {
        true => ForwardError::Invalid("a response that is not HTTP"),
        false => ForwardError::Broken { cause: display_chain(error) },
    })
}
