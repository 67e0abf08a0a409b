//! Callers with tokens: who is known, and what he may.

use crate::support::answer::Answer;
use crate::support::app::{MAIN, OTHER};
use crate::support::chat::FakeChat;
use crate::support::client::{Ask, Conn};
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::h2::Http2;
use crate::support::setup::Setup;
use crate::support::{eventually, secrets};

// Long enough for `secrets::remember`, so that every output of every gateway is searched for them.
const FEED: &str = "feed.token~of~marked~letters+that/nobody/may/see/in/any/place/at/all==";
const CHAT: &str = "chat.token~of~marked~letters+that/nobody/may/see/in/any/place/at/all==";
const ADMIN: &str = "operators.token~of~marked~letters+that/nobody/may/see/in/any/place/at/all==";
const WRONG: &str = "feed.token~of~marked~letters+that/nobody/may/see/in/any/place/at/all=";

const UNAUTHENTICATED: (u16, &str, i64) = (401, "unauthenticated", 129_401);
const FORBIDDEN: (u16, &str, i64) = (403, "forbidden", 129_403);

/// `feed` may look into `main`, `chat` may do anything with `openim` in both apps. `access.allow` is `*`,
/// and counts no more.
fn setup(chat: &FakeChat) -> Setup {
    let lines = chat.app_lines();
    Setup::without_apps()
        .app(MAIN, &format!("{lines}\ndefault = true"))
        .app(OTHER, &lines)
        .caller("feed", FEED, "apps = ['main']")
        .caller("chat", CHAT, "allow = ['openim/*']")
        .set("log", r#"level = "trace""#)
}

/// Asserts that each is refused so, and that no call came of it.
async fn all_refused(gateway: &Gateway, chat: &FakeChat, asks: Vec<Ask>, (status, slug, code): (u16, &str, i64)) {
    let before = chat.count();
    for ask in asks {
        let answer = gateway.ask(ask.clone()).await;
        answer.assert_error(status, slug, code);
        let challenge = answer.header("www-authenticate");
        assert_eq!(challenge, (status == 401).then_some("Bearer"), "{ask:?}");
    }
    assert_eq!(chat.count(), before);
}

#[tokio::test]
async fn who_shows_his_token_is_served_and_it_goes_no_further() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat).start().await;
    let query = Ask::command("openim/querystate");
    for value in [format!("Bearer {CHAT}"), format!("bearer {CHAT}"), format!("BEARER   {CHAT}")] {
        // The fake finds every header that is not upstream's to see.
        gateway.ask(query.clone().header("Authorization", &value)).await.assert_relayed(200, OK);
    }
    let http2 = Http2::open(gateway.address()).await;
    http2.ask(&query.clone().token(CHAT)).await.assert_relayed(200, OK);
    assert_eq!(gateway.ask(Ask::check("ann", &["bob"]).token(FEED)).await.types(), [0]);
    assert_eq!(chat.count(), 5);
    let log = gateway.log();
    assert!(log.contains("TRACE") || log.contains("DEBUG") || log.contains("listening"), "{log}");
    for token in [FEED, CHAT] {
        assert!(!log.contains(token) && !log.contains(&token[..16]), "{log}");
    }
}

#[tokio::test]
async fn without_a_token_of_its_own_kind_and_place_nobody_is_known() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat).start().await;
    let plain = || Ask::command("openim/querystate");
    let with = |value: &str| plain().header("Authorization", value);
    let long = "x".repeat(20_000);
    let asks = vec![
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
        with(&format!("Bearer {long}")),
        with(&format!("Bearer {CHAT}{long}")),
        plain().token(CHAT).token(CHAT),
        plain().token(CHAT).token(WRONG),
        plain().token(WRONG).token(CHAT),
        plain().header("Proxy-Authorization", &format!("Bearer {CHAT}")),
        plain().header("X-Authorization", &format!("Bearer {CHAT}")),
        plain().header("Cookie", &format!("token={CHAT}")),
        plain().header("Chatgate-Caller", "chat"),
        plain().body(format!(r#"{{"access_token":"{CHAT}"}}"#)),
    ];
    all_refused(&gateway, &chat, asks, UNAUTHENTICATED).await;
    let http2 = Http2::open(gateway.address()).await;
    http2.ask(&plain().token(CHAT).token(CHAT)).await.assert_error(401, "unauthenticated", 129_401);
    assert_eq!(chat.count(), 0);
    secrets::assert_none_in("the log", gateway.log().as_bytes());
}

#[tokio::test]
async fn a_connection_knows_its_caller_anew_with_each_request() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat).start().await;
    let query = Ask::command("openim/querystate");
    let mut conn = gateway.connect().await;
    conn.ask(&query.clone().token(CHAT)).await.assert_relayed(200, OK);
    conn.ask(&query).await.assert_error(401, "unauthenticated", 129_401);
    conn.ask(&query.clone().token(FEED)).await.assert_error(403, "forbidden", 129_403);
    conn.ask(&query.clone().token(CHAT)).await.assert_relayed(200, OK);
    assert_eq!(chat.count(), 2);
}

