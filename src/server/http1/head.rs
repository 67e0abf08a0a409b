//! The headers of an HTTP/1 request, read line by line, as strictly as possible. Pure.
//!
//! hyper repairs some headers: it drops a `Content-Length` next to chunks, merges two equal ones, and cuts a target at
//! `#`. A proxy between a caller and chatgate may repair them differently, and then one request becomes two (RFC 9112
//! section 11.2). So headers pass only if there is exactly one way to read them.

use crate::domain::json::ascii;
use crate::http::headers::{HEAD_LEN_MAX, HEAD_LINES_MAX};

/// Maximum `Content-Length`. hyper uses values near 2^64 internally.
const LENGTH_MAX: u64 = i64::MAX as u64;

/// What follows the headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// A body of this many bytes; 0 without a length.
    Length(u64),
    /// Chunks.
    Chunked,
    /// HTTP/2 by prior knowledge, instead of headers.
    Http2,
}

/// Why a request is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadError {
    /// There is no way to read it, or more than one.
    Malformed(Malformed),
    /// The headers exceed [`HEAD_LEN_MAX`] or [`HEAD_LINES_MAX`].
    TooLarge,
}

/// What is malformed or ambiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the text of each says what it is")]
pub enum Malformed {
    Tls,
    Http2,
    Proxy,
    LineEnd,
    RequestLine,
    Method,
    Target,
    TargetForm,
    Version,
    Field,
    Folded,
    NoHost,
    Hosts,
    Length,
    Lengths,
    LengthAndCoding,
    Coding,
    CodingIn10,
    Chunk,
    Trailer,
}

impl Malformed {
    /// Returns the cause in plain words, for the caller and the log.
    pub fn text(self) -> &'static str {
        match self {
            Malformed::Tls => "it begins with a TLS handshake, and this port speaks plain HTTP; use http://",
            Malformed::Http2 => "the HTTP/2 preface does not begin the connection, or TLS agreed on HTTP/1.1",
            Malformed::Proxy => {
                "it begins with a PROXY protocol line, which is not supported; switch it off in the proxy"
            }
            Malformed::LineEnd => "a line does not end with CR LF, or contains a CR",
            Malformed::RequestLine => "the request line is not METHOD TARGET HTTP/1.1, separated by single spaces",
            Malformed::Method => "the method contains a character that is not allowed there",
            Malformed::Target => {
                "the request target contains a '#' or a character that must be percent-encoded; send JSON as the body"
            }
            Malformed::TargetForm => "the request target is neither a path nor an absolute URL",
            Malformed::Version => "the version is not HTTP/1.1 or HTTP/1.0",
            Malformed::Field => "a header line is not NAME: VALUE, or contains a character that is not allowed there",
            Malformed::Folded => "a header line begins with a space or has one before the colon",
            Malformed::NoHost => "there is no Host header",
            Malformed::Hosts => "there is more than one Host header",
            Malformed::Length => "the Content-Length is not a number in digits",
            Malformed::Lengths => "there is more than one Content-Length header",
            Malformed::LengthAndCoding => "it has both Content-Length and Transfer-Encoding",
            Malformed::Coding => "the Transfer-Encoding is not \"chunked\", once",
            Malformed::CodingIn10 => "HTTP/1.0 has no Transfer-Encoding",
            Malformed::Chunk => "the size or the end of a chunk is not well-formed",
            Malformed::Trailer => "a trailer line is not well-formed or not allowed, or there are too many",
        }
    }
}

impl From<Malformed> for HeadError {
    fn from(cause: Malformed) -> Self {
        HeadError::Malformed(cause)
    }
}

