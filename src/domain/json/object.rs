//! Strict JSON objects.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::str::Utf8Error;

use memchr::{memchr2, memchr2_iter};
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

/// Reads `T` from an object only: a derived implementation would also accept an array of the right length.
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<'a, T: Deserialize<'a>> Deserialize<'a> for Object<T> {
    fn deserialize<D: Deserializer<'a>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_map(ObjectVisitor(PhantomData)).map(Object)
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'a, T: Deserialize<'a>> Visitor<'a> for ObjectVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'a>>(self, map: M) -> Result<T, M::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

/// Parses one object in UTF-8 with nothing after it; `None` for anything else.
///
/// UTF-8 is checked here, because the parser does not check the members that it skips.
pub fn read<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Option<T> {
    let text = std::str::from_utf8(json).ok()?;
    serde_json::from_str(text).ok().map(|Object(read)| read)
}

/// Returns the values of these members of an object, `None` for each that is missing; `None` for anything but one object
/// with nothing after it, and if one of the members is repeated.
pub fn members<'a, const N: usize>(json: &'a str, names: [&str; N]) -> Option<[Option<&'a RawValue>; N]> {
    let mut reader = serde_json::Deserializer::from_str(json);
    let members = NamedMembers(names).deserialize(&mut reader).ok()?;
    reader.end().is_ok().then_some(members)
}

/// A string. It borrows if there are no escapes; serde's own `Cow` always copies.
#[derive(Debug, Deserialize)]
pub struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

struct NamedMembers<'n, const N: usize>([&'n str; N]);

impl<'a, const N: usize> DeserializeSeed<'a> for NamedMembers<'_, N> {
    type Value = [Option<&'a RawValue>; N];

    fn deserialize<D: Deserializer<'a>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'a, const N: usize> Visitor<'a> for NamedMembers<'_, N> {
    type Value = [Option<&'a RawValue>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut members = [None; N];
        while let Some(Text(name)) = map.next_key()? {
            match self.0.iter().position(|wanted| *wanted == name) {
                None => drop(map.next_value::<IgnoredAny>()?),
                Some(at) if members[at].is_none() => members[at] = Some(map.next_value()?),
                Some(_) => return Err(M::Error::custom("a repeated member")),
            }
        }
        Ok(members)
    }
}

/// Describes why JSON cannot be read, without repeating any of it: the parser's own text about a value of another type
/// contains the whole value, and its text about an unknown member the name. The names of missing and repeated members are
/// those of `T`.
pub fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let names_a_member_of_ours = text.starts_with("missing field `") || text.starts_with("duplicate field `");
    match error.classify() {
        Category::Data if names_a_member_of_ours => text.replacen("field", "member", 1),
        Category::Data => {
            format!("a value or a member is not allowed at line {} column {}", error.line(), error.column())
        }
        Category::Io | Category::Syntax | Category::Eof => text,
    }
}

/// Describes why a body is not UTF-8, without repeating any of it.
pub fn describe_bytes(body: &[u8], error: Utf8Error) -> String {
    match body {
        [0xff, 0xfe, 0, 0, ..] => IS_UTF_32.to_owned(),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => IS_UTF_16.to_owned(),
        // RFC 1952 section 2.3.1.
        [0x1f, 0x8b, ..] => "it is compressed with gzip; send it uncompressed".to_owned(),
        _ => format!("{error}; send UTF-8"),
    }
}

const IS_UTF_16: &str = "it is UTF-16; send UTF-8";
const IS_UTF_32: &str = "it is UTF-32; send UTF-8";
const IS_A_FORM: &str = "it looks like a form; send JSON";

