//! Requests of callers to check a relation.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{RelationKind, fast_path};
use crate::domain::chat::app::{NameError, check_user_id};
use crate::domain::json::object::{Text, describe, describe_beginning, describe_bytes};
use crate::domain::pairs::pair::Sides;

/// A body that chatgate can answer itself: exactly the command's members, all valid.
#[derive(Debug, PartialEq, Eq)]
pub struct CheckRequest<'a> {
    /// The user from whose side the relations are seen.
    pub from: Cow<'a, str>,
    /// The other users: 1 to `max_to` UserIDs in the caller's order, with repeats.
    pub to: Vec<Cow<'a, str>>,
    /// Its `CheckType`. A command without that member asks for both sides.
    pub sides: Sides,
}

/// A well-formed body.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// Exactly the command's members, with a `CheckType` that chatgate knows.
    Known(CheckRequest<'a>),
    /// A JSON object that only Chat understands.
    Extended,
}

/// Why a body is not a valid request.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not a JSON object in UTF-8.
    #[error("the body is not a JSON object in UTF-8: {0}")]
    NotJson(String),
    /// One of the members is repeated.
    #[error("the body repeats {0}; send it once")]
    Repeated(&'static str),
    /// A member is missing or has the wrong type.
    #[error("{0}")]
    Shape(&'static str),
    /// An account is not a string; with its index, from 0.
    #[error("To_Account[{0}] is not a string")]
    NotAString(usize),
    /// Too many accounts.
    #[error("To_Account has {0} accounts; send at most {1} per request (relation.max_to)")]
    TooMany(usize, usize),
    /// From_Account is not a valid UserID.
    #[error("From_Account {0}")]
    From(NameError),
    /// An account is not a valid UserID; with its index, from 0.
    #[error("To_Account[{0}] {1}")]
    To(usize, NameError),
}

impl RelationKind {
    /// Parses the body of a check. Names are borrowed from it unless they contain escapes.
    ///
    /// # Errors
    /// A body that is no object, or whose `From_Account` or `To_Account` is not valid.
    pub fn parse_request<'a>(&self, body: &'a [u8], max_to: usize) -> Result<Parsed<'a>, RequestError> {
        let text = std::str::from_utf8(body).map_err(|error| RequestError::NotJson(describe_bytes(body, error)))?;
        match fast_path::read(self, text, max_to) {
            Some(request) => Ok(Parsed::Known(request)),
            None => parse_general(self, text, max_to),
        }
    }

    /// Returns what a `CheckType` asks for; `None` if chatgate does not know it.
    pub(super) fn sides_of(&self, check_type: &str) -> Option<Sides> {
        let types = self.check_types.as_ref()?;
        match check_type {
            both if both == types.both => Some(Sides::Both),
            single if single == types.single => Some(Sides::First),
            _ => None,
        }
    }
}

/// Parses a body of any form.
pub(super) fn parse_general<'a>(kind: &RelationKind, text: &'a str, max_to: usize) -> Result<Parsed<'a>, RequestError> {
    let mut json = serde_json::Deserializer::from_str(text);
    let raw = json.deserialize_any(Members { max_to }).and_then(|raw| json.end().map(|()| raw)).map_err(|error| {
        RequestError::NotJson(describe_beginning(text).map_or_else(|| describe(&error), str::to_owned))
    })?;
    raw.validate(kind, max_to)
}

/// The members before validation: an error of shape must not hide an error of syntax.
#[derive(Default)]
struct Raw<'a> {
    from: Option<StringOrOther<'a>>,
    to: Option<Accounts<'a>>,
    check_type: Option<StringOrOther<'a>>,
    repeated: Option<&'static str>,
    has_others: bool,
}

