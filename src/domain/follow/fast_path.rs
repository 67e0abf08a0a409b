//! The usual form of a `follow_check` body, read in one pass.
//!
//! Nearly every body is two members without escapes, names in printable ASCII. [`read`] knows that form
//! alone, in several times less time than a general reader of JSON takes; whatever is otherwise, good or
//! bad, it leaves to [`question`](super::request), which finds the same in what both can read.

use std::borrow::Cow;

use super::request::CheckRequest;
use crate::domain::chat::app::USER_ID_LEN_MAX;
use crate::domain::json::scan::few_plain;

/// Bytes that hold the longest name and its quote, in whole steps of eight.
const NAME_ROOM: usize = (USER_ID_LEN_MAX + 1).next_multiple_of(8);

/// Reads a body of 1 to `max_to` accounts; `None` if it is not of the usual form.
pub(super) fn read(text: &str, max_to: usize) -> Option<CheckRequest<'_>> {
    let mut cursor = Cursor { text, at: 0 };
    cursor.sign(b'{')?;
    let question = match cursor.member()? {
        "From_Account" => {
            let from = Cow::Borrowed(cursor.string()?);
            cursor.sign(b',')?;
            if cursor.member()? != "To_Account" {
                return None;
            }
            CheckRequest { from, to: cursor.names(max_to)? }
        }
        "To_Account" => {
            let to = cursor.names(max_to)?;
            cursor.sign(b',')?;
            if cursor.member()? != "From_Account" {
                return None;
            }
            CheckRequest { from: Cow::Borrowed(cursor.string()?), to }
        }
        _ => return None,
    };
    cursor.sign(b'}')?;
    cursor.skip_space();
    (cursor.at == text.len()).then_some(question)
}

/// The white space of JSON (RFC 8259 section 2). Apart from the cursor, since there is hardly any.
#[inline(never)]
fn space_len(text: &[u8]) -> usize {
    text.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count()
}