#[tokio::test]
async fn what_is_not_allowed_is_refused_however_it_is_written() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat).start().await;
    let post = |target: &str, token: &str| Ask::post(target).token(token);
    let asks = vec![
        post("/v4/follow/follow_add", FEED),
        post("/v4/openim/sendmsg", FEED),
        post("/v4/follow/follow_check2", FEED),
        post("/v4/Follow/follow_check", FEED),
        Ask::check("a", &["b"]).token(CHAT),
        post("/v4/openim2/sendmsg", CHAT),
        // The other app, in each of the ways to name it.
        post("/apps/other/v4/follow/follow_check", FEED),
        post("/v4/follow/follow_check", FEED).header("Chatgate-App", "other"),
        post(&format!("/v4/follow/follow_check?sdkappid={}", OTHER.sdkappid), FEED),
        post(&format!("/v4/follow/follow_check?SdkAppId={}", OTHER.sdkappid), FEED),
        post(&format!("/v4/follow/follow_check?%73dkappid=%31{}", &OTHER.sdkappid.to_string()[1..]), FEED),
    ];
    all_refused(&gateway, &chat, asks, FORBIDDEN).await;
    let odd = [
        "/v4/follow/follow%5Fcheck",
        "/v4/follow/follow_check/../follow_add",
        "/v4/follow/follow_check%2F..%2Ffollow_add",
        "/v4/follow/follow_check;follow_add",
        "//v4/follow/follow_check",
    ];
    let asks = odd.map(|target| post(target, FEED)).into();
    all_refused(&gateway, &chat, asks, (404, "not_found", 60009)).await;
    let asks = vec![
        post("/apps/main/v4/follow/follow_check", FEED).header("Chatgate-App", "other"),
        post("/apps/none/v4/follow/follow_check", FEED),
        post("/v4/follow/follow_check?sdkappid=9", FEED),
    ];
    all_refused(&gateway, &chat, asks, (404, "unknown_app", 129_404)).await;
    // What is left: the same caller and command in the app that it may use.
    let ask = Ask::check("a", &["b"]).token(FEED).target("/apps/main/v4/follow/follow_check");
    assert_eq!(gateway.ask(ask).await.types(), [0]);
    let ask = post("/apps/other/v4/openim/sendmsg", CHAT);
    gateway.ask(ask).await.assert_relayed(200, OK);
}

#[tokio::test]
async fn what_is_known_already_is_told_only_to_who_may_ask() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat).set("cache", r#"ttl = "1h""#).start().await;
    let check = || Ask::check("ann", &["bob"]);
    assert_eq!(gateway.ask(check().token(FEED)).await.types(), [0]);
    assert_eq!(gateway.ask(check().token(FEED)).await.cache().outcome, "hit");
    for freshness in ["max-age=3600", "only-if-cached", "max-stale=100"] {
        let ask = check().token(CHAT).header("Cache-Control", freshness);
        gateway.ask(ask.clone()).await.assert_error(403, "forbidden", 129_403);
        let answer = gateway.ask(check().header("Cache-Control", freshness)).await;
        answer.assert_error(401, "unauthenticated", 129_401);
        assert_eq!(answer.header("cache-status"), None);
    }
    assert_eq!(chat.count(), 1);
}

#[tokio::test]
async fn who_asks_is_checked_after_the_host_and_before_all_else() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat).start().await;
    let all = Ask::new("GET", "/nowhere?x=1&sdkappid=9").header("Chatgate-App", "none").body("[");
    let row = |target: &str| Ask::post(target).token(FEED).body("[");
    let rows = [
        (all.clone().header("Origin", "null"), FORBIDDEN),
        (all.clone().host("evil.example"), FORBIDDEN),
        (all.clone(), UNAUTHENTICATED),
        (all.clone().token(FEED), (404, "not_found", 60009)),
        (all.token(FEED).target("/v4/follow/follow_add?x=1"), (405, "method_not_allowed", 60002)),
        (row("/v4/follow/follow_add?x=1&sdkappid=9"), (400, "bad_parameter", 30001)),
        (row("/v4/follow/follow_add?sdkappid=9"), (404, "unknown_app", 129_404)),
        (row("/v4/follow/follow_add"), FORBIDDEN),
        (row("/v4/follow/follow_check"), (400, "bad_json", 60003)),
    ];
    for (ask, (status, slug, code)) in rows {
        gateway.ask(ask).await.assert_error(status, slug, code);
    }
    assert_eq!(chat.count(), 0);
}