/// Returns what is wrong with the beginning of a text that should be an object; `None` if it begins like one. JSON has
/// no byte order mark (RFC 8259 section 8.1).
pub fn describe_beginning(text: &str) -> Option<&'static str> {
    if text.starts_with('\u{feff}') {
        return Some("it starts with a byte order mark; remove it");
    }
    let text = text.trim_start_matches([' ', '\t', '\n', '\r']);
    match text.as_bytes().first() {
        Some(b'{') if text.starts_with("{\0\0\0") => Some(IS_UTF_32),
        Some(b'{') if text.starts_with("{\0") => Some(IS_UTF_16),
        Some(b'{') if text[1..].trim_ascii_start().starts_with('\'') => {
            Some("its strings are in single quotes; use double quotes")
        }
        Some(b'{') => None,
        None => Some("it is empty; send at least {}"),
        Some(b'"') => Some("it is a string; if it contains an object, do not encode the object twice"),
        Some(byte) if byte.is_ascii_alphabetic() && text.contains('=') => Some(IS_A_FORM),
        // The first line of multipart/form-data (RFC 2046 section 5.1.1), and an encoded brace.
        Some(b'-') if text.starts_with("--") => Some(IS_A_FORM),
        Some(b'%') => Some("it is percent-encoded; send it unencoded"),
        Some(0) if text.starts_with("\0\0\0{") => Some(IS_UTF_32),
        Some(0) => Some(IS_UTF_16),
        Some(b'[') if text.starts_with("[object ") => {
            Some("it is a JavaScript object as text; encode it with JSON.stringify")
        }
        Some(b'[') => Some("it is an array; send an object"),
        Some(b'@') => Some("it starts with '@', as for curl's --data-binary, which reads a file"),
        Some(b'<') => Some("it looks like XML or HTML; send JSON"),
        Some(_) => Some("it does not start with '{'"),
    }
}

/// Deserializes an optional member with `#[serde(default, deserialize_with = "given")]`: it may be missing, but its value
/// must be a `T`, not `null`.
///
/// # Errors
/// The errors of `T`.
pub fn given<'a, D: Deserializer<'a>, T: Deserialize<'a>>(json: D) -> Result<Option<T>, D::Error> {
    T::deserialize(json).map(Some)
}

/// Maximum nesting of objects and arrays in a relayed body. The vendor's bodies nest six levels deep. Recursive parsers,
/// in Chat or on the way to it, fail at some depth.
pub const DEPTH_MAX: usize = 128;

