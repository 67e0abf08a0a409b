//! The admin listener: is it alive, is it ready, what does it do, let it forget, let it go.

mod effective;
mod evict;
mod history;
mod log_level;
mod metrics;
mod page;
mod reload;
mod status;

use std::convert::Infallible;
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
use subtle::ConstantTimeEq as _;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use self::history::History;
use crate::clock;
use crate::domain::caller::TokenDigest;
use crate::error::GatewayError;
use crate::gateway::generation::Generations;
use crate::gateway::route::check_caller;
use crate::gateway::{Gateway, access};
use crate::http::bearer::bearer_token;
use crate::http::body::{BodyError, read_whole};
use crate::http::headers::RequestHeaders;
use crate::http::host::check_host;
use crate::http::peer::Peer;
use crate::runtime::reload::Reloader;
use crate::server::Connections;
use crate::telemetry::metrics::text::CONTENT_TYPE as CONTENT_TYPE_METRICS;

/// What the admin listener sees of the program.
#[derive(Clone)]
pub struct Admin {
    state: Arc<State>,
}

struct State {
    current: Arc<Generations>,
    reloader: Arc<Reloader>,
    /// Listening, signed, and not about to stop.
    ready: AtomicBool,
    /// Told when the program is to stop.
    quit: CancellationToken,
    /// Connections of callers, once there can be any.
    connections: OnceLock<Connections>,
    /// The last two minutes.
    history: History,
    /// Since 1970.
    started_at: Duration,
}

impl State {
    fn connections(&self) -> usize {
        self.connections.get().map_or(0, |connections| connections.budget.in_use())
    }
}

impl Admin {
    /// Not ready yet. `POST /quit` cancels `quit`.
    pub fn new(current: Arc<Generations>, reloader: Arc<Reloader>, quit: CancellationToken) -> Self {
        let (history, started_at) = (History::default(), clock::unix_now());
        let (ready, connections) = (AtomicBool::new(false), OnceLock::new());
        Self { state: Arc::new(State { current, reloader, ready, quit, connections, history, started_at }) }
    }

    /// Where callers' connections are counted.
    pub fn watch_connections(&self, connections: &Connections) {
        let _ = self.state.connections.set(connections.clone());
    }

