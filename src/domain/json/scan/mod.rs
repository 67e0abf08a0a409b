//! A quick look at JSON that is handed on: is it an object, and of an answer, what is the one integer that counts?
//!
//! Of a long text a general reader takes several times as long, as it looks at a few bytes at a time. This one knows
//! the grammar (RFC 8259) and keeps nothing. It says yes only where it is certain; whatever it does not know, good or
//! bad, it leaves to the general reader, which also says what is wrong.

use memchr::{memchr, memchr2};

use super::ascii;
use super::object::DEPTH_MAX;

/// Whether these bytes are surely one JSON object in UTF-8 that nests at most [`DEPTH_MAX`] deep.
pub fn is_object(json: &[u8]) -> bool {
    Scanner::new(json).whole(|_, _| Some(())).is_some()
}

/// The value of the one member of that name in an object as [`is_object`] knows it, if it is surely an integer. The name
/// needs no escapes.
pub fn integer(json: &[u8], name: &[u8]) -> Option<i64> {
    let mut found = None;
    Scanner::new(json).whole(|member, value| {
        // It may be that name, spelled otherwise.
        if memchr(b'\\', member).is_some() {
            return None;
        }
        if member != name {
            return Some(());
        }
        // The general reader takes -0 for no integer.
        let value = std::str::from_utf8(value).ok().filter(|value| *value != "-0")?.parse().ok()?;
        found.replace(value).is_none().then_some(())
    })?;
    found
}

/// How many bytes of `text` stand for themselves in a JSON string before the first that may not: all of printable
/// ASCII but quote and backslash.
#[inline]
fn plain_len(text: &[u8]) -> usize {
    match text.split_at_checked(SHORT_LEN_MAX) {
        None => few_plain(text),
        Some((begin, rest)) => match few_plain(begin) {
            SHORT_LEN_MAX => {
                let len = SHORT_LEN_MAX + many_plain(rest);
                len + few_plain(&text[len..])
            }
            len => len,
        },
    }
}

/// A text that is longer is gone over in larger pieces.
const SHORT_LEN_MAX: usize = 64;

/// The same of a short text.
#[inline]
pub(crate) fn few_plain(text: &[u8]) -> usize {
    ascii::len(text, b' ', [b'"', b'\\'])
}

/// The same in pieces that grow, each with one search for an end and one fold, for which there are wide instructions.
/// It may stop before the piece that holds the first byte that is not plain. As pieces grow with what they gave, what
/// is looked at in vain comes to no more than that.
fn many_plain(text: &[u8]) -> usize {
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
    /// Nothing but ASCII so far.
    ascii: bool,
}

/// Objects and arrays that are open: a bit each, the innermost lowest, 1 for an object.
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

    /// Goes over an object and the space around it, and nothing else may be there. Hears of each of its own members: its
    /// name and its value as they are written, the name without its quotes.
    fn whole(&mut self, hear: impl FnMut(&'a [u8], &'a [u8]) -> Option<()>) -> Option<()> {
        self.object(hear)?;
        (self.at == self.json.len() && (self.ascii || std::str::from_utf8(self.json).is_ok())).then_some(())
    }

    fn object(&mut self, mut hear: impl FnMut(&'a [u8], &'a [u8]) -> Option<()>) -> Option<()> {
        let mut open = Open::default();
        // Of the member of the outermost object that is being read: its name, and where its value begins.
        let mut member: (&[u8], usize) = (&[], 0);
        self.skip_space();
        if self.peek() != Some(b'{') {
            return None;
        }
        // Each round reads the beginning of a value, and what ends with it.
        loop {
            match self.next()? {
                b'{' => {
                    open.push(true)?;
                    self.skip_space();
                    if self.peek() == Some(b'}') {
                        self.at += 1;
                        open.pop();
                    } else {
                        let name = self.member()?;
                        if open.depth == 1 {
                            member = (name, self.at);
                        }
                        continue;
                    }
                }
                b'[' => {
                    open.push(false)?;
                    self.skip_space();
                    if self.peek() == Some(b']') {
                        self.at += 1;
                        open.pop();
                    } else {
                        continue;
                    }
                }
                b'"' => self.text()?,
                first @ (b'-' | b'0'..=b'9') => self.number(first)?,
                b't' => self.word(b"rue")?,
                b'f' => self.word(b"alse")?,
                b'n' => self.word(b"ull")?,
                _ => return None,
            }
            loop {
                let end = self.at;
                self.skip_space();
                match open.depth {
                    0 => return Some(()),
                    1 => hear(member.0, &self.json[member.1..end])?,
                    _ => {}
                }
                match (self.next()?, open.kinds & 1 == 1) {
                    (b',', true) => {
                        self.skip_space();
                        let name = self.member()?;
                        if open.depth == 1 {
                            member = (name, self.at);
                        }
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

    /// A name and the colon, up to its value. Gives the name as it is written.
    fn member(&mut self) -> Option<&'a [u8]> {
        self.sign(b'"')?;
        let begin = self.at;
        self.text()?;
        let name = &self.json[begin..self.at - 1];
        self.skip_space();
        self.sign(b':')?;
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

    fn sign(&mut self, sign: u8) -> Option<()> {
        (self.next()? == sign).then_some(())
    }

    fn word(&mut self, rest: &[u8]) -> Option<()> {
        let is_it = self.json[self.at..].starts_with(rest);
        self.at += rest.len();
        is_it.then_some(())
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// What follows a string's opening quote, its closing one included.
    fn text(&mut self) -> Option<()> {
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

    /// What follows a backslash.
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

    /// A number, after its first byte.
    fn number(&mut self, first: u8) -> Option<()> {
        let first = if first == b'-' { self.next()? } else { first };
        match first {
            // No zeros lead.
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

    /// One or more.
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
mod tests;