/// Returns whether JSON nests deeper than [`DEPTH_MAX`]. `json` must be well-formed.
pub fn is_too_deep(json: &[u8]) -> bool {
    // Too few opening brackets to nest so deep. Nearly every body takes only this check.
    if memchr2_iter(b'{', b'[', json).nth(DEPTH_MAX).is_none() {
        return false;
    }
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(byte) = json.get(at) {
        at += 1;
        match byte {
            b'"' => at = end_of_string(json, at),
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_MAX {
            return true;
        }
    }
    false
}

/// Returns the position after the closing quote of the string whose content begins at `at`.
fn end_of_string(json: &[u8], mut at: usize) -> usize {
    while let Some(next) = json.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += next;
        if json[at] == b'"' {
            return at + 1;
        }
        // Skip the backslash and the escaped byte.
        at += 2;
    }
    json.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn descriptions_name_the_mistake_and_repeat_nothing() {
        for (text, part) in [
            ("", "empty"),
            (" \r\n", "empty"),
            ("\u{feff}{}", "byte order mark"),
            ("\"{}\"", "twice"),
            ("From_Account=ann&To_Account=bob", "a form"),
            ("%7B%22From_Account%22%3A%22ann%22%7D", "percent-encoded"),
            ("--boundary\r\nContent-Disposition: form-data", "a form"),
            ("{'From_Account': 'ann'}", "double quotes"),
            ("{ 'From_Account': 'ann'}", "double quotes"),
            ("{\0\"\0", "UTF-16"),
            ("\0{\0\"", "UTF-16"),
            ("{\0\0\0\"\0\0\0", "UTF-32"),
            ("\0\0\0{\0\0\0\"", "UTF-32"),
            ("[{\"a\":\"private\"}]", "array"),
            ("[object Object]", "JSON.stringify"),
            ("@private.json", "curl"),
            ("<private/>", "XML"),
            ("-1", "'{'"),
            ("true", "'{'"),
            ("12345", "'{'"),
        ] {
            assert!(describe_beginning(text).is_some_and(|says| says.contains(part)), "{text:?}");
        }
        for text in ["\t{}", "{\"'\":1}", "{}", "{"] {
            assert_eq!(describe_beginning(text), None, "{text}");
        }
        for (body, part) in [
            (&b"\xff\xfe{\0}\0"[..], "UTF-16"),
            (b"\xfe\xff\0{\0}", "UTF-16"),
            (b"\xff\xfe\0\0{\0\0\0", "UTF-32"),
            (b"{\"a\":\"\xc4\xe3\"}", "send UTF-8"),
            (b"\x1f\x8b\x08\0secret", "gzip"),
            (b"{\"secret\":\"\xe9\"}", "index 11"),
        ] {
            let description = describe_bytes(body, std::str::from_utf8(body).expect_err("not UTF-8"));
            assert!(description.contains(part) && !description.contains("secret"), "{description}");
        }
        for text in ["\"secret\"", "{\"one\":\"secret\"}", "{\"one\":\"secret", "{\"secret\"}"] {
            let error = serde_json::from_str::<Object<One>>(text).map(drop).expect_err("not an object of One");
            assert!(!describe(&error).contains("secret") && describe(&error).contains("line 1 column"), "{text}");
        }
        let error = serde_json::from_str::<Object<One>>(r#"{"one":1,"one":2}"#).map(drop).expect_err("repeated");
        assert!(describe(&error).starts_with("duplicate member `one` at line 1"), "{}", describe(&error));
    }

    #[derive(Deserialize)]
    struct One {
        #[serde(default, deserialize_with = "given")]
        one: Option<u8>,
    }

    #[test]
    fn arrays_and_null_are_rejected() {
        let read = |text| serde_json::from_str::<Object<One>>(text).map(|Object(read)| read.one).ok();
        assert_eq!(read(r#"{"one":1}"#), Some(Some(1)));
        assert_eq!(read("{}"), Some(None));
        for bad in ["[1]", "null", r#"{"one":null}"#, r#"{"one":1,"one":1}"#] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn invalid_utf_8_is_rejected_in_skipped_members() {
        assert!(read::<One>(br#"{"one":1,"two":"2"}"#).is_some());
        for bad in [&b"{\"one\":1,\"two\":\"\xfd\"}"[..], b"{\"one\":1} x", b"\xef\xbb\xbf{}"] {
            assert!(read::<One>(bad).is_none());
        }
    }

    #[test]
    fn depth_is_counted_outside_strings() {
        let deep = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        assert!(!is_too_deep(deep(DEPTH_MAX).as_bytes()));
        assert!(is_too_deep(deep(DEPTH_MAX + 1).as_bytes()));
        assert!(is_too_deep(deep(1_000_000).as_bytes()));
        let text = format!(r#"{{"a":"{}\"{}"}}"#, "[".repeat(500), "{".repeat(500));
        assert!(!is_too_deep(text.as_bytes()));
        assert!(!is_too_deep("[[],[],{}]".repeat(500).as_bytes()));
    }

    /// The same function, byte by byte.
    fn is_too_deep_by_bytes(json: &[u8]) -> bool {
        let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
        json.iter().any(|byte| {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_string => escaped = true,
                b'"' => in_string = !in_string,
                _ if in_string => {}
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.saturating_sub(1),
                _ => {}
            }
            depth > DEPTH_MAX
        })
    }

    proptest! {
        #[test]
        fn depth_agrees_with_a_count_by_bytes(pieces in proptest::collection::vec(
            prop_oneof![r#"[\[{]{1,60}"#, r#"[\]}]{1,20}"#, Just(r#"""#.to_owned()), Just(r"\".to_owned()), "[a,:]{1,3}"],
            0..60,
        )) {
            let json = pieces.concat();
            prop_assert_eq!(is_too_deep(json.as_bytes()), is_too_deep_by_bytes(json.as_bytes()), "{}", json);
        }
    }
}
