//! A fast scanner for relayed JSON: checks that a body is an object, and finds one integer in a response.
//!
//! On a long text, a general parser takes several times as long, because it processes a few bytes at a time. This
//! scanner implements the grammar (RFC 8259) and stores nothing. It accepts only input that is certainly valid. The
//! caller gives any other input, valid or not, to the general parser, which also reports errors.

use memchr::{memchr, memchr2};

use super::object::DEPTH_MAX;
use super::{ascii, flat};

/// Longest text that is given to the [`flat`] reader first.
const FLAT_LEN_MAX: usize = 256;

/// Returns whether these bytes are certainly one JSON object in UTF-8 that nests at most [`DEPTH_MAX`] levels deep.
pub fn is_object(json: &[u8]) -> bool {
    Scanner::new(json).whole(|_, _| Some(())).is_some()
}

/// Returns the value of the only member of that name, if it is certainly an integer and [`is_object`] accepts the text.
/// `name` must need no escapes.
pub fn integer(json: &[u8], name: &[u8]) -> Option<i64> {
    if json.len() <= FLAT_LEN_MAX
        && let Some(number) = flat::integer(json, name)
    {
        return Some(number);
    }
    let mut found = None;
    Scanner::new(json).whole(|member, value| {
        // It may be the same name with escapes.
        if memchr(b'\\', member).is_some() {
            return None;
        }
        if member != name {
            return Some(());
        }
        // The general parser does not accept -0 as an integer.
        let value = std::str::from_utf8(value).ok().filter(|value| *value != "-0")?.parse().ok()?;
        found.replace(value).is_none().then_some(())
    })?;
    found
}

/// Returns the length of the longest prefix of `text` that a JSON string may contain without escapes and that is
/// printable ASCII: all of it except quote and backslash.
#[inline]
fn plain_len(text: &[u8]) -> usize {
    match text.split_at_checked(SHORT_LEN_MAX) {
        None => plain_prefix(text),
        Some((begin, rest)) => match plain_prefix(begin) {
            SHORT_LEN_MAX => {
                let len = SHORT_LEN_MAX + plain_prefix_wide(rest);
                len + plain_prefix(&text[len..])
            }
            len => len,
        },
    }
}

/// A longer text is checked in larger pieces.
const SHORT_LEN_MAX: usize = 64;

/// [`plain_len`] for a short text.
#[inline]
pub(crate) fn plain_prefix(text: &[u8]) -> usize {
    ascii::prefix_len(text, b' ', [b'"', b'\\'])
}

/// [`plain_len`] for a long text, in growing pieces. Each piece takes one search and one fold, which compile to vector
/// instructions. The result may end before the piece that contains the first byte that is not plain. Pieces grow only
/// after success, so the bytes that are checked twice are at most as many as those accepted.
fn plain_prefix_wide(text: &[u8]) -> usize {
    let (mut len, mut step) = (0, 128);
    while len < text.len() {
        let piece = &text[len..(len + step).min(text.len())];
        let end = memchr2(b'"', b'\\', piece).unwrap_or(piece.len());
        let (least, most) =
            piece[..end].iter().fold((u8::MAX, 0), |(least, most), byte| (least.min(*byte), most.max(*byte)));
        if least < b' ' || most > b'~' {
            break;
        }
        len += end;
        if end < piece.len() {
            break;
        }
        step = (2 * step).min(16 * 1024);
    }
    len
}

struct Scanner<'a> {
    json: &'a [u8],
    at: usize,
    /// Whether all bytes so far are ASCII.
    ascii: bool,
}

/// The open objects and arrays: one bit each, the innermost lowest, 1 for an object.
#[derive(Default)]
struct Open {
    kinds: u128,
    depth: usize,
}

impl Open {
    fn push(&mut self, is_object: bool) -> Option<()> {
        const { assert!(DEPTH_MAX == u128::BITS as usize) };
        if self.depth == DEPTH_MAX {
            return None;
        }
        self.kinds = self.kinds << 1 | u128::from(is_object);
        self.depth += 1;
        Some(())
    }

    fn pop(&mut self) {
        self.kinds >>= 1;
        self.depth -= 1;
    }
}

impl<'a> Scanner<'a> {
    fn new(json: &'a [u8]) -> Self {
        Self { json, at: 0, ascii: true }
    }

    /// Scans an object with the space around it, and nothing else. Calls `on_member` for each member of the outermost
    /// object, with its name (without quotes) and value as written.
    fn whole(&mut self, on_member: impl FnMut(&'a [u8], &'a [u8]) -> Option<()>) -> Option<()> {
        self.object(on_member)?;
        (self.at == self.json.len() && (self.ascii || std::str::from_utf8(self.json).is_ok())).then_some(())
    }

