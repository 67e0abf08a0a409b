//! HTTP/1.1 as the fake Chat reads it: by itself, strictly, and whole.
//!
//! A library would mend what it reads. Here anything that is not the plainest possible request is a
//! violation, because two readers that mend differently are how one request becomes two.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;

/// A byte stream, whatever carries it.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A request that reached the fake Chat, whole.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// Which connection it came on, counted from 0.
    pub(crate) connection: usize,
    /// When its first byte was seen.
    pub(crate) at: Instant,
    pub(crate) method: String,
    pub(crate) target: String,
    /// Names as they were sent.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Call {
    /// The target without its query.
    pub(crate) fn path(&self) -> &str {
        self.target.split_once('?').map_or(&*self.target, |(path, _)| path)
    }

    /// `service/command`.
    pub(crate) fn command(&self) -> &str {
        self.path().strip_prefix("/v4/").unwrap_or_default()
    }

    /// The query's names and values, percent-decoded, in order.
    pub(crate) fn query(&self) -> Vec<(String, String)> {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        let decode = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
        query
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(k, v)| (decode(k), decode(v)))
            .collect()
    }

    /// The first parameter of that name.
    pub(crate) fn parameter(&self, name: &str) -> Option<String> {
        self.query().into_iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    pub(crate) fn usersig(&self) -> String {
        self.parameter("usersig").unwrap_or_default()
    }

    /// The app's number in the query.
    pub(crate) fn app(&self) -> u32 {
        self.parameter("sdkappid").and_then(|number| number.parse().ok()).unwrap_or_default()
    }

    /// The first header of that name, in whatever case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    /// `From_Account` of the body: who the question is about.
    pub(crate) fn asker(&self) -> String {
        self.json()["From_Account"].as_str().expect("From_Account").to_owned()
    }

    /// `To_Account` of the body.
    pub(crate) fn to_accounts(&self) -> Vec<String> {
        let json = self.json();
        let list = json["To_Account"].as_array().expect("To_Account");
        list.iter().map(|to| to.as_str().expect("a string").to_owned()).collect()
    }

    /// Its pairs, each with the smaller name first, so that a turned-round question counts as the same.
    pub(crate) fn pairs(&self) -> Vec<(String, String)> {
        let from = self.asker();
        self.to_accounts()
            .into_iter()
            .map(|to| if from < to { (from.clone(), to) } else { (to, from.clone()) })
            .collect()
    }
}

/// Reads the requests of one connection.
pub(crate) struct Reader {
    unread: Vec<u8>,
    connection: usize,
}

/// Longest request that the fake reads.
const REQUEST_LEN_MAX: usize = 16 << 20;

impl Reader {
    pub(crate) fn new(connection: usize) -> Reader {
        Reader { unread: Vec::new(), connection }
    }

    /// The next request. `Ok(None)` if the peer is done; an error says what is wrong with the bytes.
    pub(crate) async fn next(&mut self, stream: &mut (impl Stream + ?Sized)) -> Result<Option<Call>, String> {
        if self.unread.is_empty() && !self.more(stream).await {
            return Ok(None);
        }
        if !self.unread[0].is_ascii_uppercase() {
            return Err(format!("bytes that are no HTTP/1.1, beginning with {:#04x}", self.unread[0]));
        }
        let at = super::now();
        let head_len = loop {
            if let Some(end) = memchr::memmem::find(&self.unread, b"\r\n\r\n") {
                break end;
            }
            if !self.more(stream).await {
                // A peer that gave up has asked nothing.
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

/// The body's length. Only one plain `Content-Length` is taken: the gateway knows each body whole.
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

/// Makes the peer see a reset when the stream is dropped.
pub(crate) fn reset_on_drop(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// A free loopback address, for a service that is started later or never.
pub(crate) fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound")
}
