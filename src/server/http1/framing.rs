//! Tracks the requests of an HTTP/1 connection in its stream of bytes: headers, bodies, and chunks.
//!
//! It is stricter than hyper in everything. So while it rejects nothing, both find the same ends of requests, and a
//! request that it rejects never reaches hyper complete.

use super::chunk;
use super::head::{Framing, Head, HeadError, Malformed, field};
use crate::http::headers::{HEAD_LEN_MAX, NOT_IN_TRAILERS};

/// Maximum length of a chunk-size line, and of all trailers, in bytes. hyper has the same limits.
const CHUNK_EXTRA_LEN_MAX: usize = 16 * 1024;
/// Maximum number of trailer lines, as in hyper.
const TRAILERS_MAX: usize = 100;
/// First byte of a TLS handshake (RFC 8446 section 5.1). What follows may have no line end for a long time.
const TLS_HANDSHAKE: u8 = 0x16;

/// What a connection may speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1, or HTTP/2 by prior knowledge: a connection without TLS.
    Any,
    /// HTTP/1, as TLS agreed on it (ALPN, RFC 7301), or on nothing.
    Http1,
    /// HTTP/2, as TLS agreed on it.
    Http2,
}

/// The position of a connection within its requests.
#[derive(Debug)]
pub struct FramingTracker {
    state: FramingState,
    head: Head,
    /// The beginning of an incomplete line.
    line: Vec<u8>,
    /// No request has begun yet, and HTTP/2 or, by mistake, TLS may.
    may_switch: bool,
    completed: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FramingState {
    Head,
    Body { left: u64 },
    ChunkSize,
    Chunk { left: u64 },
    ChunkEnd,
    Trailers { len: usize, lines: usize },
    Http2,
}

/// Invalid or ambiguous bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FramingError {
    /// Number of valid bytes before the rejected line, or before the rejected rest of a line.
    pub valid_len: usize,
    /// The cause.
    pub error: HeadError,
    /// Whether the line is part of request headers, so that no request exists yet.
    pub in_head: bool,
}

impl FramingTracker {
    /// Tracks a new connection.
    pub fn new(protocol: Protocol) -> Self {
        let state = if protocol == Protocol::Http2 { FramingState::Http2 } else { FramingState::Head };
        let may_switch = protocol == Protocol::Any;
        Self { state, head: Head::default(), line: Vec::new(), may_switch, completed: 0 }
    }

