//! Bodies that are no JSON object, or one that could be read in two ways.

use std::time::Duration;

use crate::support::chat::FakeChat;
use crate::support::graph::OK;
use crate::support::now;
use crate::support::setup::{Setup, gateway};

const CALL: &str = "openim/querystate";
const CHECK: &str = "follow/follow_check";

#[tokio::test]
async fn what_is_no_object_in_utf_8_never_becomes_a_call() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let bodies: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"null".to_vec(),
        b"[]".to_vec(),
        b"7".to_vec(),
        b"{".to_vec(),
        b"{}x".to_vec(),
        b"{}{}".to_vec(),
        b"\xef\xbb\xbf{}".to_vec(),
        b"{\"x\":\"\xff\"}".to_vec(),
        b"{\"x\":\"\xed\xa0\x80\"}".to_vec(),
        b"{'x':1}".to_vec(),
        b"{\"x\":01}".to_vec(),
        b"{\"x\":NaN}".to_vec(),
        b"{\"x\":1,}".to_vec(),
        b"{\"x\":\"a\nb\"}".to_vec(),
        format!("{{\"x\":{}", "[".repeat(100_000)).into_bytes(),
        format!("{{\"x\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000)).into_bytes(),
    ];
    for body in &bodies {
        for command in [CALL, CHECK] {
            gateway.call(command, body).await.assert_error(400, "bad_json", 60003);
        }
    }
    assert_eq!(chat.count(), 0);
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}

#[tokio::test]
async fn a_repeated_member_is_found_however_it_is_written() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    for body in [
        r#"{"From_Account":"a","From_Account":"a","To_Account":["b"]}"#,
        r#"{"From_Account":"a","\u0046rom_Account":"c","To_Account":["b"]}"#,
        r#"{"From_Account":"a","To_Account":["b"],"To_Account":["c"]}"#,
        r#"{"From_Account":"a","To_Account":["b"],"To\u005fAccount":["c"]}"#,
    ] {
        gateway.call(CHECK, body).await.assert_error(400, "bad_json", 60003);
    }
    assert_eq!(chat.count(), 0);
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}

#[tokio::test]
async fn any_count_of_accounts_is_answered_or_refused_within_the_bounds() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", r#"max_body = "16MiB""#).start().await;
    let body = |count: usize| {
        let names: Vec<String> = (0..count).map(|n| format!("\"u{n}\"")).collect();
        format!(r#"{{"From_Account":"a","To_Account":[{}]}}"#, names.join(","))
    };
    for count in [0, 1_001, 1_000_000] {
        let (begun, body) = (now(), body(count));
        gateway.call(CHECK, &body).await.assert_error(400, "bad_parameter", 30001);
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
    assert_eq!(chat.count(), 0);
    assert_eq!(gateway.call(CHECK, body(1)).await.checked().len(), 1);
    assert_eq!(gateway.call(CHECK, body(1_000)).await.checked().len(), 1_000);
    // One pair was known, the others fill ten calls.
    assert_eq!(chat.count(), 11);
    // As it comes, a million accounts do not even fit.
    let default = Setup::new(&chat).start().await;
    default.call(CHECK, body(1_000_000)).await.assert_error(413, "body_too_large", 129_413);
}

#[tokio::test]
async fn what_no_name_can_be_is_refused_and_what_only_chat_understands_is_its_to_judge() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    // Half a surrogate pair is no text, a number beyond all floats is none that can be kept.
    for (slug, code, bodies) in [
        (
            "bad_json",
            60003,
            vec![
                r#"{"From_Account":"\ud800","To_Account":["b"]}"#,
                r#"{"From_Account":"a","To_Account":["\udc00\ud800"]}"#,
                r#"{"From_Account":"a","To_Account":["b"],"\ud800":1}"#,
                r#"{"From_Account":"a","To_Account":["\u00"]}"#,
                r#"{"From_Account":"a","To_Account":["\x41"]}"#,
            ],
        ),
        (
            "bad_parameter",
            30001,
            vec![
                r#"{"From_Account":123456789012345678901234567890,"To_Account":["b"]}"#,
                r#"{"From_Account":"a","To_Account":[1e300]}"#,
                r#"{"From_Account":"a","To_Account":[true]}"#,
                r#"{"From_Account":{"From_Account":"a"},"To_Account":["b"]}"#,
                r#"{"From_Account":"a","To_Account":["\u0085"]}"#,
            ],
        ),
    ] {
        for body in bodies {
            gateway.call(CHECK, body).await.assert_error(400, slug, code);
        }
    }
    assert_eq!(chat.count(), 0);
    // A pair of surrogates is one character, and every spelling of a name is the same name.
    let to = gateway.call(CHECK, r#"{"From_Account":"a","To_Account":["\ud83d\ude00","\u0062","b"]}"#).await.checked();
    let names: Vec<&str> = to.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["\u{1f600}", "b", "b"]);
    // In members that chatgate does not read these stay what they are, to the byte.
    for body in [r#"{"x":"\ud800","y":1e999,"x":[-0.0E-0]}"#, r#"{ "x" : 123456789012345678901234567890 }"#] {
        gateway.call(CALL, body).await.assert_relayed(200, OK);
        assert_eq!(chat.last().body, body.as_bytes());
    }
}
