//! The request log: one line per request, and its permitted contents.

use serde_json::Value;

use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::setup::Setup;

/// Returns the request lines of the log.
fn lines(gateway: &Gateway) -> Vec<Value> {
    let log = gateway.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line.get("outcome").is_some()).collect()
}

async fn line(gateway: &Gateway, outcome: &str) -> Value {
    eventually("the request is logged", async || lines(gateway).into_iter().find(|line| line["outcome"] == outcome))
        .await
}

#[tokio::test]
async fn request_line_reports_the_outcome_without_user_names() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("log", r#"requests = "all""#).start().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request = TestRequest::check("private-ann", &["private-bob"])
        .header("X-Request-Id", "my-id")
        .header("traceparent", trace);
    gateway.send(request.target("/v4/follow/follow_check?usersig=private-sig")).await.items();
    let line = line(&gateway, "ok").await;
    assert_eq!(line["level"], "INFO");
    for (name, value) in [
        ("app", Value::from("main")),
        ("command", "follow/follow_check".into()),
        ("status", 200.into()),
        ("fetched", 1.into()),
        ("hit", 0.into()),
        ("request_id", "my-id".into()),
        ("trace_id", "0af7651916cd43dd8448eb211c80319c".into()),
    ] {
        assert_eq!(line[name], value, "{name} in {line}");
    }
    for number in ["took_us", "waited_us"] {
        assert!(line[number].as_u64().is_some_and(|micros| micros > 0), "{number} in {line}");
    }
    assert!(!gateway.log().contains("private"), "{}", gateway.log());
}

#[tokio::test]
async fn generated_request_id_is_equal_in_log_and_response() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("log", r#"requests = "all""#).start().await;
    let call = || TestRequest::command("openim/querystate");
    let none = gateway.send(call()).await;
    let odd = gateway.send(call().header("X-Request-Id", "two words")).await;
    let twice = gateway.send(call().header("X-Request-Id", "one").header("X-Request-Id", "two")).await;
    for response in [none, odd, twice] {
        let id = response.request_id();
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        eventually("the request is logged", async || {
            lines(&gateway).iter().any(|line| line["request_id"] == id).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn request_line_names_the_authenticated_caller() {
    let (chat, token) = (FakeChat::start().await, "a-token-of-the-feed-0123");
    let setup = Setup::new(&chat).caller("feed", token, "allow = ['*']").set("log", r#"requests = "all""#);
    let gateway = setup.start().await;
    gateway.send(TestRequest::command("openim/sendmsg").body("{}").token(token)).await;
    gateway.call("openim/sendmsg", "{}").await.assert_error(401, "unauthenticated", 129_401);
    assert_eq!(line(&gateway, "ok").await["caller"], "feed");
    assert_ne!(line(&gateway, "unauthenticated").await["caller"], "feed");
    assert!(!gateway.log().contains(token));
}

#[tokio::test]
async fn request_line_reports_relay_attempts_and_rejection_reason() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("log", r#"requests = "all""#).start().await;
    gateway.call("openim/sendmsg", "{}").await;
    gateway.call("openim/sendmsg", "[]").await;
    let relayed = line(&gateway, "ok").await;
    assert_eq!(relayed["attempts"], 1, "{relayed}");
    assert!(relayed["upstream_us"].as_u64().is_some_and(|micros| micros > 0), "{relayed}");
    let rejected = line(&gateway, "bad_json").await;
    assert_eq!((&rejected["status"], &rejected["level"]), (&400.into(), &"INFO".into()), "{rejected}");
    assert!(rejected["message"].as_str().is_some_and(|text| text.contains("JSON object")), "{rejected}");
}

#[tokio::test]
async fn sampling_logs_few_requests_and_off_only_failures() {
    let chat = FakeChat::start().await;
    let sampled = Setup::new(&chat).start().await;
    let mut caller = sampled.connect().await;
    for _ in 0..200 {
        caller.request(&TestRequest::check("ann", &["bob"])).await.items();
    }
    line(&sampled, "ok").await;
    // 200 requests take a few seconds at most.
    assert!(lines(&sampled).len() < 150, "{}", lines(&sampled).len());
    let off = Setup::new(&chat).set("log", r#"requests = "off""#).timeout("200ms").start().await;
    off.check("ann", &["bob"]).await.items();
    chat.reply_always(crate::support::reply::Reply::hang());
    off.check("cyd", &["bob"]).await.assert_error(504, "upstream_timeout", 60008);
    let failure = line(&off, "upstream_timeout").await;
    assert_eq!(failure["level"], "WARN");
    assert_eq!(lines(&off).len(), 1, "{:?}", lines(&off));
}
