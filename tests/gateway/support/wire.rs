//! The fake Chat's own strict HTTP/1.1 reader.
//!
//! A library would tolerate deviations. Here any deviation from the plainest possible request is a violation, because
//! request smuggling needs two readers that tolerate different deviations.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;

/// A byte stream over any transport.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A complete request that reached the fake Chat.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// Number of the connection, from 0.
    pub(crate) connection: usize,
    /// Arrival of the first byte.
    pub(crate) at: Instant,
    pub(crate) method: String,
    pub(crate) target: String,
    /// Names and values as sent.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Call {
    /// Returns the target without its query.
    pub(crate) fn path(&self) -> &str {
        self.target.split_once('?').map_or(&*self.target, |(path, _)| path)
    }

    /// Returns `service/command`.
    pub(crate) fn command(&self) -> &str {
        self.path().strip_prefix("/v4/").unwrap_or_default()
    }

    /// Returns the query's names and values, percent-decoded, in order.
    pub(crate) fn query(&self) -> Vec<(String, String)> {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        let decode = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
        query
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(k, v)| (decode(k), decode(v)))
            .collect()
    }

    /// Returns the first parameter with this name.
    pub(crate) fn parameter(&self, name: &str) -> Option<String> {
        self.query().into_iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    pub(crate) fn usersig(&self) -> String {
        self.parameter("usersig").unwrap_or_default()
    }

    /// Returns the SDKAppID in the query, or 0.
    pub(crate) fn app(&self) -> u32 {
        self.parameter("sdkappid").and_then(|number| number.parse().ok()).unwrap_or_default()
    }

    /// Returns the first header with this name, in any case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    /// Returns `From_Account` of the body.
    pub(crate) fn source_account(&self) -> String {
        self.json()["From_Account"].as_str().expect("From_Account").to_owned()
    }

    /// Returns `To_Account` of the body.
    pub(crate) fn to_accounts(&self) -> Vec<String> {
        let json = self.json();
        let list = json["To_Account"].as_array().expect("To_Account");
        list.iter().map(|to| to.as_str().expect("a string").to_owned()).collect()
    }

    /// Returns the pairs of the body, each with the smaller name first, so that a pair equals its flipped pair.
    pub(crate) fn pairs(&self) -> Vec<(String, String)> {
        let from = self.source_account();
        self.to_accounts()
            .into_iter()
            .map(|to| if from < to { (from.clone(), to) } else { (to, from.clone()) })
            .collect()
    }
}

/// A reader of the requests on one connection.
pub(crate) struct Reader {
    unread: Vec<u8>,
    connection: usize,
}

/// Longest request that the reader accepts, in bytes.
const REQUEST_LEN_MAX: usize = 16 << 20;

impl Reader {
    pub(crate) fn new(connection: usize) -> Reader {
        Reader { unread: Vec::new(), connection }
    }

    /// Reads the next request. Returns `Ok(None)` if the peer closed the connection; an error describes the violation.
    pub(crate) async fn next(&mut self, stream: &mut (impl Stream + ?Sized)) -> Result<Option<Call>, String> {
        if self.unread.is_empty() && !self.more(stream).await {
            return Ok(None);
        }
        if !self.unread[0].is_ascii_uppercase() {
            return Err(format!("bytes are not HTTP/1.1; the first is {:#04x}", self.unread[0]));
        }
        let at = super::now();
        let head_len = loop {
            if let Some(end) = memchr::memmem::find(&self.unread, b"\r\n\r\n") {
                break end;
            }
            if !self.more(stream).await {
                // An incomplete request does not count.
                return Ok(None);
            }
        };
        let head = String::from_utf8(self.unread[..head_len].to_vec()).map_err(|_| "head is not UTF-8")?;
        let (method, target, headers) = read_head(&head)?;
        let body_len = body_len(&headers)?;
        let whole = head_len + 4 + body_len;
        while self.unread.len() < whole {
            if !self.more(stream).await {
                return Ok(None);
            }
        }
        let body = self.unread[head_len + 4..whole].to_vec();
        self.unread.drain(..whole);
        Ok(Some(Call { connection: self.connection, at, method, target, headers, body }))
    }

    async fn more(&mut self, stream: &mut (impl Stream + ?Sized)) -> bool {
        self.unread.len() < REQUEST_LEN_MAX && matches!(stream.read_buf(&mut self.unread).await, Ok(1..))
    }
}

type Head = (String, String, Vec<(String, String)>);

fn read_head(head: &str) -> Result<Head, String> {
    let mut lines = head.split("\r\n");
    let words: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let &[method, target, "HTTP/1.1"] = words.as_slice() else {
        return Err(format!("request line {words:?}"));
    };
    let mut headers = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(format!("header line {line:?}"))?;
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(token) || value.bytes().any(|byte| byte.is_ascii_control()) {
            return Err(format!("header line {line:?}"));
        }
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    Ok((method.to_owned(), target.to_owned(), headers))
}

/// Returns the body's length. Only one plain `Content-Length` is accepted, because the gateway buffers each body.
fn body_len(headers: &[(String, String)]) -> Result<usize, String> {
    let all = |name: &str| headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name)).collect::<Vec<_>>();
    if !all("transfer-encoding").is_empty() {
        return Err("has a Transfer-Encoding".into());
    }
    match all("content-length").as_slice() {
        [(_, text)] if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            text.parse().map_err(|_| format!("Content-Length {text:?}"))
        }
        other => Err(format!("Content-Length lines {other:?}")),
    }
}

/// Makes the drop of the stream send a reset.
pub(crate) fn reset_on_drop(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Returns a free loopback address, for a service that starts later or never.
pub(crate) fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound")
}