/// Request headers, as far as they have been read.
#[derive(Debug, Default, Clone)]
pub struct Head {
    len: usize,
    lines: usize,
    /// Known from the request line on.
    version: Option<HttpVersion>,
    hosts: usize,
    content_length: Option<u64>,
    is_chunked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HttpVersion {
    Http10,
    Http11,
}

impl Head {
    /// Number of bytes read.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing has been read.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads the next line, LF included. The empty line ends the headers and returns what follows them. Empty lines
    /// before the request line are skipped (RFC 9112 section 2.2).
    ///
    /// # Errors
    /// See [`HeadError`].
    pub fn line(&mut self, line: &[u8]) -> Result<Option<Framing>, HeadError> {
        self.len += line.len();
        if self.len > HEAD_LEN_MAX {
            return Err(HeadError::TooLarge);
        }
        let text = line.strip_suffix(b"\r\n").ok_or(Malformed::LineEnd)?;
        let Some(version) = self.version else {
            if text.is_empty() {
                return Ok(None);
            }
            if text == b"PRI * HTTP/2.0" && self.len == line.len() {
                return Ok(Some(Framing::Http2));
            }
            self.version = Some(request_line(text)?);
            return Ok(None);
        };
        if text.is_empty() {
            return self.end(version).map(Some);
        }
        self.lines += 1;
        if self.lines > HEAD_LINES_MAX {
            return Err(HeadError::TooLarge);
        }
        self.header(text, version)?;
        Ok(None)
    }

    fn header(&mut self, text: &[u8], version: HttpVersion) -> Result<(), HeadError> {
        let (name, value) = field(text)?;
        if name.eq_ignore_ascii_case(b"host") {
            self.hosts += 1;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            // Once, and digits only: a second one is rejected even if it is equal.
            if self.content_length.is_some() {
                return Err(Malformed::Lengths.into());
            }
            if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
                return Err(Malformed::Length.into());
            }
            let length = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
            self.content_length = Some(length.filter(|length| *length <= LENGTH_MAX).ok_or(Malformed::Length)?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if version == HttpVersion::Http10 {
                return Err(Malformed::CodingIn10.into());
            }
            if self.is_chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Malformed::Coding.into());
            }
            self.is_chunked = true;
        }
        Ok(())
    }

    fn end(&self, version: HttpVersion) -> Result<Framing, HeadError> {
        // RFC 9112 section 3.2: one Host, and in HTTP/1.1 no request without it.
        match self.hosts {
            0 if version == HttpVersion::Http11 => return Err(Malformed::NoHost.into()),
            0 | 1 => {}
            _ => return Err(Malformed::Hosts.into()),
        }
        match (self.content_length, self.is_chunked) {
            (Some(_), true) => Err(Malformed::LengthAndCoding.into()),
            (None, true) => Ok(Framing::Chunked),
            (length, false) => Ok(Framing::Length(length.unwrap_or(0))),
        }
    }
}

/// Reads method, target, and version, separated by single spaces (RFC 9112 section 3).
fn request_line(text: &[u8]) -> Result<HttpVersion, HeadError> {
    let spaces = memchr::memchr(b' ', text).zip(memchr::memrchr(b' ', text));
    let (first, last) = spaces.filter(|(first, last)| first < last).ok_or_else(|| not_a_request_line(text))?;
    let (method, target, version) = (&text[..first], &text[first + 1..last], &text[last + 1..]);
    if method.is_empty() || target.is_empty() {
        return Err(not_a_request_line(text));
    }
    if !are_all(method, TOKEN) {
        return Err(Malformed::Method.into());
    }
    // A target contains neither a space nor a fragment (RFC 9112 section 3.2), and hyper rejects these quotes and
    // brackets, which a URI does not contain (RFC 3986 section 2).
    if !ascii::is_all(target, b'!', [b'#', b'"', b'<', b'>']) {
        return Err(if target.contains(&b' ') { not_a_request_line(text) } else { Malformed::Target.into() });
    }
    let version = match version {
        b"HTTP/1.1" => HttpVersion::Http11,
        b"HTTP/1.0" => HttpVersion::Http10,
        _ => return Err(Malformed::Version.into()),
    };
    if target[0] == b'/' || has_other_form(method, target) { Ok(version) } else { Err(Malformed::TargetForm.into()) }
}

/// Returns the error of a line that is not three parts.
#[cold]
fn not_a_request_line(text: &[u8]) -> HeadError {
    if text.starts_with(b"PROXY ") { Malformed::Proxy.into() } else { Malformed::RequestLine.into() }
}

/// Whether a target that is not a path has another form of RFC 9112 section 3.2: absolute, authority, or asterisk. The
/// schemes that are served consist of letters.
#[cold]
fn has_other_form(method: &[u8], target: &[u8]) -> bool {
    let scheme = target.iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
    let is_absolute = scheme > 0 && target[scheme..].strip_prefix(b"://").is_some_and(|rest| !rest.is_empty());
    is_absolute || method == b"CONNECT" || target == b"*"
}