    /// Follows the next bytes, however they are split.
    ///
    /// # Errors
    /// At the first invalid line. Nothing after it may be read from this connection.
    pub fn follow(&mut self, bytes: &[u8]) -> Result<(), FramingError> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match &mut self.state {
                FramingState::Http2 => return Ok(()),
                FramingState::Body { left } | FramingState::Chunk { left } => {
                    let step = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    *left -= step as u64;
                    at += step;
                    match self.state {
                        FramingState::Body { left: 0 } => self.next_request(),
                        FramingState::Chunk { left: 0 } => self.state = FramingState::ChunkEnd,
                        _ => {}
                    }
                }
                FramingState::Head
                | FramingState::ChunkSize
                | FramingState::ChunkEnd
                | FramingState::Trailers { .. } => {
                    let end = memchr::memchr(b'\n', rest);
                    let step = end.map_or(rest.len(), |end| end + 1);
                    let in_head = self.state == FramingState::Head;
                    let read = self.part_of_line(&rest[..step], end.is_some());
                    read.map_err(|error| FramingError { valid_len: at, error, in_head })?;
                    at += step;
                }
            }
        }
        Ok(())
    }

    /// Whether the connection is between two requests.
    pub fn between_requests(&self) -> bool {
        self.state == FramingState::Head && self.head.is_empty() && self.line.is_empty()
    }

    /// Whether the connection speaks HTTP/2, whose requests are not tracked.
    pub fn is_http2(&self) -> bool {
        self.state == FramingState::Http2
    }

    /// Returns the number of requests that have arrived completely.
    pub fn completed(&self) -> usize {
        self.completed
    }

    /// Returns why the headers that have begun are invalid if their last line ends here. hyper rejects some lines before
    /// they end, and does not report why.
    pub fn unfinished_error(&self) -> Option<HeadError> {
        if self.state != FramingState::Head || self.line.is_empty() {
            return None;
        }
        let text = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        self.head.clone().line(&[text, b"\r\n"].concat()).err()
    }

    /// Reads a line or a part of one. Most lines arrive complete and are not copied.
    fn part_of_line(&mut self, part: &[u8], is_end: bool) -> Result<(), HeadError> {
        if self.may_switch && self.head.is_empty() && self.line.is_empty() && part.first() == Some(&TLS_HANDSHAKE) {
            return Err(Malformed::Tls.into());
        }
        let before = match self.state {
            FramingState::Head => self.head.len(),
            FramingState::Trailers { len, .. } => len,
            _ => 0,
        };
        let (limit, error) = match self.state {
            FramingState::Head => (HEAD_LEN_MAX, HeadError::TooLarge),
            FramingState::Trailers { .. } => (CHUNK_EXTRA_LEN_MAX, Malformed::Trailer.into()),
            _ => (CHUNK_EXTRA_LEN_MAX, Malformed::Chunk.into()),
        };
        if before + self.line.len() + part.len() > limit {
            return Err(error);
        }
        if !is_end {
            let unchecked = self.line.len().saturating_sub(1);
            self.line.extend_from_slice(part);
            // Rejected before the line ends, which may never happen.
            let is_valid = !has_stray_cr(&self.line[unchecked..]);
            return if is_valid { Ok(()) } else { Err(Malformed::LineEnd.into()) };
        }
        if self.line.is_empty() {
            return self.complete_line(part);
        }
        let mut line = std::mem::take(&mut self.line);
        line.extend_from_slice(part);
        self.complete_line(&line)
    }

    fn complete_line(&mut self, line: &[u8]) -> Result<(), HeadError> {
        // A stray CR is invalid in every line, so it is looked for only in those that are rejected anyway.
        let has_stray_cr = || has_stray_cr(line.strip_suffix(b"\n").unwrap_or(line));
        self.line(line).map_err(|error| if has_stray_cr() { Malformed::LineEnd.into() } else { error })
    }

    fn line(&mut self, line: &[u8]) -> Result<(), HeadError> {
        match self.state {
            FramingState::Head => match self.head.line(line)? {
                None => {}
                Some(Framing::Length(0)) => self.next_request(),
                Some(Framing::Length(length)) => self.state = FramingState::Body { left: length },
                Some(Framing::Chunked) => self.state = FramingState::ChunkSize,
                Some(Framing::Http2) if self.may_switch => self.state = FramingState::Http2,
                Some(Framing::Http2) => return Err(Malformed::Http2.into()),
            },
            FramingState::ChunkSize => {
                self.state = match chunk::size(line)? {
                    0 => FramingState::Trailers { len: 0, lines: 0 },
                    size => FramingState::Chunk { left: size },
                }
            }
            FramingState::ChunkEnd if line == b"\r\n" => self.state = FramingState::ChunkSize,
            FramingState::ChunkEnd => return Err(Malformed::Chunk.into()),
            FramingState::Trailers { .. } if line == b"\r\n" => self.next_request(),
            FramingState::Trailers { lines: TRAILERS_MAX.., .. } => return Err(Malformed::Trailer.into()),
            FramingState::Trailers { len, lines } => {
                let text = line.strip_suffix(b"\r\n").ok_or(Malformed::LineEnd)?;
                let (name, _) = field(text).map_err(|_| Malformed::Trailer)?;
                if NOT_IN_TRAILERS.iter().any(|header| name.eq_ignore_ascii_case(header.as_bytes())) {
                    return Err(Malformed::Trailer.into());
                }
                self.state = FramingState::Trailers { len: len + line.len(), lines: lines + 1 };
            }
            // These have no lines.
            FramingState::Body { .. } | FramingState::Chunk { .. } | FramingState::Http2 => {}
        }
        Ok(())
    }

    fn next_request(&mut self) {
        self.state = FramingState::Head;
        self.head = Head::default();
        self.may_switch = false;
        self.completed += 1;
    }
}

