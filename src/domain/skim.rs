//! A quick look at JSON that is handed on: is it an object, and which number has one of its members?
//!
//! A general reader takes several times as long, as it is made to keep what it reads. This one knows the grammar
//! (RFC 8259) and keeps nothing. It says yes only where it is certain; whatever it does not know, good or bad, it
//! leaves to the general reader, which also says what is wrong.

use memchr::memchr2;

use super::object::DEPTH_MAX;

/// Whether these bytes are surely one JSON object in UTF-8 that nests at most [`DEPTH_MAX`] deep.
pub fn is_object(json: &[u8]) -> bool {
    Skim::over(json, None).is_some()
}

/// The member of that name of what is surely such an object, if it is there once and a whole number.
pub fn integer(json: &[u8], name: &str) -> Option<i64> {
    let digits = Skim::over(json, Some(name.as_bytes()))??;
    // The general reader takes a zero with a sign for a fraction.
    if digits.starts_with("-0") { None } else { digits.parse().ok() }
}

/// How many bytes of `text` stand for themselves in a JSON string before the first that may not: all of printable
/// ASCII but quote and backslash.
#[inline]
pub(super) fn plain_len(text: &[u8]) -> usize {
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

/// The same in steps of eight, which are looked at together: a byte that is not plain leaves its highest bit in one of
/// the five words. (Bytes above it may be marked with it, never bytes below, and the lowest is what is asked for.)
fn few_plain(text: &[u8]) -> usize {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const HIGHEST: u64 = 0x80 * ONES;
    let (mut len, zeros) = (0, |word: u64| word.wrapping_sub(ONES) & !word);
    while let Some(eight) = text[len..].first_chunk::<8>() {
        let word = u64::from_le_bytes(*eight);
        let below_space = word.wrapping_sub(b' ' as u64 * ONES) & !word;
        let quote = zeros(word ^ (b'"' as u64 * ONES));
        let backslash = zeros(word ^ (b'\\' as u64 * ONES));
        let delete = zeros(word ^ (0x7f * ONES));
        let marked = (below_space | quote | backslash | delete | word) & HIGHEST;
        if marked != 0 {
            return len + marked.trailing_zeros() as usize / 8;
        }
        len += 8;
    }
    len + text[len..].iter().take_while(|byte| is_plain(**byte)).count()
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

fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'
}

struct Skim<'a> {
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

impl<'a> Skim<'a> {
    /// Goes over all of it. Gives the number that the outer object has for `wanted`; `None` in the inner place if
    /// there is none or nothing is wanted.
    fn over(json: &'a [u8], wanted: Option<&[u8]>) -> Option<Option<&'a str>> {
        let mut skim = Self { json, at: 0, ascii: true };
        let number = skim.object(wanted)?;
        skim.skip_space();
        let is_whole = skim.at == json.len() && (skim.ascii || std::str::from_utf8(json).is_ok());
        is_whole.then_some(number)
    }

    fn object(&mut self, wanted: Option<&[u8]>) -> Option<Option<&'a str>> {
        let (mut open, mut number) = (Open::default(), None);
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
                        self.member(&open, wanted, &mut number)?;
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
                b'"' => self.text().map(drop)?,
                b'-' | b'0'..=b'9' => {
                    self.at -= 1;
                    self.number()?;
                }
                b't' => self.word(b"rue")?,
                b'f' => self.word(b"alse")?,
                b'n' => self.word(b"ull")?,
                _ => return None,
            }
            loop {
                if open.depth == 0 {
                    return Some(number);
                }
                self.skip_space();
                match (self.next()?, open.kinds & 1 == 1) {
                    (b',', true) => {
                        self.skip_space();
                        self.member(&open, wanted, &mut number)?;
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

    /// A name and the colon, up to its value. If it is the one that is `wanted`, its number is looked at.
    fn member(&mut self, open: &Open, wanted: Option<&[u8]>, number: &mut Option<&'a str>) -> Option<()> {
        self.sign(b'"')?;
        let (name, escaped) = self.text()?;
        self.skip_space();
        self.sign(b':')?;
        self.skip_space();
        let Some(wanted) = wanted.filter(|_| open.depth == 1) else { return Some(()) };
        // Escapes may spell any name.
        if escaped {
            return None;
        }
        if name == wanted {
            // Once, and nothing but digits.
            let begin = self.at;
            if number.is_some() || !self.number()? {
                return None;
            }
            *number = std::str::from_utf8(&self.json[begin..self.at]).ok();
            self.at = begin;
        }
        Some(())
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

    /// What follows a string's opening quote, its closing one included. Gives what lies between, and whether any of
    /// it is escaped.
    fn text(&mut self) -> Option<(&'a [u8], bool)> {
        let (begin, mut escaped) = (self.at, false);
        loop {
            self.at += plain_len(&self.json[self.at..]);
            match self.next()? {
                b'"' => return Some((&self.json[begin..self.at - 1], escaped)),
                b'\\' => {
                    escaped = true;
                    self.escape()?;
                }
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

    /// A number. Says whether it has neither fraction nor exponent.
    fn number(&mut self) -> Option<bool> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        // No zeros lead.
        match self.next()? {
            b'0' => {}
            b'1'..=b'9' => self.skip_digits(),
            _ => return None,
        }
        let mut whole = true;
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
            whole = false;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
            whole = false;
        }
        Some(whole)
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
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::super::envelope::Envelope;
    use super::super::object::is_too_deep;
    use super::*;

    /// What the general reader says.
    fn is_object_in_full(json: &[u8]) -> bool {
        let text = std::str::from_utf8(json).ok();
        let starts_well = json.trim_ascii_start().starts_with(b"{");
        let is_json = text.is_some_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok());
        is_json && starts_well && !is_too_deep(json)
    }

    #[test]
    fn every_byte_is_plain_or_not_wherever_it_stands() {
        for byte in 0..=u8::MAX {
            let plain = (b' '..=b'~').contains(&byte) && byte != b'"' && byte != b'\\';
            assert_eq!(is_plain(byte), plain, "{byte:#x}");
            for len in (1..20).chain([63, 64, 65, 71, 72, 73, 191, 192, 193, 448, 449, 600]) {
                // Of the long ones not every place.
                for at in
                    (0..len).filter(|at| len < 100 || at % 8 == 0 || len - at < 20 || usize::abs_diff(*at, 192) < 3)
                {
                    let mut text = vec![b'!'; len];
                    text[at] = byte;
                    assert_eq!(plain_len(&text), if plain { len } else { at }, "{byte:#x} at {at} of {len}");
                }
            }
        }
    }

    #[test]
    fn objects_of_every_kind_are_known_at_once() {
        let deepest = format!("{{\"a\":{}{}}}", "[".repeat(DEPTH_MAX - 1), "]".repeat(DEPTH_MAX - 1));
        for json in [
            "{}",
            " \t\r\n{ } \n",
            r#"{"a":{"b":[{},[],[[]],{"c":null}]},"d":true,"e":false}"#,
            r#"{"a":[0,-0,1,-12,1.5,0.0,1e5,1E-5,-0.1e+10,"x"],"b":""}"#,
            r#"{"a\"\\\/\b\f\n\r\t\u00e9\uD800":"日本 \u65e5","é":"x"}"#,
            r#"{"a":1,"a":2}"#,
            "{\"a\":\"\u{7f}\"}",
            &deepest,
        ] {
            assert!(is_object(json.as_bytes()), "{json}");
            assert!(is_object_in_full(json.as_bytes()), "{json}");
        }
    }

    #[test]
    fn nothing_else_is_taken_for_one() {
        let too_deep = format!("{{\"a\":{}{}}}", "[".repeat(DEPTH_MAX), "]".repeat(DEPTH_MAX));
        for json in [
            "",
            " ",
            "{",
            "}",
            "[]",
            "null",
            "1",
            "\"a\"",
            "{}{}",
            "{} x",
            "{a:1}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{,}",
            "{\"a\" 1}",
            "{\"a\":1 \"b\":2}",
            "{\"a\":[1,]}",
            "{\"a\":[1 2]}",
            "{\"a\":[}",
            "{\"a\":(]}",
            "{\"a\":01}",
            "{\"a\":-}",
            "{\"a\":1.}",
            "{\"a\":.5}",
            "{\"a\":1e}",
            "{\"a\":+1}",
            "{\"a\":1e+}",
            "{\"a\":tru}",
            "{\"a\":nul",
            "{\"a\":True}",
            "{\"a\":'b'}",
            "{\"a\":\"b}",
            "{\"a\":\"\\x\"}",
            "{\"a\":\"\\u12g4\"}",
            "{\"a\":\"\\u12",
            "{\"a\":\"\\",
            "{\"a\":\"\n\"}",
            "{\"a\":\"\0\"}",
            "{\"a\":NaN}",
            "\u{feff}{}",
            "{\u{a0}}",
            "{\u{b}}",
            "{\"a\":1}}",
            "{\"a\":{\"b\":1]}",
            "//\n{}",
            &too_deep,
        ] {
            assert!(!is_object(json.as_bytes()), "{json}");
            assert!(!is_object_in_full(json.as_bytes()), "{json}");
        }
        assert!(!is_object(b"{\"a\":\"\xff\"}"));
        assert!(!is_object(b"{\"a\":\"\xed\xa0\x80\"}"), "half of a pair");
    }

    #[test]
    fn a_number_is_found_in_the_outer_object_alone_and_only_if_it_is_certain() {
        let find = |json: &str| integer(json.as_bytes(), "ErrorCode");
        assert_eq!(find(r#"{"ErrorCode":0}"#), Some(0));
        assert_eq!(find(r#"{"a":{"ErrorCode":1},"ErrorCode" : -70001 ,"b":[{"ErrorCode":2}]}"#), Some(-70001));
        assert_eq!(find(r#"{"ErrorCode":9223372036854775807}"#), Some(i64::MAX));
        for json in [
            "{}",
            r#"{"a":{"ErrorCode":1}}"#,
            r#"{"ErrorCode":"1"}"#,
            r#"{"ErrorCode":1.0}"#,
            r#"{"ErrorCode":1e2}"#,
            r#"{"ErrorCode":-0}"#,
            r#"{"ErrorCode":9223372036854775808}"#,
            r#"{"ErrorCode":1,"ErrorCode":1}"#,
            r#"{"ErrorCode":1,"Error\u0043ode":1}"#,
            r#"{"ErrorCode":1"#,
            r#"{"ErrorCode":1}x"#,
            r#"{"errorcode":1}"#,
            r#"{"ErrorCode":01}"#,
            r#"[{"ErrorCode":1}]"#,
            r#"{"ErrorCode":1,"a":[}"#,
        ] {
            assert_eq!(find(json), None, "{json}");
        }
    }

    /// Documents, sound or broken in one place.
    fn documents() -> impl Strategy<Value = Vec<u8>> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
            "[ -~]{60,150}".prop_map(Value::from),
        ];
        let value = leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::hash_map("(ErrorCode|.{0,6})", inner, 0..4)
                    .prop_map(|map| Value::from(serde_json::Map::from_iter(map))),
            ]
        });
        let edit = prop_oneof![1 => Just(None), 2 => any::<(u16, u8)>().prop_map(Some)];
        (value, any::<bool>(), edit).prop_map(|(value, pretty, edit)| {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            let mut bytes = text.expect("JSON").into_bytes();
            if let Some((at, byte)) = edit {
                let at = usize::from(at) % bytes.len();
                bytes[at] = byte;
            }
            bytes
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

        #[test]
        fn it_agrees_with_the_general_reader(json in documents()) {
            prop_assert_eq!(is_object(&json), is_object_in_full(&json));
            if let Some(code) = integer(&json, "ErrorCode") {
                prop_assert_eq!(Envelope::parse(&json).map(|envelope| envelope.error_code), Ok(code));
            }
        }

        #[test]
        fn it_agrees_about_what_is_hardly_json(json in r#"\{"[\[\]\{\}",:\\u0aeE.+ \-1tfn]{0,24}"#) {
            prop_assert_eq!(is_object(json.as_bytes()), is_object_in_full(json.as_bytes()));
        }
    }
}
