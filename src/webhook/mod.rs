//! The webhook listener: Chat reports changes, and chatgate invalidates the affected pairs.
//!
//! Anyone may reach this listener, so it reveals nothing and trusts nothing: a request that the app's token has signed
//! within `webhook.window` can invalidate pairs or lower a rate limit, and reach the app of `webhook.forward`, but
//! nothing else. If a request cannot be read with certainty, it invalidates more. [`crate::domain::chat::webhook`] says
//! what the signature is worth.
//!
//! Pairs are invalidated before the app receives the webhook, so what the app does about it never sees an older answer.

mod forward;
mod log;

use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response};
use http_body::Body;
use http_body_util::Full;
use parking_lot::Mutex;
use rustls::ServerConfig;

use self::forward::Forwarder;
use self::log::LogInterval;
use crate::capacity::{Capacity, CapacityGuard};
use crate::clock;
use crate::config;
use crate::domain::chat::before::BeforeWebhook;
use crate::domain::chat::command::CommandName;
use crate::domain::chat::replay_guard::ReplayGuard;
use crate::domain::chat::webhook::{Claims, Event, VerifyError};
use crate::error::GatewayError;
use crate::gateway::generation::Generations;
use crate::gateway::stack::ResponseBody;
use crate::gateway::{App, Gateway, route, stack};
use crate::http::body::{BAD_TRAILER, BODY_BROKEN, BodyError, read_whole};
use crate::http::headers::RequestHeaders;
use crate::http::peer::ConnectionInfo;
use crate::http::request_id::RequestId;
use crate::server::{ConnectionHandler, ConnectionService};
use crate::telemetry::metrics::labels::CommandLabel;

/// Maximum size of a body, in bytes. A follow event has less than 2 KiB; one with a message may have more than 12 KiB.
const BODY_LEN_MAX: usize = 1024 * 1024;
/// Maximum bytes of all bodies, of webhooks and of responses of apps. It is separate from the limit of callers, which
/// webhooks must not affect.
const BUFFERED_MAX: usize = 16 * 1024 * 1024;
/// What `overloaded` says when bodies take too much memory.
const BUFFERED: &str = "bytes of webhooks";
/// The response that Chat expects (vendor page "Webhook Overview", 1047/34354).
const ACCEPTED: &[u8] = br#"{"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":""}"#;

/// The handler of the webhook listener, for all apps.
#[derive(Clone)]
pub(crate) struct Webhooks(Arc<WebhookState>);

struct WebhookState {
    generations: Arc<Generations>,
    buffered: Arc<Capacity>,
    forwarder: Forwarder,
    rejections: LogInterval,
    replay_guard: Mutex<ReplayGuard>,
}

impl Webhooks {
    /// Invalidates pairs of the current generation's apps.
    pub(crate) fn new(generations: Arc<Generations>) -> Self {
        let buffered = Capacity::new(BUFFERED_MAX);
        Self(Arc::new(WebhookState {
            generations,
            forwarder: Forwarder::new(Arc::clone(&buffered)),
            buffered,
            rejections: LogInterval::default(),
            replay_guard: Mutex::default(),
        }))
    }
}

impl ConnectionHandler for Webhooks {
    type ResponseBody = ResponseBody;

    fn service(&self, _: ConnectionInfo) -> impl ConnectionService<ResponseBody> {
        let Self(state) = self.clone();
        stack::service(move |request, id| Arc::clone(&state).handle(request, id))
    }

    fn record_rejected(&self, error: &GatewayError, id: &RequestId) {
        self.0.generations.gateway().log_rejected(error, id);
    }

    fn tls(&self) -> Option<Arc<ServerConfig>> {
        let gateway = self.0.generations.gateway();
        let tls = gateway.config.webhook.as_ref()?.tls.as_ref()?;
        Some(Arc::clone(&tls.serving))
    }
}

