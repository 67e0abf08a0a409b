//! Callers with tokens: authentication and permissions.

use crate::support::app::{MAIN, OTHER};
use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::h2::Http2;
use crate::support::setup::Setup;
use crate::support::{eventually, secrets};

// `secrets::add` makes every output of every gateway be searched for them.
const FEED: &str = "feed.token~of~marked~letters+that/no/log/may/show/in/any/place/at/all==";
const CHAT: &str = "chat.token~of~marked~letters+that/no/log/may/show/in/any/place/at/all==";
const ADMIN: &str = "operators.token~of~marked~letters+that/no/log/may/show/in/any/place/at/all==";
const WRONG: &str = "feed.token~of~marked~letters+that/no/log/may/show/in/any/place/at/all=";

const UNAUTHENTICATED: (u16, &str, i64) = (401, "unauthenticated", 129_401);
const FORBIDDEN: (u16, &str, i64) = (403, "forbidden", 129_403);

/// `feed` may call `follow_check` in `main`. `chat` may call every `openim` command in both apps. `access.allow` is
/// `*` and has no effect, because callers are configured.
fn setup(chat: &FakeChat) -> Setup {
    let lines = chat.app_lines();
    Setup::without_apps()
        .app(MAIN, &format!("{lines}\ndefault = true"))
        .app(OTHER, &lines)
        .caller("feed", FEED, "apps = ['main']")
        .caller("chat", CHAT, "allow = ['openim/*']")
        .set("log", r#"level = "trace""#)
}

/// Asserts that each request is rejected with this error, and that none caused a call.
async fn all_rejected(
    gateway: &Gateway,
    chat: &FakeChat,
    requests: Vec<TestRequest>,
    (status, slug, code): (u16, &str, i64),
) {
    let before = chat.call_count();
    for request in requests {
        let response = gateway.send(request.clone()).await;
        response.assert_error(status, slug, code);
        let challenge = response.header("www-authenticate");
        assert_eq!(challenge, (status == 401).then_some("Bearer"), "{request:?}");
    }
    assert_eq!(chat.call_count(), before);
}

#[tokio::test]
async fn valid_token_is_accepted_and_not_forwarded() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat).start().await;
    let query = TestRequest::command("openim/querystate");
    for value in [format!("Bearer {CHAT}"), format!("bearer {CHAT}"), format!("BEARER   {CHAT}")] {
        // The fake Chat reports every header that must not be forwarded.
        gateway.send(query.clone().header("Authorization", &value)).await.assert_relayed(200, OK);
    }
    let http2 = Http2::open(gateway.address()).await;
    http2.request(&query.clone().token(CHAT)).await.assert_relayed(200, OK);
    assert_eq!(gateway.send(TestRequest::check("ann", &["bob"]).token(FEED)).await.follow_types(), [0]);
    assert_eq!(chat.call_count(), 5);
    let log = gateway.log();
    assert!(log.contains("TRACE") || log.contains("DEBUG") || log.contains("listening"), "{log}");
    for token in [FEED, CHAT] {
        assert!(!log.contains(token) && !log.contains(&token[..16]), "{log}");
    }
}

