//! The admin listener: is it alive, is it ready, let it go.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use tokio_util::sync::CancellationToken;

use crate::gateway::route::{Hosts, Peer, check_caller};

/// What the admin listener sees of the program.
#[derive(Debug, Clone)]
pub struct Admin {
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    hosts: Hosts,
    /// Listening, signed, and not about to stop.
    ready: AtomicBool,
    /// Told when the program is to stop.
    quit: CancellationToken,
}

impl Admin {
    /// Not ready yet. `POST /quit` cancels `quit`.
    pub fn new(hosts: Hosts, quit: CancellationToken) -> Self {
        Self { state: Arc::new(State { hosts, ready: AtomicBool::new(false), quit }) }
    }

    /// What `/readyz` says from now on.
    pub fn set_ready(&self, ready: bool) {
        self.state.ready.store(ready, Ordering::Release);
    }

    /// Answers a request. The body is not read: no order has one.
    pub async fn handle<B>(self, request: Request<B>, peer: Peer) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, _) = request.into_parts();
        Ok(self.answer(&head, peer))
    }

    fn answer(&self, head: &http::request::Parts, peer: Peer) -> Response<Full<Bytes>> {
        let state = &self.state;
        match (head.uri.path(), &head.method) {
            ("/livez", &Method::GET | &Method::HEAD) => text(StatusCode::OK, "alive\n"),
            ("/readyz" | "/healthz", &Method::GET | &Method::HEAD) => {
                if state.ready.load(Ordering::Acquire) {
                    text(StatusCode::OK, "ready\n")
                } else {
                    text(StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or draining\n")
                }
            }
            ("/quit", &Method::POST) => match check_caller(head, &state.hosts, peer) {
                Err(error) => error.into_response(),
                Ok(()) if !is_local(peer) => {
                    text(StatusCode::FORBIDDEN, "orders are taken over loopback or a Unix socket only\n")
                }
                Ok(()) => {
                    state.quit.cancel();
                    text(StatusCode::OK, "stopping\n")
                }
            },
            ("/livez" | "/readyz" | "/healthz", _) => not_allowed("GET, HEAD"),
            ("/quit", _) => not_allowed("POST"),
            _ => text(StatusCode::NOT_FOUND, "no such path; there are /livez, /readyz and /quit\n"),
        }
    }
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

    fn ask(admin: &Admin, method: &str, path: &str, headers: &[(&str, &str)], peer: Peer) -> u16 {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        admin.answer(&head, peer).status().as_u16()
    }

    #[test]
    fn it_is_alive_at_once_and_ready_when_told() {
        let admin = Admin::new(Hosts::default(), CancellationToken::new());
        assert_eq!(ask(&admin, "GET", "/livez", &[], LOOPBACK), 200);
        assert_eq!(ask(&admin, "GET", "/readyz", &[], LOOPBACK), 503);
        admin.set_ready(true);
        assert_eq!(ask(&admin, "GET", "/readyz", &[], LOOPBACK), 200);
        assert_eq!(ask(&admin, "POST", "/readyz", &[], LOOPBACK), 405);
        assert_eq!(ask(&admin, "GET", "/metricz", &[], LOOPBACK), 404);
    }

    #[test]
    fn quit_is_an_order_and_orders_are_taken_from_here_only() {
        let quit = CancellationToken::new();
        let admin = Admin::new(Hosts::default(), quit.clone());
        let host = ("host", "localhost");
        let elsewhere = Peer::Tcp { local: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)) };
        assert_eq!(ask(&admin, "GET", "/quit", &[host], LOOPBACK), 405);
        assert_eq!(ask(&admin, "POST", "/quit", &[("host", "evil")], LOOPBACK), 403);
        assert_eq!(ask(&admin, "POST", "/quit", &[host, ("origin", "http://evil")], LOOPBACK), 403);
        assert_eq!(ask(&admin, "POST", "/quit", &[host], elsewhere), 403);
        assert!(!quit.is_cancelled());
        assert_eq!(ask(&admin, "POST", "/quit", &[host], LOOPBACK), 200);
        assert!(quit.is_cancelled());
    }
}
