//! The method CONNECT of HTTP/1.1 (RFC 9110 section 9.3.6).

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use memchr::memmem;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use zeroize::Zeroizing;

use super::{Target, TunnelError};
use crate::config::ProxyAuth;
use crate::domain::policy::proxy::of_connect_status;

/// Maximum size of the headers of the response in bytes. Proxies answer with less than 1 KiB.
const HEAD_LEN_MAX: usize = 8 * 1024;
/// The beginning of every response, up to the minor version.
const VERSION: &[u8] = b"HTTP/1.";
const HEAD_END: &[u8] = b"\r\n\r\n";

const CLOSED: &str = "the proxy closed the connection before its answer to CONNECT was complete";
const NOT_HTTP: &str = "the answer to CONNECT is not HTTP/1.1";
const TOO_LARGE: &str = "the headers of the answer to CONNECT exceed 8 KiB";
const EARLY_BYTES: &str = "the proxy sent bytes through the tunnel before chatgate did";

pub(super) async fn open(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    auth: Option<&ProxyAuth>,
    target: Target<'_>,
    asked: &mut bool,
) -> Result<(), TunnelError> {
    stream.write_all(request(auth, target).as_bytes()).await?;
    stream.flush().await?;
    *asked = true;
    let (status, rest_len) = read_status(stream).await?;
    match of_connect_status(status) {
        // In TLS the client begins, so these bytes cannot be Chat's.
        None if rest_len > 0 => Err(TunnelError::invalid(EARLY_BYTES)),
        None => Ok(()),
        Some(failure) => {
            Err(TunnelError { failure, cause: format!("the proxy answers CONNECT with HTTP status {status}") })
        }
    }
}

/// Returns the request. It names nothing but the target: no program, no path.
fn request(auth: Option<&ProxyAuth>, Target { host, port }: Target<'_>) -> Zeroizing<String> {
    // Allocated once: a string that grows leaves copies of the credentials behind.
    let mut head = Zeroizing::new(String::with_capacity(1024 + 2 * host.len()));
    let _ = write!(head, "CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n");
    if let Some(auth) = auth {
        let mut credentials = Zeroizing::new(String::with_capacity(auth.user().len() + 1 + auth.password().len()));
        credentials.extend([auth.user(), ":", auth.password()]);
        head.push_str("Proxy-Authorization: Basic ");
        STANDARD.encode_string(credentials.as_bytes(), &mut head);
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    head
}

/// Reads the headers of the response. Returns the status, and the number of bytes that followed the headers.
async fn read_status(stream: &mut (impl AsyncRead + Unpin)) -> Result<(u16, usize), TunnelError> {
    let mut buffer = vec![0; HEAD_LEN_MAX];
    let mut len = 0;
    loop {
        let read = stream.read(&mut buffer[len..]).await?;
        if read == 0 {
            return Err(TunnelError::invalid(if len == HEAD_LEN_MAX { TOO_LARGE } else { CLOSED }));
        }
        // The end may have begun in the bytes before.
        let unsearched = len.saturating_sub(HEAD_END.len() - 1);
        len += read;
        // Checked at once: a server of another protocol may wait for more.
        if !VERSION.starts_with(&buffer[..len.min(VERSION.len())]) {
            return Err(TunnelError::invalid(NOT_HTTP));
        }
        let end = memmem::find(&buffer[unsearched..len], HEAD_END).map(|at| unsearched + at + HEAD_END.len());
        if has_bare_line_feed(&buffer[unsearched..end.unwrap_or(len)]) {
            return Err(TunnelError::invalid(NOT_HTTP));
        }
        if let Some(end) = end {
            let status = status_of(&buffer).ok_or_else(|| TunnelError::invalid(NOT_HTTP))?;
            return Ok((status, len - end));
        }
    }
}

/// Returns whether a line ends in another way than with CR LF, so that readers may disagree on the end of the headers.
fn has_bare_line_feed(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|pair| pair[1] == b'\n' && pair[0] != b'\r')
}

