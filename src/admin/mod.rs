//! The admin listener: health checks, metrics, status, and admin actions.

mod audit;
mod effective;
mod evict;
mod history;
mod log_level;
mod metrics;
mod page;
mod reload;
mod status;

use std::error::Error;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use serde_json::Value;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use self::audit::AdminAudit;
use self::evict::Eviction;
use self::history::History;
use crate::clock;
use crate::error::GatewayError;
use crate::gateway::generation::Generations;
use crate::gateway::route::check_origin_and_host;
use crate::gateway::stack::ResponseBody;
use crate::gateway::{Gateway, access, stack};
use crate::http::body::{BAD_TRAILER, BODY_BROKEN, BodyError, read_whole};
use crate::http::headers::RequestHeaders;
use crate::http::host::{check_host, check_host_syntax};
use crate::http::peer::{ConnectionInfo, Peer};
use crate::http::request_id::RequestId;
use crate::server::connection_limit::ConnectionLimit;
use crate::server::{ConnectionHandler, ConnectionService, Connections};
use crate::telemetry::metrics::text::CONTENT_TYPE as CONTENT_TYPE_METRICS;

/// Reloads the configuration: returns the keys whose new values require a restart, or why nothing has changed.
pub(crate) type ReloadHandle = Box<dyn Fn() -> ReloadFuture + Send + Sync>;
/// A reload in progress.
pub(crate) type ReloadFuture =
    Pin<Box<dyn Future<Output = Result<Vec<&'static str>, Box<dyn Error + Send + Sync>>> + Send>>;

/// The handler of the admin listener.
#[derive(Clone)]
pub(crate) struct Admin {
    state: Arc<State>,
}

struct State {
    current: Arc<Generations>,
    reload: ReloadHandle,
    /// Listening, and not draining.
    ready: AtomicBool,
    /// Cancelled to stop the program.
    quit: CancellationToken,
    /// Connections of the data listeners, once they are open.
    connections: OnceLock<Connections>,
    /// Connections of this listener.
    admin_limit: ConnectionLimit,
    /// Connections of the webhook listener, if there is one.
    webhook_connections: OnceLock<Connections>,
    /// The last two minutes.
    history: History,
    /// Since 1970.
    started_at: Duration,
}

impl State {
    fn connections(&self) -> usize {
        self.connections.get().map_or(0, |connections| connections.limit.in_use())
    }
}

impl Admin {
    /// Not ready yet. `POST /reload` calls `reload`, and `POST /quit` cancels `quit`.
    pub(crate) fn new(current: Arc<Generations>, reload: ReloadHandle, quit: CancellationToken) -> Self {
        let (history, started_at) = (History::default(), clock::unix_now());
        let (ready, connections, webhook_connections) = (AtomicBool::new(false), OnceLock::new(), OnceLock::new());
        let admin_limit = ConnectionLimit::recycling(current.gateway().config.server.admin_max_connections);
        Self {
            state: Arc::new(State {
                current,
                reload,
                ready,
                quit,
                connections,
                admin_limit,
                webhook_connections,
                history,
                started_at,
            }),
        }
    }

    /// Returns the limit of connections to this listener.
    pub(crate) fn limit(&self) -> ConnectionLimit {
        self.state.admin_limit.clone()
    }

    /// Reports these connections as those of the data listeners.
    pub(crate) fn watch_connections(&self, connections: &Connections) {
        let _ = self.state.connections.set(connections.clone());
    }

    /// Reports the handshakes of these connections as those of the webhook listener.
    pub(crate) fn watch_webhook_connections(&self, connections: &Connections) {
        let _ = self.state.webhook_connections.set(connections.clone());
    }