/// Splits a field line into its name and its trimmed value (RFC 9112 section 5).
///
/// # Errors
/// [`HeadError::Malformed`] for folded lines, spaces before the colon, and control characters.
pub fn field(text: &[u8]) -> Result<(&[u8], &[u8]), HeadError> {
    let colon = memchr::memchr(b':', text).ok_or_else(|| not_a_field(text))?;
    let (name, value) = (&text[..colon], &text[colon + 1..]);
    // Nearly all values are printable ASCII, which is checked faster.
    let is_visible = ascii::is_all(value, b' ', []) || are_all(value, VISIBLE);
    if name.is_empty() || !are_all(name, TOKEN) || !is_visible {
        return Err(not_a_field(name));
    }
    Ok((name, value.trim_ascii()))
}

#[cold]
fn not_a_field(name: &[u8]) -> HeadError {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let is_folded = is_space(name.first()) || is_space(name.last());
    if is_folded { Malformed::Folded.into() } else { Malformed::Field.into() }
}

/// Returns the length of the token at the beginning (RFC 9110 section 5.6.2).
pub(super) fn token_len(text: &[u8]) -> usize {
    text.iter().take_while(|byte| CLASSES[usize::from(**byte)] & TOKEN != 0).count()
}

/// Whether all bytes are of a class. It does not stop at the first that is not: nearly always all are.
fn are_all(text: &[u8], class: u8) -> bool {
    text.iter().fold(class, |so_far, byte| so_far & CLASSES[usize::from(*byte)]) == class
}

/// A `tchar` of RFC 9110 section 5.6.2.
const TOKEN: u8 = 1;
/// A byte of a value: a `field-vchar` of RFC 9110 section 5.5, space, or tab.
const VISIBLE: u8 = 2;

