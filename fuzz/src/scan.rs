//! JSON as read by three readers: our scanner, serde_json, and the simple reader of this crate.
//!
//! Both parsers are asked about every text, so a text that the scanner accepts wrongly would be relayed or believed.

use chatgate::domain::json::object::{DEPTH_MAX, is_too_deep};
use chatgate::domain::json::scan::{integer, is_object};

use super::json::{self, Json};

/// Members whose value is looked for.
const NAMES: [&str; 2] = ["ErrorCode", "n"];

/// Reads the bytes as an object.
pub fn run(body: &[u8]) {
    if json::is_too_long(body) {
        return;
    }
    let accepted = is_object(body);
    assert_eq!(accepted, serde_accepts(body), "serde_json disagrees");
    let object = json::read(body).filter(|json| matches!(json, Json::Object(_)));
    let Some(object) = object else {
        assert!(!accepted, "accepted without being an object");
        assert!(NAMES.iter().all(|name| integer(body, name.as_bytes()).is_none()));
        return;
    };
    // Both readers accept unpaired surrogates in escapes, and numbers that overflow.
    assert_eq!(accepted, object.depth() <= DEPTH_MAX, "the simple reader disagrees");
    for name in NAMES {
        let expected = object.only(name).and_then(Json::whole).filter(|_| accepted);
        match integer(body, name.as_bytes()) {
            Some(found) => assert_eq!(Some(found), expected, "{name}"),
            // With an escape in a name, the scanner leaves the text to the parser.
            None => assert!(expected.is_none() || body.contains(&b'\\'), "{name} is {expected:?}"),
        }
    }
}

/// Returns whether serde_json reads one object in UTF-8, no deeper than the limit.
fn serde_accepts(body: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(body) else { return false };
    let is_json = serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
    is_json && text.trim_ascii_start().starts_with('{') && !is_too_deep(body)
}