    fn object(&mut self, mut on_member: impl FnMut(&'a [u8], &'a [u8]) -> Option<()>) -> Option<()> {
        let mut open = Open::default();
        // The current member of the outermost object: its name, and the position of its value.
        let mut member: (&[u8], usize) = (&[], 0);
        self.skip_space();
        if self.peek() != Some(b'{') {
            return None;
        }
        // Each round reads the beginning of a value, and the closing brackets that follow it.
        loop {
            if self.opens(&mut open, &mut member)? {
                continue;
            }
            loop {
                let end = self.at;
                self.skip_space();
                match open.depth {
                    0 => return Some(()),
                    1 => on_member(member.0, &self.json[member.1..end])?,
                    _ => {}
                }
                match (self.next()?, open.kinds & 1 == 1) {
                    (b',', true) => {
                        self.skip_space();
                        self.next_member(&open, &mut member)?;
                        break;
                    }
                    (b',', false) => {
                        self.skip_space();
                        break;
                    }
                    (b'}', true) | (b']', false) => open.pop(),
                    _ => return None,
                }
            }
        }
    }

    /// Reads a value, or the beginning of a value that is a nonempty object or array. Returns whether it is the latter.
    #[inline(always)]
    fn opens(&mut self, open: &mut Open, member: &mut (&'a [u8], usize)) -> Option<bool> {
        match self.next()? {
            b'{' => {
                open.push(true)?;
                self.skip_space();
                if self.peek() != Some(b'}') {
                    return self.next_member(open, member).map(|()| true);
                }
                self.at += 1;
                open.pop();
            }
            b'[' => {
                open.push(false)?;
                self.skip_space();
                if self.peek() != Some(b']') {
                    return Some(true);
                }
                self.at += 1;
                open.pop();
            }
            b'"' => self.string()?,
            first @ (b'-' | b'0'..=b'9') => self.number(first)?,
            b't' => self.literal(b"rue")?,
            b'f' => self.literal(b"alse")?,
            b'n' => self.literal(b"ull")?,
            _ => return None,
        }
        Some(false)
    }

    /// Reads the name of a member, and stores it if the member belongs to the outermost object.
    #[inline(always)]
    fn next_member(&mut self, open: &Open, member: &mut (&'a [u8], usize)) -> Option<()> {
        let name = self.member()?;
        if open.depth == 1 {
            *member = (name, self.at);
        }
        Some(())
    }

    /// Reads a name, the colon, and space up to the value. Returns the name as written.
    fn member(&mut self) -> Option<&'a [u8]> {
        self.expect(b'"')?;
        let begin = self.at;
        self.string()?;
        let name = &self.json[begin..self.at - 1];
        self.skip_space();
        self.expect(b':')?;
        self.skip_space();
        Some(name)
    }

    fn peek(&self) -> Option<u8> {
        self.json.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    fn literal(&mut self, rest: &[u8]) -> Option<()> {
        let matches = self.json[self.at..].starts_with(rest);
        self.at += rest.len();
        matches.then_some(())
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Reads a string after its opening quote, with the closing quote.
    fn string(&mut self) -> Option<()> {
        loop {
            self.at += plain_len(&self.json[self.at..]);
            match self.next()? {
                b'"' => return Some(()),
                b'\\' => self.escape()?,
                0x7f => {}
                0x80.. => {
                    self.ascii = false;
                    self.at += self.json[self.at..].iter().take_while(|byte| **byte >= 0x80).count();
                }
                // Control characters must be escaped.
                _ => return None,
            }
        }
    }

    /// Reads an escape after its backslash.
    fn escape(&mut self) -> Option<()> {
        match self.next()? {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(()),
            b'u' => {
                let digits = self.json.get(self.at..self.at + 4)?;
                self.at += 4;
                digits.iter().all(u8::is_ascii_hexdigit).then_some(())
            }
            _ => None,
        }
    }

    /// Reads a number after its first byte.
    fn number(&mut self, first: u8) -> Option<()> {
        let first = if first == b'-' { self.next()? } else { first };
        match first {
            // No further digits: leading zeros are invalid.
            b'0' => {}
            b'1'..=b'9' => self.skip_digits(),
            _ => return None,
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Some(())
    }

    /// Reads one or more digits.
    fn digits(&mut self) -> Option<()> {
        let begin = self.at;
        self.skip_digits();
        (self.at > begin).then_some(())
    }

    fn skip_digits(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/json_scan.rs"]
mod tests;