    /// Looks at the counters once a second, for ever: `/status` and the page tell of what it sees.
    pub async fn watch(self) {
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            seconds.tick().await;
            self.state.history.add(&self.state.current.gateway());
        }
    }

    /// What `/readyz` says from now on.
    pub fn set_ready(&self, ready: bool) {
        self.state.ready.store(ready, Ordering::Release);
    }

    /// Answers a request.
    pub async fn handle<B>(self, request: Request<B>, peer: Peer) -> Result<Response<Full<Bytes>>, Infallible>
    where
        B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        let (head, body) = request.into_parts();
        Ok(match self.answer(&head, peer) {
            AdminResponse::Whole(answer) => answer,
            AdminResponse::Order(order) => {
                let gateway = self.state.current.gateway();
                let read = read_action(&gateway, body, order.body_len_max()).await;
                let done = match read {
                    Ok(body) => order.carry_out(&gateway, &body).await,
                    Err(error) => Err(error),
                };
                done.map_or_else(GatewayError::into_response, |(what, done)| json(&serde_json::json!({ what: done })))
            }
            // In a task of its own: one who leaves stops it no longer.
            AdminResponse::Reload => {
                match tokio::spawn(async move { reload::reload(&self.state.reloader).await }).await {
                    Ok(answer) => answer,
                    Err(_) => GatewayError::Internal.into_response(),
                }
            }
        })
    }

    /// What can be said without the body.
    fn answer(&self, head: &Parts, peer: Peer) -> AdminResponse {
        if let Err(error) = access::check_uid(&self.state.current.gateway().config.server.unix_uids, peer) {
            return AdminResponse::Whole(error.into_response());
        }
        let path = head.uri.path();
        let order = match path {
            "/cache/evict" => Some(AdminAction::Evict),
            "/log" => Some(AdminAction::LogLevel),
            _ => None,
        };
        // These have no body.
        let is_plain_order = matches!(path, "/quit" | "/reload");
        AdminResponse::Whole(match (&head.method, order) {
            (&Method::GET | &Method::HEAD, None) if !is_plain_order => self.show(head, path, peer),
            (&Method::POST, order) if order.is_some() || is_plain_order => match self.check_action(head, peer) {
                Some(refusal) => refusal,
                None => match order {
                    Some(order) => return AdminResponse::Order(order),
                    None if path == "/reload" => return AdminResponse::Reload,
                    None => {
                        self.state.quit.cancel();
                        text(StatusCode::OK, "stopping\n")
                    }
                },
            },
            (_, Some(_)) => not_allowed("POST"),
            (_, None) if is_plain_order => not_allowed("POST"),
            (_, None) => match self.show(head, path, peer).status() {
                StatusCode::NOT_FOUND => no_such_path(),
                _ => not_allowed("GET, HEAD"),
            },
        })
    }

    /// What can be looked at.
    fn show(&self, head: &Parts, path: &str, peer: Peer) -> Response<Full<Bytes>> {
        let state = &self.state;
        match path {
            "/livez" => text(StatusCode::OK, "alive\n"),
            "/readyz" | "/healthz" if state.ready.load(Ordering::Acquire) => text(StatusCode::OK, "ready\n"),
            "/readyz" | "/healthz" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or draining\n"),
            "/metrics" => typed(metrics::render(state), HeaderValue::from_static(CONTENT_TYPE_METRICS)),
            _ => {
                // What a browser may show: not under a name that somebody else has bound to our address.
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

    /// Why an order is not taken: orders are for who has the operators' token, or without one for who
    /// is on this machine, and not for a browser.
    fn check_action(&self, head: &Parts, peer: Peer) -> Option<Response<Full<Bytes>>> {
        let gateway = self.state.current.gateway();
        if let Err(error) = check_caller(head, &RequestHeaders::of(&head.headers), &gateway.hosts, peer) {
            return Some(error.into_response());
        }
        let Some(token) = &gateway.config.server.admin_token else {
            let refusal =
                "orders are taken over loopback or a Unix socket only, unless server.admin_token_file names a token\n";
            return (!is_local(peer)).then(|| text(StatusCode::FORBIDDEN, refusal));
        };
        let given = bearer_token(&head.headers).map(TokenDigest::of);
        if given.is_some_and(|given| given.ct_eq(&token.digest()).into()) {
            return None;
        }
        let refusal = "an order needs the header \"Authorization: Bearer TOKEN\", as server.admin_token_file has it";
        Some(GatewayError::Unauthenticated(refusal).into_response())
    }
}

/// What a head comes to.
enum AdminResponse {
    Whole(Response<Full<Bytes>>),
    /// The order is taken; its body says what to do.
    Order(AdminAction),
    /// The order is taken.
    Reload,
}

/// An order with a body.
#[derive(Clone, Copy)]
enum AdminAction {
    Evict,
    LogLevel,
}

impl AdminAction {
    fn body_len_max(self) -> usize {
        match self {
            AdminAction::Evict => evict::BODY_LEN_MAX,
            AdminAction::LogLevel => log_level::BODY_LEN_MAX,
        }
    }

    /// Gives what to call what was done, and what it was.
    async fn carry_out(self, gateway: &Gateway, body: &[u8]) -> Result<(&'static str, &'static str), GatewayError> {
        match self {
            AdminAction::Evict => evict::evict(gateway, body).await.map(|evicted| ("evicted", evicted)),
            AdminAction::LogLevel => log_level::set(body).map(|level| ("level", level)),
        }
    }
}

/// Reads the body of an order.
async fn read_action<B>(gateway: &Gateway, body: B, max: usize) -> Result<Bytes, GatewayError>
where
    B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
{
    let timeout = gateway.config.server.body_timeout;
    let reading = read_whole(body, max, &gateway.buffered);
    let read = tokio::time::timeout(timeout, reading).await.map_err(|_| GatewayError::BodyTimeout(timeout))?;
    // Its bytes need not be counted for the moment that it takes to carry it out.
    read.map(|(body, _held)| body).map_err(|error| match error {
        BodyError::TooLarge => GatewayError::BodyTooLarge(max, ""),
        BodyError::NoRoom => GatewayError::Overloaded("buffered bytes (server.max_buffered)"),
        BodyError::Broken(_) => GatewayError::BadRequest,
    })
}

/// Whether a request came over loopback or a Unix socket.
fn is_local(peer: Peer) -> bool {
    match peer {
        Peer::Unix { .. } => true,
        Peer::Tcp { local } => local.is_loopback(),
    }
}

fn no_such_path() -> Response<Full<Bytes>> {
    let paths =
        "no such path; there are /, /livez, /readyz, /metrics, /status, /cache/evict, /log, /reload and /quit\n";
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

fn not_allowed(methods: &'static str) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "not with this method\n");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    response
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    const LOOPBACK: Peer = Peer::Tcp { local: IpAddr::V4(Ipv4Addr::LOCALHOST) };

    const TOKEN: &str = "the-token-of-operators";

    fn admin(quit: CancellationToken) -> Admin {
        admin_with("", quit)
    }

    fn admin_with(server: &str, quit: CancellationToken) -> Admin {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("chatgate.toml");
        let app = "[[app]]\nname = 'main'\nsdkappid = 1\nregion = 'tokyo'\nsecret_key_env = 'KEY'\n";
        std::fs::write(&file, format!("{app}[server]\n{server}\n")).expect("own folder");
        let config = crate::config::load(&file, &[("KEY", "key"), ("TOKEN", TOKEN)].into_iter().collect());
        let config = config.unwrap_or_else(|problems| panic!("{problems}"));
        let current = Generations::new(config, 1).unwrap_or_else(|error| panic!("{error}"));
        Admin::new(
            Arc::clone(&current),
            Reloader::new(current, None, crate::runtime::systemd::Notifier::nobody()),
            quit,
        )
    }

    fn ask(admin: &Admin, method: &str, path: &str, headers: &[(&str, &str)], peer: Peer) -> u16 {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        match admin.answer(&head, peer) {
            AdminResponse::Whole(answer) => answer.status().as_u16(),
            AdminResponse::Order(_) | AdminResponse::Reload => 200,
        }
    }

    #[test]
    fn it_is_alive_at_once_and_ready_when_told() {
        let admin = admin(CancellationToken::new());
        assert_eq!(ask(&admin, "GET", "/livez", &[], LOOPBACK), 200);
        assert_eq!(ask(&admin, "GET", "/readyz", &[], LOOPBACK), 503);
        admin.set_ready(true);
        assert_eq!(ask(&admin, "GET", "/readyz", &[], LOOPBACK), 200);
        assert_eq!(ask(&admin, "POST", "/readyz", &[], LOOPBACK), 405);
        assert_eq!(ask(&admin, "GET", "/metrics", &[], LOOPBACK), 200);
        assert_eq!(ask(&admin, "POST", "/metrics", &[], LOOPBACK), 405);
    }

    #[test]
    fn what_a_browser_may_show_is_shown_under_own_names_only() {
        let admin = admin(CancellationToken::new());
        let here = [("host", "127.0.0.1:8701")];
        for path in ["/", "/page.js", "/page.css", "/status", "/status/history/main"] {
            assert_eq!(ask(&admin, "GET", path, &here, LOOPBACK), 200, "{path}");
            assert_eq!(ask(&admin, "POST", path, &here, LOOPBACK), 405, "{path}");
            assert_eq!(ask(&admin, "GET", path, &[("host", "evil")], LOOPBACK), 403, "{path}");
        }
        for path in ["/metricz", "/status/", "/status/history/", "/status/history/other", "/page.html", "//"] {
            assert_eq!(ask(&admin, "GET", path, &here, LOOPBACK), 404, "{path}");
            assert_eq!(ask(&admin, "POST", path, &here, LOOPBACK), 404, "{path}");
        }
    }

    #[test]
    fn orders_are_taken_from_here_only() {
        let quit = CancellationToken::new();
        let admin = admin(quit.clone());
        let host = ("host", "localhost");
        let elsewhere = Peer::Tcp { local: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)) };
        for path in ["/quit", "/cache/evict", "/log", "/reload"] {
            assert_eq!(ask(&admin, "GET", path, &[host], LOOPBACK), 405);
            assert_eq!(ask(&admin, "POST", path, &[("host", "evil")], LOOPBACK), 403);
            assert_eq!(ask(&admin, "POST", path, &[host, ("origin", "http://evil")], LOOPBACK), 403);
            assert_eq!(ask(&admin, "POST", path, &[host], elsewhere), 403);
            assert!(!quit.is_cancelled());
        }
        assert_eq!(ask(&admin, "POST", "/cache/evict", &[host], LOOPBACK), 200);
        assert!(!quit.is_cancelled());
        assert_eq!(ask(&admin, "POST", "/quit", &[host], Peer::Unix { uid: None }), 200);
        assert!(quit.is_cancelled());
    }

    #[test]
    fn with_a_token_orders_are_taken_from_who_has_it_wherever_he_is() {
        let quit = CancellationToken::new();
        let admin = admin_with("admin_token_env = 'TOKEN'", quit.clone());
        let host = ("host", "localhost");
        let elsewhere = Peer::Tcp { local: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)) };
        let bearer = |token: &str| format!("Bearer {token}");
        let (right, wrong) = (bearer(TOKEN), bearer("the-token-of-operator"));
        for peer in [LOOPBACK, elsewhere, Peer::Unix { uid: None }] {
            assert_eq!(ask(&admin, "POST", "/quit", &[host], peer), 401);
            assert_eq!(ask(&admin, "POST", "/quit", &[host, ("authorization", &wrong)], peer), 401);
            assert_eq!(ask(&admin, "POST", "/quit", &[host, ("authorization", TOKEN)], peer), 401);
            assert_eq!(ask(&admin, "POST", "/quit", &[host, ("authorization", &right), ("origin", "x")], peer), 403);
            assert_eq!(ask(&admin, "GET", "/livez", &[], peer), 200, "who only looks needs none");
            assert_eq!(ask(&admin, "POST", "/cache/evict", &[host, ("authorization", &right)], peer), 200);
        }
        assert!(!quit.is_cancelled());
        assert_eq!(ask(&admin, "POST", "/quit", &[host, ("authorization", &right)], elsewhere), 200);
        assert!(quit.is_cancelled());
    }

    #[test]
    fn processes_of_other_users_are_told_nothing() {
        let admin = admin_with("unix_uids = [7]", CancellationToken::new());
        for (uid, status) in [(Some(7), 200), (Some(8), 403), (Some(0), 403), (None, 403)] {
            assert_eq!(ask(&admin, "GET", "/livez", &[], Peer::Unix { uid }), status, "{uid:?}");
            let order = ask(&admin, "POST", "/cache/evict", &[("host", "localhost")], Peer::Unix { uid });
            assert_eq!(order, status, "{uid:?}");
        }
        assert_eq!(ask(&admin, "GET", "/livez", &[], LOOPBACK), 200);
    }
}
