//! Tracks the requests of an HTTP/1 connection in its stream of bytes: headers, bodies, and chunks.
//!
//! It is stricter than hyper in everything. So while it rejects nothing, both find the same ends of requests, and a
//! request that it rejects never reaches hyper complete.

use super::head::{Framing, Head, HeadError, field};
use crate::http::headers::HEAD_LEN_MAX;

/// Maximum length of a chunk-size line, and of all trailers, in bytes. hyper has the same limits.
const CHUNK_EXTRA_LEN_MAX: usize = 16 * 1024;
/// Maximum number of trailer lines, as in hyper.
const TRAILERS_MAX: usize = 100;
/// Maximum number of hexadecimal digits of a chunk size: up to 2^60.
const SIZE_DIGITS_MAX: usize = 15;

/// The position of a connection within its requests.
#[derive(Debug)]
pub struct FramingTracker {
    state: FramingState,
    head: Head,
    /// The beginning of an incomplete line.
    line: Vec<u8>,
    /// No request has begun yet, so HTTP/2 may.
    is_new: bool,
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

impl Default for FramingTracker {
    fn default() -> Self {
        Self { state: FramingState::Head, head: Head::default(), line: Vec::new(), is_new: true }
    }
}

impl FramingTracker {
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

    /// Reads a line or a part of one. Most lines arrive complete and are not copied.
    fn part_of_line(&mut self, part: &[u8], is_end: bool) -> Result<(), HeadError> {
        let before = match self.state {
            FramingState::Head => self.head.len(),
            FramingState::Trailers { len, .. } => len,
            _ => 0,
        };
        let (limit, error) = match self.state {
            FramingState::Head => (HEAD_LEN_MAX, HeadError::TooLarge),
            _ => (CHUNK_EXTRA_LEN_MAX, HeadError::Malformed),
        };
        if before + self.line.len() + part.len() > limit {
            return Err(error);
        }
        if !is_end {
            self.line.extend_from_slice(part);
            return Ok(());
        }
        if self.line.is_empty() {
            return self.line(part);
        }
        let mut line = std::mem::take(&mut self.line);
        line.extend_from_slice(part);
        self.line(&line)
    }

    fn line(&mut self, line: &[u8]) -> Result<(), HeadError> {
        match self.state {
            FramingState::Head => match self.head.line(line)? {
                None => {}
                Some(Framing::Length(0)) => self.next_request(),
                Some(Framing::Length(length)) => self.state = FramingState::Body { left: length },
                Some(Framing::Chunked) => self.state = FramingState::ChunkSize,
                Some(Framing::Http2) if self.is_new => self.state = FramingState::Http2,
                Some(Framing::Http2) => return Err(HeadError::Malformed),
            },
            FramingState::ChunkSize => {
                self.state = match chunk_size(line)? {
                    0 => FramingState::Trailers { len: 0, lines: 0 },
                    size => FramingState::Chunk { left: size },
                }
            }
            FramingState::ChunkEnd if line == b"\r\n" => self.state = FramingState::ChunkSize,
            FramingState::ChunkEnd => return Err(HeadError::Malformed),
            FramingState::Trailers { .. } if line == b"\r\n" => self.next_request(),
            FramingState::Trailers { lines: TRAILERS_MAX.., .. } => return Err(HeadError::Malformed),
            FramingState::Trailers { len, lines } => {
                field(line.strip_suffix(b"\r\n").ok_or(HeadError::Malformed)?)?;
                self.state = FramingState::Trailers { len: len + line.len(), lines: lines + 1 };
            }
            // These have no lines.
            FramingState::Body { .. } | FramingState::Chunk { .. } | FramingState::Http2 => {}
        }
        Ok(())
    }

    fn next_request(&mut self) {
        *self = Self { is_new: false, ..Self::default() };
    }
}

/// Reads the size of a chunk: hexadecimal digits, and maybe an extension (RFC 9112 section 7.1).
fn chunk_size(line: &[u8]) -> Result<u64, HeadError> {
    let text = line.strip_suffix(b"\r\n").ok_or(HeadError::Malformed)?;
    let digits = text.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (digits, extension) = text.split_at(digits);
    let is_text = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~');
    let is_valid = extension.is_empty() || (extension[0] == b';' && extension.iter().all(is_text));
    if !(1..=SIZE_DIGITS_MAX).contains(&digits.len()) || !is_valid {
        return Err(HeadError::Malformed);
    }
    let digits = std::str::from_utf8(digits).map_err(|_| HeadError::Malformed)?;
    u64::from_str_radix(digits, 16).map_err(|_| HeadError::Malformed)
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
            let mut tracker = FramingTracker::default();
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
            assert_eq!(read(&format!("{before}{twice}")), Err((lines + 2, HeadError::Malformed, true)));
        }
        // Bytes of a body are not read as headers.
        let inside = "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\n\n\n #\0\n";
        assert_eq!(read(inside), Ok(true));
        assert_eq!(read(&format!("{PLAIN}PRI * HTTP/2.0\r\n\r\n")), Err((4, HeadError::Malformed, true)));
        assert_eq!(read("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0 anything"), Ok(false));
    }

    #[test]
    fn invalid_chunks_and_trailers_are_rejected() {
        let head = "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (chunks, lines) in [
            ("x\r\n", 0),
            ("\r\n", 0),
            ("-1\r\n", 0),
            (" 1\r\n", 0),
            ("1 \r\n", 0),
            ("1\n", 0),
            ("0x1\r\n", 0),
            ("1;a\rb\r\n", 0),
            ("1000000000000000\r\n", 0),
            ("1\r\nab\r\n", 1),
            ("1\r\na\n", 1),
            ("0\r\nno colon\r\n", 1),
            ("0\r\n folded: x\r\n", 1),
            ("0\r\n\n", 1),
        ] {
            assert_eq!(read(&format!("{head}{chunks}")), Err((4 + lines, HeadError::Malformed, false)), "{chunks:?}");
        }
        let long = format!("{head}1;{}", "x".repeat(CHUNK_EXTRA_LEN_MAX));
        assert_eq!(
            FramingTracker::default().follow(long.as_bytes()).map_err(|error| error.error),
            Err(HeadError::Malformed)
        );
        let trailer = format!("t: {}\r\n", "t".repeat(CHUNK_EXTRA_LEN_MAX / 10));
        for (trailer, most) in [("t: t\r\n", TRAILERS_MAX), (&*trailer, 9)] {
            let with =
                |lines| FramingTracker::default().follow(format!("{head}0\r\n{}", trailer.repeat(lines)).as_bytes());
            assert!(with(most).is_ok());
            assert_eq!(with(most + 1).map_err(|error| error.error), Err(HeadError::Malformed));
        }
    }

    #[test]
    fn endless_line_is_rejected_at_the_header_limit() {
        let mut tracker = FramingTracker::default();
        let outcome = (0..).find_map(|_| tracker.follow(&[b'x'; 1000]).err());
        assert_eq!(outcome, Some(FramingError { valid_len: 0, error: HeadError::TooLarge, in_head: true }));
        assert!(tracker.line.len() <= HEAD_LEN_MAX);
    }
}
