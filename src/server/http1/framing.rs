//! Keeps in step with the requests of an HTTP/1 connection as their bytes stream by, so that each of
//! them is judged from its own first byte: heads by [`Head`], bodies counted, chunks followed.
//!
//! It is stricter than hyper in everything. So as long as nothing is refused both find the same ends,
//! and what is refused here never reaches hyper whole.

use super::head::{Framing, Head, HeadError, field};
use crate::http::headers::HEAD_LEN_MAX;

/// Longest chunk-size line, and longest trailers together, in bytes; hyper's own limits are the same.
const CHUNK_EXTRA_LEN_MAX: usize = 16 * 1024;
/// Most lines of trailers, as hyper has it.
const TRAILERS_MAX: usize = 100;
/// Hexadecimal digits of a chunk's size: up to 2^60.
const SIZE_DIGITS_MAX: usize = 15;

/// Where a connection stands between its requests.
#[derive(Debug)]
pub struct FramingTracker {
    place: FramingState,
    head: Head,
    /// What has come of a line that is not whole.
    line: Vec<u8>,
    /// No request has been there yet: only now HTTP/2 may begin.
    fresh: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FramingState {
    Head,
    /// So many bytes are left of the body.
    Body(u64),
    ChunkSize,
    /// So many bytes are left of the chunk.
    Chunk(u64),
    ChunkEnd,
    /// So many bytes of trailers so far, and so many lines.
    Trailers(usize, usize),
    Http2,
}

/// The bytes stop making sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FramingError {
    /// So many bytes of those given are sound; the line that is not sound begins or goes on there.
    pub sound: usize,
    /// Why.
    pub fault: HeadError,
    /// Whether it is in a head, so that there is no request yet to answer.
    pub in_head: bool,
}

impl Default for FramingTracker {
    fn default() -> Self {
        Self { place: FramingState::Head, head: Head::default(), line: Vec::new(), fresh: true }
    }
}

impl FramingTracker {
    /// Follows the next bytes, however they are cut.
    ///
    /// # Errors
    /// With the place of the first fault. Nothing may be read of this connection after it.
    pub fn follow(&mut self, bytes: &[u8]) -> Result<(), FramingError> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match &mut self.place {
                FramingState::Http2 => return Ok(()),
                FramingState::Body(left) | FramingState::Chunk(left) => {
                    let step = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    *left -= step as u64;
                    at += step;
                    match self.place {
                        FramingState::Body(0) => self.next_request(),
                        FramingState::Chunk(0) => self.place = FramingState::ChunkEnd,
                        _ => {}
                    }
                }
                FramingState::Head | FramingState::ChunkSize | FramingState::ChunkEnd | FramingState::Trailers(..) => {
                    let end = memchr::memchr(b'\n', rest);
                    let step = end.map_or(rest.len(), |end| end + 1);
                    let stop = |in_head| move |fault| FramingError { sound: at, fault, in_head };
                    self.part_of_line(&rest[..step], end.is_some()).map_err(stop(self.place == FramingState::Head))?;
                    at += step;
                }
            }
        }
        Ok(())
    }

    /// Whether the connection stands between two requests.
    pub fn between_requests(&self) -> bool {
        self.place == FramingState::Head && self.head.is_empty() && self.line.is_empty()
    }

    /// Most lines come in one piece and are judged where they lie.
    fn part_of_line(&mut self, part: &[u8], whole: bool) -> Result<(), HeadError> {
        let before = match self.place {
            FramingState::Head => self.head.len(),
            FramingState::Trailers(len, _) => len,
            _ => 0,
        };
        let (limit, fault) = match self.place {
            FramingState::Head => (HEAD_LEN_MAX, HeadError::TooLarge),
            _ => (CHUNK_EXTRA_LEN_MAX, HeadError::Malformed),
        };
        if before + self.line.len() + part.len() > limit {
            return Err(fault);
        }
        if !whole {
            self.line.extend_from_slice(part);
            return Ok(());
        }
        if self.line.is_empty() {
            return self.whole_line(part);
        }
        let mut line = std::mem::take(&mut self.line);
        line.extend_from_slice(part);
        self.whole_line(&line)
    }

    fn whole_line(&mut self, line: &[u8]) -> Result<(), HeadError> {
        match self.place {
            FramingState::Head => match self.head.line(line)? {
                None => {}
                Some(Framing::Length(0)) => self.next_request(),
                Some(Framing::Length(length)) => self.place = FramingState::Body(length),
                Some(Framing::Chunked) => self.place = FramingState::ChunkSize,
                Some(Framing::Http2) if self.fresh => self.place = FramingState::Http2,
                Some(Framing::Http2) => return Err(HeadError::Malformed),
            },
            FramingState::ChunkSize => {
                self.place = match chunk_size(line)? {
                    0 => FramingState::Trailers(0, 0),
                    size => FramingState::Chunk(size),
                }
            }
            FramingState::ChunkEnd if line == b"\r\n" => self.place = FramingState::ChunkSize,
            FramingState::ChunkEnd => return Err(HeadError::Malformed),
            FramingState::Trailers(..) if line == b"\r\n" => self.next_request(),
            FramingState::Trailers(_, TRAILERS_MAX..) => return Err(HeadError::Malformed),
            FramingState::Trailers(len, lines) => {
                field(line.strip_suffix(b"\r\n").ok_or(HeadError::Malformed)?)?;
                self.place = FramingState::Trailers(len + line.len(), lines + 1);
            }
            // These have no lines.
            FramingState::Body(_) | FramingState::Chunk(_) | FramingState::Http2 => {}
        }
        Ok(())
    }

    fn next_request(&mut self) {
        *self = Self { fresh: false, ..Self::default() };
    }
}

