//! Rejections by the gateway: status, slug, code and format of each, and no call to Chat.

use crate::support::app::{MAIN, OTHER};
use crate::support::chat::FakeChat;
use crate::support::client::{TestRequest, check_body};
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::response::Response;
use crate::support::setup::{Setup, gateway};

/// Asserts that no rejected request reached Chat, and that a valid request still does.
async fn still_works(gateway: &Gateway, chat: &FakeChat, calls_before: usize) {
    assert_eq!(chat.call_count(), calls_before, "a rejected request reached Chat: {:?}", chat.calls());
    gateway.call("openim/querystate", "{}").await.assert_relayed(200, OK);
    assert_eq!(chat.call_count(), calls_before + 1);
}

/// Sends each request on its own connection, and asserts that it is rejected with this error and causes no call.
async fn all_rejected(
    chat: &FakeChat,
    gateway: &Gateway,
    requests: Vec<TestRequest>,
    (status, slug, code): (u16, &str, i64),
) -> Vec<Response> {
    let before = chat.call_count();
    let mut responses = Vec::new();
    for request in requests {
        let bytes = request.bytes();
        eprintln!("{}", String::from_utf8_lossy(&bytes[..bytes.len().min(300)]));
        let response = gateway.send(request).await;
        response.assert_error(status, slug, code);
        responses.push(response);
    }
    still_works(gateway, chat, before).await;
    responses
}

const BAD_JSON: (u16, &str, i64) = (400, "bad_json", 60003);
const BAD_PARAMETER: (u16, &str, i64) = (400, "bad_parameter", 30001);
const FORBIDDEN: (u16, &str, i64) = (403, "forbidden", 129_403);
const NOT_FOUND: (u16, &str, i64) = (404, "not_found", 60009);

#[tokio::test]
async fn body_must_be_a_json_object_in_utf8() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let bodies: [&[u8]; 16] = [
        b"",
        b" ",
        b"null",
        b"[]",
        b"\"text\"",
        b"1",
        b"{",
        b"{}x",
        b"{} {}",
        b"{\"a\":}",
        b"{'a':1}",
        b"{\"a\":1,}",
        b"\xef\xbb\xbf{}",
        b"{\"a\":\"\xff\"}",
        b"{\"a\":\"\xed\xa0\x80\"}",
        b"{\"a\":\"line\nfeed\"}",
    ];
    for command in ["openim/querystate", "follow/follow_check", "follow/follow_add"] {
        let requests = bodies.iter().map(|body| TestRequest::command(command).body(body)).collect();
        all_rejected(&chat, &gateway, requests, BAD_JSON).await;
    }
}

#[tokio::test]
async fn repeated_members_are_rejected_in_every_spelling() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let bodies = [
        r#"{"From_Account":"a","From_Account":"a","To_Account":["b"]}"#,
        r#"{"From_Account":"a","To_Account":["b"],"From\u005fAccount":"c"}"#,
        r#"{"From_Account":"a","To_Account":["b"],"\u0054o_Account":["c"]}"#,
        r#"{"To_Account":["b"],"To_Account":["b"],"From_Account":"a"}"#,
    ];
    let requests = bodies.map(|body| TestRequest::command("follow/follow_check").body(body)).into();
    all_rejected(&chat, &gateway, requests, BAD_JSON).await;
}