impl<'a> Raw<'a> {
    fn validate(self, kind: &RelationKind, max_to: usize) -> Result<Parsed<'a>, RequestError> {
        let has_check_type = kind.check_types.is_some();
        if let Some(name) = self.repeated.filter(|name| has_check_type || *name != "CheckType") {
            return Err(RequestError::Repeated(name));
        }
        let sides = match (&self.check_type, has_check_type) {
            (None, false) => Some(Sides::Both),
            (Some(StringOrOther::String(check_type)), true) => kind.sides_of(check_type),
            _ => None,
        };
        let Some(sides) = sides.filter(|_| !self.has_others) else { return Ok(Parsed::Extended) };
        let from = match self.from {
            Some(StringOrOther::String(from)) => from,
            Some(StringOrOther::Other) => return Err(RequestError::Shape("From_Account must be a string")),
            None => return Err(RequestError::Shape("From_Account is missing")),
        };
        let to = match self.to {
            Some(Accounts::List { names, count }) if count <= max_to => names,
            Some(Accounts::List { count, .. }) => return Err(RequestError::TooMany(count, max_to)),
            Some(Accounts::Mixed { index }) => return Err(RequestError::NotAString(index)),
            Some(Accounts::Other) => return Err(RequestError::Shape("To_Account must be an array of strings")),
            None => return Err(RequestError::Shape("To_Account is missing")),
        };
        if to.is_empty() {
            return Err(RequestError::Shape("To_Account is empty"));
        }
        check_user_id(&from).map_err(RequestError::From)?;
        for (index, name) in to.iter().enumerate() {
            check_user_id(name).map_err(|error| RequestError::To(index, error))?;
        }
        Ok(Parsed::Known(CheckRequest { from, to, sides }))
    }
}

struct Members {
    max_to: usize,
}

impl<'a> Visitor<'a> for Members {
    type Value = Raw<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<Raw<'a>, M::Error> {
        let mut raw = Raw::default();
        while let Some(name) = map.next_key::<&RawValue>()? {
            match text_of(name).as_deref() {
                Some("From_Account") => {
                    if raw.from.replace(map.next_value_seed(AnyValue)?).is_some() {
                        raw.repeated = Some("From_Account");
                    }
                }
                Some("To_Account") => {
                    if raw.to.replace(map.next_value_seed(AnyAccounts { max: self.max_to })?).is_some() {
                        raw.repeated = Some("To_Account");
                    }
                }
                Some("CheckType") => {
                    if raw.check_type.replace(map.next_value_seed(AnyValue)?).is_some() {
                        raw.repeated = raw.repeated.or(Some("CheckType"));
                    }
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    raw.has_others = true;
                }
            }
        }
        Ok(raw)
    }
}

/// A value that should be a string.
enum StringOrOther<'a> {
    String(Cow<'a, str>),
    Other,
}

/// A value that should be an array of strings.
enum Accounts<'a> {
    /// `count` strings; `names` has at most the first `max_to`.
    List {
        names: Vec<Cow<'a, str>>,
        count: usize,
    },
    /// The item at this index is not a string.
    Mixed {
        index: usize,
    },
    Other,
}

/// Implements a seed that accepts a value of any type.
macro_rules! any_value {
    ($seed:ty => $value:ty, other: $other:expr, $($rest:item)*) => {
        impl<'a> serde::de::DeserializeSeed<'a> for $seed {
            type Value = $value;
            fn deserialize<D: Deserializer<'a>>(self, json: D) -> Result<$value, D::Error> {
                json.deserialize_any(self)
            }
        }
        impl<'a> Visitor<'a> for $seed {
            type Value = $value;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }
            fn visit_bool<E>(self, _: bool) -> Result<$value, E> {
                Ok($other)
            }
            fn visit_i64<E>(self, _: i64) -> Result<$value, E> {
                Ok($other)
            }
            fn visit_u64<E>(self, _: u64) -> Result<$value, E> {
                Ok($other)
            }
            fn visit_f64<E>(self, _: f64) -> Result<$value, E> {
                Ok($other)
            }
            fn visit_unit<E>(self) -> Result<$value, E> {
                Ok($other)
            }
            fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<$value, M::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok($other)
            }
            $($rest)*
        }
    };
}

/// Reads a string; anything else becomes [`StringOrOther::Other`].
struct AnyValue;

any_value! { AnyValue => StringOrOther<'a>, other: StringOrOther::Other,
    fn visit_borrowed_str<E>(self, text: &'a str) -> Result<StringOrOther<'a>, E> {
        Ok(StringOrOther::String(Cow::Borrowed(text)))
    }
    fn visit_str<E>(self, text: &str) -> Result<StringOrOther<'a>, E> {
        Ok(StringOrOther::String(Cow::Owned(text.to_owned())))
    }
    fn visit_seq<S: SeqAccess<'a>>(self, mut list: S) -> Result<StringOrOther<'a>, S::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(StringOrOther::Other)
    }
}