/// Classes of each byte.
const CLASSES: [u8; 256] = {
    let (mut classes, mut byte) = ([0; 256], 0u8);
    loop {
        if byte.is_ascii_alphanumeric() {
            classes[byte as usize] |= TOKEN;
        }
        if matches!(byte, b'\t' | b' '..=b'~' | 0x80..) {
            classes[byte as usize] |= VISIBLE;
        }
        if byte == u8::MAX {
            break;
        }
        byte += 1;
    }
    let (signs, mut at) = (b"!#$%&'*+-.^_`|~", 0);
    while at < signs.len() {
        classes[signs[at] as usize] |= TOKEN;
        at += 1;
    }
    classes
};

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads complete headers.
    fn read(head: &str) -> Result<Option<Framing>, HeadError> {
        let mut headers = Head::default();
        let mut last = Ok(None);
        for line in head.as_bytes().split_inclusive(|byte| *byte == b'\n') {
            last = headers.line(line);
            if !matches!(last, Ok(None)) {
                break;
            }
        }
        last
    }

    fn with(lines: &str) -> Result<Option<Framing>, HeadError> {
        read(&format!("POST /v4/a/b HTTP/1.1\r\nHost: h\r\n{lines}\r\n"))
    }

    #[test]
    fn unambiguous_framing_is_accepted() {
        for (lines, framing) in [
            ("", Framing::Length(0)),
            ("Content-Length: 0\r\n", Framing::Length(0)),
            ("content-LENGTH:\t 17 \t\r\n", Framing::Length(17)),
            ("Transfer-Encoding: Chunked\r\n", Framing::Chunked),
            ("X: a:b\r\nContent-Length: 9223372036854775807\r\n", Framing::Length(LENGTH_MAX)),
        ] {
            assert_eq!(with(lines), Ok(Some(framing)), "{lines:?}");
        }
    }

    #[test]
    fn ambiguous_or_malformed_headers_are_rejected() {
        use Malformed::*;
        for (lines, cause) in [
            ("Content-Length: 2\r\nContent-Length: 2\r\n", Lengths),
            ("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", LengthAndCoding),
            ("Transfer-Encoding: chunked\r\nContent-Length: 2\r\n", LengthAndCoding),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Coding),
            ("Transfer-Encoding: gzip, chunked\r\n", Coding),
            ("Transfer-Encoding:\r\n", Coding),
            ("Content-Length: 9223372036854775808\r\n", Length),
            ("Content-Length: 18446744073709551615\r\n", Length),
            ("Content-Length: +2\r\n", Length),
            ("Content-Length:\r\n", Length),
            ("Content-Length : 2\r\n", Folded),
            ("X: a\r\n b\r\n", Folded),
            ("X: a\n", LineEnd),
            ("X: a\rb\r\n", Field),
            ("X: a\0\r\n", Field),
            ("Host: h\r\n", Hosts),
            (": x\r\n", Field),
            ("x\r\n", Field),
        ] {
            assert_eq!(with(lines), Err(cause.into()), "{lines:?}");
        }
        assert_eq!(read("POST /v4/a/b HTTP/1.1\r\n\r\n"), Err(Malformed::NoHost.into()));
        let old = "POST /v4/a/b HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(read(old), Err(Malformed::CodingIn10.into()));
    }

    #[test]
    fn every_byte_has_the_classes_of_the_grammar() {
        for byte in 0..=u8::MAX {
            let token = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            assert_eq!(are_all(&[byte], TOKEN), token, "{byte:#x}");
            let visible = !(byte < b' ' && byte != b'\t') && byte != 0x7f;
            assert_eq!(are_all(&[byte], VISIBLE), visible, "{byte:#x}");
            for line in [format!("x:{}", "a".repeat(7)).into_bytes(), format!("x:{}", "a".repeat(20)).into_bytes()] {
                let mut line = line;
                line[4] = byte;
                assert_eq!(field(&line).is_ok(), visible, "{byte:#x} in a value");
            }
        }
    }

    #[test]
    fn malformed_request_lines_are_rejected() {
        use Malformed::*;
        for (line, cause) in [
            ("POST /a#b HTTP/1.1", Target),
            ("POST  /a HTTP/1.1", RequestLine),
            ("POST /a  HTTP/1.1", RequestLine),
            ("POST /a HTTP/1.1 ", RequestLine),
            (" POST /a HTTP/1.1", RequestLine),
            ("POST /a HTTP/1.2", Version),
            ("POST /a HTTP/2.0", Version),
            ("POST /a http/1.1", Version),
            ("POST /a", RequestLine),
            ("PO(T /a HTTP/1.1", Method),
            ("POST /\u{e9} HTTP/1.1", Target),
            ("POST\t/a HTTP/1.1", RequestLine),
            ("POST a HTTP/1.1", TargetForm),
            ("POST ** HTTP/1.1", TargetForm),
            ("POST localhost:80 HTTP/1.1", TargetForm),
            ("POST http:/a HTTP/1.1", TargetForm),
            ("POST http:// HTTP/1.1", TargetForm),
            ("POST ://h/a HTTP/1.1", TargetForm),
            ("POST h2://h/a HTTP/1.1", TargetForm),
        ] {
            assert_eq!(read(&format!("{line}\r\nHost: h\r\n\r\n")), Err(cause.into()), "{line:?}");
        }
        for line in ["GET * HTTP/1.0", "POST http://h/a HTTP/1.0", "CONNECT localhost:80 HTTP/1.0"] {
            assert_eq!(read(&format!("\r\n\r\n{line}\r\n\r\n")), Ok(Some(Framing::Length(0))), "{line:?}");
        }
        assert_eq!(read("PRI * HTTP/2.0\r\n\r\n"), Ok(Some(Framing::Http2)));
        assert_eq!(read("\r\nPRI * HTTP/2.0\r\n\r\n"), Err(Malformed::Version.into()));
    }

    #[test]
    fn limits_of_length_and_lines_are_exact() {
        assert_eq!(with(&"a:b\r\n".repeat(HEAD_LINES_MAX - 1)), Ok(Some(Framing::Length(0))));
        assert_eq!(with(&"a:b\r\n".repeat(HEAD_LINES_MAX)), Err(HeadError::TooLarge));
        let rest = "POST /v4/a/b HTTP/1.1\r\nHost: h\r\na:\r\n\r\n".len();
        let value = |len: usize| with(&format!("a:{}\r\n", "x".repeat(len)));
        assert_eq!(value(HEAD_LEN_MAX - rest), Ok(Some(Framing::Length(0))));
        assert_eq!(value(HEAD_LEN_MAX - rest + 1), Err(HeadError::TooLarge));
    }
}