/// The size of a chunk: hexadecimal digits, then nothing or an extension (RFC 9112 section 7.1).
fn chunk_size(line: &[u8]) -> Result<u64, HeadError> {
    let text = line.strip_suffix(b"\r\n").ok_or(HeadError::Malformed)?;
    let digits = text.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (digits, extension) = text.split_at(digits);
    let plain = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~');
    let sound = extension.is_empty() || (extension[0] == b';' && extension.iter().all(plain));
    if !(1..=SIZE_DIGITS_MAX).contains(&digits.len()) || !sound {
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

    /// Every cut of the bytes into two comes to the same.
    fn all_ways(text: &str) -> Result<bool, (usize, HeadError, bool)> {
        let bytes = text.as_bytes();
        let mut outcomes = Vec::new();
        for cut in 0..=bytes.len() {
            let mut follower = FramingTracker::default();
            let first = follower.follow(&bytes[..cut]);
            let outcome = first
                .map_err(|stop| (stop, 0))
                .and_then(|()| follower.follow(&bytes[cut..]).map_err(|stop| (stop, cut)));
            outcomes.push(match outcome {
                Ok(()) => Ok(follower.between_requests()),
                // What is sound ends in the same line, whether part of it had passed before or not.
                Err((stop, from)) => Err((text[..from + stop.sound].matches('\n').count(), stop.fault, stop.in_head)),
            });
        }
        assert!(outcomes.windows(2).all(|two| two[0] == two[1]), "{text:?}: {outcomes:?}");
        outcomes[0]
    }

    #[test]
    fn requests_end_where_they_say_and_the_next_begins() {
        for text in [PLAIN.to_owned(), CHUNKS.to_owned(), EMPTY.to_owned(), [PLAIN, CHUNKS, EMPTY, PLAIN].concat()] {
            assert_eq!(all_ways(&text), Ok(true), "{text:?}");
            assert_eq!(all_ways(&text[..text.len() - 1]), Ok(false), "{text:?}");
        }
    }

    #[test]
    fn a_head_that_is_not_sound_is_found_behind_any_body() {
        for before in [PLAIN, CHUNKS, EMPTY, ""] {
            let lines = before.matches('\n').count();
            let twice = "POST /a HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n";
            assert_eq!(all_ways(&format!("{before}{twice}")), Err((lines + 2, HeadError::Malformed, true)));
        }
        // What a body says is no head.
        let inside = "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\n\n\n #\0\n";
        assert_eq!(all_ways(inside), Ok(true));
        assert_eq!(all_ways(&format!("{PLAIN}PRI * HTTP/2.0\r\n\r\n")), Err((4, HeadError::Malformed, true)));
        assert_eq!(all_ways("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0 anything"), Ok(false));
    }

    #[test]
    fn chunks_that_are_not_sound_are_found() {
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
            assert_eq!(
                all_ways(&format!("{head}{chunks}")),
                Err((4 + lines, HeadError::Malformed, false)),
                "{chunks:?}"
            );
        }
        let long = format!("{head}1;{}", "x".repeat(CHUNK_EXTRA_LEN_MAX));
        assert_eq!(
            FramingTracker::default().follow(long.as_bytes()).map_err(|stop| stop.fault),
            Err(HeadError::Malformed)
        );
        let trailer = format!("t: {}\r\n", "t".repeat(CHUNK_EXTRA_LEN_MAX / 10));
        for (trailer, most) in [("t: t\r\n", TRAILERS_MAX), (&*trailer, 9)] {
            let with =
                |lines| FramingTracker::default().follow(format!("{head}0\r\n{}", trailer.repeat(lines)).as_bytes());
            assert!(with(most).is_ok());
            assert_eq!(with(most + 1).map_err(|stop| stop.fault), Err(HeadError::Malformed));
        }
    }

    #[test]
    fn a_line_without_an_end_takes_no_more_than_a_head_may() {
        let mut follower = FramingTracker::default();
        let outcome = (0..).find_map(|_| follower.follow(&[b'x'; 1000]).err());
        assert_eq!(outcome, Some(FramingError { sound: 0, fault: HeadError::TooLarge, in_head: true }));
        assert!(follower.line.len() <= HEAD_LEN_MAX);
    }
}
