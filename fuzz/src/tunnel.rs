//! Answers of an egress proxy: the first byte selects the protocol, the others are what the proxy sends.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use chatgate::config::{Proxy, ProxyProtocol};
use chatgate::upstream::tunnel::{Target, open};

/// Maximum size of the headers of an answer to CONNECT.
const HEAD_LEN_MAX: usize = 8 * 1024;

/// Opens a tunnel with these answers.
pub fn run(bytes: &[u8]) {
    let Some((protocol, answer)) = bytes.split_first() else { return };
    match protocol {
        b's' => {
            let rest = opens(ProxyProtocol::Socks5, answer);
            assert_eq!(rest, after_socks(answer), "{}", answer.escape_ascii());
        }
        _ => connect(answer),
    }
}

/// Opens a tunnel. Returns the number of bytes that remain for TLS; `None` if there is no tunnel.
fn opens(protocol: ProxyProtocol, answer: &[u8]) -> Option<usize> {
    let proxy = Proxy { protocol, host: "proxy".into(), port: 1, auth: None, bypass: Vec::new(), variable: None };
    let mut stream = tokio::io::join(answer, tokio::io::sink());
    let (target, mut asked) = (Target { host: "chat.test", port: 443 }, false);
    let opened = {
        let opening = pin!(open(&mut stream, &proxy, target, &mut asked));
        opening.poll(&mut Context::from_waker(Waker::noop()))
    };
    let Poll::Ready(opened) = opened else { panic!("waits after the end of the answer") };
    assert!(opened.is_err() || asked, "a tunnel that was not asked for");
    opened.is_ok().then(|| stream.reader().len())
}

/// Compares with httparse, which accepts more: a bare line feed as the end of a line, and bytes after the headers.
fn connect(answer: &[u8]) {
    let opened = opens(ProxyProtocol::Http, answer).is_some();
    let mut headers = [httparse::EMPTY_HEADER; 1024];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(answer);
    let is_success = response.code.is_some_and(|code| (200..300).contains(&code));
    let has_plain_lines = answer.split(|byte| *byte == b'\n').rev().skip(1).all(|line| line.ends_with(b"\r"));
    if let Ok(httparse::Status::Complete(len)) = parsed {
        let is_whole = len == answer.len() && len <= HEAD_LEN_MAX && has_plain_lines && answer.starts_with(b"HTTP/");
        assert_eq!(opened, is_success && is_whole, "{}", answer.escape_ascii());
    }
    // httparse also checks the headers, which are of no use here.
    assert!(!opened || is_success || parsed.is_err(), "{}", answer.escape_ascii());
}

/// Reads the answers of SOCKS 5 without credentials by their lengths. Returns the number of bytes after them.
fn after_socks(answer: &[u8]) -> Option<usize> {
    let rest = answer.strip_prefix(&[5, 0, 5, 0])?;
    let address_len = match rest.get(1)? {
        1 => 4,
        3 => 1 + usize::from(*rest.get(2)?),
        4 => 16,
        _ => return None,
    };
    rest.len().checked_sub(2 + address_len + 2)
}
