//! Tracks the frames of an HTTP/2 connection, as far as needed to know whether request headers have begun and are
//! incomplete. Pure.

/// First bytes of a client (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length of a frame header (RFC 9113 section 4.1).
const FRAME_HEADER_LEN: usize = 9;
/// Types of the frames of a header block, and the flag of its last frame (RFC 9113 sections 6.2 and 6.10).
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Follows the bytes from the first one of a connection.
#[derive(Debug)]
pub struct H2FrameTracker {
    state: FrameState,
    in_header_block: bool,
}

#[derive(Debug)]
enum FrameState {
    /// Within the preface.
    Preface { seen: usize },
    /// Within a frame header, of which the first bytes are filled.
    FrameHeader { bytes: [u8; FRAME_HEADER_LEN], seen: usize },
    /// Within a payload.
    Payload { left: usize, ends_header_block: bool },
    /// The connection does not speak HTTP/2.
    NotHttp2,
}

impl Default for H2FrameTracker {
    fn default() -> Self {
        Self { state: FrameState::Preface { seen: 0 }, in_header_block: false }
    }
}

impl H2FrameTracker {
    /// Follows the next bytes, however they are split.
    pub fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = match &mut self.state {
                FrameState::NotHttp2 => return,
                FrameState::Preface { seen } => {
                    let taken = bytes.len().min(PREFACE.len() - *seen);
                    if bytes[..taken] != PREFACE[*seen..*seen + taken] {
                        self.state = FrameState::NotHttp2;
                        return;
                    }
                    *seen += taken;
                    if *seen == PREFACE.len() {
                        self.state = FrameState::NEXT_FRAME;
                    }
                    taken
                }
                FrameState::FrameHeader { bytes: header, seen } => {
                    let taken = bytes.len().min(FRAME_HEADER_LEN - *seen);
                    header[*seen..*seen + taken].copy_from_slice(&bytes[..taken]);
                    *seen += taken;
                    if *seen == FRAME_HEADER_LEN {
                        let header = *header;
                        self.begin_payload(header);
                    }
                    taken
                }
                FrameState::Payload { left, ends_header_block } => {
                    let taken = bytes.len().min(*left);
                    *left -= taken;
                    if *left == 0 {
                        let ends_header_block = *ends_header_block;
                        self.end_payload(ends_header_block);
                    }
                    taken
                }
            };
            bytes = &bytes[taken..];
        }
    }

    /// Whether a request's headers or trailers have begun and are incomplete.
    pub fn in_header_block(&self) -> bool {
        self.in_header_block
    }

    fn begin_payload(&mut self, [a, b, c, kind, flags, ..]: [u8; FRAME_HEADER_LEN]) {
        let left = u32::from_be_bytes([0, a, b, c]) as usize;
        let has_headers = matches!(kind, HEADERS | CONTINUATION);
        self.in_header_block |= has_headers;
        let ends_header_block = has_headers && flags & END_HEADERS != 0;
        match left {
            0 => self.end_payload(ends_header_block),
            _ => self.state = FrameState::Payload { left, ends_header_block },
        }
    }

    fn end_payload(&mut self, ends_header_block: bool) {
        self.in_header_block &= !ends_header_block;
        self.state = FrameState::NEXT_FRAME;
    }
}

impl FrameState {
    const NEXT_FRAME: Self = FrameState::FrameHeader { bytes: [0; FRAME_HEADER_LEN], seen: 0 };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, len: u8) -> Vec<u8> {
        [&[0, 0, len, kind, flags, 0, 0, 0, 1][..], &vec![b'x'; usize::from(len)]].concat()
    }

    /// Whether a header block is incomplete after the preface and these bytes, given at once and one by one.
    fn in_header_block(bytes: &[u8]) -> bool {
        let all = [PREFACE, bytes].concat();
        let (mut whole, mut single) = (H2FrameTracker::default(), H2FrameTracker::default());
        whole.follow(&all);
        all.chunks(1).for_each(|byte| single.follow(byte));
        assert_eq!(whole.in_header_block(), single.in_header_block());
        whole.in_header_block()
    }

    #[test]
    fn header_block_lasts_from_first_frame_to_end_of_last() {
        let settings = frame(4, 0, 6);
        let (open, more, last) = (frame(HEADERS, 0, 5), frame(CONTINUATION, 0, 0), frame(CONTINUATION, END_HEADERS, 3));
        let whole = [&settings[..], &open, &more, &last].concat();
        for cut in 0..=whole.len() {
            // From the end of the first frame header; the last frame ends with its payload, not with its flag.
            let expected = (settings.len() + FRAME_HEADER_LEN..whole.len()).contains(&cut);
            assert_eq!(in_header_block(&whole[..cut]), expected, "{cut}");
        }
        assert!(
            !in_header_block(&frame(HEADERS, END_HEADERS, 0))
                && !in_header_block(&frame(HEADERS, END_HEADERS | 1, 200))
        );
        assert!(in_header_block(&frame(HEADERS, END_HEADERS, 200)[..200]));
    }

    #[test]
    fn other_frames_begin_no_header_block() {
        for kind in [0, 2, 3, 4, 6, 8, 0xbe] {
            assert!(!in_header_block(&frame(kind, END_HEADERS, 7)[..12]), "{kind}");
        }
        let mut other = H2FrameTracker::default();
        other.follow(b"PRI * HTTP/2.0\r\n\r\nsm\r\n\r\n");
        other.follow(&frame(HEADERS, 0, 5));
        assert!(!other.in_header_block());
    }
}