#[tokio::test]
async fn malformed_or_misplaced_tokens_are_unauthenticated() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat).start().await;
    let plain = || TestRequest::command("openim/querystate");
    let with = |value: &str| plain().header("Authorization", value);
    let filler = "x".repeat(20_000);
    let requests = vec![
        plain(),
        with(""),
        with("Bearer"),
        with(CHAT),
        with(&format!("Bearer {WRONG}")),
        with(&format!("Bearer {CHAT}x")),
        with(&format!("Bearer {}", CHAT.to_uppercase())),
        with(&format!("Bearer \"{CHAT}\"")),
        with(&format!("Bearer {CHAT}, Bearer {CHAT}")),
        with(&format!("Bearer {CHAT} {CHAT}")),
        with(&format!("Basic {CHAT}")),
        with(&format!("Token {CHAT}")),
        with(&format!("Bearer\t{CHAT}")),
        with(&format!("Bearer {filler}")),
        with(&format!("Bearer {CHAT}{filler}")),
        plain().token(CHAT).token(CHAT),
        plain().token(CHAT).token(WRONG),
        plain().token(WRONG).token(CHAT),
        plain().header("Proxy-Authorization", &format!("Bearer {CHAT}")),
        plain().header("X-Authorization", &format!("Bearer {CHAT}")),
        plain().header("Cookie", &format!("token={CHAT}")),
        plain().header("Chatgate-Caller", "chat"),
        plain().body(format!(r#"{{"access_token":"{CHAT}"}}"#)),
    ];
    all_rejected(&gateway, &chat, requests, UNAUTHENTICATED).await;
    let http2 = Http2::open(gateway.address()).await;
    http2.request(&plain().token(CHAT).token(CHAT)).await.assert_error(401, "unauthenticated", 129_401);
    assert_eq!(chat.call_count(), 0);
    secrets::assert_none_in("the log", gateway.log().as_bytes());
}

#[tokio::test]
async fn caller_is_authenticated_on_every_request_of_a_connection() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat).start().await;
    let query = TestRequest::command("openim/querystate");
    let mut conn = gateway.connect().await;
    conn.request(&query.clone().token(CHAT)).await.assert_relayed(200, OK);
    conn.request(&query).await.assert_error(401, "unauthenticated", 129_401);
    conn.request(&query.clone().token(FEED)).await.assert_error(403, "forbidden", 129_403);
    conn.request(&query.clone().token(CHAT)).await.assert_relayed(200, OK);
    assert_eq!(chat.call_count(), 2);
}

#[tokio::test]
async fn disallowed_command_or_app_is_rejected_in_every_spelling() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat).start().await;
    let post = |target: &str, token: &str| TestRequest::post(target).token(token);
    let requests = vec![
        post("/v4/follow/follow_add", FEED),
        post("/v4/openim/sendmsg", FEED),
        post("/v4/follow/follow_check2", FEED),
        post("/v4/Follow/follow_check", FEED),
        TestRequest::check("a", &["b"]).token(CHAT),
        post("/v4/openim2/sendmsg", CHAT),
        // The other app, by every selector.
        post("/apps/other/v4/follow/follow_check", FEED),
        post("/v4/follow/follow_check", FEED).header("Chatgate-App", "other"),
        post(&format!("/v4/follow/follow_check?sdkappid={}", OTHER.sdkappid), FEED),
        post(&format!("/v4/follow/follow_check?SdkAppId={}", OTHER.sdkappid), FEED),
        post(&format!("/v4/follow/follow_check?%73dkappid=%31{}", &OTHER.sdkappid.to_string()[1..]), FEED),
    ];
    all_rejected(&gateway, &chat, requests, FORBIDDEN).await;
    let malformed = [
        "/v4/follow/follow%5Fcheck",
        "/v4/follow/follow_check/../follow_add",
        "/v4/follow/follow_check%2F..%2Ffollow_add",
        "/v4/follow/follow_check;follow_add",
        "//v4/follow/follow_check",
    ];
    let requests = malformed.map(|target| post(target, FEED)).into();
    all_rejected(&gateway, &chat, requests, (404, "not_found", 60009)).await;
    let requests = vec![
        post("/apps/main/v4/follow/follow_check", FEED).header("Chatgate-App", "other"),
        post("/apps/none/v4/follow/follow_check", FEED),
        post("/v4/follow/follow_check?sdkappid=9", FEED),
    ];
    all_rejected(&gateway, &chat, requests, (404, "unknown_app", 129_404)).await;
    // Each caller is accepted within its own permissions.
    let request = TestRequest::check("a", &["b"]).token(FEED).target("/apps/main/v4/follow/follow_check");
    assert_eq!(gateway.send(request).await.follow_types(), [0]);
    let request = post("/apps/other/v4/openim/sendmsg", CHAT);
    gateway.send(request).await.assert_relayed(200, OK);
}