#[tokio::test]
async fn deep_nesting_is_rejected_or_relayed_without_a_crash() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for (command, member) in
        [("follow/follow_check", "From_Account"), ("follow/follow_add", "FollowItem"), ("openim/querystate", "x")]
    {
        let response = gateway.call(command, format!(r#"{{"{member}":{deep}}}"#)).await;
        if response.slug().is_some() {
            assert_eq!(response.status, 400, "{response:?}");
        } else {
            response.assert_relayed(200, chat_response(command));
            assert_ne!(command, "follow/follow_check");
        }
    }
    gateway.call("openim/querystate", "{}").await.assert_relayed(200, OK);
}

fn chat_response(command: &str) -> String {
    match command {
        "follow/follow_add" => crate::support::graph::Graph::default().respond(MAIN.sdkappid, command, b"{}"),
        _ => OK.to_owned(),
    }
}

#[tokio::test]
async fn invalid_follow_check_fields_are_rejected() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("relation", "max_to = 150").start().await;
    let too_many: Vec<String> = (0..151).map(|n| format!("u{n}")).collect();
    let repeated = vec!["same".to_owned(); 151];
    let long = "x".repeat(33);
    let wide = "日".repeat(11);
    let mut bodies: Vec<String> = [
        r#"{}"#,
        r#"{"From_Account":"a"}"#,
        r#"{"To_Account":["b"]}"#,
        r#"{"From_Account":"a","To_Account":[]}"#,
        r#"{"From_Account":"a","To_Account":"b"}"#,
        r#"{"From_Account":"a","To_Account":null}"#,
        r#"{"From_Account":"a","To_Account":{}}"#,
        r#"{"From_Account":"a","To_Account":["b",1]}"#,
        r#"{"From_Account":"a","To_Account":["b",null]}"#,
        r#"{"From_Account":"a","To_Account":[["b"]]}"#,
        r#"{"From_Account":1,"To_Account":["b"]}"#,
        r#"{"From_Account":null,"To_Account":["b"]}"#,
        r#"{"From_Account":["a"],"To_Account":["b"]}"#,
        r#"{"From_Account":"","To_Account":["b"]}"#,
        r#"{"From_Account":"a","To_Account":[""]}"#,
        r#"{"From_Account":"a\n","To_Account":["b"]}"#,
        r#"{"From_Account":"a","To_Account":["b","c\u0000"]}"#,
        r#"{"From_Account":"a","To_Account":["\u007f"]}"#,
    ]
    .map(String::from)
    .into();
    bodies.push(check_body(&long, &["b"]));
    bodies.push(check_body("a", &["b", long.as_str()]));
    bodies.push(check_body("a", &[wide.as_str()]));
    bodies.push(check_body("a", &too_many));
    bodies.push(check_body("a", &repeated));
    let requests = bodies.iter().map(|body| TestRequest::command("follow/follow_check").body(body)).collect();
    all_rejected(&chat, &gateway, requests, BAD_PARAMETER).await;
}

#[tokio::test]
async fn unknown_query_parameters_are_rejected() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let queries =
        ["x=1", "x", "debug=", "sdk_appid=1", "random=1&y=2", "usersig2=a", "%75sersig2=a", "callback=f", "=", "=1"];
    let requests = queries.iter().map(|query| TestRequest::post(&format!("/v4/openim/querystate?{query}"))).collect();
    all_rejected(&chat, &gateway, requests, BAD_PARAMETER).await;
}

#[tokio::test]
async fn browser_requests_are_rejected() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let request = || TestRequest::command("openim/querystate");
    let requests = vec![
        request().header("Origin", "https://evil.example"),
        request().header("Origin", "null"),
        request().header("Origin", "http://localhost"),
        request().header("ORIGIN", ""),
        request().header("Sec-Fetch-Site", "cross-site"),
        request().header("Sec-Fetch-Site", "same-origin"),
        request().header("Sec-Fetch-Site", "none"),
    ];
    for response in all_rejected(&chat, &gateway, requests, FORBIDDEN).await {
        assert!(response.headers.iter().all(|(name, _)| !name.starts_with("access-control-")), "{response:?}");
    }
}

