//! Bodies that are not a JSON object, or that parsers could read differently.

use std::time::Duration;

use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::eventually;
use crate::support::graph::OK;
use crate::support::now;
use crate::support::reply::Reply;
use crate::support::response::Response;
use crate::support::setup::{Setup, gateway};

const CALL: &str = "openim/querystate";
const CHECK: &str = "follow/follow_check";

#[tokio::test]
async fn body_that_is_not_a_utf8_object_is_rejected() {
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
    assert_eq!(chat.call_count(), 0);
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}

#[tokio::test]
async fn rejection_does_not_repeat_the_body() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("log", r#"requests = "all""#).start().await;
    let (long, name) = ("private-name".repeat(75_000), r#"{"private-name":1}"#);
    let requests = [
        TestRequest::command(CHECK).body(r#""{\"From_Account\":\"private-name\"}""#),
        TestRequest::command(CHECK).body(format!("\"{long}\"")),
        TestRequest::command(CHECK).body("7264591830"),
        TestRequest::command(CALL).body(format!("\"{long}\"")),
    ];
    let assert_plain = |response: Response| {
        response.assert_error(400, "bad_json", 60003);
        let text = response.text();
        assert!(text.len() < 1024 && !text.contains("private") && !text.contains("7264591830"), "{text:.2000}");
    };
    for request in requests {
        assert_plain(gateway.send(request).await);
    }
    for (path, body) in [("/cache/evict", name), ("/cache/evict", r#"{"App":["private-name"]}"#), ("/log", name)] {
        assert_plain(gateway.send_to_admin(TestRequest::post(path).body(body)).await);
    }
    eventually("four requests are logged", async || (gateway.log().matches("\"bad_json\"").count() >= 4).then_some(()))
        .await;
    let log = gateway.log();
    assert!(!log.contains("private") && !log.contains("7264591830"), "{log:.4000}");
    assert_eq!(chat.call_count(), 0);
}

#[tokio::test]
async fn duplicate_members_are_rejected_in_any_spelling() {
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
    assert_eq!(chat.call_count(), 0);
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}

#[tokio::test]
async fn account_counts_within_limits_are_served_and_others_rejected() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", r#"max_body = "16MiB""#).start().await;
    let body = |count: usize| {
        let names: Vec<String> = (0..count).map(|n| format!("\"u{n}\"")).collect();
        format!(r#"{{"From_Account":"a","To_Account":[{}]}}"#, names.join(","))
    };
    for count in [0, 1_001, 1_000_000] {
        let (start, body) = (now(), body(count));
        gateway.call(CHECK, &body).await.assert_error(400, "bad_parameter", 30001);
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }
    assert_eq!(chat.call_count(), 0);
    assert_eq!(gateway.call(CHECK, body(1)).await.items().len(), 1);
    assert_eq!(gateway.call(CHECK, body(1_000)).await.items().len(), 1_000);
    // One pair was cached; the others fill ten calls.
    assert_eq!(chat.call_count(), 11);
    // With the default max_body, a million accounts are too large.
    let default = Setup::new(&chat).start().await;
    default.call(CHECK, body(1_000_000)).await.assert_error(413, "body_too_large", 129_413);
}

#[tokio::test]
async fn invalid_names_are_rejected_and_unread_members_are_relayed() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    // A lone surrogate is not text, and a number beyond the range of floats cannot be stored.
    for (slug, code, bodies) in [
        (
            "bad_json",
            60003,
            vec![
                r#"{"From_Account":"\ud800","To_Account":["b"]}"#,
                r#"{"From_Account":"a","To_Account":["\udc00\ud800"]}"#,
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
    assert_eq!(chat.call_count(), 0);
    // A surrogate pair is one character, and all spellings of a name are equal.
    let to = gateway.call(CHECK, r#"{"From_Account":"a","To_Account":["\ud83d\ude00","\u0062","b"]}"#).await.items();
    let names: Vec<&str> = to.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["\u{1f600}", "b", "b"]);
    // chatgate relays members that it does not read byte for byte.
    for body in [r#"{"x":"\ud800","y":1e999,"x":[-0.0E-0]}"#, r#"{ "x" : 123456789012345678901234567890 }"#] {
        gateway.call(CALL, body).await.assert_relayed(200, OK);
        assert_eq!(chat.last_call().body, body.as_bytes());
    }
    // Half of a surrogate pair is a name of JSON, so this is a further member, which only Chat understands.
    chat.reply_once(Reply::json(OK));
    let body = r#"{"From_Account":"a","To_Account":["b"],"\ud800":1}"#;
    gateway.call(CHECK, body).await.assert_relayed(200, OK);
    assert_eq!(chat.last_call().body, body.as_bytes());
}

#[tokio::test]
async fn body_nests_up_to_128_levels() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    chat.reply_always(Reply::json(OK));
    // The body itself is the first level.
    let deep = |members: &str, levels: usize| {
        format!("{{{members}\"x\":{}{}}}", "[".repeat(levels - 1), "]".repeat(levels - 1)).into_bytes()
    };
    for (command, members) in [(CALL, ""), (CHECK, r#""From_Account":"a","To_Account":["b"],"#)] {
        let body = deep(members, 128);
        gateway.call(command, &body).await.assert_relayed(200, OK);
        assert_eq!(chat.last_call().body, body);
        gateway.call(command, deep(members, 129)).await.assert_error(400, "bad_json", 60003);
    }
    assert_eq!(chat.call_count(), 2);
}

#[tokio::test]
async fn bad_json_names_the_mistake() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    for (body, part) in [
        (&b""[..], "it is empty; send at least {}"),
        (b"\xef\xbb\xbf{}", "it starts with a byte order mark; remove it"),
        (b"From_Account=ann&To_Account=bob", "it looks like a form; send JSON"),
        (b"\"{}\"", "do not encode the object twice"),
        (b"[]", "it is an array; send an object"),
        (b"7", "it does not start with '{'"),
    ] {
        for command in [CALL, CHECK] {
            let response = gateway.call(command, body).await;
            response.assert_error(400, "bad_json", 60003);
            assert!(response.text().contains(part), "{part}: {}", response.text());
        }
    }
    assert_eq!(chat.call_count(), 0);
}
