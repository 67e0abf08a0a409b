//! JSONTestSuite against every reader of callers' JSON: the scanner, the general parsers, and `follow_check`.

#[path = "../support/suites.rs"]
pub(crate) mod suites;

use serde::de::IgnoredAny;

use super::object::{describe, is_too_deep, read};
use super::scan::{integer, is_object};
use crate::domain::relation::FOLLOW;
use crate::domain::relation::request::{Parsed, RequestError};
use suites::json_texts;

/// Returns whether the general parser accepts the text.
fn is_json(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok())
}

#[test]
fn readers_follow_the_suite_for_a_value_of_any_kind() {
    for case in json_texts() {
        let wrapped = [b"{\"X\":", &*case.bytes, b"}"].concat();
        let (kind, name) = (&case.name[..2], &case.name);
        let is_valid = is_json(&wrapped);
        match kind {
            "y_" => assert!(is_valid && !is_too_deep(&wrapped), "{name}"),
            "n_" => assert!(!is_valid, "{name}"),
            _ => {}
        }
        // The scanner may only be stricter, and is not for the texts that are JSON.
        assert!(!is_object(&wrapped) || is_valid, "{name}");
        assert!(kind != "y_" || is_object(&wrapped), "{name}");
        let numbered = [b"{\"n\":7,\"X\":", &*case.bytes, b"}"].concat();
        assert!(kind != "n_" || integer(&numbered, b"n").is_none(), "{name}");
        match FOLLOW.parse_request(&wrapped, 100) {
            Ok(parsed) => assert!(is_valid && parsed == Parsed::Extended, "{name}: {parsed:?}"),
            Err(RequestError::NotJson(problem)) => {
                assert!(kind != "y_", "{name}: {problem}");
                assert!(!problem.is_empty() && problem.len() < 200, "{name}: {problem}");
            }
            Err(other) => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn readers_follow_the_suite_for_a_whole_body() {
    for case in json_texts() {
        let (name, body) = (&case.name, &*case.bytes);
        let is_valid_object = case.name.starts_with("y_") && body.trim_ascii_start().starts_with(b"{");
        if case.name.starts_with("i_") {
            continue;
        }
        assert_eq!(is_object(body), is_valid_object, "{name}");
        assert_eq!(read::<serde_json::Map<String, serde_json::Value>>(body).is_some(), is_valid_object, "{name}");
        assert_eq!(
            matches!(FOLLOW.parse_request(body, 100), Err(RequestError::NotJson(_))),
            !is_valid_object,
            "{name}"
        );
    }
}

#[test]
fn descriptions_do_not_repeat_the_text() {
    for case in json_texts() {
        let Ok(text) = std::str::from_utf8(&case.bytes) else { continue };
        if let Err(error) = serde_json::from_str::<super::object::Object<IgnoredMembers>>(text) {
            let description = describe(&error);
            assert!(description.len() < 200, "{}: {description}", case.name);
            let words = text.split(|character: char| !character.is_alphanumeric());
            for word in words.filter(|word| word.len() > 8) {
                assert!(!description.contains(word), "{}: {description}", case.name);
            }
        }
    }
}

/// An object with any members.
#[derive(Debug, serde::Deserialize)]
struct IgnoredMembers {}
