//! The scanner must agree with the general parser.

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::domain::json::object::is_too_deep;

/// The same check with the general parser.
fn is_object_in_full(json: &[u8]) -> bool {
    let text = std::str::from_utf8(json).ok();
    let starts_well = json.trim_ascii_start().starts_with(b"{");
    let is_json = text.is_some_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok());
    is_json && starts_well && !is_too_deep(json)
}

#[test]
fn plain_prefix_ends_at_any_other_byte() {
    for byte in 0..=u8::MAX {
        let plain = (b' '..=b'~').contains(&byte) && byte != b'"' && byte != b'\\';
        for len in (1..20).chain([63, 64, 65, 71, 72, 73, 191, 192, 193, 448, 449, 600]) {
            // Not every position of the long texts.
            for at in (0..len).filter(|at| len < 100 || at % 8 == 0 || len - at < 20 || usize::abs_diff(*at, 192) < 3) {
                let mut text = vec![b'!'; len];
                text[at] = byte;
                assert_eq!(plain_len(&text), if plain { len } else { at }, "{byte:#x} at {at} of {len}");
            }
        }
    }
}

#[test]
fn objects_of_every_kind_are_accepted() {
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
fn other_texts_are_rejected() {
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
    assert!(!is_object(b"{\"a\":\"\xed\xa0\x80\"}"), "half of a surrogate pair");
}

#[test]
fn integer_is_found_only_in_the_outermost_object() {
    let found = |json: &str| integer(json.as_bytes(), b"n");
    for (json, value) in [
        (r#"{"n":0}"#, 0),
        (" { \"n\" : -12 , \"m\" : 1 } ", -12),
        (r#"{"a":{"n":1},"b":[{"n":2}],"n":3,"c":"n"}"#, 3),
        (r#"{"a":[[],{}],"nn":1,"n":9223372036854775807}"#, i64::MAX),
        (r#"{"a":"\"n\":5","é":"日","n":4}"#, 4),
    ] {
        assert_eq!(found(json), Some(value), "{json}");
    }
    for json in [
        "{}",
        r#"{"a":{"n":1}}"#,
        r#"[{"n":1}]"#,
        r#"{"n":1,"n":1}"#,
        r#"{"n":1,"\u006e":1}"#,
        r#"{"n":1.0}"#,
        r#"{"n":1e1}"#,
        r#"{"n":-0}"#,
        r#"{"n":"1"}"#,
        r#"{"n":[1]}"#,
        r#"{"n":9223372036854775808}"#,
        r#"{"n":1}}"#,
        r#"{"n":1"#,
    ] {
        assert_eq!(found(json), None, "{json}");
    }
    assert_eq!(integer(b"{\"n\":1,\"a\":\"\xff\"}", b"n"), None);
}

/// Returns the member `n` with the general parser, which rejects repeats.
fn integer_in_full(json: &[u8]) -> Option<i64> {
    #[derive(serde::Deserialize)]
    struct Wanted {
        n: i64,
    }
    let wanted = serde_json::from_slice::<Wanted>(json).ok().filter(|_| is_object_in_full(json));
    wanted.map(|wanted| wanted.n)
}

/// Returns documents with one byte changed or none.
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
            proptest::collection::hash_map(".{0,6}", inner, 0..4)
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
    fn scanner_agrees_with_the_general_parser(json in documents()) {
        prop_assert_eq!(is_object(&json), is_object_in_full(&json));
    }

    #[test]
    fn integer_is_found_among_other_members(json in documents(), number in any::<i64>(), last in any::<bool>()) {
        let text = String::from_utf8_lossy(&json);
        let whole = match (text.trim_ascii(), last) {
            (other, true) => format!("{{\"x\": {other}, \"n\" :{number} }}"),
            (other, false) => format!("{{\"n\":{number},\"x\":{other}}}"),
        };
        let (found, expected) = (integer(whole.as_bytes(), b"n"), integer_in_full(whole.as_bytes()));
        // With a byte changed, `x` may end early, so that a later name belongs to the outermost object.
        prop_assert!(found == expected || (found.is_none() && whole.contains('\\')), "{:?} and {:?}", found, expected);
    }

    #[test]
    fn found_integer_is_in_the_document(
        json in r#"\{("[na\\]":(1|-2|0\.5|"n"|\[1\]|\{"n":1\}),?){0,4}\}"#,
        spaced in any::<bool>(),
    ) {
        let json = if spaced { json.replace(':', " :\n").replace(',', "\t, ") } else { json };
        let (found, expected) = (integer(json.as_bytes(), b"n"), integer_in_full(json.as_bytes()));
        prop_assert!(found == expected || (found.is_none() && json.contains('\\')), "{:?} and {:?}", found, expected);
    }

    #[test]
    fn scanner_agrees_about_malformed_json(json in r#"\{"[\[\]\{\}",:\\u0aeE.+ \-1tfn]{0,24}"#) {
        prop_assert_eq!(is_object(json.as_bytes()), is_object_in_full(json.as_bytes()));
    }
}