#[tokio::test]
async fn cached_pairs_are_returned_only_to_permitted_callers() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat).set("cache", r#"ttl = "1h""#).start().await;
    let check = || TestRequest::check("ann", &["bob"]);
    assert_eq!(gateway.send(check().token(FEED)).await.follow_types(), [0]);
    assert_eq!(gateway.send(check().token(FEED)).await.cache_status().outcome, "hit");
    for freshness in ["max-age=3600", "only-if-cached", "max-stale=100"] {
        let request = check().token(CHAT).header("Cache-Control", freshness);
        gateway.send(request.clone()).await.assert_error(403, "forbidden", 129_403);
        let response = gateway.send(check().header("Cache-Control", freshness)).await;
        response.assert_error(401, "unauthenticated", 129_401);
        assert_eq!(response.header("cache-status"), None);
    }
    assert_eq!(chat.call_count(), 1);
}

#[tokio::test]
async fn authentication_comes_after_host_check_and_before_routing() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat).start().await;
    let all_wrong = TestRequest::new("GET", "/nowhere?x=1&sdkappid=9").header("Chatgate-App", "none").body("[");
    let row = |target: &str| TestRequest::post(target).token(FEED).body("[");
    let rows = [
        (all_wrong.clone().header("Origin", "null"), FORBIDDEN),
        (all_wrong.clone().host("evil.example"), FORBIDDEN),
        (all_wrong.clone(), UNAUTHENTICATED),
        (all_wrong.clone().token(FEED), (404, "not_found", 60009)),
        (all_wrong.token(FEED).target("/v4/follow/follow_add?x=1"), (405, "method_not_allowed", 60002)),
        (row("/v4/follow/follow_add?x=1&sdkappid=9"), (400, "bad_parameter", 30001)),
        (row("/v4/follow/follow_add?sdkappid=9"), (404, "unknown_app", 129_404)),
        (row("/v4/follow/follow_add"), FORBIDDEN),
        (row("/v4/follow/follow_check"), (400, "bad_json", 60003)),
    ];
    for (request, (status, slug, code)) in rows {
        gateway.send(request).await.assert_error(status, slug, code);
    }
    assert_eq!(chat.call_count(), 0);
}

#[tokio::test]
async fn unix_socket_requires_both_token_and_permitted_uid() {
    let chat = FakeChat::start().await;
    let uid = own_uid();
    for (uids, status) in [(format!("[{uid}, {}]", uid + 1), 200), (format!("[{}]", uid + 1), 403)] {
        let setup = setup(&chat);
        let (data, admin) = (setup.dir().join("data.sock"), setup.dir().join("admin.sock"));
        let (data, admin) = (format!("unix:{}", data.display()), format!("unix:{}", admin.display()));
        let setup = setup.listen(&[&data, "127.0.0.1:0"]).set("server", &format!("unix_uids = {uids}"));
        let gateway = setup.set("server", &format!("admin = '{admin}'")).start().await;
        let query = || TestRequest::command("openim/querystate");
        let before = chat.call_count();
        let response = gateway.send(query().token(CHAT)).await;
        assert_eq!(response.status, status, "{response:?}");
        assert_eq!(chat.call_count() - before, usize::from(status == 200));
        assert_eq!(gateway.send(query()).await.status, if status == 200 { 401 } else { 403 });
        assert_eq!(gateway.admin_get("/livez").await.status, status);
        assert_eq!(gateway.send_to_admin(TestRequest::post("/cache/evict")).await.status, status);
        // `unix_uids` applies to Unix sockets only.
        let mut conn = Conn::open(&gateway.addresses()[1]).await.expect("accepted");
        conn.request(&query().token(CHAT)).await.assert_relayed(200, OK);
    }
}