#[tokio::test]
async fn foreign_host_headers_are_rejected_unless_listed() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", r#"hosts = ["chat.internal"]"#).start().await;
    let request = |host: &str| TestRequest::command("openim/querystate").host(host);
    let foreign = [
        "evil.example",
        "localhost.evil.example",
        "evil-localhost",
        "127.0.0.1.evil.example",
        "127.0.0.2.nip.io",
        "chat.internal.evil.example",
        "xchat.internal",
        "192.0.2.1",
        "[2001:db8::1]",
        "169.254.169.254",
    ];
    all_rejected(&chat, &gateway, foreign.map(request).into(), FORBIDDEN).await;
    let address = gateway.address().to_owned();
    for own in [
        "localhost",
        "LOCALHOST:1234",
        "127.0.0.1",
        "[::1]:80",
        "chat.internal",
        "Chat.Internal:8700",
        address.as_str(),
    ] {
        gateway.send(request(own)).await.assert_relayed(200, OK);
    }
}

#[tokio::test]
async fn commands_outside_the_allow_list_are_rejected() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("access", r#"allow = ["follow/follow_check", "openim/*"]"#).start().await;
    let disallowed = [
        "follow/follow_add",
        "follow/follow_delete",
        "im_open_login_svc/account_delete",
        "profile/portrait_get",
        "Follow/follow_check",
        "openim2/querystate",
        "openimX/y",
        "follow/follow_check2",
    ];
    all_rejected(&chat, &gateway, disallowed.map(TestRequest::command).into(), FORBIDDEN).await;
    gateway.check("a", &["b"]).await.items();
    gateway.call("openim/anything_at_all", "{}").await.assert_relayed(200, OK);
}

#[tokio::test]
async fn default_allow_list_permits_only_follow_check() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).unset("access", "allow").start().await;
    gateway.check("a", &["b"]).await.items();
    let before = chat.call_count();
    for command in ["follow/follow_add", "openim/querystate", "im_open_login_svc/account_check"] {
        gateway.send(TestRequest::command(command)).await.assert_error(403, "forbidden", 129_403);
    }
    assert_eq!(chat.call_count(), before);
}

#[tokio::test]
async fn require_header_rejects_requests_without_the_chatgate_header() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("access", "require_header = true").start().await;
    let request = || TestRequest::command("openim/querystate");
    for rejected in [
        request(),
        request().header("Chatgate", "0"),
        request().header("Chatgate", ""),
        request().header("Chatgate-App", "main"),
        request().header("Chatgate", "1").header("Chatgate", "0"),
    ] {
        gateway.send(rejected).await.assert_error(403, "forbidden", 129_403);
    }
    assert_eq!(chat.call_count(), 0);
    gateway.send(request().header("Chatgate", "1")).await.assert_relayed(200, OK);
}

#[tokio::test]
async fn path_must_match_a_command_exactly() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let long_service = format!("/v4/{}/x", "a".repeat(65));
    let long_command = format!("/v4/x/{}", "a".repeat(65));
    let paths = [
        "/",
        "/v4",
        "/v4/",
        "/v4/openim",
        "/v4/openim/",
        "/v4//querystate",
        "//v4/openim/querystate",
        "/v4/openim//querystate",
        "/v4/openim/querystate/",
        "/v4/openim/querystate/x",
        "/v4/./openim/querystate",
        "/v4/openim/../openim/querystate",
        "/../v4/openim/querystate",
        "/v4/openim/%71uerystate",
        "/v4/openim/query%2Fstate",
        "/v4%2fopenim/querystate",
        "/v4/openim/%2e%2e/querystate",
        "/v4/openim/querystate%00",
        "/v4/openim/querystate%zz",
        "/v4/openim/querystate;x=1",
        "/v4/openim/query.state",
        "/v4/openim/query-state",
        "/V4/openim/querystate",
        "/v3/openim/querystate",
        "/v40/openim/querystate",
        "/x/v4/openim/querystate",
        "/apps",
        "/apps/main",
        "/apps/main/",
        "/apps/main/v4/openim",
        "/apps//v4/openim/querystate",
        "/apps/main/v4/openim/querystate/",
        "/apps/main/apps/main/v4/openim/querystate",
        "/apps/ma%69n/v4/openim/querystate",
        "/livez",
        "/status",
        "/__sandbox/journal",
        "/v4/openim/*",
        "/v4/openim\\querystate",
        "/v4\\openim/querystate",
        &long_service,
        &long_command,
    ];
    all_rejected(&chat, &gateway, paths.map(TestRequest::post).into(), NOT_FOUND).await;
}

