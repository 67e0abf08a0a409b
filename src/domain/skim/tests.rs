//! That it agrees with a general reader.

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::domain::envelope::Envelope;
use crate::domain::object::is_too_deep;

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
            for at in (0..len).filter(|at| len < 100 || at % 8 == 0 || len - at < 20 || usize::abs_diff(*at, 192) < 3) {
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