#[tokio::test]
async fn admin_actions_require_the_admin_token_if_configured() {
    let chat = FakeChat::start().await;
    secrets::add(ADMIN);
    let setup = setup(&chat);
    setup.file("admin.token", ADMIN);
    let mut gateway = setup.set("server", r#"admin_token_file = "admin.token""#).start().await;
    let evict = || TestRequest::post("/cache/evict");
    for request in
        [evict(), evict().token(FEED), evict().token(ADMIN).token(ADMIN), TestRequest::post("/quit").token(CHAT)]
    {
        let response = gateway.send_to_admin(request).await;
        assert_eq!((response.status, response.header("www-authenticate")), (401, Some("Bearer")), "{response:?}");
    }
    assert_eq!(gateway.send_to_admin(evict().token(ADMIN).header("Origin", "null")).await.status, 403);
    assert_eq!(gateway.send_to_admin(evict().token(ADMIN)).await.status, 200);
    assert_eq!(gateway.admin_get("/readyz").await.status, 200, "read-only endpoints need no token");
    // The admin token does not authenticate a caller.
    let request = TestRequest::command("openim/querystate").token(ADMIN);
    gateway.send(request).await.assert_error(401, "unauthenticated", 129_401);
    assert_eq!(gateway.send_to_admin(TestRequest::post("/quit").token(ADMIN)).await.status, 200);
    assert_eq!(gateway.exit_code_within(crate::support::PATIENCE).await, 0);
}

#[tokio::test]
async fn report_only_forwards_and_logs_commands_within_allowed_apps() {
    let chat = FakeChat::start().await;
    let setup = setup(&chat).caller("trial", WRONG, "apps = ['main']\nreport_only = true");
    let gateway = setup.set("log", r#"level = "info""#).start().await;
    let send = || TestRequest::command("openim/sendmsg");
    for _ in 0..20 {
        gateway.send(send().token(WRONG)).await.assert_relayed(200, OK);
    }
    gateway.send(TestRequest::command("openim/querystate").token(WRONG)).await.assert_relayed(200, OK);
    assert_eq!(gateway.send(TestRequest::check("a", &["b"]).token(WRONG)).await.follow_types(), [0]);
    let logged = eventually("two log lines", async || {
        let log = gateway.log();
        let lines = log.lines().filter(|line| line.contains("forwarded because report_only is set")).map(str::to_owned);
        Some(lines.collect::<Vec<String>>()).filter(|lines| lines.len() >= 2)
    })
    .await;
    assert_eq!(logged.len(), 2, "once for each command: {logged:?}");
    for (line, command) in logged.iter().zip(["openim/sendmsg", "openim/querystate"]) {
        let json: serde_json::Value = serde_json::from_str(line).expect("a log line");
        assert_eq!(
            (&json["caller"], &json["command"], &json["level"]),
            (&"trial".into(), &command.into(), &"WARN".into())
        );
    }
    let elsewhere = send().token(WRONG).header("Chatgate-App", "other");
    all_rejected(&gateway, &chat, vec![elsewhere], FORBIDDEN).await;
    all_rejected(&gateway, &chat, vec![send(), send().token(&WRONG[1..])], UNAUTHENTICATED).await;
    all_rejected(&gateway, &chat, vec![send().token(FEED)], FORBIDDEN).await;
    assert_eq!(chat.call_count(), 22);
}

#[tokio::test]
async fn report_only_applies_to_anonymous_callers() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("access", "allow = []").set("access", "report_only = true");
    let gateway = setup.start().await;
    gateway.call("openim/sendmsg", "{}").await.assert_relayed(200, OK);
    gateway.send(TestRequest::command("openim/sendmsg").header("Chatgate-App", "none")).await.assert_error(
        404,
        "unknown_app",
        129_404,
    );
    eventually("a log line", async || gateway.log().contains("forwarded because report_only is set").then_some(()))
        .await;
    assert_eq!(chat.call_count(), 1);
}

/// Returns the user of this process.
pub(crate) fn own_uid() -> u32 {
    use std::os::unix::fs::MetadataExt as _;
    let own = tempfile::NamedTempFile::new().expect("a temporary file");
    own.as_file().metadata().expect("an open file").uid()
}
