//! What a caller asks with `follow_check`.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::fast_path;
use crate::domain::chat::app::{NameError, check_user_id};

/// A body that chatgate can answer from facts: exactly the two members, both as the vendor wants them.
#[derive(Debug, PartialEq, Eq)]
pub struct CheckRequest<'a> {
    /// From whose side the relations are seen.
    pub from: Cow<'a, str>,
    /// About whom: 1 to `max_to` names in the caller's order, repeats included.
    pub to: Vec<Cow<'a, str>>,
}

/// How a body reads.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// Exactly the two members.
    Known(CheckRequest<'a>),
    /// A JSON object with further members, whose meaning only Chat knows.
    Extended,
}

/// Why a body is no question.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not a JSON object in UTF-8.
    #[error("the body is not a JSON object in UTF-8: {0}")]
    NotJson(String),
    /// One of the two members stands twice.
    #[error("the body has {0} more than once")]
    Repeated(&'static str),
    /// A member is missing or of another type.
    #[error("{0}")]
    Shape(&'static str),
    /// Too many accounts.
    #[error("To_Account has {0} accounts; at most {1} may be asked for at once (follow_check.max_to)")]
    TooMany(usize, usize),
    /// From_Account is no user name.
    #[error("From_Account {0}")]
    From(NameError),
    /// An account is no user name: its index, from 0.
    #[error("To_Account[{0}] {1}")]
    To(usize, NameError),
}

/// Reads a body. Names are borrowed from it wherever they hold no escapes.
pub fn parse(body: &[u8], max_to: usize) -> Result<Parsed<'_>, RequestError> {
    let text = std::str::from_utf8(body).map_err(|error| RequestError::NotJson(error.to_string()))?;
    match fast_path::read(text, max_to) {
        Some(question) => Ok(Parsed::Known(question)),
        None => parse_general(text, max_to),
    }
}

/// Reads a body of any form.
pub(super) fn parse_general(text: &str, max_to: usize) -> Result<Parsed<'_>, RequestError> {
    let mut json = serde_json::Deserializer::from_str(text);
    let raw = json
        .deserialize_any(Members { max_to })
        .and_then(|raw| json.end().map(|()| raw))
        .map_err(|error| RequestError::NotJson(error.to_string()))?;
    raw.judge(max_to)
}

/// The members as they stand, before they are judged: a fault of shape must not hide one of syntax.
#[derive(Default)]
struct Raw<'a> {
    from: Option<Value<'a>>,
    to: Option<Accounts<'a>>,
    repeated: Option<&'static str>,
    further: bool,
}

impl<'a> Raw<'a> {
    fn judge(self, max_to: usize) -> Result<Parsed<'a>, RequestError> {
        if let Some(name) = self.repeated {
            return Err(RequestError::Repeated(name));
        }
        if self.further {
            return Ok(Parsed::Extended);
        }
        let from = match self.from {
            Some(Value::Text(from)) => from,
            Some(Value::Other) => return Err(RequestError::Shape("From_Account must be a string")),
            None => return Err(RequestError::Shape("From_Account is missing")),
        };
        let to = match self.to {
            Some(Accounts::List { names, count }) if count <= max_to => names,
            Some(Accounts::List { count, .. }) => return Err(RequestError::TooMany(count, max_to)),
            Some(Accounts::Mixed) => return Err(RequestError::Shape("To_Account must hold strings only")),
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
        Ok(Parsed::Known(CheckRequest { from, to }))
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
        while let Some(name) = map.next_key_seed(Text)? {
            match name.as_ref() {
                "From_Account" => {
                    if raw.from.replace(map.next_value_seed(AnyValue)?).is_some() {
                        raw.repeated = Some("From_Account");
                    }
                }
                "To_Account" => {
                    if raw.to.replace(map.next_value_seed(AnyAccounts { max: self.max_to })?).is_some() {
                        raw.repeated = Some("To_Account");
                    }
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    raw.further = true;
                }
            }
        }
        Ok(raw)
    }
}

/// A value that should be a string.
enum Value<'a> {
    Text(Cow<'a, str>),
    Other,
}

/// A value that should be an array of strings.
enum Accounts<'a> {
    /// `count` strings, of which at most the first `max_to` are kept.
    List {
        names: Vec<Cow<'a, str>>,
        count: usize,
    },
    Mixed,
    Other,
}

/// Seeds that read a value of any type without failing on its type.
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

/// Reads a string, anything else as [`Value::Other`].
struct AnyValue;

any_value! { AnyValue => Value<'a>, other: Value::Other,
    fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Value<'a>, E> {
        Ok(Value::Text(Cow::Borrowed(text)))
    }
    fn visit_str<E>(self, text: &str) -> Result<Value<'a>, E> {
        Ok(Value::Text(Cow::Owned(text.to_owned())))
    }
    fn visit_seq<S: SeqAccess<'a>>(self, mut list: S) -> Result<Value<'a>, S::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }
}

