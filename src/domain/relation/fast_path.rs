//! A parser for the usual form of the body of a check, in one pass.
//!
//! Nearly every body has its two or three members without escapes, with names in printable ASCII. [`read`] accepts only that form
//! and takes a third of the time of the general parser (`benches/micro`). Any other body, valid or not, is left to
//! [`request`](super::request). Both return the same result for a body that both accept.

use std::borrow::Cow;

use super::RelationKind;
use super::request::CheckRequest;
use crate::domain::chat::app::USER_ID_LEN_MAX;
use crate::domain::json::scan::plain_prefix;
use crate::domain::pairs::pair::Sides;

/// Length of the longest name with its closing quote, rounded up to a multiple of 8 bytes.
const NAME_ROOM: usize = (USER_ID_LEN_MAX + 1).next_multiple_of(8);

/// Parses a body with 1 to `max_to` accounts; `None` if it does not have the usual form.
pub(super) fn read<'a>(kind: &RelationKind, text: &'a str, max_to: usize) -> Option<CheckRequest<'a>> {
    let mut cursor = Cursor { text, at: 0 };
    let (mut from, mut to, mut sides) = (None, None, None);
    cursor.expect(b'{')?;
    loop {
        match cursor.member()? {
            "From_Account" if from.is_none() => from = Some(Cow::Borrowed(cursor.string()?)),
            "To_Account" if to.is_none() => to = Some(cursor.names(max_to)?),
            "CheckType" if sides.is_none() => sides = Some(kind.sides_of(cursor.string()?)?),
            _ => return None,
        }
        if cursor.expect(b',').is_none() {
            break;
        }
    }
    cursor.expect(b'}')?;
    cursor.skip_space();
    let sides = if kind.check_types.is_some() { sides? } else { Sides::Both };
    (cursor.at == text.len()).then_some(CheckRequest { from: from?, to: to?, sides })
}

/// Returns the length of leading JSON white space (RFC 8259, section 2). Not inlined, because there is hardly any.
#[inline(never)]
fn space_len(text: &[u8]) -> usize {
    text.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count()
}

