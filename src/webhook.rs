//! The webhook listener: Chat reports changes, and chatgate invalidates the affected pairs.
//!
//! Anyone may reach this listener, so it reveals nothing and trusts nothing: a request that the app's token has signed
//! within `webhook.window` can invalidate pairs or lower a rate limit, and nothing else. If a request cannot be read with
//! certainty, it invalidates more. [`crate::domain::chat::webhook`] says what the signature is worth.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response};
use http_body::Body;
use http_body_util::Full;
use parking_lot::Mutex;

use crate::capacity::{Capacity, CapacityGuard};
use crate::clock;
use crate::domain::chat::command::CommandName;
use crate::domain::chat::replay_guard::ReplayGuard;
use crate::domain::chat::webhook::{Claims, Event, VerifyError};
use crate::domain::tick::Tick;
use crate::error::GatewayError;
use crate::gateway::generation::Generations;
use crate::gateway::stack::ResponseBody;
use crate::gateway::{App, Gateway, route, stack};
use crate::http::body::{BODY_BROKEN, BodyError, read_whole};
use crate::http::headers::RequestHeaders;
use crate::http::peer::ConnectionInfo;
use crate::http::request_id::RequestId;
use crate::server::{ConnectionHandler, ConnectionService};
use crate::telemetry::metrics::labels::CommandLabel;

/// Maximum size of a body, in bytes. A body with 20 targets, the most that one call changes, has less than 2 KiB.
const BODY_LEN_MAX: usize = 64 * 1024;
/// Maximum bytes of all bodies. It is separate from the limit of callers, which webhooks must not affect.
const BUFFERED_MAX: usize = 16 * 1024 * 1024;
/// Minimum time between log lines about rejected webhooks, which anyone can cause.
const REJECTION_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// The response that Chat expects (vendor page "Webhook Overview", 1047/34354).
const ACCEPTED: &[u8] = br#"{"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":""}"#;

/// The handler of the webhook listener, for all apps.
#[derive(Clone)]
pub(crate) struct Webhooks(Arc<WebhookState>);

struct WebhookState {
    generations: Arc<Generations>,
    buffered: Arc<Capacity>,
    rejections: RejectionLog,
    replay_guard: Mutex<ReplayGuard>,
}

impl Webhooks {
    /// Invalidates pairs of the current generation's apps.
    pub(crate) fn new(generations: Arc<Generations>) -> Self {
        Self(Arc::new(WebhookState {
            generations,
            buffered: Capacity::new(BUFFERED_MAX),
            rejections: RejectionLog::default(),
            replay_guard: Mutex::default(),
        }))
    }
}

impl ConnectionHandler for Webhooks {
    type ResponseBody = ResponseBody;

    // Without `tls`: server.tls is for callers. Webhooks are signed, and may arrive through a proxy that terminates TLS.
    fn service(&self, _: ConnectionInfo) -> impl ConnectionService<ResponseBody> {
        let Self(state) = self.clone();
        stack::service(move |request, _| Arc::clone(&state).handle(request))
    }

    fn record_rejected(&self, error: &GatewayError, id: &RequestId) {
        self.0.generations.gateway().log_rejected(error, id);
    }
}

impl WebhookState {
    /// Answers a request. Its pairs are invalidated before the response is sent.
    async fn handle<B>(self: Arc<Self>, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        match self.receive(request).await {
            Ok(()) => {
                let mut response = Response::new(Full::new(Bytes::from_static(ACCEPTED)));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
            Err(error) => {
                tracing::debug!(outcome = error.wire().slug.text(), %error, "rejected a webhook");
                error.into_response()
            }
        }
    }

    // Host and Origin are not checked: Chat uses a public name, and a response reveals nothing to a browser.
    async fn receive<B>(&self, request: Request<B>) -> Result<(), GatewayError>
    where
        B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        let (head, body) = request.into_parts();
        route::check_shape(&head, &RequestHeaders::of(&head.headers))?;
        if head.method != Method::POST {
            return Err(GatewayError::MethodNotAllowed);
        }
        let gateway = self.generations.gateway();
        let (app, claims) = verify(&gateway, head.uri.query().unwrap_or_default()).map_err(|error| {
            self.rejections.record(error);
            // The same text for all causes: only the operator learns the cause.
            GatewayError::Unauthenticated(
                "webhook rejected: unknown app, invalid signature, or RequestTime outside webhook.window",
            )
        })?;
        let is_first = self.is_first(&gateway, &claims);
        let read = self.read_body(&gateway, body).await;
        // A body that cannot be read means that something has changed and will not be reported again. It invalidates all
        // that its command may have changed.
        let body = read.as_ref().map_or(&b""[..], |(body, _)| body);
        apply(app, Event::read(&claims.command, body), is_first).await;
        read.map(drop)
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
            BodyError::NoRoom => GatewayError::Overloaded("bytes of webhooks"),
            BodyError::Broken(_) => GatewayError::BadRequest(BODY_BROKEN),
        })
    }

    /// Whether the signature has not been seen before.
    fn is_first(&self, gateway: &Gateway, claims: &Claims) -> bool {
        let (Some(at), Some(config)) = (claims.signed_at(), &gateway.config.webhook) else { return false };
        let (now, window) = (clock::unix_now().as_secs(), config.window.as_secs());
        self.replay_guard.lock().is_first(claims.sdkappid, at, now, window)
    }
}

/// Returns the app and the claims of a webhook, if the app's token has signed it within `webhook.window`.
fn verify<'a>(gateway: &'a Gateway, query: &str) -> Result<(&'a Arc<App>, Claims), VerifyError> {
    let claims = Claims::read(query)?;
    let app = gateway.apps.numbered(claims.sdkappid).ok_or(VerifyError::NoToken)?;
    let config = gateway.config.webhook.as_ref().ok_or(VerifyError::NoToken)?;
    let token = config.tokens.get(&app.name).ok_or(VerifyError::NoToken)?;
    claims.verify(token, clock::unix_now(), config.window)?;
    Ok((app, claims))
}

/// Applies an event. `is_first`: its signature has not been seen before.
async fn apply(app: &App, event: Event, is_first: bool) {
    let name = &app.name;
    match event {
        Event::Follow(scope) => {
            app.invalidate_everywhere(&scope).await;
            tracing::debug!(app = %name, scope = scope.name(), "webhook invalidated cached pairs");
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
        Event::Other => {}
    }
}

/// Logs rejected webhooks, but not each of them.
#[derive(Default)]
struct RejectionLog {
    /// Number since the last line.
    count: AtomicU64,
    /// Time of the last line, in ticks.
    logged_at: AtomicU64,
}

impl RejectionLog {
    fn record(&self, error: VerifyError) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let (now, logged_at) = (clock::tick(), self.logged_at.load(Ordering::Relaxed));
        let last = Tick::from_micros(logged_at);
        let is_due = last == Tick::NEVER || now.since(last) >= REJECTION_LOG_INTERVAL;
        let claim =
            || self.logged_at.compare_exchange(logged_at, now.micros(), Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if is_due && claim() {
            let count = self.count.swap(0, Ordering::Relaxed);
            tracing::warn!(count, last_error = %error, "rejected webhooks");
        }
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
            assert!(*metadata.level() != Level::DEBUG || metadata.target() != "chatgate::webhook");
        }
    }

    #[tokio::test]
    async fn panic_in_the_handler_is_answered_with_500() {
        let request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        assert_panic_is_answered(Webhooks::new(generations("")), request, PanickingLayer).await;
    }
}