/// Reads an array of strings and keeps at most `max` of them.
struct AnyAccounts {
    max: usize,
}

any_value! { AnyAccounts => Accounts<'a>, other: Accounts::Other,
    fn visit_str<E>(self, _: &str) -> Result<Accounts<'a>, E> {
        Ok(Accounts::Other)
    }
    fn visit_seq<S: SeqAccess<'a>>(self, mut list: S) -> Result<Accounts<'a>, S::Error> {
        let (mut names, mut count, mut mixed) = (Vec::with_capacity(self.max.min(128)), 0, None);
        loop {
            if count == self.max || mixed.is_some() {
                // Over the limit, or invalid already: only count the rest.
                if list.next_element::<IgnoredAny>()?.is_none() {
                    break;
                }
                count += 1;
                continue;
            }
            match list.next_element_seed(AnyValue)? {
                Some(StringOrOther::String(name)) => names.push(name),
                Some(StringOrOther::Other) => mixed = Some(count),
                None => break,
            }
            count += 1;
        }
        Ok(mixed.map_or(Accounts::List { names, count }, |index| Accounts::Mixed { index }))
    }
}

/// Returns the name of a member without its escapes. `None` for half of a surrogate pair, which JSON allows (RFC 8259
/// section 8.2): it is no text, and so no name that chatgate reads.
fn text_of(name: &RawValue) -> Option<Cow<'_, str>> {
    serde_json::from_str(name.get()).ok().map(|Text(name)| name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{FOLLOW, FRIEND};
    use super::*;

    fn read(body: &str) -> Result<Parsed<'_>, RequestError> {
        FOLLOW.parse_request(body.as_bytes(), 3)
    }

    #[test]
    fn names_are_borrowed_unless_escaped() {
        let body = r#" {"To_Account":["bob","a\u0062c","日本"] , "From_Account":"ann"} "#;
        let Ok(Parsed::Known(request)) = read(body) else { panic!("not a request") };
        assert!(matches!(request.from, Cow::Borrowed("ann")));
        assert!(matches!(request.to[0], Cow::Borrowed("bob")));
        assert_eq!(request.to, ["bob", "abc", "日本"]);
    }

    #[test]
    fn body_with_other_members_is_extended() {
        assert_eq!(read(r#"{"From_Account":"ann","To_Account":["bob"],"X":{"a":[1]}}"#), Ok(Parsed::Extended));
        assert_eq!(read(r#"{"X":1}"#), Ok(Parsed::Extended));
        assert_eq!(read(r#"{"X":1,"From_Account":7}"#), Ok(Parsed::Extended));
        // Half of a surrogate pair is a name, though not one of the command's.
        for name in [r"\ud800", r"From_Account\udc00"] {
            let body = format!(r#"{{"From_Account":"ann","{name}":1,"To_Account":["bob"]}}"#);
            assert_eq!(read(&body), Ok(Parsed::Extended), "{name}");
        }
        let control = "{\"From_Account\":\"ann\",\"a\nb\":1,\"To_Account\":[\"bob\"]}";
        assert!(matches!(read(control), Err(RequestError::NotJson(_))));
    }

    #[test]
    fn check_without_a_known_check_type_is_extended() {
        let read =
            |body: &str| FRIEND.parse_request(body.as_bytes(), 3).map(|parsed| matches!(parsed, Parsed::Known(_)));
        let check_type =
            |value: &str| format!(r#"{{"From_Account":"ann","To_Account":["b\u006fb"],"CheckType":{value}}}"#);
        for known in [r#""CheckResult_Type_Both""#, r#""CheckResult_Type_Sin\u0067le""#] {
            assert_eq!(read(&check_type(known)), Ok(true), "{known}");
        }
        for other in ["\"\"", "\"CheckResult_Type_New\"", "\"BlackCheckResult_Type_Both\"", "7", "null", "[]", "{}"] {
            assert_eq!(read(&check_type(other)), Ok(false), "{other}");
        }
        assert_eq!(read(r#"{"From_Account":"ann","To_Account":["bob"]}"#), Ok(false));
        assert_eq!(read(&check_type(r#""CheckResult_Type_Both","X":1"#)), Ok(false));
        let repeated = check_type(r#""CheckResult_Type_Both","CheckType":"CheckResult_Type_Both""#);
        assert_eq!(read(&repeated), Err(RequestError::Repeated("CheckType")));
        assert_eq!(FOLLOW.parse_request(repeated.as_bytes(), 3), Ok(Parsed::Extended));
        let body = r#"{"To_Account":["bob"],"CheckType":"CheckResult_Type_Both"}"#;
        assert_eq!(read(body), Err(RequestError::Shape("From_Account is missing")));
    }

    #[test]
    fn syntax_errors_and_shape_errors_are_distinguished() {
        let deep = "[".repeat(100_000);
        let deep = format!(r#"{{"X":{deep}"#);
        for body in [
            "",
            "[]",
            "7",
            "null",
            "\"x\"",
            "{",
            r#"{"From_Account":"ann"} x"#,
            "\u{feff}{}",
            r#"{"From_Account":"\ud800"}"#,
            &deep,
        ] {
            assert!(matches!(read(body), Err(RequestError::NotJson(_))), "{:.40}", body);
        }
        assert!(matches!(FOLLOW.parse_request(b"{\"From_Account\":\"\xff\"}", 3), Err(RequestError::NotJson(_))));
        for body in [
            "{}",
            r#"{"From_Account":"ann"}"#,
            r#"{"To_Account":["bob"]}"#,
            r#"{"From_Account":7,"To_Account":["bob"]}"#,
            r#"{"From_Account":["ann"],"To_Account":["bob"]}"#,
            r#"{"From_Account":null,"To_Account":["bob"]}"#,
            r#"{"From_Account":"ann","To_Account":"bob"}"#,
            r#"{"From_Account":"ann","To_Account":{"a":1}}"#,
            r#"{"From_Account":"ann","To_Account":[]}"#,
        ] {
            assert!(matches!(read(body), Err(RequestError::Shape(_))), "{body}");
        }
        for (body, index) in [
            (r#"{"From_Account":"ann","To_Account":["bob",7]}"#, 1),
            (r#"{"From_Account":"ann","To_Account":[["bob"],7]}"#, 0),
            (r#"{"From_Account":"ann","To_Account":["bob","cyd",null,7,7]}"#, 2),
        ] {
            assert_eq!(read(body), Err(RequestError::NotAString(index)), "{body}");
        }
    }

    #[test]
    fn repeated_member_is_rejected_with_any_escapes() {
        for body in [
            r#"{"From_Account":"ann","From_Account":"ann","To_Account":["bob"]}"#,
            r#"{"From_Account":"ann","To_Account":["bob"],"To\u005fAccount":["cyd"]}"#,
            r#"{"From_Account":"ann","To_Account":["bob"],"To_Account":7,"X":1}"#,
        ] {
            assert!(matches!(read(body), Err(RequestError::Repeated(_))), "{body}");
        }
    }

    #[test]
    fn accounts_are_counted_and_checked() {
        assert!(matches!(read(r#"{"From_Account":"ann","To_Account":["a","b","c"]}"#), Ok(Parsed::Known(_))));
        assert_eq!(
            read(r#"{"From_Account":"ann","To_Account":["a","b","c","d","e"]}"#),
            Err(RequestError::TooMany(5, 3))
        );
        assert_eq!(read(r#"{"From_Account":"ann","To_Account":["a",""]}"#), Err(RequestError::To(1, NameError::Empty)));
        assert_eq!(read(r#"{"From_Account":"a\n","To_Account":["a"]}"#), Err(RequestError::From(NameError::Control)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = FOLLOW.parse_request(&body, 3);
        }

        #[test]
        fn valid_request_is_parsed_back(from in "[^\\p{Cc}]{1,8}", to in proptest::collection::vec("[^\\p{Cc}]{1,8}", 1..4)) {
            prop_assume!(check_user_id(&from).is_ok() && to.iter().all(|name| check_user_id(name).is_ok()));
            let body = serde_json::json!({"From_Account": from, "To_Account": to}).to_string();
            let Ok(Parsed::Known(request)) = FOLLOW.parse_request(body.as_bytes(), 3) else { panic!("not a request") };
            prop_assert_eq!(request.from, from);
            prop_assert_eq!(request.to, to);
        }
    }
}
