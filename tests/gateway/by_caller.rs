//! Whose calls these are: metrics by caller, the error-code header, and the audit log.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;

use serde_json::Value;

use crate::support::app::{MAIN, OTHER};
use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::eventually;
use crate::support::gateway::{Gateway, log_events};
use crate::support::graph::OK;
use crate::support::reply::{Gate, Reply};
use crate::support::setup::Setup;

const FEED: &str = "a.token~of~marked~letters+for/the/feed/of/all/metrics/and/audit/lines==";
const SHOP: &str = "a.token~of~marked~letters+for/the/shop/of/all/metrics/and/audit/lines==";
const ADMIN: &str = "a.token~of~marked~letters+for/the/operators/of/all/metrics/and/audit/lines==";
const ADD: &str = "follow/follow_add";
const ADD_BODY: &str = r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob"}]}"#;
const QUERY: &str = "openim/querystate";
const READ: &str = "profile/portrait_get";

/// Returns the samples of a metric: the text of the labels, and the value.
async fn samples(gateway: &Gateway, name: &str) -> BTreeMap<String, f64> {
    let text = gateway.admin_get("/metrics").await.text();
    let lines = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.split_once("} "));
    lines.map(|(labels, value)| (labels.to_owned(), value.parse().expect("a number"))).collect()
}

/// Returns a sample of the main app and this caller; 0 if there is none.
async fn sample(gateway: &Gateway, name: &str, caller: &str, more: &str) -> f64 {
    let labels = format!("app=\"main\",caller=\"{caller}\"{more}");
    samples(gateway, name).await.get(&labels).copied().unwrap_or(0.0)
}

async fn calls(gateway: &Gateway, caller: &str) -> f64 {
    sample(gateway, "chatgate_caller_calls_total", caller, "").await
}

/// Adds the callers `feed` and `shop`.
fn with_callers(setup: Setup) -> Setup {
    setup.caller("feed", FEED, "allow = ['*']").caller("shop", SHOP, "allow = ['*']")
}

