//! The admin listener: is it alive, is it ready, what does it do, let it forget, let it go.

mod evict;
mod metrics;

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use tokio_util::sync::CancellationToken;

use crate::bounds::Budget;
use crate::clock;
use crate::gateway::Gateway;
use crate::gateway::route::{Peer, check_caller};
use crate::metrics::text::CONTENT_TYPE as CONTENT_TYPE_METRICS;

/// What the admin listener sees of the program.
#[derive(Clone)]
pub struct Admin {
    state: Arc<State>,
}

struct State {
    gateway: Arc<Gateway>,
    /// Listening, signed, and not about to stop.
    ready: AtomicBool,
    /// Told when the program is to stop.
    quit: CancellationToken,
    /// Connections of callers, once there can be any.
    connections: OnceLock<Arc<Budget>>,
    /// Since 1970.
    started_at: Duration,
}

impl State {
    fn connections(&self) -> usize {
        self.connections.get().map_or(0, |connections| connections.held())
    }
}

impl Admin {
    /// Not ready yet. `POST /quit` cancels `quit`.
    pub fn new(gateway: Arc<Gateway>, quit: CancellationToken) -> Self {
        let (ready, connections, started_at) = (AtomicBool::new(false), OnceLock::new(), clock::unix_now());
        Self { state: Arc::new(State { gateway, ready, quit, connections, started_at }) }
    }

    /// Where callers' connections are counted.
    pub fn watch_connections(&self, connections: &Arc<Budget>) {
        let _ = self.state.connections.set(Arc::clone(connections));
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
            Answer::Evict => match evict::evict(&self.state.gateway, body).await {
                Ok(evicted) => json(format!("{{\"evicted\":\"{evicted}\"}}\n")),
                Err(error) => error.into_response(),
            },
        })
    }

    /// What can be said without the body.
    fn answer(&self, head: &Parts, peer: Peer) -> Answer {
        let state = &self.state;
        Answer::Whole(match (head.uri.path(), &head.method) {
            ("/livez", &Method::GET | &Method::HEAD) => text(StatusCode::OK, "alive\n"),
            ("/readyz" | "/healthz", &Method::GET | &Method::HEAD) => {
                if state.ready.load(Ordering::Acquire) {
                    text(StatusCode::OK, "ready\n")
                } else {
                    text(StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or draining\n")
                }
            }
            ("/metrics", &Method::GET | &Method::HEAD) => {
                typed(metrics::render(state), HeaderValue::from_static(CONTENT_TYPE_METRICS))
            }
            ("/quit" | "/cache/evict", &Method::POST) => match self.refuse_order(head, peer) {
                Some(refusal) => refusal,
                None if head.uri.path() == "/cache/evict" => return Answer::Evict,
                None => {
                    state.quit.cancel();
                    text(StatusCode::OK, "stopping\n")
                }
            },
            ("/livez" | "/readyz" | "/healthz" | "/metrics", _) => not_allowed("GET, HEAD"),
            ("/quit" | "/cache/evict", _) => not_allowed("POST"),
            _ => text(
                StatusCode::NOT_FOUND,
                "no such path; there are /livez, /readyz, /metrics, /cache/evict and /quit\n",
            ),
        })
    }

    /// Why an order is not taken: orders are for who is on this machine, and not for a browser.
    fn refuse_order(&self, head: &Parts, peer: Peer) -> Option<Response<Full<Bytes>>> {
        if let Err(error) = check_caller(head, &self.state.gateway.hosts, peer) {
            return Some(error.into_response());
        }
        let refusal = "orders are taken over loopback or a Unix socket only\n";
        (!is_local(peer)).then(|| text(StatusCode::FORBIDDEN, refusal))
    }
}

/// What a head comes to.
enum Answer {
    Whole(Response<Full<Bytes>>),
    /// The order is taken; its body says what to forget.
    Evict,
}

/// Whether a request came over loopback or a Unix socket.
fn is_local(peer: Peer) -> bool {
    match peer {
        Peer::Unix => true,
        Peer::Tcp { local } => local.is_loopback(),
    }
}

fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn json(text: String) -> Response<Full<Bytes>> {
    typed(text, HeaderValue::from_static("application/json"))
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

    fn admin(quit: CancellationToken) -> Admin {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("chatgate.toml");
        let app = "[[app]]\nname = 'main'\nsdkappid = 1\nregion = 'tokyo'\nsecret_key_env = 'KEY'\n";
        std::fs::write(&file, app).expect("own folder");
        let config = crate::config::load(&file, &[("KEY", "key")].into_iter().collect());
        let config = config.unwrap_or_else(|problems| panic!("{problems}"));
        Admin::new(Gateway::new(config).unwrap_or_else(|error| panic!("{error}")), quit)
    }

    fn ask(admin: &Admin, method: &str, path: &str, headers: &[(&str, &str)], peer: Peer) -> u16 {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        match admin.answer(&head, peer) {
            Answer::Whole(answer) => answer.status().as_u16(),
            Answer::Evict => 200,
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
        for path in ["/quit", "/cache/evict"] {
            assert_eq!(ask(&admin, "GET", path, &[host], LOOPBACK), 405);
            assert_eq!(ask(&admin, "POST", path, &[("host", "evil")], LOOPBACK), 403);
            assert_eq!(ask(&admin, "POST", path, &[host, ("origin", "http://evil")], LOOPBACK), 403);
            assert_eq!(ask(&admin, "POST", path, &[host], elsewhere), 403);
            assert!(!quit.is_cancelled());
        }
        assert_eq!(ask(&admin, "POST", "/cache/evict", &[host], LOOPBACK), 200);
        assert!(!quit.is_cancelled());
        assert_eq!(ask(&admin, "POST", "/quit", &[host], Peer::Unix), 200);
        assert!(quit.is_cancelled());
    }
}