    /// Records the counters once a second, for `/status` and the page. Never returns.
    pub(crate) async fn record_history(self) {
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            seconds.tick().await;
            self.state.history.add(&self.state.current.gateway());
        }
    }

    /// Sets the state that `/readyz` reports.
    pub(crate) fn set_ready(&self, ready: bool) {
        self.state.ready.store(ready, Ordering::Release);
    }

    /// Answers a request.
    async fn handle<B>(self, request: Request<B>, id: RequestId, peer: Peer) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        let (head, body) = request.into_parts();
        let action = AdminAction::of_path(head.uri.path()).filter(|_| head.method == Method::POST);
        let mut audit = action.map(|action| AdminAudit::new(action, self.caller(&head, peer), id.clone()));
        let response = match self.route(&head, peer) {
            AdminRoute::Respond(response) => response,
            AdminRoute::Perform(action) => {
                let performed = self.perform(action, body, &mut audit).await;
                performed.unwrap_or_else(GatewayError::into_response)
            }
        };
        match &mut audit {
            Some(audit) => audit.finish(&response),
            None => self.log_rejected(&response, &id),
        }
        response
    }

    /// Answers a request without its body, or permits its action.
    fn route(&self, head: &Parts, peer: Peer) -> AdminRoute {
        if let Err(error) = access::check_uid(&self.state.current.gateway().config.server.unix_uids, peer) {
            return AdminRoute::Respond(error.into_response());
        }
        if let Err(error) = check_host_syntax(head, &RequestHeaders::of(&head.headers), peer) {
            return AdminRoute::Respond(error.into_response());
        }
        let path = head.uri.path();
        AdminRoute::Respond(match (&head.method, AdminAction::of_path(path)) {
            (&Method::POST, Some(action)) => match self.reject_action(head, peer) {
                None => return AdminRoute::Perform(action),
                Some(rejection) => rejection,
            },
            (_, Some(_)) => method_not_allowed("POST"),
            (&Method::GET | &Method::HEAD, None) => self.show(head, path, peer),
            (_, None) => match self.show(head, path, peer).status() {
                StatusCode::NOT_FOUND => no_such_path(),
                _ => method_not_allowed("GET, HEAD"),
            },
        })
    }

    /// Answers a path that only shows something.
    fn show(&self, head: &Parts, path: &str, peer: Peer) -> Response<Full<Bytes>> {
        let state = &self.state;
        match path {
            "/livez" => text(StatusCode::OK, "alive\n"),
            "/readyz" | "/healthz" if state.ready.load(Ordering::Acquire) => text(StatusCode::OK, "ready\n"),
            "/readyz" | "/healthz" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or draining\n"),
            "/metrics" => typed(metrics::render(state), HeaderValue::from_static(CONTENT_TYPE_METRICS)),
            _ => {
                // Browsers may show the rest, but not under another name that was bound to chatgate's address.
                let hosts = &state.current.gateway().hosts;
                if let Err(error) = check_host(head, &RequestHeaders::of(&head.headers), hosts, peer) {
                    return error.into_response();
                }
                if let Some(file) = page::file(path) {
                    return file;
                }
                let shown = match path.strip_prefix("/status") {
                    Some("") => Some(status::render(state)),
                    Some(rest) => rest.strip_prefix("/history/").and_then(|app| status::history(state, app)),
                    None => None,
                };
                shown.map_or_else(no_such_path, |shown| json(&shown))
            }
        }
    }

    /// Rejects an admin action without the admin token, or if there is none, from another machine. Rejects browsers.
    /// Returns `None` if the action is permitted.
    fn reject_action(&self, head: &Parts, peer: Peer) -> Option<Response<Full<Bytes>>> {
        let gateway = self.state.current.gateway();
        if let Err(error) = check_origin_and_host(head, &RequestHeaders::of(&head.headers), &gateway.hosts, peer) {
            return Some(error.into_response());
        }
        let Some(has_token) = self.has_token(head) else {
            let rejection = "admin actions are accepted only over loopback or a Unix socket; to accept them from other \
                             machines, set server.admin_token_file\n";
            return peer.is_remote().then(|| text(StatusCode::FORBIDDEN, rejection));
        };
        if has_token {
            return None;
        }
        let rejection =
            "admin token required; send \"Authorization: Bearer TOKEN\" with the token of server.admin_token_file";
        Some(GatewayError::Unauthenticated(rejection).into_response())
    }

    /// Performs a permitted action. Only some read the body.
    async fn perform<B>(
        &self,
        action: AdminAction,
        body: B,
        audit: &mut Option<AdminAudit>,
    ) -> Result<Response<Full<Bytes>>, GatewayError>
    where
        B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        let gateway = self.state.current.gateway();
        match action {
            AdminAction::Evict => {
                let body = read_body(&gateway, body, evict::BODY_LEN_MAX).await?;
                let Eviction { app, scope } = evict::read(&gateway, &body)?;
                if let Some(audit) = audit {
                    audit.app = Some(app.name.to_string());
                }
                let evicted = evict::evict(app, scope).await;
                Ok(json(&serde_json::json!({ "evicted": evicted })))
            }
            AdminAction::SetLogLevel => {
                let body = read_body(&gateway, body, log_level::BODY_LEN_MAX).await?;
                let level = log_level::set(&body)?;
                Ok(json(&serde_json::json!({ "level": level })))
            }
            AdminAction::Reload => {
                // In its own task, so that it completes if the operator disconnects.
                let reloading = tokio::spawn((self.state.reload)());
                Ok(reload::response(reloading.await.map_err(|_| GatewayError::Internal)?))
            }
            AdminAction::Quit => {
                self.state.quit.cancel();
                Ok(text(StatusCode::OK, "stopping\n"))
            }
        }
    }
}

