//! The webhook listener: Chat says that something has happened, and chatgate forgets what it knew of it.
//!
//! Anybody may reach this listener, so nothing is told here and nothing is believed: a request that the
//! app's token signed, just now, makes chatgate forget or slow down, and that is all. What cannot be read
//! with certainty makes it forget more. See [`crate::domain::chat::webhook`] for what the signature is worth.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response};
use http_body::Body;
use http_body_util::Full;
use hyper::body::Incoming;
use tokio_util::task::TaskTracker;

use crate::capacity::Capacity;
use crate::clock;
use crate::domain::chat::command::CommandName;
use crate::domain::chat::replay_guard::ReplayGuard;
use crate::domain::chat::webhook::{Claims, Event, VerifyError};
use crate::domain::tick::Tick;
use crate::error::GatewayError;
use crate::gateway::generation::Generations;
use crate::gateway::stack::Answers;
use crate::gateway::{App, Gateway, route};
use crate::http::body::{BodyError, read_whole};
use crate::http::headers::RequestHeaders;
use crate::http::peer::ConnectionInfo;
use crate::http::request_id::RequestId;

/// Largest body, in bytes. One of 20 targets, the most that one call changes, has under 2 KiB.
const BODY_LEN_MAX: usize = 64 * 1024;
/// Bytes of all bodies at one time: apart from those of callers, who must not suffer from events.
const BUFFERED_MAX: usize = 16 * 1024 * 1024;
/// Refusals are told to the log once in so long: anybody can cause them.
const REFUSALS_TOLD_EVERY: Duration = Duration::from_secs(10);
/// What Chat wants to hear (vendor page "Webhook Overview", 1047/34354).
const TAKEN: &[u8] = br#"{"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":""}"#;

/// What answers webhooks, for all apps.
pub struct Webhooks {
    current: Arc<Generations>,
    buffered: Arc<Capacity>,
    refusals: RejectionLog,
    once: Mutex<ReplayGuard>,
}

impl Webhooks {
    /// For the apps of the gateway of now.
    pub fn new(current: Arc<Generations>) -> Arc<Self> {
        Arc::new(Self {
            current,
            buffered: Capacity::new(BUFFERED_MAX),
            refusals: RejectionLog::default(),
            once: Mutex::default(),
        })
    }

    /// Answers a request. What it makes chatgate forget is forgotten before the answer is there.
    async fn handle<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        match self.take(request).await {
            Ok(()) => {
                let mut response = Response::new(Full::new(Bytes::from_static(TAKEN)));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
            Err(error) => {
                tracing::debug!(outcome = error.wire().slug.text(), "a webhook was refused: {error}");
                error.into_response()
            }
        }
    }

    async fn take<B>(&self, request: Request<B>) -> Result<(), GatewayError>
    where
        B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        let (head, body) = request.into_parts();
        route::check_shape(&head, &RequestHeaders::of(&head.headers))?;
        if head.method != Method::POST {
            return Err(GatewayError::MethodNotAllowed);
        }
        let gateway = self.current.gateway();
        let (app, claims) = verify(&gateway, head.uri.query().unwrap_or_default()).map_err(|doubt| {
            self.refusals.note(doubt);
            // One sentence for all of them: the cause is for the operator.
            GatewayError::Unauthenticated("this is no webhook of a configured app, or not signed just now by its token")
        })?;
        let is_first = self.is_first(&gateway, &claims);
        let command = claims.command;
        let timeout = gateway.config.server.body_timeout;
        let reading = read_whole(body, BODY_LEN_MAX, &self.buffered);
        let read = tokio::time::timeout(timeout, reading).await;
        let read = read.map_err(|_| GatewayError::BodyTimeout(timeout)).and_then(|read| {
            read.map_err(|error| match error {
                BodyError::TooLarge => GatewayError::BodyTooLarge(BODY_LEN_MAX, ""),
                BodyError::NoRoom => GatewayError::Overloaded("bytes of webhooks"),
                BodyError::Broken(_) => GatewayError::BadRequest,
            })
        });
        match read {
            Ok((body, _held)) => {
                heed(app, Event::read(&command, &body), is_first).await;
                Ok(())
            }
            Err(error) => {
                // Something has happened, and nobody will say again what: nothing is certain any more.
                heed(app, Event::read(&command, b""), is_first).await;
                Err(error)
            }
        }
    }
}

impl Webhooks {
    fn is_first(&self, gateway: &Gateway, claims: &Claims) -> bool {
        let (Some(at), Some(config)) = (claims.signed_at(), &gateway.config.webhook) else { return false };
        let mut once = self.once.lock().unwrap_or_else(PoisonError::into_inner);
        once.is_first(claims.sdkappid, at, clock::unix_now().as_secs(), config.window.as_secs())
    }
}

/// The app and what has happened, if the app's token signed it just now.
fn verify<'a>(gateway: &'a Gateway, query: &str) -> Result<(&'a Arc<App>, Claims), VerifyError> {
    let claims = Claims::read(query)?;
    let app = gateway.apps.numbered(claims.sdkappid).ok_or(VerifyError::NoToken)?;
    let config = gateway.config.webhook.as_ref().ok_or(VerifyError::NoToken)?;
    let token = config.tokens.get(&app.name).ok_or(VerifyError::NoToken)?;
    claims.verify(token, clock::unix_now(), config.window)?;
    Ok((app, claims))
}

/// `is_first`: its signature was not seen before.
async fn heed(app: &App, event: Event, is_first: bool) {
    let name = &app.name;
    match event {
        Event::Follow(scope) => {
            app.invalidate_everywhere(&scope).await;
            tracing::debug!(app = %name, scope = scope.name(), "an event of Chat's evicted what it named");
        }
        Event::OverLimit { command, .. } if !is_first => {
            tracing::info!(app = %name, command, "an alarm shows a signature that was seen before and is passed over");
        }
        Event::OverLimit { command, limit } => {
            let Ok(known) = CommandName::parse(&command) else { return };
            tracing::info!(app = %name, command, limit, "Chat says that a command comes close to its limit");
            app.apply_rate_alert(known, limit);
        }
        Event::Other => {}
    }
}

impl Answers for Arc<Webhooks> {
    // Host and Origin are not asked: Chat calls by a public name, and there is nothing to be read here.
    async fn answer(self, request: Request<Incoming>, _: RequestId, _: ConnectionInfo) -> Response<Full<Bytes>> {
        self.handle(request).await
    }

    fn tasks(&self) -> TaskTracker {
        self.current.gateway().tasks.clone()
    }

    // server.tls is for callers. What comes here is signed; Chat may be let in through a proxy that speaks TLS.
    fn tls(&self) -> Option<Arc<rustls::ServerConfig>> {
        None
    }
}

/// Webhooks that were not believed, for the log.
#[derive(Default)]
struct RejectionLog {
    /// Since the log was told.
    count: AtomicU64,
    /// When it was told, in ticks.
    told: AtomicU64,
}

impl RejectionLog {
    fn note(&self, doubt: VerifyError) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let (now, told) = (clock::tick(), self.told.load(Ordering::Relaxed));
        let silent =
            Tick::from_micros(told) == Tick::NEVER || now.since(Tick::from_micros(told)) >= REFUSALS_TOLD_EVERY;
        let mine = |told| self.told.compare_exchange(told, now.micros(), Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if silent && mine(told) {
            let refused = self.count.swap(0, Ordering::Relaxed);
            tracing::warn!(refused, "webhooks were not believed; the last one: {doubt}");
        }
    }
}