/// Whether there is a CR before the last byte, which may still get its LF.
fn has_stray_cr(part: &[u8]) -> bool {
    memchr::memchr(b'\r', part).is_some_and(|at| at + 1 < part.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}";
    const CHUNKS: &str = "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
                          1;x=y\r\n{\r\n00a\r\n0123456789\r\n0\r\nT: t\r\n\r\n";
    const EMPTY: &str = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n";

    /// Reads the text split in two at every place, which must not matter. Returns whether it ends between requests, or
    /// the number of valid lines, the error, and whether it is in headers.
    fn read(text: &str) -> Result<bool, (usize, HeadError, bool)> {
        let bytes = text.as_bytes();
        let mut outcomes = Vec::new();
        for cut in 0..=bytes.len() {
            let mut tracker = FramingTracker::new(Protocol::Any);
            let first = tracker.follow(&bytes[..cut]);
            let outcome = first
                .map_err(|error| (error, 0))
                .and_then(|()| tracker.follow(&bytes[cut..]).map_err(|error| (error, cut)));
            outcomes.push(match outcome {
                Ok(()) => Ok(tracker.between_requests()),
                // The rejected line is the same, whether part of it was read before or not.
                Err((FramingError { valid_len, error, in_head }, from)) => {
                    Err((text[..from + valid_len].matches('\n').count(), error, in_head))
                }
            });
        }
        assert!(outcomes.windows(2).all(|two| two[0] == two[1]), "{text:?}: {outcomes:?}");
        outcomes[0]
    }

    #[test]
    fn requests_end_where_their_framing_says() {
        for text in [PLAIN.to_owned(), CHUNKS.to_owned(), EMPTY.to_owned(), [PLAIN, CHUNKS, EMPTY, PLAIN].concat()] {
            assert_eq!(read(&text), Ok(true), "{text:?}");
            assert_eq!(read(&text[..text.len() - 1]), Ok(false), "{text:?}");
        }
    }

    #[test]
    fn invalid_headers_are_found_after_any_body() {
        for before in [PLAIN, CHUNKS, EMPTY, ""] {
            let lines = before.matches('\n').count();
            let twice = "POST /a HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n";
            assert_eq!(read(&format!("{before}{twice}")), Err((lines + 2, Malformed::Lengths.into(), true)));
        }
        // Bytes of a body are not read as headers.
        let inside = "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\n\n\n #\0\n";
        assert_eq!(read(inside), Ok(true));
        assert_eq!(read(&format!("{PLAIN}PRI * HTTP/2.0\r\n\r\n")), Err((4, Malformed::Http2.into(), true)));
        assert_eq!(read("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0 anything"), Ok(false));
    }

    #[test]
    fn invalid_chunks_and_trailers_are_rejected() {
        let head = "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
        use Malformed::{Chunk, LineEnd, Trailer};
        for (chunks, lines, cause) in [
            ("x\r\n", 0, Chunk),
            ("\r\n", 0, Chunk),
            ("-1\r\n", 0, Chunk),
            (" 1\r\n", 0, Chunk),
            ("1 \r\n", 0, Chunk),
            ("1\n", 0, LineEnd),
            ("0x1\r\n", 0, Chunk),
            ("1;a\rb\r\n", 0, LineEnd),
            ("1000000000000000\r\n", 0, Chunk),
            ("1\r\nab\r\n", 1, Chunk),
            ("1\r\na\n", 1, Chunk),
            ("0\r\nno colon\r\n", 1, Trailer),
            ("0\r\n folded: x\r\n", 1, Trailer),
            ("0\r\nHost: h\r\n", 1, Trailer),
            ("0\r\ncontent-LENGTH: 2\r\n", 1, Trailer),
            ("0\r\nTransfer-Encoding: chunked\r\n", 1, Trailer),
            ("0\r\n\n", 1, LineEnd),
        ] {
            assert_eq!(read(&format!("{head}{chunks}")), Err((4 + lines, cause.into(), false)), "{chunks:?}");
        }
        let long = format!("{head}1;{}", "x".repeat(CHUNK_EXTRA_LEN_MAX));
        assert_eq!(
            FramingTracker::new(Protocol::Any).follow(long.as_bytes()).map_err(|error| error.error),
            Err(Chunk.into())
        );
        let trailer = format!("t: {}\r\n", "t".repeat(CHUNK_EXTRA_LEN_MAX / 10));
        for (trailer, most) in [("t: t\r\n", TRAILERS_MAX), (&*trailer, 9)] {
            let with = |lines| {
                FramingTracker::new(Protocol::Any).follow(format!("{head}0\r\n{}", trailer.repeat(lines)).as_bytes())
            };
            assert!(with(most).is_ok());
            assert_eq!(with(most + 1).map_err(|error| error.error), Err(Trailer.into()));
        }
    }

    #[test]
    fn stray_cr_is_rejected_before_its_line_ends() {
        for (before, lines) in [("", 0), ("POST /a HTTP/1.1\r\n", 1), ("POST /a HTTP/1.1\r\nHost: h\r\n", 2)] {
            assert_eq!(read(&format!("{before}X\rabc")), Err((lines, Malformed::LineEnd.into(), true)), "{before:?}");
            assert_eq!(read(&format!("{before}\rabc")), Err((lines, Malformed::LineEnd.into(), true)), "{before:?}");
        }
        assert_eq!(read("POST /a HTTP/1.1\r"), Ok(false));
    }

    #[test]
    fn unfinished_line_has_the_error_of_a_complete_one() {
        let unfinished = |text: &str| {
            let mut tracker = FramingTracker::new(Protocol::Any);
            tracker.follow(text.as_bytes()).expect("nothing is invalid yet");
            tracker.unfinished_error()
        };
        for (text, cause) in [
            (" /a HTTP/1.1", Malformed::RequestLine),
            ("PROXY TCP4 1.2.3.4 5.6.7", Malformed::Proxy),
            ("PROXY UNKNOWN", Malformed::Proxy),
            ("GET /a?b={\"c\":1} HTTP/1.1", Malformed::Target),
            ("GET /a>b HTTP/1.1", Malformed::Target),
            ("GET /a<b HTTP/1.1", Malformed::Target),
            ("PO(T /a HTTP/1.1\r", Malformed::Method),
            ("GET /a HTTP/1.2", Malformed::Version),
            ("GET /a HTTP/1.1\r\nHost: h\r\nX Y: z", Malformed::Field),
        ] {
            assert_eq!(unfinished(text), Some(cause.into()), "{text:?}");
            assert_eq!(unfinished(&format!("{PLAIN}{text}")), Some(cause.into()), "{text:?}");
        }
        for text in ["", PLAIN, "GET /a HTTP/1.1", "GET /a HTTP/1.1\r\nHost: h\r", &CHUNKS[..CHUNKS.len() - 8]] {
            assert_eq!(unfinished(text), None, "{text:?}");
        }
    }

    #[test]
    fn tls_is_recognized_by_its_first_byte() {
        assert_eq!(read("\u{16}\u{3}\u{1}"), Err((0, Malformed::Tls.into(), true)));
        assert_eq!(read(&format!("{EMPTY}\u{16}\u{3}\r\n")), Err((3, Malformed::RequestLine.into(), true)));
    }

    #[test]
    fn connection_speaks_what_tls_agreed_on() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let follow = |protocol, bytes: &[u8]| {
            let mut tracker = FramingTracker::new(protocol);
            tracker.follow(bytes).map(|()| tracker.is_http2()).map_err(|error| error.error)
        };
        assert_eq!(follow(Protocol::Any, preface), Ok(true));
        assert_eq!(follow(Protocol::Http1, preface), Err(Malformed::Http2.into()));
        assert_eq!(follow(Protocol::Http1, PLAIN.as_bytes()), Ok(false));
        // hyper compares the preface itself and rejects the connection.
        assert_eq!(follow(Protocol::Http2, PLAIN.as_bytes()), Ok(true));
    }

    #[test]
    fn complete_requests_are_counted() {
        let mut tracker = FramingTracker::new(Protocol::Any);
        for (bytes, completed) in [(PLAIN, 1), (CHUNKS, 2), (&EMPTY[..9], 2), (&EMPTY[9..], 3), (&PLAIN[..49], 3)] {
            tracker.follow(bytes.as_bytes()).expect("valid");
            assert_eq!(tracker.completed(), completed);
        }
    }

    #[test]
    fn endless_line_is_rejected_at_the_header_limit() {
        let mut tracker = FramingTracker::new(Protocol::Any);
        let outcome = (0..).find_map(|_| tracker.follow(&[b'x'; 1000]).err());
        assert_eq!(outcome, Some(FramingError { valid_len: 0, error: HeadError::TooLarge, in_head: true }));
        assert!(tracker.line.len() <= HEAD_LEN_MAX);
    }
}