/// What is read of, and how far.
///
/// What each name needs is inlined by order: else the place would go through memory and back for each of them.
struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn skip_space(&mut self) {
        self.at += space_len(&self.text.as_bytes()[self.at..]);
    }

    /// A sign that comes next.
    #[inline(always)]
    fn next(&mut self, sign: u8) -> Option<()> {
        (self.text.as_bytes().get(self.at) == Some(&sign)).then(|| self.at += 1)
    }

    /// A sign, with space before it or not.
    #[inline(always)]
    fn sign(&mut self, sign: u8) -> Option<()> {
        self.next(sign).or_else(|| {
            self.skip_space();
            self.next(sign)
        })
    }

    /// A string of plain bytes: 1 to as many as a name may have.
    #[inline(always)]
    fn string(&mut self) -> Option<&'a str> {
        self.sign(b'"')?;
        let rest = self.text.get(self.at..)?;
        // Not much further than the longest name may go.
        let room = rest.as_bytes().first_chunk::<NAME_ROOM>().map_or(rest.as_bytes(), |room| room);
        let (string, _) = rest.split_at_checked(few_plain(room))?;
        self.at += string.len();
        self.next(b'"')?;
        (1..=USER_ID_LEN_MAX).contains(&string.len()).then_some(string)
    }

    /// A member's name and the colon.
    fn member(&mut self) -> Option<&'a str> {
        let name = self.string()?;
        self.sign(b':').map(|()| name)
    }

    /// An array of 1 to `max` names.
    fn names(&mut self, max: usize) -> Option<Vec<Cow<'a, str>>> {
        self.sign(b'[')?;
        // About right for usual names, and never more than the body could hold twice over.
        let mut names = Vec::with_capacity((self.text.len() / 8).min(max).min(128));
        loop {
            if names.len() == max {
                return None;
            }
            names.push(Cow::Borrowed(self.string()?));
            if self.sign(b',').is_none() {
                return self.sign(b']').map(|()| names);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::request::{Parsed, parse_general};
    use super::*;

    #[test]
    fn the_usual_form_is_read_with_members_in_either_order_and_space_anywhere() {
        for body in [
            r#"{"From_Account":"ann","To_Account":["bob","c d"]}"#,
            r#"{"To_Account":["bob","c d"],"From_Account":"ann"}"#,
            "\r\n\t { \"From_Account\" : \"ann\" ,\n \"To_Account\" : [ \"bob\" , \"c d\" ] } \n",
        ] {
            let question = read(body, 2).expect(body);
            assert!(matches!(question.from, Cow::Borrowed("ann")) && question.to == ["bob", "c d"], "{body}");
        }
    }

    #[test]
    fn anything_else_is_left_to_the_other_reader() {
        let long = [33, 39, 40, 41, 100].map(|len| "x".repeat(len));
        for name in long.iter().map(String::as_str).chain(["日", "x日", &format!("{}日", long[2])]) {
            let body = format!(r#"{{"From_Account":"{name}","To_Account":["bob"]}}"#);
            assert_eq!(read(&body, 2), None, "{body}");
        }
        for body in [
            "",
            "{",
            "{}",
            r#"{"From_Account":"ann"}"#,
            r#"{"From_Account":"ann","To_Account":[]}"#,
            r#"{"From_Account":"","To_Account":["bob"]}"#,
            r#"{"From_Account":"ann","To_Account":["bob"]} x"#,
            r#"{"From_Account":"ann","To_Account":["bob",]}"#,
            r#"{"From_Account":"ann","To_Account":["bob"],}"#,
            r#"{"From_Account":"ann","To_Account":["bob" "cyd"]}"#,
            r#"{"From_Account":"ann","To_Account":["b\u006fb"]}"#,
            r#"{"From_Account":"ann","To_Account":["日本"]}"#,
            r#"{"From_Account":"ann","To_Account":["bob"],"X":1}"#,
            r#"{"From_Account":"ann","From_Account":"ann"}"#,
            r#"{"To_Account":["bob"],"To_Account":["bob"]}"#,
            r#"{"From_Account":"ann","To_Account":["a","b","c"]}"#,
            "{\"From_Account\":\"ann\",\"To_Account\":[\"b\u{7f}b\"]}",
        ] {
            assert_eq!(read(body, 2), None, "{body}");
        }
    }

    /// Bodies near the usual form, broken in one place or not at all.
    fn bodies() -> impl Strategy<Value = String> {
        let name = prop_oneof![8 => "[a-z0-9 ]{1,33}", 1 => ".{0,6}", 1 => r#"\\u00(4|0)[0-9a-f]|\\["ntx]|é"#];
        let space = prop_oneof![4 => Just(""), 1 => Just(" "), 1 => Just("\n\t\r "), 1 => Just("\u{b}")];
        let parts = (name.clone(), proptest::collection::vec(name, 0..5), space, any::<bool>(), any::<u16>());
        let edit = prop_oneof![3 => Just(None), 1 => any::<u8>().prop_map(Some)];
        (parts, edit).prop_map(|((from, to, space, turned, place), edit)| {
            let to = to.iter().map(|name| format!("{space}\"{name}\"")).collect::<Vec<_>>().join(",");
            let from = format!("\"From_Account\"{space}:\"{from}\"");
            let to = format!("\"To_Account\":{space}[{to}{space}]");
            let (first, second) = if turned { (to, from) } else { (from, to) };
            let mut body = format!("{space}{{{first}{space},{second}}}{space}").into_bytes();
            if let Some(byte) = edit {
                let at = usize::from(place) % body.len();
                body[at] = byte;
            }
            String::from_utf8_lossy(&body).into_owned()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn what_it_reads_the_other_reader_reads_so_too(body in bodies()) {
            if let Some(question) = read(&body, 3) {
                prop_assert_eq!(parse_general(&body, 3), Ok(Parsed::Known(question)));
            }
        }

        #[test]
        fn what_is_of_the_usual_form_needs_no_other_reader(
            from in "[ !#-\\[\\]-~]{1,32}", to in proptest::collection::vec("[ !#-\\[\\]-~]{1,32}", 1..4),
        ) {
            let body = serde_json::json!({"From_Account": from, "To_Account": to}).to_string();
            prop_assert!(read(&body, 3).is_some(), "{}", body);
        }
    }
}
