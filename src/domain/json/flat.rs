//! A reader for the usual response of Chat: a short object of strings without escapes and of digits, without space.
//!
//! It takes less than half the time of [`scan`](super::scan), which reads everything that this reader does not.

use super::scan::plain_prefix;

/// The most digits whose number surely fits into 64 bits.
const DIGITS_MAX: usize = 18;

/// Returns the value of the only member of that name, if it is an integer and the text is certainly such an object.
/// `name` must need no escapes.
pub(super) fn integer(json: &[u8], name: &[u8]) -> Option<i64> {
    let mut rest = json.strip_prefix(b"{")?;
    let mut found = None;
    loop {
        let (member, after) = string(rest)?;
        let value = after.strip_prefix(b":")?;
        rest = match string(value) {
            Some((_, after)) if member != name => after,
            Some(_) => return None,
            None => {
                let (number, after) = digits(value)?;
                if member == name {
                    found.replace(number).is_none().then_some(())?;
                }
                after
            }
        };
        match rest {
            b"}" => return found,
            [b',', next @ ..] => rest = next,
            _ => return None,
        }
    }
}

/// Splits off a string. Returns what is between its quotes, and what follows it.
#[inline(always)]
fn string(json: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = json.strip_prefix(b"\"")?;
    let (text, rest) = text.split_at(plain_prefix(text));
    Some((text, rest.strip_prefix(b"\"")?))
}

/// Splits off a number without sign, fraction, and exponent.
#[inline(always)]
fn digits(json: &[u8]) -> Option<(i64, &[u8])> {
    let len = json.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = json.split_at(len);
    let has_leading_zero = len > 1 && digits[0] == b'0';
    if len == 0 || len > DIGITS_MAX || has_leading_zero {
        return None;
    }
    Some((digits.iter().fold(0, |number, digit| 10 * number + i64::from(digit - b'0')), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn usual_responses_are_read() {
        for (json, code) in [
            (r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#, 0),
            (r#"{"ActionStatus":"FAIL","ErrorCode":70009,"ErrorInfo":"usersig (expired), [70009]"}"#, 70_009),
            (r#"{"ErrorCode":999999999999999999}"#, 999_999_999_999_999_999),
        ] {
            assert_eq!(integer(json.as_bytes(), b"ErrorCode"), Some(code), "{json}");
        }
    }

    #[test]
    fn anything_unusual_is_left_to_the_scanner() {
        for json in [
            r#"{}"#,
            r#"{"n":"1"}"#,
            r#"{"n":"1","n":2}"#,
            r#"{"n":01}"#,
            r#"{"n":-1}"#,
            r#"{"n":1.5}"#,
            r#"{"n":1,"n":1}"#,
            r#"{"n":1,}"#,
            r#"{"n":1} "#,
            r#"{"n":1,"a":[]}"#,
            r#"{"n":1,"\u006e":2}"#,
            "{\"n\":1,\"a\":\"\u{e9}\"}",
            r#"{"n":1000000000000000000}"#,
        ] {
            assert_eq!(integer(json.as_bytes(), b"n"), None, "{json}");
        }
    }

    proptest! {
        #[test]
        fn integer_is_that_of_the_general_parser(
            json in r#"\{?("[na"]{0,2}":?("[a"]{0,3}"|0|[0-9]{1,3}|[0-9]{18,20}|[-.e]),?){0,4}[}\]]?"#,
        ) {
            if let Some(number) = integer(json.as_bytes(), b"n") {
                let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&json).expect("an object");
                prop_assert_eq!(object["n"].as_i64(), Some(number));
                prop_assert_eq!(json.matches(r#""n":"#).count(), 1);
            }
        }
    }
}