/// Returns the status of a status line: `HTTP/1.1 200 OK`.
fn status_of(head: &[u8]) -> Option<u16> {
    let (minor, rest) = head.strip_prefix(VERSION)?.split_first()?;
    let (digits, after) = rest.strip_prefix(b" ")?.split_first_chunk::<3>()?;
    if !minor.is_ascii_digit() || !digits.iter().all(u8::is_ascii_digit) || !matches!(after.first(), Some(b' ' | b'\r'))
    {
        return None;
    }
    let status = digits.iter().fold(0, |number, digit| number * 10 + u16::from(digit - b'0'));
    (status >= 100).then_some(status)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{auth, play};
    use super::*;
    use crate::config::ProxyProtocol;
    use crate::domain::policy::proxy::{ConnectFailure, ProxyFailure};

    const ASKED: &str = "CONNECT chat.test:443 HTTP/1.1\r\nHost: chat.test:443\r\n\r\n";

    /// Answers CONNECT with these pieces, then closes the connection. Returns the result and what was asked.
    async fn connect(pieces: &[&[u8]]) -> (Result<(), TunnelError>, String) {
        let (result, sent) = play(ProxyProtocol::Http, None, "chat.test", pieces).await;
        (result, String::from_utf8(sent).expect("text"))
    }

    #[tokio::test]
    async fn tunnel_opens_after_any_success_in_any_pieces() {
        for pieces in [
            [b"HTTP/1.1 200 OK\r\n\r\n".as_slice()].as_slice(),
            &[b"HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\n"],
            &[b"HTTP/1.1 200\r\n\r\n"],
            &[b"H", b"TTP/1.1 20", b"4 No Content\r\nContent-Length: 0\r", b"\n\r", b"\n"],
        ] {
            let (result, sent) = connect(pieces).await;
            assert_eq!((result, sent.as_str()), (Ok(()), ASKED));
        }
        let bytes: Vec<&[u8]> = b"HTTP/1.1 200 OK\r\nVia: 1.1 x\r\n\r\n".chunks(1).collect();
        assert_eq!(connect(&bytes).await.0, Ok(()));
    }

    #[tokio::test]
    async fn refusals_say_whose_failure_it_is() {
        for (status, failure) in [
            (407, ConnectFailure::Proxy(ProxyFailure::Unauthorized)),
            (403, ConnectFailure::Proxy(ProxyFailure::Refused)),
            (503, ConnectFailure::Domain),
        ] {
            let answer = format!("HTTP/1.1 {status} A secret of the proxy\r\nContent-Length: 5\r\n\r\nabcde");
            let error = connect(&[answer.as_bytes()]).await.0.expect_err("no tunnel");
            assert_eq!(error.failure, failure);
            assert_eq!(error.cause, format!("the proxy answers CONNECT with HTTP status {status}"));
        }
    }

    #[tokio::test]
    async fn invalid_answers_are_the_proxys_failure() {
        let large = [b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &[b'x'; 2 * HEAD_LEN_MAX]].concat();
        let fits = [b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &[b'x'; HEAD_LEN_MAX - 23], b"\r\n\r\n"].concat();
        assert_eq!(fits.len(), HEAD_LEN_MAX + 1);
        for (answer, cause) in [
            (b"".as_slice(), CLOSED),
            (b"HTTP/1.1 200 OK\r\nVia", CLOSED),
            (b"SSH-2.0-x\r\n", NOT_HTTP),
            (b"\x05\x00", NOT_HTTP),
            (b"HTTP/2 200\r\n\r\n", NOT_HTTP),
            (b"HTTP/1.1 20\r\n\r\n", NOT_HTTP),
            (b"HTTP/1.1 2000 OK\r\n\r\n", NOT_HTTP),
            (b"HTTP/1.1 +20 OK\r\n\r\n", NOT_HTTP),
            (b"HTTP/1.1 099 OK\r\n\r\n", NOT_HTTP),
            (b"HTTP/1.x 200 OK\r\n\r\n", NOT_HTTP),
            (b"HTTP/1.1 200 OK\r\n\r\nx", EARLY_BYTES),
            (b"HTTP/1.1 200 OK\n\nx\r\n\r\n", NOT_HTTP),
            (b"HTTP/1.1 200 OK\r\nVia: x\n", NOT_HTTP),
            (&large, TOO_LARGE),
            (&fits, TOO_LARGE),
        ] {
            let error = connect(&[answer]).await.0.expect_err("no tunnel");
            assert_eq!(
                error,
                TunnelError::invalid(cause),
                "{:?}",
                String::from_utf8_lossy(&answer[..answer.len().min(40)])
            );
        }
        let (result, _) = connect(&[&fits[..fits.len() - 5], b"\r\n\r\n"]).await;
        assert_eq!(result, Ok(()), "8 KiB are allowed");
    }

    #[tokio::test]
    async fn credentials_are_sent_as_basic() {
        let answer: &[&[u8]] = &[b"HTTP/1.1 200 OK\r\n\r\n"];
        let (result, sent) = play(ProxyProtocol::Http, Some(auth("user:pa:ss")), "[2001:db8::1]", answer).await;
        assert_eq!(result, Ok(()));
        // `printf user:pa:ss | base64`
        let expected = "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n\
                        Proxy-Authorization: Basic dXNlcjpwYTpzcw==\r\n\r\n";
        assert_eq!(String::from_utf8(sent).expect("text"), expected);
    }

    #[test]
    fn longest_request_is_written_without_growing() {
        let long = auth(&format!("{}:{}", "u".repeat(255), "p".repeat(255)));
        let host = "h".repeat(253);
        let head = request(Some(&long), Target { host: &host, port: 65535 });
        assert!(head.len() <= 1024 + 2 * host.len(), "{}", head.len());
        assert!(head.ends_with("\r\n\r\n"));
    }
}
