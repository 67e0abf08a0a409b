//! Where the bytes of an HTTP/2 connection stand among its frames: pure, and only as far as needed to tell
//! whether a request's head has begun and is not whole.

/// What a client begins with (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length of what stands before each frame's payload (RFC 9113 section 4.1).
const FRAME_HEAD_LEN: usize = 9;
/// Types of the frames that a head consists of, and the flag of the last one (RFC 9113 sections 6.2, 6.10).
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Reads along from the first byte of a connection.
#[derive(Debug)]
pub struct H2FrameTracker {
    place: FrameState,
    in_head: bool,
}

#[derive(Debug)]
enum FrameState {
    /// So many bytes of the preface are there.
    Preface(usize),
    /// So many bytes of what stands before a payload are there.
    Head([u8; FRAME_HEAD_LEN], usize),
    /// So many bytes of a payload are missing; with them a request's head is whole.
    Payload(usize, bool),
    /// It is not HTTP/2.
    Other,
}

impl Default for H2FrameTracker {
    fn default() -> Self {
        Self { place: FrameState::Preface(0), in_head: false }
    }
}

impl H2FrameTracker {
    /// Follows the next bytes, however they are cut.
    pub fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = match &mut self.place {
                FrameState::Other => return,
                FrameState::Preface(there) => {
                    let taken = bytes.len().min(PREFACE.len() - *there);
                    if bytes[..taken] != PREFACE[*there..*there + taken] {
                        self.place = FrameState::Other;
                        return;
                    }
                    *there += taken;
                    if *there == PREFACE.len() {
                        self.place = FrameState::Head([0; FRAME_HEAD_LEN], 0);
                    }
                    taken
                }
                FrameState::Head(head, there) => {
                    let taken = bytes.len().min(FRAME_HEAD_LEN - *there);
                    head[*there..*there + taken].copy_from_slice(&bytes[..taken]);
                    *there += taken;
                    if *there == FRAME_HEAD_LEN {
                        let head = *head;
                        self.begin(head);
                    }
                    taken
                }
                FrameState::Payload(left, ends_head) => {
                    let taken = bytes.len().min(*left);
                    *left -= taken;
                    if *left == 0 {
                        let ends_head = *ends_head;
                        self.end(ends_head);
                    }
                    taken
                }
            };
            bytes = &bytes[taken..];
        }
    }

    /// Whether a request's head, or its trailers, have begun and are not whole.
    pub fn in_header_block(&self) -> bool {
        self.in_head
    }

    fn begin(&mut self, [a, b, c, kind, flags, ..]: [u8; FRAME_HEAD_LEN]) {
        let len = u32::from_be_bytes([0, a, b, c]) as usize;
        let of_head = matches!(kind, HEADERS | CONTINUATION);
        self.in_head |= of_head;
        let ends_head = of_head && flags & END_HEADERS != 0;
        if len == 0 { self.end(ends_head) } else { self.place = FrameState::Payload(len, ends_head) }
    }

    fn end(&mut self, ends_head: bool) {
        self.in_head &= !ends_head;
        self.place = FrameState::Head([0; FRAME_HEAD_LEN], 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, len: u8) -> Vec<u8> {
        [&[0, 0, len, kind, flags, 0, 0, 0, 1][..], &vec![b'x'; usize::from(len)]].concat()
    }

    /// Whether it stands in a head after the preface and these bytes, given whole and one by one.
    fn inside(bytes: &[u8]) -> bool {
        let all = [PREFACE, bytes].concat();
        let (mut whole, mut single) = (H2FrameTracker::default(), H2FrameTracker::default());
        whole.follow(&all);
        all.chunks(1).for_each(|byte| single.follow(byte));
        assert_eq!(whole.in_header_block(), single.in_header_block());
        whole.in_header_block()
    }

    #[test]
    fn a_head_lasts_from_its_first_frame_to_the_end_of_its_last() {
        let settings = frame(4, 0, 6);
        let (open, more, last) = (frame(HEADERS, 0, 5), frame(CONTINUATION, 0, 0), frame(CONTINUATION, END_HEADERS, 3));
        let whole = [&settings[..], &open, &more, &last].concat();
        for cut in 0..=whole.len() {
            // From the last byte before the first payload on; the flag alone ends nothing.
            let expected = (settings.len() + FRAME_HEAD_LEN..whole.len()).contains(&cut);
            assert_eq!(inside(&whole[..cut]), expected, "{cut}");
        }
        assert!(!inside(&frame(HEADERS, END_HEADERS, 0)) && !inside(&frame(HEADERS, END_HEADERS | 1, 200)));
        assert!(inside(&frame(HEADERS, END_HEADERS, 200)[..200]));
    }

    #[test]
    fn nothing_else_is_a_head() {
        for kind in [0, 2, 3, 4, 6, 8, 0xbe] {
            assert!(!inside(&frame(kind, END_HEADERS, 7)[..12]), "{kind}");
        }
        let mut other = H2FrameTracker::default();
        other.follow(b"PRI * HTTP/2.0\r\n\r\nsm\r\n\r\n");
        other.follow(&frame(HEADERS, 0, 5));
        assert!(!other.in_header_block());
    }
}