/// A position in the text.
///
/// The methods that run for each name are forced inline: otherwise the position would go through memory for each name.
struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn skip_space(&mut self) {
        self.at += space_len(&self.text.as_bytes()[self.at..]);
    }

    /// Consumes `byte` if it comes next.
    #[inline(always)]
    fn next_is(&mut self, byte: u8) -> Option<()> {
        (self.text.as_bytes().get(self.at) == Some(&byte)).then(|| self.at += 1)
    }

    /// Consumes `byte`, with optional space before it.
    #[inline(always)]
    fn expect(&mut self, byte: u8) -> Option<()> {
        self.next_is(byte).or_else(|| {
            self.skip_space();
            self.next_is(byte)
        })
    }

    /// Reads a string of plain bytes with the length of a name.
    #[inline(always)]
    fn string(&mut self) -> Option<&'a str> {
        self.expect(b'"')?;
        let rest = self.text.get(self.at..)?;
        // Search little more than the maximum length of a name.
        let room = rest.as_bytes().first_chunk::<NAME_ROOM>().map_or(rest.as_bytes(), |room| room);
        let (string, _) = rest.split_at_checked(plain_prefix(room))?;
        self.at += string.len();
        self.next_is(b'"')?;
        (1..=USER_ID_LEN_MAX).contains(&string.len()).then_some(string)
    }

    /// Reads the name of a member and the colon.
    fn member(&mut self) -> Option<&'a str> {
        let name = self.string()?;
        self.expect(b':').map(|()| name)
    }

    /// Reads an array of 1 to `max` names.
    fn names(&mut self, max: usize) -> Option<Vec<Cow<'a, str>>> {
        self.expect(b'[')?;
        // About right for usual names, and at most twice what the body can contain.
        let mut names = Vec::with_capacity((self.text.len() / 8).min(max).min(128));
        loop {
            if names.len() == max {
                return None;
            }
            names.push(Cow::Borrowed(self.string()?));
            if self.expect(b',').is_none() {
                return self.expect(b']').map(|()| names);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::request::{Parsed, parse_general};
    use super::super::{FOLLOW, FRIEND, KINDS};
    use super::*;

    #[test]
    fn members_may_have_any_order_and_any_space() {
        for body in [
            r#"{"From_Account":"ann","To_Account":["bob","c d"]}"#,
            r#"{"To_Account":["bob","c d"],"From_Account":"ann"}"#,
            "\r\n\t { \"From_Account\" : \"ann\" ,\n \"To_Account\" : [ \"bob\" , \"c d\" ] } \n",
        ] {
            let request = read(&FOLLOW, body, 2).expect(body);
            assert!(matches!(request.from, Cow::Borrowed("ann")) && request.to == ["bob", "c d"], "{body}");
        }
    }

    #[test]
    fn other_bodies_are_left_to_the_general_parser() {
        let long = [33, 39, 40, 41, 100].map(|len| "x".repeat(len));
        for name in long.iter().map(String::as_str).chain(["日", "x日", &format!("{}日", long[2])]) {
            let body = format!(r#"{{"From_Account":"{name}","To_Account":["bob"]}}"#);
            assert_eq!(read(&FOLLOW, &body, 2), None, "{body}");
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
            assert_eq!(read(&FOLLOW, body, 2), None, "{body}");
        }
    }

    #[test]
    fn check_type_is_read_where_the_command_has_one() {
        for (check_type, sides) in [("Both", Sides::Both), ("Single", Sides::First)] {
            for body in [
                format!(r#"{{"From_Account":"ann","To_Account":["bob"],"CheckType":"CheckResult_Type_{check_type}"}}"#),
                format!(
                    r#"{{"CheckType" : "CheckResult_Type_{check_type}","To_Account":["bob"],"From_Account":"ann"}}"#
                ),
            ] {
                assert_eq!(read(&FRIEND, &body, 2).expect(&body).sides, sides);
                assert_eq!(read(&FOLLOW, &body, 2), None, "{body}");
            }
        }
        for body in [
            r#"{"From_Account":"ann","To_Account":["bob"]}"#,
            r#"{"From_Account":"ann","To_Account":["bob"],"CheckType":"BlackCheckResult_Type_Both"}"#,
            r#"{"From_Account":"ann","To_Account":["bob"],"CheckType":""}"#,
        ] {
            assert_eq!(read(&FRIEND, body, 2), None, "{body}");
        }
    }

    const CHECK_TYPES: [&str; 5] = [
        "",
        "",
        r#","CheckType":"CheckResult_Type_Both""#,
        r#", "CheckType":"BlackCheckResult_Type_Single""#,
        r#","CheckType":"CheckResult_Type_Both","CheckType":"CheckResult_Type_Single""#,
    ];

    /// Returns bodies near the usual form, with one byte changed or none.
    fn bodies() -> impl Strategy<Value = String> {
        let name = prop_oneof![8 => "[a-z0-9 ]{1,33}", 1 => ".{0,6}", 1 => r#"\\u00(4|0)[0-9a-f]|\\["ntx]|é"#];
        let space = prop_oneof![4 => Just(""), 1 => Just(" "), 1 => Just("\n\t\r "), 1 => Just("\u{b}")];
        let parts = (name.clone(), proptest::collection::vec(name, 0..5), space, any::<bool>(), any::<u16>());
        let edit = prop_oneof![3 => Just(None), 1 => any::<u8>().prop_map(Some)];
        (parts, edit).prop_map(|((from, to, space, to_first, place), edit)| {
            let to = to.iter().map(|name| format!("{space}\"{name}\"")).collect::<Vec<_>>().join(",");
            let from = format!("\"From_Account\"{space}:\"{from}\"");
            let to = format!("\"To_Account\":{space}[{to}{space}]");
            let (first, second) = if to_first { (to, from) } else { (from, to) };
            let check_type = CHECK_TYPES[usize::from(place) % CHECK_TYPES.len()];
            let mut body = format!("{space}{{{first}{space},{second}{check_type}}}{space}").into_bytes();
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
        fn fast_path_agrees_with_the_general_parser(body in bodies()) {
            for kind in KINDS {
                if let Some(request) = read(kind, &body, 3) {
                    prop_assert_eq!(parse_general(kind, &body, 3), Ok(Parsed::Known(request)));
                }
            }
        }

        #[test]
        fn usual_form_is_accepted(
            from in "[ !#-\\[\\]-~]{1,32}", to in proptest::collection::vec("[ !#-\\[\\]-~]{1,32}", 1..4),
        ) {
            let body = serde_json::json!({"From_Account": from, "To_Account": to}).to_string();
            prop_assert!(read(&FOLLOW, &body, 3).is_some(), "{}", body);
        }
    }
}
