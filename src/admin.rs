//! The admin listener: is it alive, is it ready, let it forget, let it go.

mod evict;
mod reload;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use subtle::ConstantTimeEq as _;
use tokio_util::sync::CancellationToken;

use crate::domain::caller::TokenDigest;
use crate::error::GatewayError;
use crate::gateway::access;
use crate::gateway::current::Current;
use crate::gateway::route::{Peer, check_caller};
use crate::reload::Reloader;

/// What the admin listener sees of the program.
#[derive(Clone)]
pub struct Admin {
    state: Arc<State>,
}

struct State {
    current: Arc<Current>,
    reloader: Arc<Reloader>,
    /// Listening, signed, and not about to stop.
    ready: AtomicBool,
    /// Told when the program is to stop.
    quit: CancellationToken,
}

impl Admin {
    /// Not ready yet. `POST /quit` cancels `quit`.
    pub fn new(current: Arc<Current>, reloader: Arc<Reloader>, quit: CancellationToken) -> Self {
        Self { state: Arc::new(State { current, reloader, ready: AtomicBool::new(false), quit }) }
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
            Answer::Whole(answer) => answer,
            Answer::Evict => match evict::evict(&self.state.current.gateway(), body).await {
                Ok(evicted) => json(format!("{{\"evicted\":\"{evicted}\"}}\n")),
                Err(error) => error.into_response(),
            },
            // In a task of its own: one who leaves stops it no longer.
            Answer::Reload => match tokio::spawn(async move { reload::reload(&self.state.reloader).await }).await {
                Ok(answer) => answer,
                Err(_) => GatewayError::Internal.into_response(),
            },
        })
    }

    /// What can be said without the body.
    fn answer(&self, head: &Parts, peer: Peer) -> Answer {
        let state = &self.state;
        if let Err(error) = access::check_uid(&state.current.gateway().config.server.unix_uids, peer) {
            return Answer::Whole(error.into_response());
        }
        Answer::Whole(match (head.uri.path(), &head.method) {
            ("/livez", &Method::GET | &Method::HEAD) => text(StatusCode::OK, "alive\n"),
            ("/readyz" | "/healthz", &Method::GET | &Method::HEAD) => {
                if state.ready.load(Ordering::Acquire) {
                    text(StatusCode::OK, "ready\n")
                } else {
                    text(StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or draining\n")
                }
            }
            ("/quit" | "/cache/evict" | "/reload", &Method::POST) => match self.refuse_order(head, peer) {
                Some(refusal) => refusal,
                None if head.uri.path() == "/cache/evict" => return Answer::Evict,
                None if head.uri.path() == "/reload" => return Answer::Reload,
                None => {
                    state.quit.cancel();
                    text(StatusCode::OK, "stopping\n")
                }
            },
            ("/livez" | "/readyz" | "/healthz", _) => not_allowed("GET, HEAD"),
            ("/quit" | "/cache/evict" | "/reload", _) => not_allowed("POST"),
            _ => text(
                StatusCode::NOT_FOUND,
                "no such path; there are /livez, /readyz, /cache/evict, /reload and /quit\n",
            ),
        })
    }

    /// Why an order is not taken: orders are for who has the operators' token, or without one for who
    /// is on this machine, and not for a browser.
    fn refuse_order(&self, head: &Parts, peer: Peer) -> Option<Response<Full<Bytes>>> {
        let gateway = self.state.current.gateway();
        if let Err(error) = check_caller(head, &gateway.hosts, peer) {
            return Some(error.into_response());
        }
        let Some(token) = &gateway.config.server.admin_token else {
            let refusal =
                "orders are taken over loopback or a Unix socket only, unless server.admin_token_file names a token\n";
            return (!is_local(peer)).then(|| text(StatusCode::FORBIDDEN, refusal));
        };
        let given = access::bearer_token(&head.headers).map(TokenDigest::of);
        if given.is_some_and(|given| given.ct_eq(&token.digest()).into()) {
            return None;
        }
        let refusal = "an order needs the header \"Authorization: Bearer TOKEN\", as server.admin_token_file has it";
        Some(GatewayError::Unauthenticated(refusal).into_response())
    }
}

/// What a head comes to.
enum Answer {
    Whole(Response<Full<Bytes>>),
    /// The order is taken; its body says what to forget.
    Evict,
    /// The order is taken.
    Reload,
}

/// Whether a request came over loopback or a Unix socket.
fn is_local(peer: Peer) -> bool {
    match peer {
        Peer::Unix { .. } => true,
        Peer::Tcp { local } => local.is_loopback(),
    }
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn json(text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
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
        let current = Current::new(config, 1).unwrap_or_else(|error| panic!("{error}"));
        Admin::new(Arc::clone(&current), Reloader::new(current, None), quit)
    }

    fn ask(admin: &Admin, method: &str, path: &str, headers: &[(&str, &str)], peer: Peer) -> u16 {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        match admin.answer(&head, peer) {
            Answer::Whole(answer) => answer.status().as_u16(),
            Answer::Evict | Answer::Reload => 200,
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
        assert_eq!(ask(&admin, "GET", "/metricz", &[], LOOPBACK), 404);
    }

    #[test]
    fn orders_are_taken_from_here_only() {
        let quit = CancellationToken::new();
        let admin = admin(quit.clone());
        let host = ("host", "localhost");
        let elsewhere = Peer::Tcp { local: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)) };
        for path in ["/quit", "/cache/evict", "/reload"] {
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