impl ConnectionHandler for Admin {
    type ResponseBody = ResponseBody;

    fn service(&self, connection: ConnectionInfo) -> impl ConnectionService<ResponseBody> {
        let admin = self.clone();
        stack::service(move |request, id| admin.clone().handle(request, id, connection.peer))
    }

    fn record_rejected(&self, error: &GatewayError, id: &RequestId) {
        self.state.current.gateway().log_rejected(error, id);
    }
}

/// What to do with a request, decided without its body.
enum AdminRoute {
    Respond(Response<Full<Bytes>>),
    /// The action is permitted.
    Perform(AdminAction),
}

/// A POST to the admin listener.
#[derive(Debug, Clone, Copy)]
enum AdminAction {
    Evict,
    SetLogLevel,
    Reload,
    Quit,
}

impl AdminAction {
    fn of_path(path: &str) -> Option<Self> {
        match path {
            "/cache/evict" => Some(AdminAction::Evict),
            "/log" => Some(AdminAction::SetLogLevel),
            "/reload" => Some(AdminAction::Reload),
            "/quit" => Some(AdminAction::Quit),
            _ => None,
        }
    }
}

/// Reads the body of an admin action.
async fn read_body<B>(gateway: &Gateway, body: B, max: usize) -> Result<Bytes, GatewayError>
where
    B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
{
    let timeout = gateway.config.server.body_timeout;
    let reading = read_whole(body, max, &gateway.buffered);
    let read = tokio::time::timeout(timeout, reading).await.map_err(|_| GatewayError::BodyTimeout(timeout))?;
    // Its bytes are not counted while the action is performed, which takes no time.
    read.map(|(body, _guard)| body).map_err(|error| match error {
        BodyError::TooLarge => GatewayError::BodyTooLarge(max, ""),
        BodyError::NoRoom => GatewayError::Overloaded("buffered bytes (server.max_buffered)"),
        BodyError::Broken(_) => GatewayError::BadRequest(BODY_BROKEN),
        BodyError::Trailer => GatewayError::BadRequest(BAD_TRAILER),
    })
}

