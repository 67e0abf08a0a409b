//! The members of every response from Chat: `ActionStatus`, `ErrorCode`, `ErrorInfo`.
//!
//! The HTTP status is 200 for failed calls too, so only these members show whether a call succeeded (vendor page
//! "RESTful API Overview", 1047/34620).

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::domain::json::scan;

/// The outer members of a response, borrowed from its bytes unless they contain escapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// 0 is success.
    pub error_code: i64,
    /// `"OK"` or `"FAIL"`. The vendor's samples always have it, but only the code is decisive.
    pub action_status: Option<Cow<'a, str>>,
    /// The error text; often absent or empty on success.
    pub error_info: Option<Cow<'a, str>>,
}

/// The bytes are not a response of Chat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a JSON object in UTF-8 with one integer ErrorCode")]
pub struct NotAnEnvelope;

impl<'a> Envelope<'a> {
    /// Parses a response: one JSON object in UTF-8 with nothing after it, and with exactly one `ErrorCode`, an integer of
    /// 64 bits.
    ///
    /// Other members are ignored, with any content and nesting depth: Chat may add members at any time (vendor page
    /// 679/131707). An `ActionStatus` or `ErrorInfo` that is not a string counts as absent.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, NotAnEnvelope> {
        // The parser does not check the members that it skips.
        let text = std::str::from_utf8(bytes).map_err(|_| NotAnEnvelope)?;
        let mut parser = serde_json::Deserializer::from_str(text);
        let envelope = parser.deserialize_map(Members).map_err(|_| NotAnEnvelope)?;
        parser.end().map_err(|_| NotAnEnvelope)?;
        Ok(envelope)
    }

    /// Returns only the code, which is all that most responses need.
    ///
    /// # Errors
    /// As [`Envelope::parse`].
    pub fn error_code(bytes: &[u8]) -> Result<i64, NotAnEnvelope> {
        match scan::integer(bytes, b"ErrorCode") {
            Some(code) => Ok(code),
            None => Envelope::parse(bytes).map(|envelope| envelope.error_code),
        }
    }

    /// Returns whether the call as a whole succeeded. Individual items of a batch may still have failed.
    pub fn is_ok(&self) -> bool {
        self.error_code == 0
    }
}

/// Writes a response that has only these members: `OK` for code 0, else `FAIL`.
pub fn write(code: i64, info: &str) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Response<'a> {
        action_status: &'static str,
        error_code: i64,
        error_info: &'a str,
        error_display: &'static str,
    }
    let action_status = if code == 0 { "OK" } else { "FAIL" };
    let response = Response { action_status, error_code: code, error_info: info, error_display: "" };
    serde_json::to_vec(&response).expect("strings and numbers always serialize")
}

/// Accepts only an object: a derived implementation would also accept an array of the right length.
struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Envelope<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Envelope<'de>, A::Error> {
        let (mut error_code, mut action_status, mut error_info) = (None, None, None);
        while let Some(name) = members.next_key::<Name>()? {
            match name {
                Name::ErrorCode if error_code.is_some() => return Err(de::Error::duplicate_field("ErrorCode")),
                Name::ErrorCode => error_code = Some(members.next_value::<i64>()?),
                Name::ActionStatus => action_status = text(members.next_value()?),
                Name::ErrorInfo => error_info = text(members.next_value()?),
                Name::Other => {
                    members.next_value::<de::IgnoredAny>()?;
                }
            }
        }
        let error_code = error_code.ok_or_else(|| de::Error::missing_field("ErrorCode"))?;
        Ok(Envelope { error_code, action_status, error_info })
    }
}

#[derive(Deserialize)]
#[serde(field_identifier)]
enum Name {
    ErrorCode,
    ActionStatus,
    ErrorInfo,
    #[serde(other)]
    Other,
}

fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    serde_json::from_str::<Text<'_>>(value.get()).ok().map(|Text(text)| text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads the code in both ways, which must agree.
    fn code(text: &str) -> Result<i64, NotAnEnvelope> {
        let code = Envelope::parse(text.as_bytes()).map(|envelope| envelope.error_code);
        assert_eq!(Envelope::error_code(text.as_bytes()), code, "{text}");
        code
    }

    #[test]
    fn vendor_samples_are_parsed() {
        let bytes = br#"{"ResultItem":[{"To_Account":"bob","ResultCode":0}],"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":"","ErrorDisplay":""}"#;
        let envelope = Envelope::parse(bytes).unwrap();
        assert!(envelope.is_ok());
        assert!(matches!(envelope.action_status, Some(Cow::Borrowed("OK"))));
        assert_eq!(envelope.error_info.as_deref(), Some(""));
        assert_eq!(code(r#"{"ActionStatus":"OK","ErrorCode":0}"#), Ok(0));
        assert_eq!(code(" {\"ErrorCode\" : -5}\r\n"), Ok(-5));
        assert_eq!(code(r#"{"ErrorCode":9223372036854775807}"#), Ok(i64::MAX));
        let envelope = Envelope::parse(br#"{"ErrorInfo":"a\"b","ErrorCode":70001,"ActionStatus":null}"#).unwrap();
        assert_eq!(envelope.error_info.as_deref(), Some("a\"b"));
        assert_eq!((envelope.action_status, envelope.error_code), (None, 70001));
        assert_eq!(code(r#"{"ErrorInfo":{"why":1},"ErrorCode":1}"#), Ok(1));
    }

    #[test]
    fn malformed_responses_are_rejected() {
        for text in [
            "",
            "null",
            "0",
            "\"ErrorCode\"",
            "[0]",
            r#"["OK",0,""]"#,
            "{}",
            r#"{"ErrorCode":"0"}"#,
            r#"{"ErrorCode":0.0}"#,
            r#"{"ErrorCode":0e0}"#,
            r#"{"ErrorCode":-0}"#,
            r#"{"ErrorCode":[0]}"#,
            r#"{"a":{"ErrorCode":0}}"#,
            r#"{"ErrorCode":{"ErrorCode":0}}"#,
            r#"{"ErrorCode":null}"#,
            r#"{"ErrorCode":9223372036854775808}"#,
            r#"{"errorcode":0}"#,
            r#"{"ErrorCode":0,"ErrorCode":0}"#,
            r#"{"ErrorCode":0,"Error\u0043ode":1}"#,
            r#"{"ErrorCode":0"#,
            r#"{"ErrorCode":0,}"#,
            r#"{"ErrorCode":0} x"#,
            r#"{"ErrorCode":0}{"ErrorCode":0}"#,
            r#"{"ErrorCode":0,"a":[}"#,
            r#"{"ErrorCode":0,"a":01}"#,
            r#"{"ErrorCode":0,"a":"\x"}"#,
            "{\"ErrorCode\":0,\"a\":\"\n\"}",
            "\u{feff}{\"ErrorCode\":0}",
            "<html><body>502 Bad Gateway</body></html>",
        ] {
            assert_eq!(code(text), Err(NotAnEnvelope), "{text}");
        }
        assert_eq!(Envelope::parse(b"{\"ErrorCode\":0,\"a\":\"\xff\"}"), Err(NotAnEnvelope));
    }

    #[test]
    fn deep_nesting_does_not_overflow_the_stack() {
        let deep = format!(r#"{{"a":{}{},"ErrorCode":3}}"#, "[".repeat(1_000_000), "]".repeat(1_000_000));
        assert_eq!(code(&deep), Ok(3));
        let deep = format!(r#"{{"ErrorInfo":{}{},"ErrorCode":3}}"#, "[".repeat(1_000_000), "]".repeat(1_000_000));
        assert_eq!(code(&deep), Ok(3));
        assert_eq!(code(&format!(r#"{{"ErrorCode":3,"a":{}"#, "[".repeat(1_000_000))), Err(NotAnEnvelope));
    }

    #[test]
    fn written_response_has_the_vendors_members_in_order() {
        let fail = write(60003, "chatgate: not JSON");
        let expected =
            r#"{"ActionStatus":"FAIL","ErrorCode":60003,"ErrorInfo":"chatgate: not JSON","ErrorDisplay":""}"#;
        assert_eq!(String::from_utf8(fail).unwrap(), expected);
        assert!(write(0, "").starts_with(br#"{"ActionStatus":"OK","ErrorCode":0,"#));
    }

    proptest! {
        #[test]
        fn written_response_is_parsed_back(number in any::<i64>(), info in any::<String>()) {
            let bytes = write(number, &info);
            let envelope = Envelope::parse(&bytes).unwrap();
            prop_assert_eq!(envelope.error_code, number);
            prop_assert_eq!(envelope.error_info.as_deref(), Some(info.as_str()));
            prop_assert_eq!(envelope.action_status.as_deref(), Some(if number == 0 { "OK" } else { "FAIL" }));
            for end in 0..bytes.len() {
                prop_assert_eq!(Envelope::parse(&bytes[..end]), Err(NotAnEnvelope));
            }
        }

        #[test]
        fn code_agrees_with_a_full_parse(text in r#"[{\["ErrorCode:0-9.,\]} ]{0,40}"#) {
            let whole = serde_json::from_str::<serde_json::Value>(&text).ok();
            let expected = whole.as_ref().and_then(|value| value.as_object()?.get("ErrorCode")?.as_i64());
            if let Ok(found) = code(&text) {
                prop_assert_eq!(Some(found), expected);
            }
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let parsed = Envelope::parse(&bytes).map(|envelope| envelope.error_code);
            prop_assert_eq!(Envelope::error_code(&bytes), parsed);
        }
    }
}