#[tokio::test]
async fn calls_of_all_callers_add_up_to_those_that_chat_received() {
    let chat = FakeChat::start().await;
    let gateway = with_callers(Setup::new(&chat).set("cache", r#"ttl = "1h""#)).start().await;
    let check = |from: &str, to: &[&str], token: &str| TestRequest::check(from, to).token(token);
    gateway.send(check("ann", &["bob", "cyd"], FEED)).await.items();
    gateway.send(check("ann", &["bob", "dan"], SHOP)).await.items();
    gateway.send(check("ann", &["bob"], SHOP)).await.items();
    gateway.send(TestRequest::command(ADD).body(ADD_BODY).token(SHOP)).await.json();
    gateway.send(TestRequest::command(QUERY).token(FEED)).await.assert_relayed(200, OK);
    // A retry is one more call of the same caller, for lookups and for relayed calls.
    for request in [check("zoe", &["yan"], FEED), TestRequest::command(QUERY).body("{}").token(SHOP)] {
        chat.reply_once(Reply::json(r#"{"ActionStatus":"FAIL","ErrorCode":60008,"ErrorInfo":"busy"}"#));
        assert_eq!(gateway.send(request).await.json()["ErrorCode"], 0);
    }
    assert_eq!((calls(&gateway, "feed").await, calls(&gateway, "shop").await), (4.0, 4.0));
    let all: f64 = samples(&gateway, "chatgate_caller_calls_total").await.values().sum();
    let upstream: f64 = samples(&gateway, "chatgate_upstream_calls_total").await.values().sum();
    assert_eq!((all, upstream), (chat.call_count() as f64, chat.call_count() as f64));
    let pairs = async |caller: &str, source: &str| {
        sample(&gateway, "chatgate_caller_pairs_total", caller, &format!(",source=\"{source}\"")).await
    };
    assert_eq!((pairs("feed", "fetched").await, pairs("feed", "hit").await), (3.0, 0.0));
    assert_eq!((pairs("shop", "fetched").await, pairs("shop", "hit").await), (1.0, 2.0));
    let by_source: f64 = samples(&gateway, "chatgate_caller_pairs_total").await.values().sum();
    let follow: f64 = samples(&gateway, "chatgate_follow_pairs_total").await.values().sum();
    assert_eq!(by_source, follow, "pairs add up too");
    assert!(sample(&gateway, "chatgate_caller_wait_seconds_total", "feed", "").await > 0.0);
    let status = gateway.admin_get("/status").await.json();
    let callers = status["apps"][0]["callers"].as_array().expect("a list");
    assert_eq!(callers.len(), 2, "{callers:?}");
    let shop = callers.iter().find(|caller| caller["name"] == "shop").expect("it has sent requests");
    assert_eq!((&shop["calls"], &shop["pairs"]["hit"]), (&4.into(), &2.into()), "{shop}");
}

#[tokio::test]
async fn refresh_counts_for_the_caller_whose_request_made_it_due() {
    let chat = FakeChat::start().await;
    let setup = with_callers(Setup::new(&chat).set("cache", r#"ttl = "20ms""#));
    let gateway = setup.set("cache", r#"stale_while_revalidate = "1h""#).start().await;
    let check = async |token: &str| gateway.send(TestRequest::check("ann", &["bob"]).token(token)).await;
    check(FEED).await.items();
    // The refresh does not end, so that there is only one.
    let gate = Gate::closed();
    let script_gate = gate.clone();
    chat.script(move |_| Some(Reply::from_graph().after(&script_gate)));
    eventually("a stale answer", async || (check(SHOP).await.cache_status().stale == 1).then_some(())).await;
    chat.wait_for_calls(2).await;
    // It does not count for the caller that uses the pair meanwhile.
    assert_eq!(check(FEED).await.cache_status().stale, 1);
    gate.open();
    eventually("the calls are counted", async || {
        let counts = (calls(&gateway, "feed").await, calls(&gateway, "shop").await);
        (counts.0 + counts.1 == chat.call_count() as f64).then_some(counts)
    })
    .await;
    assert_eq!(calls(&gateway, "feed").await, 1.0);
}

#[tokio::test]
async fn shared_read_counts_for_the_caller_that_caused_it() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("cache", &format!("commands = {{ \"{READ}\" = \"1h\" }}"));
    let gateway = with_callers(setup).start().await;
    let gate = Gate::closed();
    chat.reply_once(Reply::json(OK).after(&gate));
    let read = |token: &str| TestRequest::command(READ).token(token);
    let mut feed = gateway.connect().await;
    feed.send(read(FEED).bytes()).await;
    chat.wait_for_calls(1).await;
    let mut shop = gateway.connect().await;
    shop.send(read(SHOP).bytes()).await;
    gateway.wait_for_in_flight(2).await;
    gate.open();
    for conn in [&mut feed, &mut shop] {
        conn.read_response().await.assert_relayed(200, OK);
    }
    // A third request is answered from the cache.
    gateway.send(read(SHOP)).await.assert_relayed(200, OK);
    assert_eq!((chat.call_count(), calls(&gateway, "feed").await, calls(&gateway, "shop").await), (1, 1.0, 0.0));
}

#[tokio::test]
async fn shared_call_counts_for_the_caller_that_caused_it() {
    let chat = FakeChat::start().await;
    let gateway = with_callers(Setup::new(&chat)).start().await;
    let gate = Gate::closed();
    chat.reply_once(Reply::from_graph().after(&gate));
    let mut feed = gateway.connect().await;
    feed.send(TestRequest::check("ann", &["bob"]).token(FEED).bytes()).await;
    chat.wait_for_calls(1).await;
    let mut shop = gateway.connect().await;
    shop.send(TestRequest::check("ann", &["bob"]).token(SHOP).bytes()).await;
    gateway.wait_for_in_flight(2).await;
    gate.open();
    for conn in [&mut feed, &mut shop] {
        conn.read_response().await.items();
    }
    assert_eq!(chat.call_count(), 1);
    assert_eq!((calls(&gateway, "feed").await, calls(&gateway, "shop").await), (1.0, 0.0));
    let joined = sample(&gateway, "chatgate_caller_pairs_total", "shop", ",source=\"joined\"").await;
    assert_eq!(joined, 1.0);
}

#[tokio::test]
async fn refused_requests_are_counted_by_caller_and_outcome() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).caller("feed", FEED, "").caller("shop", SHOP, "allow = ['*']\nquota = '1/s'");
    let gateway = setup.timeout("200ms").start().await;
    gateway.send(TestRequest::command(QUERY).token(FEED)).await.assert_error(403, "forbidden", 129_403);
    gateway.send(TestRequest::post("/nothing").token(FEED)).await.assert_error(404, "not_found", 60009);
    let mut limited = 0.0;
    for _ in 0..4 {
        let response = gateway.send(TestRequest::command(QUERY).token(SHOP)).await;
        limited += f64::from(u8::from(response.slug() == Some("rate_limited")));
    }
    assert!(limited > 0.0);
    let refused = samples(&gateway, "chatgate_caller_refused_total").await;
    let expected = [
        (r#"app="main",caller="feed",outcome="forbidden""#, 1.0),
        (r#"app="main",caller="shop",outcome="rate_limited""#, limited),
        (r#"app="",caller="feed",outcome="not_found""#, 1.0),
    ];
    assert_eq!(refused, expected.into_iter().map(|(labels, count)| (labels.to_owned(), count)).collect());
    assert_eq!(calls(&gateway, "shop").await, chat.call_count() as f64);
}

#[tokio::test]
async fn anonymous_callers_have_no_series() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).start().await;
    gateway.check("ann", &["bob"]).await.items();
    gateway.call(QUERY, "{}").await.assert_relayed(200, OK);
    let text = gateway.admin_get("/metrics").await.text();
    assert!(!text.contains("chatgate_caller_"), "{text}");
    assert_eq!(gateway.admin_get("/status").await.json()["apps"][0]["callers"], Value::Array(Vec::new()));
}

#[tokio::test]
async fn counters_of_a_caller_survive_a_reload_until_it_is_removed() {
    let chat = FakeChat::start().await;
    let setup = with_callers(Setup::new(&chat));
    let text = setup.text();
    let gateway = setup.start().await;
    let reload = async |text: &str| {
        std::fs::write(gateway.dir().join("chatgate.toml"), text).expect("own directory");
        assert_eq!(gateway.send_to_admin(TestRequest::post("/reload")).await.text(), "reloaded\n");
    };
    for token in [FEED, SHOP] {
        gateway.send(TestRequest::command(QUERY).token(token)).await.assert_relayed(200, OK);
    }
    reload(&format!("{text}\n# changed\n")).await;
    gateway.send(TestRequest::command(QUERY).token(SHOP)).await.assert_relayed(200, OK);
    assert_eq!((calls(&gateway, "feed").await, calls(&gateway, "shop").await), (1.0, 2.0));
    // In another order, and without the feed.
    let (before, feed_and_rest) = text.split_once("[[caller]]\nname = 'feed'").expect("the feed");
    let (_, rest) = feed_and_rest.split_once("[[caller]]").expect("the shop");
    reload(&format!("{before}[[caller]]{rest}")).await;
    gateway.send(TestRequest::command(QUERY).token(SHOP)).await.assert_relayed(200, OK);
    let all = samples(&gateway, "chatgate_caller_calls_total").await;
    assert_eq!(all.into_iter().collect::<Vec<_>>(), [(r#"app="main",caller="shop""#.to_owned(), 3.0)]);
}

#[tokio::test]
async fn every_data_response_has_the_error_code_of_its_body() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("upstream", "attempts = 1").start().await;
    let code = |response: &crate::support::response::Response| {
        let header = response.header("chatgate-error-code").map(str::to_owned);
        (header, response.json()["ErrorCode"].as_i64().map(|code| code.to_string()))
    };
    let same = |response: &crate::support::response::Response| {
        let (header, body) = code(response);
        assert!(header.is_some() && header == body, "{response:?}");
    };
    same(&gateway.check("ann", &["bob"]).await);
    same(&gateway.check("ann", &["bob"]).await);
    same(&gateway.call(QUERY, "{}").await);
    for (status, error_code) in [(200, 10016), (200, 70003), (503, 60008), (200, -7), (200, i64::MAX)] {
        let body = format!(r#"{{"ActionStatus":"FAIL","ErrorCode":{error_code},"ErrorInfo":"no"}}"#);
        chat.reply_once(Reply::status(status, body));
        let response = gateway.call("openim/sendmsg", "{}").await;
        same(&response);
    }
    chat.reply_once(Reply::json(r#"{"ActionStatus":"FAIL","ErrorCode":30001,"ErrorInfo":"no"}"#));
    same(&gateway.check("cyd", &["dan"]).await);
    for request in [
        TestRequest::post("/nothing"),
        TestRequest::command(QUERY).body("["),
        TestRequest::new("GET", &format!("/v4/{QUERY}")),
        TestRequest::command(QUERY).host("evil.example"),
        TestRequest::check("ann", &[""; 0]),
        TestRequest::check("zoe", &["yan"]).header("Cache-Control", "only-if-cached"),
    ] {
        same(&gateway.send(request).await);
    }
    // Rejected before it is a request.
    let mut conn = Conn::open(gateway.address()).await.expect("accepted");
    conn.send("no HTTP\r\n\r\n").await;
    same(&conn.read_response().await);
}

/// Returns the audit lines of the log so far.
fn audit(gateway: &Gateway) -> Vec<Value> {
    log_events(&gateway.log()).into_iter().filter(|line| line["target"] == "chatgate::audit").collect()
}

async fn audit_lines(gateway: &Gateway, count: usize) -> Vec<Value> {
    let lines = eventually("audit lines", async || Some(audit(gateway)).filter(|lines| lines.len() >= count)).await;
    assert_eq!(lines.len(), count, "{lines:#?}");
    lines
}

#[tokio::test]
async fn each_relayed_write_has_an_audit_line() {
    let chat = FakeChat::start().await;
    let lines = chat.app_lines();
    let setup = Setup::without_apps().app(MAIN, &format!("{lines}\ndefault = true")).app(OTHER, &lines);
    let setup = setup.caller("feed", FEED, "allow = ['follow/*', 'x_svc/*']").set("log", r#"requests = "off""#);
    let gateway = setup.set("log", r#"level = "error""#);
    let gateway = start_quietly(gateway).await;
    let send = async |request: TestRequest| gateway.send(request.token(FEED)).await;
    let unlisted = "x_svc/Unlisted_Write";
    send(TestRequest::command(ADD).body(ADD_BODY).header("X-Request-Id", "first")).await.json();
    chat.reply_once(Reply::json(r#"{"ActionStatus":"FAIL","ErrorCode":10004,"ErrorInfo":"no"}"#));
    send(TestRequest::command(unlisted).header("Chatgate-App", "other").header("X-Request-Id", "second")).await;
    chat.reply_once(Reply::reset());
    send(TestRequest::command(ADD).body(ADD_BODY).header("X-Request-Id", "third")).await.json();
    // A read, and what is not relayed, has none.
    send(TestRequest::check("ann", &["bob"])).await.items();
    send(TestRequest::command("openim/sendmsg")).await.assert_error(403, "forbidden", 129_403);
    // A write whose caller disconnects has one too.
    let gate = Gate::closed();
    let calls = chat.call_count();
    chat.reply_once(Reply::from_graph().after(&gate));
    let mut left = gateway.connect().await;
    left.send(TestRequest::command(ADD).body(ADD_BODY).token(FEED).header("X-Request-Id", "fourth").bytes()).await;
    chat.wait_for_calls(calls + 1).await;
    drop(left);
    gate.open();
    let found = audit_lines(&gateway, 4).await;
    let expected = [
        ("first", "main", ADD, 0),
        ("second", "other", unlisted, 10004),
        ("third", "main", ADD, 129_502),
        ("fourth", "main", ADD, 0),
    ];
    for (line, (id, app, command, code)) in found.iter().zip(expected) {
        assert_eq!((&line["request_id"], &line["app"]), (&id.into(), &app.into()), "{line}");
        assert_eq!((&line["command"], &line["error_code"]), (&command.into(), &code.into()), "{line}");
        assert_eq!((&line["caller"], &line["level"]), (&"feed".into(), &"INFO".into()), "{line}");
        assert!(!line.to_string().contains("bob"), "{line}");
    }
}

/// Starts a gateway whose log level hides the addresses of its listeners.
async fn start_quietly(setup: Setup) -> Gateway {
    setup.start_at_fixed_addresses().await
}

#[tokio::test]
async fn each_admin_action_has_an_audit_line_and_reading_has_none() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("log", r#"requests = "off""#);
    let gateway = setup.start().await;
    for path in ["/status", "/metrics", "/", "/quit", "/cache/evict"] {
        gateway.admin_get(path).await;
    }
    let post = |path: &str, body: &str, id: &str| TestRequest::post(path).body(body).header("X-Request-Id", id);
    gateway.send_to_admin(post("/cache/evict", r#"{"App":"main","From_Account":"ann"}"#, "a")).await.json();
    assert_eq!(gateway.send_to_admin(post("/cache/evict", "garbage", "b")).await.status, 400);
    assert_eq!(gateway.send_to_admin(post("/cache/evict", r#"{"App":"mian"}"#, "c")).await.status, 404);
    assert_eq!(gateway.send_to_admin(post("/log", r#"{"level":"warn"}"#, "d")).await.status, 200);
    std::fs::write(gateway.dir().join("chatgate.toml"), "nonsense").expect("own directory");
    assert_eq!(gateway.send_to_admin(post("/reload", "", "e")).await.status, 400);
    assert_eq!(gateway.send_to_admin(post("/quit", "", "f").header("Origin", "https://example.com")).await.status, 403);
    assert_eq!(gateway.send_to_admin(post("/nothing", "", "g")).await.status, 404);
    let found = audit_lines(&gateway, 6).await;
    let expected = [
        ("a", Some("main"), "cache/evict", 200, Some(0)),
        ("b", None, "cache/evict", 400, Some(60003)),
        ("c", None, "cache/evict", 404, Some(129_404)),
        ("d", None, "log", 200, Some(0)),
        ("e", None, "reload", 400, None),
        ("f", None, "quit", 403, Some(129_403)),
    ];
    for (line, (id, app, command, status, code)) in found.iter().zip(expected) {
        assert_eq!((&line["request_id"], line["app"].as_str()), (&id.into(), app), "{line}");
        assert_eq!((&line["command"], &line["status"]), (&command.into(), &status.into()), "{line}");
        assert_eq!((&line["caller"], line["error_code"].as_i64()), (&"local".into(), code), "{line}");
        assert!(!line.to_string().contains("ann") && !line.to_string().contains("mian"), "{line}");
    }
}

#[tokio::test]
async fn audit_line_names_the_operator_by_user_or_token() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat);
    let socket = format!("unix:{}", setup.dir().join("admin.sock").display());
    let gateway = setup.set("server", &format!("admin = \"{socket}\"")).start().await;
    assert_eq!(gateway.send_to_admin(TestRequest::post("/reload")).await.status, 200);
    let own = std::fs::metadata("/proc/self").map(|own| own.uid()).expect("this process");
    assert_eq!(audit_lines(&gateway, 1).await[0]["caller"], format!("uid:{own}"));

    crate::support::secrets::add(ADMIN);
    let setup = Setup::new(&chat);
    setup.file("admin.token", ADMIN);
    let gateway = setup.set("server", "admin_token_file = 'admin.token'").start().await;
    assert_eq!(gateway.send_to_admin(TestRequest::post("/reload").token(ADMIN)).await.status, 200);
    assert_eq!(gateway.send_to_admin(TestRequest::post("/reload").token(FEED)).await.status, 401);
    let lines = audit_lines(&gateway, 2).await;
    assert_eq!((&lines[0]["caller"], &lines[1]["caller"]), (&"token".into(), &"local".into()));
}