/// Reads an array of strings, keeping at most `max` of them.
struct AnyAccounts {
    max: usize,
}

any_value! { AnyAccounts => Accounts<'a>, other: Accounts::Other,
    fn visit_str<E>(self, _: &str) -> Result<Accounts<'a>, E> {
        Ok(Accounts::Other)
    }
    fn visit_seq<S: SeqAccess<'a>>(self, mut list: S) -> Result<Accounts<'a>, S::Error> {
        let (mut names, mut count, mut mixed) = (Vec::with_capacity(self.max.min(128)), 0, false);
        loop {
            if count == self.max || mixed {
                // Over the bound, or no question any more: what follows is only counted.
                if list.next_element::<IgnoredAny>()?.is_none() {
                    break;
                }
                count += 1;
                continue;
            }
            match list.next_element_seed(AnyValue)? {
                Some(Value::Text(name)) => names.push(name),
                Some(Value::Other) => mixed = true,
                None => break,
            }
            count += 1;
        }
        Ok(if mixed { Accounts::Mixed } else { Accounts::List { names, count } })
    }
}

/// Reads a member's name; escaped or not, it is the same name.
struct Text;

impl<'a> serde::de::DeserializeSeed<'a> for Text {
    type Value = Cow<'a, str>;

    fn deserialize<D: Deserializer<'a>>(self, json: D) -> Result<Cow<'a, str>, D::Error> {
        json.deserialize_str(self)
    }
}

impl<'a> Visitor<'a> for Text {
    type Value = Cow<'a, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Cow<'a, str>, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Cow<'a, str>, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(body: &str) -> Result<Parsed<'_>, RequestError> {
        super::parse(body.as_bytes(), 3)
    }

    #[test]
    fn names_are_borrowed_unless_they_are_escaped() {
        let body = r#" {"To_Account":["bob","a\u0062c","日本"] , "From_Account":"ann"} "#;
        let Ok(Parsed::Known(question)) = read(body) else { panic!("no question") };
        assert!(matches!(question.from, Cow::Borrowed("ann")));
        assert!(matches!(question.to[0], Cow::Borrowed("bob")));
        assert_eq!(question.to, ["bob", "abc", "日本"]);
    }

    #[test]
    fn further_members_are_left_to_chat() {
        assert_eq!(read(r#"{"From_Account":"ann","To_Account":["bob"],"X":{"a":[1]}}"#), Ok(Parsed::Extended));
        assert_eq!(read(r#"{"X":1}"#), Ok(Parsed::Extended));
        assert_eq!(read(r#"{"X":1,"From_Account":7}"#), Ok(Parsed::Extended));
    }

    #[test]
    fn what_is_not_a_json_object_is_told_from_what_has_a_wrong_member() {
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
        assert!(matches!(super::parse(b"{\"From_Account\":\"\xff\"}", 3), Err(RequestError::NotJson(_))));
        for body in [
            "{}",
            r#"{"From_Account":"ann"}"#,
            r#"{"To_Account":["bob"]}"#,
            r#"{"From_Account":7,"To_Account":["bob"]}"#,
            r#"{"From_Account":["ann"],"To_Account":["bob"]}"#,
            r#"{"From_Account":null,"To_Account":["bob"]}"#,
            r#"{"From_Account":"ann","To_Account":"bob"}"#,
            r#"{"From_Account":"ann","To_Account":{"a":1}}"#,
            r#"{"From_Account":"ann","To_Account":["bob",7]}"#,
            r#"{"From_Account":"ann","To_Account":[["bob"]]}"#,
            r#"{"From_Account":"ann","To_Account":[]}"#,
        ] {
            assert!(matches!(read(body), Err(RequestError::Shape(_))), "{body}");
        }
    }

    #[test]
    fn a_repeated_member_is_refused_however_it_is_spelt() {
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
        fn any_bytes_are_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = super::parse(&body, 3);
        }

        #[test]
        fn what_was_written_is_read(from in "[^\\p{Cc}]{1,8}", to in proptest::collection::vec("[^\\p{Cc}]{1,8}", 1..4)) {
            prop_assume!(check_user_id(&from).is_ok() && to.iter().all(|name| check_user_id(name).is_ok()));
            let body = serde_json::json!({"From_Account": from, "To_Account": to}).to_string();
            let Ok(Parsed::Known(question)) = super::parse(body.as_bytes(), 3) else { panic!("no question") };
            prop_assert_eq!(question.from, from);
            prop_assert_eq!(question.to, to);
        }
    }
}