#[tokio::test]
async fn a_unix_socket_asks_for_the_token_too_and_for_the_user() {
    let chat = FakeChat::start().await;
    let uid = own_uid();
    for (uids, status) in [(format!("[{uid}, {}]", uid + 1), 200), (format!("[{}]", uid + 1), 403)] {
        let setup = setup(&chat);
        let (data, admin) = (setup.dir().join("data.sock"), setup.dir().join("admin.sock"));
        let (data, admin) = (format!("unix:{}", data.display()), format!("unix:{}", admin.display()));
        let setup = setup.listen(&[&data, "127.0.0.1:0"]).set("server", &format!("unix_uids = {uids}"));
        let gateway = setup.set("server", &format!("admin = '{admin}'")).start().await;
        let query = || Ask::command("openim/querystate");
        let before = chat.count();
        let answer = gateway.ask(query().token(CHAT)).await;
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(chat.count() - before, usize::from(status == 200));
        assert_eq!(gateway.ask(query()).await.status, if status == 200 { 401 } else { 403 });
        assert_eq!(gateway.admin_get("/livez").await.status, status);
        assert_eq!(order(&gateway, Ask::post("/cache/evict")).await.status, status);
        // The list is for Unix sockets.
        let mut conn = Conn::open(&gateway.addresses()[1]).await.expect("accepted");
        conn.ask(&query().token(CHAT)).await.assert_relayed(200, OK);
    }
}

#[tokio::test]
async fn orders_need_the_operators_token_if_there_is_one() {
    let chat = FakeChat::start().await;
    secrets::remember(ADMIN);
    let setup = setup(&chat);
    setup.file("admin.token", ADMIN);
    let mut gateway = setup.set("server", r#"admin_token_file = "admin.token""#).start().await;
    let evict = || Ask::post("/cache/evict");
    for ask in [evict(), evict().token(FEED), evict().token(ADMIN).token(ADMIN), Ask::post("/quit").token(CHAT)] {
        let answer = order(&gateway, ask).await;
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")), "{answer:?}");
    }
    assert_eq!(order(&gateway, evict().token(ADMIN).header("Origin", "null")).await.status, 403);
    assert_eq!(order(&gateway, evict().token(ADMIN)).await.status, 200);
    assert_eq!(gateway.admin_get("/readyz").await.status, 200, "who only looks needs none");
    // Operators are no callers.
    let ask = Ask::command("openim/querystate").token(ADMIN);
    gateway.ask(ask).await.assert_error(401, "unauthenticated", 129_401);
    assert_eq!(order(&gateway, Ask::post("/quit").token(ADMIN)).await.status, 200);
    assert_eq!(gateway.exit_code_within(crate::support::PATIENCE).await, 0);
}

#[tokio::test]
async fn report_only_lets_commands_through_and_says_so_but_neither_apps_nor_strangers() {
    let chat = FakeChat::start().await;
    let setup = setup(&chat).caller("trial", WRONG, "apps = ['main']\nreport_only = true");
    let gateway = setup.set("log", r#"level = "info""#).start().await;
    let send = || Ask::command("openim/sendmsg");
    for _ in 0..20 {
        gateway.ask(send().token(WRONG)).await.assert_relayed(200, OK);
    }
    gateway.ask(Ask::command("openim/querystate").token(WRONG)).await.assert_relayed(200, OK);
    assert_eq!(gateway.ask(Ask::check("a", &["b"]).token(WRONG)).await.types(), [0]);
    let said = eventually("two lines of the log", async || {
        let log = gateway.log();
        let lines = log.lines().filter(|line| line.contains("let through")).map(str::to_owned);
        Some(lines.collect::<Vec<String>>()).filter(|lines| lines.len() >= 2)
    })
    .await;
    assert_eq!(said.len(), 2, "once for each command: {said:?}");
    for (line, command) in said.iter().zip(["openim/sendmsg", "openim/querystate"]) {
        let json: serde_json::Value = serde_json::from_str(line).expect("a line of the log");
        assert_eq!(
            (&json["caller"], &json["command"], &json["level"]),
            (&"trial".into(), &command.into(), &"WARN".into())
        );
    }
    let elsewhere = send().token(WRONG).header("Chatgate-App", "other");
    all_refused(&gateway, &chat, vec![elsewhere], FORBIDDEN).await;
    all_refused(&gateway, &chat, vec![send(), send().token(&WRONG[1..])], UNAUTHENTICATED).await;
    all_refused(&gateway, &chat, vec![send().token(FEED)], FORBIDDEN).await;
    assert_eq!(chat.count(), 22);
}

#[tokio::test]
async fn report_only_is_for_callers_without_a_token_too() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("access", "allow = []").set("access", "report_only = true");
    let gateway = setup.start().await;
    gateway.call("openim/sendmsg", "{}").await.assert_relayed(200, OK);
    gateway.ask(Ask::command("openim/sendmsg").header("Chatgate-App", "none")).await.assert_error(
        404,
        "unknown_app",
        129_404,
    );
    eventually("a line of the log", async || gateway.log().contains("let through").then_some(())).await;
    assert_eq!(chat.count(), 1);
}

async fn order(gateway: &Gateway, ask: Ask) -> Answer {
    Conn::open(gateway.admin()).await.expect("the admin listener accepts").ask(&ask).await
}

fn own_uid() -> u32 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").expect("a process of its own").uid()
}