fn no_such_path() -> Response<Full<Bytes>> {
    let paths = "no such path; valid paths: /, /livez, /readyz, /healthz, /metrics, /status, /cache/evict, /log, /reload, \
                 /quit\n";
    text(StatusCode::NOT_FOUND, paths)
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn json(value: &Value) -> Response<Full<Bytes>> {
    let mut response = typed(format!("{value}\n"), HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn typed(text: String, content_type: HeaderValue) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

fn method_not_allowed(methods: &'static str) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("method not allowed; use {methods}\n"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    response
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use tracing_subscriber::layer::Identity;

    use super::*;
    use crate::gateway::stack::tests::{ADMIN_TOKEN, assert_panic_is_answered, generations};
    use crate::server::tests::exchange;

    pub(super) const LOOPBACK: Peer = Peer::Tcp { local: IpAddr::V4(Ipv4Addr::LOCALHOST) };

    fn admin(quit: CancellationToken) -> Admin {
        admin_with("", quit)
    }

    pub(super) fn admin_with(server: &str, quit: CancellationToken) -> Admin {
        let generations = generations(&format!("[server]\n{server}\n"));
        Admin::new(generations, Box::new(|| panic!("the reload panics")), quit)
    }

    /// Returns the status of the response, or 200 if an action is permitted, which is not performed.
    fn status_of(admin: &Admin, method: &str, path: &str, headers: &[(&str, &str)], peer: Peer) -> u16 {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        match admin.route(&head, peer) {
            AdminRoute::Respond(response) => response.status().as_u16(),
            AdminRoute::Perform(_) => 200,
        }
    }

    #[test]
    fn liveness_is_immediate_and_readiness_is_set() {
        let admin = admin(CancellationToken::new());
        assert_eq!(status_of(&admin, "GET", "/livez", &[], LOOPBACK), 200);
        assert_eq!(status_of(&admin, "GET", "/readyz", &[], LOOPBACK), 503);
        admin.set_ready(true);
        assert_eq!(status_of(&admin, "GET", "/readyz", &[], LOOPBACK), 200);
        assert_eq!(status_of(&admin, "POST", "/readyz", &[], LOOPBACK), 405);
        assert_eq!(status_of(&admin, "GET", "/metrics", &[], LOOPBACK), 200);
        assert_eq!(status_of(&admin, "POST", "/metrics", &[], LOOPBACK), 405);
    }

    #[test]
    fn page_and_status_require_a_known_host() {
        let admin = admin(CancellationToken::new());
        let host = [("host", "127.0.0.1:8701")];
        for path in ["/", "/page.js", "/page.css", "/status", "/status/history/main"] {
            assert_eq!(status_of(&admin, "GET", path, &host, LOOPBACK), 200, "{path}");
            assert_eq!(status_of(&admin, "POST", path, &host, LOOPBACK), 405, "{path}");
            assert_eq!(status_of(&admin, "GET", path, &[("host", "evil")], LOOPBACK), 403, "{path}");
        }
        for path in ["/metricz", "/status/", "/status/history/", "/status/history/other", "/page.html", "//"] {
            assert_eq!(status_of(&admin, "GET", path, &host, LOOPBACK), 404, "{path}");
            assert_eq!(status_of(&admin, "POST", path, &host, LOOPBACK), 404, "{path}");
        }
    }

    #[test]
    fn actions_without_token_are_local_only() {
        let quit = CancellationToken::new();
        let admin = admin(quit.clone());
        let host = ("host", "localhost");
        let remote = Peer::Tcp { local: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)) };
        for path in ["/quit", "/cache/evict", "/log", "/reload"] {
            assert_eq!(status_of(&admin, "GET", path, &[host], LOOPBACK), 405);
            assert_eq!(status_of(&admin, "POST", path, &[("host", "evil")], LOOPBACK), 403);
            assert_eq!(status_of(&admin, "POST", path, &[host, ("origin", "http://evil")], LOOPBACK), 403);
            assert_eq!(status_of(&admin, "POST", path, &[host], remote), 403);
            assert!(!quit.is_cancelled());
        }
        assert_eq!(status_of(&admin, "POST", "/cache/evict", &[host], LOOPBACK), 200);
        assert_eq!(status_of(&admin, "POST", "/quit", &[host], Peer::Unix { uid: None }), 200);
        assert!(!quit.is_cancelled());
    }

    #[test]
    fn actions_with_token_are_accepted_from_any_address() {
        let quit = CancellationToken::new();
        let admin = admin_with("admin_token_env = 'TOKEN'", quit.clone());
        let host = ("host", "localhost");
        let remote = Peer::Tcp { local: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)) };
        let bearer = |token: &str| format!("Bearer {token}");
        let (right, wrong) = (bearer(ADMIN_TOKEN), bearer("the-admin-token-of-test"));
        for peer in [LOOPBACK, remote, Peer::Unix { uid: None }] {
            assert_eq!(status_of(&admin, "POST", "/quit", &[host], peer), 401);
            assert_eq!(status_of(&admin, "POST", "/quit", &[host, ("authorization", &wrong)], peer), 401);
            assert_eq!(status_of(&admin, "POST", "/quit", &[host, ("authorization", ADMIN_TOKEN)], peer), 401);
            assert_eq!(
                status_of(&admin, "POST", "/quit", &[host, ("authorization", &right), ("origin", "x")], peer),
                403
            );
            assert_eq!(status_of(&admin, "GET", "/livez", &[], peer), 200, "reading needs no token");
            assert_eq!(status_of(&admin, "POST", "/cache/evict", &[host, ("authorization", &right)], peer), 200);
        }
        assert_eq!(status_of(&admin, "POST", "/quit", &[host, ("authorization", &right)], remote), 200);
        assert!(!quit.is_cancelled());
    }

    #[test]
    fn processes_of_unlisted_users_are_rejected() {
        let admin = admin_with("unix_uids = [7]", CancellationToken::new());
        for (uid, status) in [(Some(7), 200), (Some(8), 403), (Some(0), 403), (None, 403)] {
            assert_eq!(status_of(&admin, "GET", "/livez", &[], Peer::Unix { uid }), status, "{uid:?}");
            let action = status_of(&admin, "POST", "/cache/evict", &[("host", "localhost")], Peer::Unix { uid });
            assert_eq!(action, status, "{uid:?}");
        }
        assert_eq!(status_of(&admin, "GET", "/livez", &[], LOOPBACK), 200);
    }

    #[tokio::test]
    async fn quit_action_cancels_the_token() {
        let quit = CancellationToken::new();
        let response = exchange(admin(quit.clone()), &post("/quit")).await;
        assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with("stopping\n"), "{response}");
        assert!(quit.is_cancelled());
    }

    #[tokio::test]
    async fn panic_in_the_handler_is_answered_with_500() {
        assert_panic_is_answered(admin(CancellationToken::new()), &post("/reload"), Identity::new()).await;
    }

    fn post(path: &str) -> String {
        format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    }
}
