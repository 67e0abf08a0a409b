//! Tests of the test support: a fake that misses violations, or a client that misreads, would prove nothing.

use std::io::Write;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::app::{self, TestApp};
use super::chat::{FakeChat, violations};
use super::client::{Conn, TestRequest, check_body};
use super::reply::{Gate, Reply};
use super::wire::Call;
use super::{unix_now, within};

/// Creates a valid signature without the program's code.
fn sign(app: TestApp) -> String {
    let (TestApp { sdkappid, identifier, key, .. }, now) = (app, unix_now());
    let signed = format!("TLS.identifier:{identifier}\nTLS.sdkappid:{sdkappid}\nTLS.time:{now}\nTLS.expire:60\n");
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()), signed.as_bytes());
    let document = serde_json::json!({
        "TLS.ver": "2.0", "TLS.identifier": identifier, "TLS.sdkappid": sdkappid, "TLS.expire": 60,
        "TLS.time": now, "TLS.sig": STANDARD.encode(tag),
    });
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    zlib.write_all(document.to_string().as_bytes()).expect("memory");
    STANDARD.encode(zlib.finish().expect("memory")).replace('+', "*").replace('/', "-").replace('=', "_")
}

fn signed(chat: &FakeChat, command: &str, body: &str) -> TestRequest {
    let (app, sig) = (app::MAIN, sign(app::MAIN));
    let query =
        format!("sdkappid={}&identifier={}&usersig={sig}&random=1&contenttype=json", app.sdkappid, app.identifier);
    let request = TestRequest::post(&format!("/v4/{command}?{query}")).host(&chat.address().to_string());
    request.header("Content-Type", "application/json").body(body)
}

async fn connect(chat: &FakeChat) -> Conn {
    Conn::open(&chat.address().to_string()).await.expect("accepted")
}

#[tokio::test]
async fn fake_chat_answers_from_its_graph_and_its_script() {
    let chat = FakeChat::start().await;
    chat.follow("ann", "bob");
    let check = signed(&chat, "follow/follow_check", &check_body("ann", &["bob", "cyd"]));
    let mut conn = connect(&chat).await;
    assert_eq!(conn.request(&check).await.follow_types(), [2, 0]);
    let gate = Gate::closed();
    chat.reply_once(Reply::json("{}").after(&gate));
    conn.send(check.bytes()).await;
    chat.wait_for_calls(2).await;
    gate.open();
    assert_eq!(conn.read_response().await.text(), "{}");
    let add = signed(&chat, "follow/follow_add", r#"{"From_Account":"cyd","FollowItem":[{"To_Account":"ann"}]}"#);
    conn.request(&add).await;
    assert_eq!(conn.request(&check).await.follow_types(), [2, 1]);
    for (count, reply) in [Reply::reset(), Reply::bytes("HTTP/1.1 200 OK\r\n"), Reply::hang()].into_iter().enumerate() {
        chat.reply_once(reply);
        let mut conn = connect(&chat).await;
        conn.send(check.bytes()).await;
        chat.wait_for_calls(count + 5).await;
        chat.drop_connections();
        assert!(conn.try_read_response().await.is_none());
    }
    assert_eq!(chat.call_count(), 7);
}

#[tokio::test]
async fn fake_chat_reports_a_request_with_two_framings() {
    let chat = FakeChat::start().await;
    let mut conn = connect(&chat).await;
    let twice = signed(&chat, "a/b", "{}").header("Content-Length", "2").header("Transfer-Encoding", "chunked");
    conn.send(twice.bytes()).await;
    within(super::PATIENCE, "a reset", conn.read_to_end()).await;
    assert_eq!(chat.violations(), ["has a Transfer-Encoding"]);
    assert_eq!(chat.call_count(), 0);
    chat.clear_violations();
}

#[test]
fn fake_chat_reports_each_contract_violation() {
    let query = format!("sdkappid={}&identifier=administrator&usersig=x&random=7&contenttype=json", app::MAIN.sdkappid);
    let call = |target: &str, headers: &[(&str, &str)]| Call {
        connection: 0,
        at: super::now(),
        method: "POST".into(),
        target: target.into(),
        headers: headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        body: b"{}".to_vec(),
    };
    let valid = [("Host", "chat"), ("content-type", "application/json"), ("content-length", "2")];
    let target = format!("/v4/a/b?{query}");
    let found = |call: Call| violations(&call, "chat", &[]).join("; ");
    assert_eq!(found(call(&target, &valid)), "usersig is not base64");
    for (target, headers, violation) in [
        (target.replace("/v4/a/b", "/v4/a/b/c"), &valid[..], "path is not"),
        (target.replace("random=7", "random=-7"), &valid[..], "random is not"),
        (target.replace("random=7", "random=7&random=8"), &valid[..], "query parameters"),
        (target.replace("json", "xml"), &valid[..], "contenttype"),
        (target.clone(), &[valid[0], valid[1], ("Cookie", "x")][..], "header cookie"),
        (target.clone(), &[valid[0], valid[1], ("HOST", "chat")][..], "repeated header"),
        (target.clone(), &[("Host", "localhost"), valid[1]][..], "Host is not"),
    ] {
        let found = found(call(&target, headers));
        assert!(found.contains(violation), "{violation}: {found}");
    }
}
