//! Bodies that are no JSON object, or one that could be read in two ways.

use crate::support::chat::FakeChat;
use crate::support::graph::OK;
use crate::support::setup::gateway;

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