#[tokio::test]
async fn unconfigured_app_is_rejected() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let requests = vec![
        TestRequest::post("/apps/other/v4/openim/querystate"),
        TestRequest::post("/apps/main2/v4/openim/querystate"),
        TestRequest::command("openim/querystate").header("Chatgate-App", "other"),
        TestRequest::command("openim/querystate").header("Chatgate-App", ""),
        TestRequest::post("/v4/openim/querystate?sdkappid=1400000002"),
        TestRequest::post("/v4/openim/querystate?sdkappid=0"),
        TestRequest::post("/v4/openim/querystate?sdkappid="),
    ];
    all_rejected(&chat, &gateway, requests, (404, "unknown_app", 129_404)).await;
}

#[tokio::test]
async fn methods_other_than_post_are_rejected_with_allow_header() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let methods = ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "POSTX", "post", "PROPFIND"];
    let requests = methods.map(|method| TestRequest::new(method, "/v4/openim/querystate").body("{}")).into();
    for response in all_rejected(&chat, &gateway, requests, (405, "method_not_allowed", 60002)).await {
        assert_eq!(response.header("allow"), Some("POST"));
    }
    let head = gateway.send(TestRequest::new("HEAD", "/v4/openim/querystate")).await;
    assert_eq!((head.status, head.slug(), head.header("allow")), (405, Some("method_not_allowed"), Some("POST")));
    assert!(chat.call_count() == 1, "only the valid request after them");
}

#[tokio::test]
async fn encoded_body_is_rejected() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let request = |coding: &str| TestRequest::command("openim/querystate").header("Content-Encoding", coding);
    let codings = ["gzip", "deflate", "br", "zstd", "identity, gzip", "x-odd"];
    all_rejected(&chat, &gateway, codings.map(request).into(), (415, "unsupported_encoding", 129_415)).await;
    let repeated =
        [("identity", "gzip"), ("gzip", "identity")].map(|(one, two)| request(one).header("Content-Encoding", two));
    all_rejected(&chat, &gateway, repeated.into(), (415, "unsupported_encoding", 129_415)).await;
    gateway.send(request("identity")).await.assert_relayed(200, OK);
}

#[tokio::test]
async fn first_failing_check_determines_the_error() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).app(OTHER, &format!("{}\ndefault = true", chat.app_lines()));
    let gateway = setup.set("access", r#"allow = ["openim/*"]"#).start().await;
    // Host and Origin, path, method, query, app, access, body: each row also fails every later check.
    let all_wrong = TestRequest::new("GET", "/nowhere?x=1&sdkappid=9").header("Chatgate-App", "none").body("[");
    let rows = [
        (all_wrong.clone().header("Origin", "null"), FORBIDDEN),
        (all_wrong.clone(), NOT_FOUND),
        (all_wrong.target("/v4/follow/follow_add?x=1"), (405, "method_not_allowed", 60002)),
        (TestRequest::post("/v4/follow/follow_add?x=1&sdkappid=9").body("["), BAD_PARAMETER),
        (TestRequest::post("/v4/follow/follow_add?sdkappid=9").body("["), (404, "unknown_app", 129_404)),
        (TestRequest::post("/v4/follow/follow_add").body("["), FORBIDDEN),
        (TestRequest::post("/v4/openim/sendmsg").body("["), BAD_JSON),
    ];
    for (request, (status, slug, code)) in rows {
        gateway.send(request).await.assert_error(status, slug, code);
    }
    assert_eq!(chat.call_count(), 0);
}
