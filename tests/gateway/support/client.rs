//! Callers: requests as exact bytes over TCP or a Unix socket, and their responses.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::response::Response;
use super::wire::Stream;
use super::{PATIENCE, within};

/// A request, built step by step.
#[derive(Debug, Clone)]
pub(crate) struct TestRequest {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) host: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl TestRequest {
    pub(crate) fn new(method: &str, target: &str) -> TestRequest {
        let (method, target, host) = (method.to_owned(), target.to_owned(), "localhost".to_owned());
        TestRequest { method, target, host, headers: Vec::new(), body: Vec::new() }
    }

    pub(crate) fn post(target: &str) -> TestRequest {
        TestRequest::new("POST", target).body("{}")
    }

    /// Returns `POST /v4/{command}` with `{}` as its body.
    pub(crate) fn command(command: &str) -> TestRequest {
        TestRequest::post(&format!("/v4/{command}"))
    }

    /// Returns a plain `follow/follow_check`.
    pub(crate) fn check(from: &str, to: &[impl AsRef<str>]) -> TestRequest {
        TestRequest::command("follow/follow_check").body(check_body(from, to))
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> TestRequest {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds a caller's token.
    pub(crate) fn token(self, token: &str) -> TestRequest {
        self.header("Authorization", &format!("Bearer {token}"))
    }

    /// Replaces `Host`.
    pub(crate) fn host(mut self, host: &str) -> TestRequest {
        self.host = host.to_owned();
        self
    }

    /// Replaces the target.
    pub(crate) fn target(mut self, target: &str) -> TestRequest {
        self.target = target.to_owned();
        self
    }

    pub(crate) fn body(mut self, body: impl AsRef<[u8]>) -> TestRequest {
        self.body = body.as_ref().to_vec();
        self
    }

    /// Returns the bytes on the wire. `Content-Length` is omitted if the test sets its own framing header.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\nHost: {}\r\n", self.method, self.target, self.host);
        let has = |wanted: &str| self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(wanted));
        if !has("content-length") && !has("transfer-encoding") && (self.method == "POST" || !self.body.is_empty()) {
            head += &format!("Content-Length: {}\r\n", self.body.len());
        }
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        [head.as_bytes(), b"\r\n", &self.body].concat()
    }
}

/// Returns the body of a plain `follow_check`.
pub(crate) fn check_body(from: &str, to: &[impl AsRef<str>]) -> String {
    let to: Vec<&str> = to.iter().map(AsRef::as_ref).collect();
    format!(r#"{{"From_Account":{},"To_Account":{}}}"#, serde_json::json!(from), serde_json::json!(to))
}

/// A connection to a listener of the gateway.
pub(crate) struct Conn {
    stream: Box<dyn Stream>,
    unread: Vec<u8>,
}

impl Conn {
    /// Connects to `ip:port` or `unix:/path`.
    pub(crate) async fn open(address: &str) -> io::Result<Conn> {
        let stream: Box<dyn Stream> = match address.strip_prefix("unix:") {
            Some(path) => Box::new(UnixStream::connect(path).await?),
            None => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        };
        Ok(Conn { stream, unread: Vec::new() })
    }

    /// Uses a stream that is already connected.
    pub(crate) fn from_stream(stream: impl Stream + 'static) -> Conn {
        Conn { stream: Box::new(stream), unread: Vec::new() }
    }

    /// Connects with a small kernel receive buffer, so that an unread response stays in the gateway.
    pub(crate) async fn open_with_small_buffer(address: &str) -> Conn {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("an own socket");
        let stream = socket.connect(address.parse().expect("ip:port")).await.expect("accepted");
        Conn { stream: Box::new(stream), unread: Vec::new() }
    }

    /// Writes bytes unchanged. A closed connection is not an error here; the test checks the response.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.try_send(bytes).await;
    }

    /// Writes bytes unchanged.
    pub(crate) async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        within(PATIENCE, "writing to the gateway", async {
            self.stream.write_all(bytes.as_ref()).await?;
            self.stream.flush().await
        })
        .await
    }

    /// Shuts down the writing side.
    pub(crate) async fn shutdown_write(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Sends a request and reads its response.
    pub(crate) async fn request(&mut self, request: &TestRequest) -> Response {
        self.send(request.bytes()).await;
        self.read_final_response(request.method == "HEAD").await.expect("a response, not a closed connection")
    }

    /// Reads the next response.
    pub(crate) async fn read_response(&mut self) -> Response {
        self.try_read_response().await.expect("a response, not a closed connection")
    }

    /// Reads the next response, or returns `None` if the connection was closed before the response was complete.
    pub(crate) async fn try_read_response(&mut self) -> Option<Response> {
        self.read_final_response(false).await
    }

    async fn read_final_response(&mut self, to_head: bool) -> Option<Response> {
        within(PATIENCE, "a response from the gateway", async {
            loop {
                if let Some((response, len)) = Response::parse(&self.unread, to_head) {
                    self.unread.drain(..len);
                    // Interim responses such as 100 Continue precede the final response.
                    if response.status >= 200 {
                        return Some(response);
                    }
                } else if !self.more().await {
                    return None;
                }
            }
        })
        .await
    }

    /// Returns the status of the next interim response, which has no body.
    pub(crate) async fn read_interim_status(&mut self) -> u16 {
        within(PATIENCE, "an interim response", async {
            loop {
                if let Some((response, len)) = Response::parse(&self.unread, true) {
                    self.unread.drain(..len);
                    return response.status;
                }
                assert!(self.more().await, "closed");
            }
        })
        .await
    }

    /// Reads until the gateway closes the connection.
    pub(crate) async fn read_to_end(&mut self) -> Vec<u8> {
        within(PATIENCE, "the gateway closes the connection", async { while self.more().await {} }).await;
        std::mem::take(&mut self.unread)
    }

    /// Asserts that the gateway closes the connection without another byte.
    #[track_caller]
    pub(crate) fn assert_closed(&mut self) -> impl Future<Output = ()> + '_ {
        let caller = std::panic::Location::caller();
        async move {
            let rest = self.read_to_end().await;
            assert!(rest.is_empty(), "{caller}: unexpected bytes: {}", String::from_utf8_lossy(&rest));
        }
    }

    async fn more(&mut self) -> bool {
        matches!(self.stream.read_buf(&mut self.unread).await, Ok(1..))
    }
}