impl WebhookState {
    /// Answers a request. Its pairs are invalidated before the response is sent.
    async fn handle<B>(self: Arc<Self>, request: Request<B>, id: RequestId) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        self.receive(request).await.unwrap_or_else(|error| {
            self.generations.gateway().log_rejected(&error, &id);
            error.into_response()
        })
    }

    // Host and Origin are not checked: Chat uses a public name, and a response reveals nothing to a browser.
    async fn receive<B>(&self, request: Request<B>) -> Result<Response<Full<Bytes>>, GatewayError>
    where
        B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        let (head, body) = request.into_parts();
        route::check_shape(&head, &RequestHeaders::of(&head.headers))?;
        if head.method != Method::POST {
            return Err(GatewayError::MethodNotAllowed);
        }
        let gateway = self.generations.gateway();
        let Verified { app, config, claims } =
            verify(&gateway, head.uri.query().unwrap_or_default()).map_err(|error| {
                if let Some(count) = self.rejections.count() {
                    tracing::warn!(count, last_error = %error, "rejected webhooks");
                }
                // The same text for all causes: only the operator learns the cause.
                GatewayError::Unauthenticated(
                    "webhook rejected: unknown app, invalid signature, or RequestTime outside webhook.window",
                )
            })?;
        let is_first = self.is_first(config, &claims);
        let read = self.read_body(&gateway, body).await;
        // A body that cannot be read means that something has changed and will not be reported again. It invalidates all
        // that its command may have changed.
        let bytes = read.as_ref().map_or(&b""[..], |(body, _)| body);
        apply(app, &claims.command, app.read_event(&claims.command, bytes), is_first).await;
        let Some(target) = config.forward.get(&app.name) else {
            read?;
            note_let_through(app, &claims.command);
            return Ok(accepted());
        };
        let (bytes, _guard) = read.inspect_err(|error| self.forwarder.record_unread(app, error))?;
        self.forwarder.forward(app, target, config, &head, bytes).await
    }

    async fn read_body<B>(&self, gateway: &Gateway, body: B) -> Result<(Bytes, CapacityGuard), GatewayError>
    where
        B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        let timeout = gateway.config.server.body_timeout;
        let read = tokio::time::timeout(timeout, read_whole(body, BODY_LEN_MAX, &self.buffered)).await;
        let read = read.map_err(|_| GatewayError::BodyTimeout(timeout))?;
        read.map_err(|error| match error {
            BodyError::TooLarge => GatewayError::BodyTooLarge(BODY_LEN_MAX, ""),
            BodyError::NoRoom => GatewayError::Overloaded(BUFFERED),
            BodyError::Broken(_) => GatewayError::BadRequest(BODY_BROKEN),
            BodyError::Trailer => GatewayError::BadRequest(BAD_TRAILER),
        })
    }

    /// Whether the signature has not been seen before.
    fn is_first(&self, config: &config::Webhook, claims: &Claims) -> bool {
        let Some(at) = claims.signed_at() else { return false };
        let (now, window) = (clock::unix_now().as_secs(), config.window.as_secs());
        self.replay_guard.lock().is_first(claims.sdkappid, at, now, window)
    }
}

/// A webhook that the token of its app has signed.
struct Verified<'a> {
    app: &'a Arc<App>,
    config: &'a config::Webhook,
    claims: Claims,
}

/// Verifies that the app's token has signed a webhook within `webhook.window`.
fn verify<'a>(gateway: &'a Gateway, query: &str) -> Result<Verified<'a>, VerifyError> {
    let claims = Claims::read(query)?;
    let app = gateway.apps.numbered(claims.sdkappid).ok_or(VerifyError::NoToken)?;
    let config = gateway.config.webhook.as_ref().ok_or(VerifyError::NoToken)?;
    let token = config.tokens.get(&app.name).ok_or(VerifyError::NoToken)?;
    claims.verify(token, clock::unix_now(), config.window)?;
    Ok(Verified { app, config, claims })
}

/// Returns the response that Chat expects.
fn accepted() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(ACCEPTED)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Warns once for each "before" webhook of an app that chatgate accepts without asking the app.
fn note_let_through(app: &App, command: &str) {
    if let Some(webhook) = BeforeWebhook::of(command)
        && app.webhooks.let_through(webhook)
    {
        tracing::warn!(
            app = %app.name,
            command = webhook.name(),
            "accepting \"before\" webhooks without asking the app; set webhook.forward, or turn them off in the console"
        );
    }
}

/// Applies an event. `is_first`: its signature has not been seen before.
async fn apply(app: &App, command: &str, event: Event, is_first: bool) {
    let name = &app.name;
    match event {
        Event::Relation(scope) => {
            let shown = scope.name();
            app.invalidate_by_event(command, Some(scope)).await;
            tracing::debug!(app = %name, scope = shown, "webhook invalidated cached pairs");
        }
        Event::OverLimit { command, limit } => {
            let Ok(command) = CommandName::parse(&command) else { return };
            // The signature does not cover the name: only one of the built-in table is logged.
            let label = CommandLabel::of(command).text();
            if !is_first {
                tracing::info!(app = %name, command = %label, "ignoring a replayed rate-limit alert");
            } else if app.apply_rate_alert(command, limit) {
                tracing::info!(app = %name, command = %label, limit, "Chat reports that a command is close to its rate limit");
            } else {
                tracing::info!(app = %name, "ignoring a rate-limit alert: too many commands outside the built-in table");
            }
        }
        Event::Other => app.invalidate_by_event(command, None).await,
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;
    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::Context;

    use super::*;
    use crate::gateway::stack::tests::{assert_panic_is_answered, generations};

    /// Panics in the handler, when it logs a rejected webhook.
    struct PanickingLayer;

    impl<S: tracing::Subscriber> Layer<S> for PanickingLayer {
        fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
            let metadata = event.metadata();
            let is_rejection = metadata.target() == "chatgate::gateway::observe::access_log";
            assert!(!is_rejection || *metadata.level() != Level::INFO);
        }
    }

    #[tokio::test]
    async fn panic_in_the_handler_is_answered_with_500() {
        let request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        assert_panic_is_answered(Webhooks::new(generations("")), request, PanickingLayer).await;
    }
}
