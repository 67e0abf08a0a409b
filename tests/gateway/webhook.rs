//! Webhooks of Chat: an event that its token signed invalidates pairs, and any other event is rejected.
//!
//! The gateway's ttl is 1 h and it caches pairs right after an event, so a pair that is fetched again was
//! invalidated.

use std::time::Duration;

use crate::support::app::{MAIN, ODD, OTHER, TestApp};
use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::gateway::{Gateway, listener_addresses};
use crate::support::graph::OK;
use crate::support::hook::{
    ACCEPTED, ADDED, DELETED, RATE_ALERT, address, event, listen, post, post_accepted, query, sign, signed, signed_at,
    unsigned_query,
};
use crate::support::process::Process;
use crate::support::reply::{Gate, Reply};
use crate::support::setup::Setup;
use crate::support::wire::free_address;
use crate::support::{eventually, now, turn, unix_now};

const CHECK: &str = "follow/follow_check";

/// Starts a gateway that accepts webhooks of the main app.
async fn gateway(chat: &FakeChat) -> (Gateway, String) {
    let gateway = listen(Setup::new(chat), &[MAIN]).start().await;
    let address = address(&gateway).await;
    (gateway, address)
}

/// Returns whether the pair is cached, without changing the cache.
async fn is_cached(gateway: &Gateway, app: TestApp, from: &str, to: &str) -> bool {
    let request =
        TestRequest::check(from, &[to]).header("Cache-Control", "only-if-cached").header("Chatgate-App", app.name);
    let response = gateway.send(request).await;
    assert!(response.status == 200 || response.slug() == Some("not_cached"), "{response:?}");
    response.status == 200
}

/// Caches ann's pairs with bob and cyd, and dan's pair with bob.
async fn fill_cache(gateway: &Gateway) {
    gateway.check("ann", &["bob", "cyd"]).await.items();
    gateway.check("dan", &["bob"]).await.items();
    assert_eq!(cached(gateway).await, [true, true, true]);
}

/// Returns which pairs are cached: ann and bob, ann and cyd, dan and bob.
async fn cached(gateway: &Gateway) -> [bool; 3] {
    [
        is_cached(gateway, MAIN, "ann", "bob").await,
        is_cached(gateway, MAIN, "ann", "cyd").await,
        is_cached(gateway, MAIN, "dan", "bob").await,
    ]
}

#[tokio::test]
async fn event_invalidates_both_directions_of_only_its_pairs() {
    let chat = FakeChat::start().await;
    let (gateway, hooks) = gateway(&chat).await;
    for (command, follows) in [(ADDED, true), (DELETED, false)] {
        fill_cache(&gateway).await;
        gateway.check("bob", &["ann"]).await.items();
        // A write that bypasses the gateway, as from an app on a phone.
        match follows {
            true => chat.follow("ann", "bob"),
            false => chat.graph().unfollow(MAIN.sdkappid, "ann", "bob"),
        }
        let old = if follows { [0, 0] } else { [2, 1] };
        assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), old[..1], "the gateway has not seen the write");
        let request = signed(MAIN, command, &event(command, "ann", &["bob"]));
        let before = chat.calls_of(CHECK).len();
        post_accepted(&hooks, &request).await;
        assert_eq!(cached(&gateway).await, [false, true, true], "{command}");
        assert!(!is_cached(&gateway, MAIN, "bob", "ann").await, "{command}: flipped");
        assert_eq!(chat.calls_of(CHECK).len(), before, "an event causes no lookup");
        let new = if follows { [2, 1] } else { [0, 0] };
        assert_eq!(gateway.check("bob", &["ann"]).await.follow_types(), new[1..]);
        assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), new[..1]);
        // An event with several pairs, some of which are not cached.
        let request = signed(MAIN, command, &event(command, "bob", &["dan", "zoe", "ann"]));
        post_accepted(&hooks, &request).await;
        assert_eq!(cached(&gateway).await, [false, true, false], "{command}");
    }
}

#[tokio::test]
async fn lookup_in_flight_during_an_event_is_discarded() {
    let chat = FakeChat::start().await;
    let (gateway, hooks) = gateway(&chat).await;
    let bodies = [(ADDED, event(ADDED, "ann", &["bob"])), (ADDED, "garbage".to_owned()), (DELETED, String::new())];
    for (round, (command, body)) in bodies.into_iter().enumerate() {
        let gate = Gate::closed();
        chat.graph().unfollow(MAIN.sdkappid, "ann", "bob");
        post_accepted(&hooks, &signed(MAIN, DELETED, &event(DELETED, "ann", &["bob"]))).await;
        chat.reply_once(Reply::from_graph().after(&gate));
        let before = chat.call_count();
        // In flight, with a result from before the event.
        let mut lookup = gateway.connect().await;
        lookup.send(TestRequest::check("ann", &["bob"]).bytes()).await;
        chat.wait_for_calls(before + 1).await;
        chat.follow("ann", "bob");
        post_accepted(&hooks, &signed(MAIN, command, &body)).await;
        assert_eq!(
            gateway.check("ann", &["bob"]).await.follow_types(),
            [2],
            "round {round}: a new lookup does not join"
        );
        gate.open();
        assert_eq!(lookup.read_response().await.follow_types(), [2], "round {round}: the lookup in flight");
        assert_eq!(gateway.check("bob", &["ann"]).await.follow_types(), [1], "round {round}: the cached pair");
    }
}

#[tokio::test]
async fn unsigned_or_outdated_events_are_rejected_without_invalidation() {
    let chat = FakeChat::start().await;
    let lines = chat.app_lines();
    let setup = Setup::without_apps().app(MAIN, &format!("{lines}\ndefault = true"));
    let setup = listen(setup.app(OTHER, &lines).app(ODD, &lines), &[MAIN, OTHER]);
    let gateway = setup.set("webhook", r#"window = "30s""#).start().await;
    let hooks = address(&gateway).await;
    fill_cache(&gateway).await;
    let body = event(ADDED, "ann", &["bob"]);
    let at = unix_now();
    let with = |query: String| TestRequest::post(&format!("/?{query}")).body(&body);
    let (good, main) = (sign(MAIN.webhook_token, at), unsigned_query(MAIN, ADDED));
    let foreign = TestApp { sdkappid: 1_400_000_099, ..MAIN };
    let rejected = [
        ("no query", TestRequest::post("/").body(&body)),
        ("not signed", with(main.clone())),
        ("no time", with(format!("{main}&Sign={good}"))),
        ("no signature", with(format!("{main}&RequestTime={at}"))),
        ("no app", with(format!("CallbackCommand={ADDED}&Sign={good}&RequestTime={at}"))),
        ("no command", with(format!("SdkAppid={}&Sign={good}&RequestTime={at}", MAIN.sdkappid))),
        ("wrong", with(format!("{main}&Sign={}&RequestTime={at}", "0".repeat(64)))),
        ("cut", with(format!("{main}&Sign={}&RequestTime={at}", &good[..63]))),
        ("upper case", with(format!("{main}&Sign={}&RequestTime={at}", good.to_uppercase()))),
        ("of another second", with(format!("{main}&Sign={good}&RequestTime={}", at + 1))),
        ("of no token", with(format!("{main}&Sign={}&RequestTime={at}", sign("", at)))),
        ("of the key", with(format!("{main}&Sign={}&RequestTime={at}", sign(MAIN.key, at)))),
        ("two signatures", with(format!("{main}&Sign={good}&RequestTime={at}&Sign={good}"))),
        ("two times", with(format!("{main}&Sign={good}&RequestTime={at}&requesttime={at}"))),
        ("two apps", with(format!("{main}&Sign={good}&RequestTime={at}&SdkAppid={}", OTHER.sdkappid))),
        ("two commands", with(format!("{main}&Sign={good}&RequestTime={at}&CallbackCommand=x"))),
        ("old", signed_at(MAIN, at - 60, ADDED, &body)),
        ("of the future", signed_at(MAIN, at + 90, ADDED, &body)),
        ("a foreign app", signed(foreign, ADDED, &body)),
        ("an app without a token", signed(ODD, ADDED, &body)),
        ("with another app's token", signed(TestApp { webhook_token: OTHER.webhook_token, ..MAIN }, ADDED, &body)),
    ];
    for (case, request) in rejected {
        let response = post(&hooks, &request).await;
        assert_eq!((response.status, response.slug()), (401, Some("unauthenticated")), "{case}: {response:?}");
        response.assert_error(401, "unauthenticated", 129_401);
        assert_eq!(cached(&gateway).await, [true, true, true], "{case}");
    }
    let warnings = gateway.log().lines().filter(|line| line.contains("rejected webhooks")).count();
    assert!((1..=3).contains(&warnings), "rejections are logged, but not each one: {warnings}");
    // The same event with a valid signature, near both edges of the window and now.
    for at in [unix_now() - 20, unix_now() + 20, unix_now()] {
        post_accepted(&hooks, &signed_at(MAIN, at, ADDED, &body)).await;
        assert_eq!(cached(&gateway).await, [false, true, true]);
        gateway.check("ann", &["bob"]).await.items();
    }
}

#[tokio::test]
async fn ambiguous_event_invalidates_the_user_or_the_app() {
    let chat = FakeChat::start().await;
    let (gateway, hooks) = gateway(&chat).await;
    let of_ann = [
        (ADDED, event(DELETED, "ann", &["zoe"])),
        (DELETED, event(ADDED, "ann", &["zoe"])),
        (ADDED, event(ADDED, "ann", &[])),
        (DELETED, r#"{"From_Account":"ann","To_Account":["zoe",null]}"#.to_owned()),
        (DELETED, r#"{"From_Account":"ann","To_Account":"zoe"}"#.to_owned()),
        (ADDED, r#"{"From_Account":"ann","FollowList":[["zoe"]]}"#.to_owned()),
        (ADDED, r#"{"From_Account":"ann","FollowList":[{"To_Account":"zoe","To_Account":"bob"}]}"#.to_owned()),
    ];
    for (command, body) in of_ann {
        fill_cache(&gateway).await;
        post_accepted(&hooks, &signed(MAIN, command, &body)).await;
        assert_eq!(cached(&gateway).await, [false, false, true], "{command} {body}");
    }
    let of_all = [
        String::new(),
        "garbage".to_owned(),
        "[]".to_owned(),
        r#"["zoe",[{"To_Account":"yan"}]]"#.to_owned(),
        "{}".to_owned(),
        r#"{"From_Account":7,"To_Account":["zoe"]}"#.to_owned(),
        r#"{"From_Account":"zoe","from_account":"ann","To_Account":["yan"]}"#.to_owned(),
        format!("{}x", event(DELETED, "zoe", &["yan"])),
        "[".repeat(60_000),
    ];
    for body in of_all {
        for command in [ADDED, DELETED] {
            fill_cache(&gateway).await;
            post_accepted(&hooks, &signed(MAIN, command, &body)).await;
            let shown = &body[..body.len().min(60)];
            assert_eq!(cached(&gateway).await, [false, false, false], "{command} {shown}");
        }
    }
}

#[tokio::test]
async fn other_and_repeated_events_are_accepted_harmlessly() {
    let chat = FakeChat::start().await;
    let (gateway, hooks) = gateway(&chat).await;
    fill_cache(&gateway).await;
    let body = event(ADDED, "ann", &["bob"]);
    for command in ["State.StateChange", "C2C.CallbackAfterSendMsg", "follow.callbackafterfollowadd", "", "%00"] {
        for body in [&body, "garbage", ""] {
            post_accepted(&hooks, &signed(MAIN, command, body)).await;
        }
    }
    assert_eq!(cached(&gateway).await, [true, true, true]);
    let request = signed(MAIN, ADDED, &body);
    post_accepted(&hooks, &request).await;
    assert_eq!(cached(&gateway).await, [false, true, true]);
    // A signature does not cover the body: a replayed event invalidates pairs, but discloses nothing.
    gateway.check("ann", &["bob"]).await.items();
    let calls = chat.call_count();
    for _ in 0..3 {
        post_accepted(&hooks, &request).await;
    }
    assert_eq!(chat.call_count(), calls);
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [0]);
    assert_eq!(cached(&gateway).await, [true, true, true], "pairs that are fetched afterwards are cached");
}

#[tokio::test]
async fn events_invalidate_only_their_own_app() {
    let chat = FakeChat::start().await;
    let lines = chat.app_lines();
    let setup = Setup::without_apps().app(MAIN, &format!("{lines}\ndefault = true")).app(OTHER, &lines);
    let gateway = listen(setup, &[MAIN, OTHER]).start().await;
    let hooks = address(&gateway).await;
    for (event_of, body) in [(MAIN, event(ADDED, "ann", &["bob"])), (OTHER, String::new())] {
        for app in [MAIN, OTHER] {
            gateway.send(TestRequest::check("ann", &["bob"]).header("Chatgate-App", app.name)).await.items();
        }
        post_accepted(&hooks, &signed(event_of, ADDED, &body)).await;
        for app in [MAIN, OTHER] {
            assert_eq!(is_cached(&gateway, app, "ann", "bob").await, app != event_of, "{}", app.name);
        }
    }
}

#[tokio::test]
async fn webhooks_accept_any_path_and_host_but_only_post() {
    let chat = FakeChat::start().await;
    let (gateway, hooks) = gateway(&chat).await;
    let good = signed(MAIN, ADDED, &event(ADDED, "ann", &["bob"]));
    let query = query(MAIN, unix_now(), ADDED);
    for path in ["/", "/hook", "/v4/follow/follow_check", "/a/b/../c%20d", "//"] {
        let request = good.clone().target(&format!("{path}?{query}"));
        fill_cache(&gateway).await;
        post_accepted(&hooks, &request.header("Origin", "https://example.com").host("203.0.113.9")).await;
        assert_eq!(cached(&gateway).await, [false, true, true], "{path}");
    }
    fill_cache(&gateway).await;
    for method in ["GET", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let response = post(&hooks, &TestRequest::new(method, &format!("/?{query}"))).await;
        response.assert_error(405, "method_not_allowed", 60002);
        assert_eq!(response.header("allow"), Some("POST"));
    }
    let long = good.clone().target(&format!("/{}?{query}", "x".repeat(9000)));
    post(&hooks, &long).await.assert_error(414, "uri_too_long", 129_414);
    let coded = good.clone().header("Transfer-Encoding", "gzip, chunked");
    assert_eq!(post(&hooks, &coded).await.slug(), Some("bad_request"));
    let mut conn = Conn::open(&hooks).await.expect("accepted");
    conn.send("no HTTP\r\n\r\n").await;
    conn.read_response().await.assert_error(400, "bad_request", 60002);
    assert_eq!(cached(&gateway).await, [true, true, true], "none of these was an event");
    // The webhook listener relays no commands, and the data listener accepts no events.
    assert_eq!(gateway.send(good).await.status, 403, "a foreign Host");
    let events = chat.calls().iter().filter(|call| call.command() != CHECK).count();
    assert_eq!(events, 0, "nothing was relayed");
}

#[tokio::test]
async fn event_with_an_unreadable_body_invalidates_the_app() {
    let chat = FakeChat::start().await;
    let setup = listen(Setup::new(&chat), &[MAIN]).set("server", r#"body_timeout = "500ms""#);
    let gateway = setup.start().await;
    let hooks = address(&gateway).await;
    let large = signed(MAIN, ADDED, &"x".repeat(1024 * 1024 + 1));
    let chunked = signed(MAIN, ADDED, &format!("100001\r\n{}\r\n0\r\n\r\n", "x".repeat(0x10_0001)));
    for request in [&large, &chunked.header("Transfer-Encoding", "chunked")] {
        fill_cache(&gateway).await;
        post(&hooks, request).await.assert_error(413, "body_too_large", 129_413);
        assert_eq!(cached(&gateway).await, [false, false, false]);
    }
    fill_cache(&gateway).await;
    let short = signed(MAIN, ADDED, "{").header("Content-Length", "2");
    post(&hooks, &short).await.assert_error(408, "timeout", 129_408);
    assert_eq!(cached(&gateway).await, [false, false, false]);
    fill_cache(&gateway).await;
    let mut broken = Conn::open(&hooks).await.expect("accepted");
    broken.send(short.bytes()).await;
    drop(broken);
    eventually("the pairs are invalidated", async || (cached(&gateway).await == [false; 3]).then_some(())).await;
    // An unverified event is rejected before its body is read.
    fill_cache(&gateway).await;
    let unsigned =
        TestRequest::post(&format!("/?{}", unsigned_query(MAIN, ADDED))).header("Content-Length", "99999999");
    post(&hooks, &unsigned).await.assert_error(401, "unauthenticated", 129_401);
    let other = signed(MAIN, "State.StateChange", &"x".repeat(1024 * 1024 + 1));
    post(&hooks, &other).await.assert_error(413, "body_too_large", 129_413);
    assert_eq!(cached(&gateway).await, [true, true, true], "only follow events invalidate");
    post_accepted(&hooks, &signed(MAIN, "State.StateChange", &"x".repeat(1024 * 1024))).await;
}

#[tokio::test]
async fn concurrent_events_are_all_applied() {
    let chat = FakeChat::start().await;
    let (gateway, hooks) = gateway(&chat).await;
    let (senders, each) = (20, 25);
    let names: Vec<String> = (0..senders * each).map(|number| format!("u{number}")).collect();
    for name in &names {
        gateway.check("ann", &[name]).await.items();
        chat.follow(name, "ann");
    }
    let (gateway, hooks) = (&gateway, &hooks);
    let senders = names.chunks(each).map(|names| async move {
        // Chat reuses its connections.
        let mut conn = Conn::open(hooks).await.expect("accepted");
        for name in names {
            let response = conn.request(&signed(MAIN, ADDED, &event(ADDED, name, &["ann"]))).await;
            assert_eq!((response.status, response.text().as_str()), (200, ACCEPTED));
            assert_eq!(gateway.check("ann", &[name]).await.follow_types(), [1], "{name}");
        }
    });
    join_all(senders.collect()).await;
}

/// Runs the futures concurrently until all have completed.
async fn join_all<F: Future<Output = ()>>(futures: Vec<F>) {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        futures.retain_mut(|future| future.as_mut().poll(cx).is_pending());
        if futures.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

#[tokio::test]
async fn rate_alert_lowers_and_never_raises_the_command_quota() {
    let chat = FakeChat::start().await;
    let setup = listen(Setup::new(&chat), &[MAIN]).timeout("400ms");
    let setup = setup.set("app.quota", r#"commands = { "profile/portrait_get" = "1/s" }"#);
    let gateway = setup.start().await;
    let hooks = address(&gateway).await;
    // Each alert has its own second, because chatgate ignores an alert with a signature that it has seen before.
    let second = std::cell::Cell::new(unix_now());
    let alert = |service: &str, command: &str, limit: &str| {
        let body = format!(
            r#"{{"CallbackCommand":"{RATE_ALERT}","ServiceName":"{service}","Command":"{command}","Request":170,"Limit":{limit}}}"#
        );
        // Chat sends rate alerts without a ClientIP.
        second.set(second.get() - 1);
        let query = query(MAIN, second.get(), RATE_ALERT).replace("&ClientIP=192.0.2.7", "");
        TestRequest::post(&format!("/?{query}")).body(body)
    };
    let rejected = async |command: &str, calls: usize| {
        let mut rejected = 0;
        for _ in 0..calls {
            let response = gateway.call(command, "{}").await;
            assert!(response.status == 200 || response.slug() == Some("rate_limited"), "{response:?}");
            rejected += usize::from(response.status != 200);
        }
        rejected
    };
    for (service, command, limit) in
        [("follow", "made_up", "1"), ("openim", "querystate", "0"), ("openim", "querystate", "\"1\"")]
    {
        post_accepted(&hooks, &alert(service, command, limit)).await;
    }
    assert_eq!(rejected("openim/querystate", 5).await, 0, "no valid alert named this command");
    post_accepted(&hooks, &alert("openim", "querystate", "200")).await;
    let seen = second.get();
    post_accepted(&hooks, &signed_at(MAIN, seen - 1, ADDED, &event(ADDED, "ann", &["bob"]))).await;
    for again in [seen, seen - 1] {
        second.set(again + 1);
        post_accepted(&hooks, &alert("openim", "querystate", "1")).await;
    }
    assert_eq!(rejected("openim/querystate", 5).await, 0, "the signature was seen before");
    post_accepted(&hooks, &alert("openim", "querystate", "1")).await;
    assert!(rejected("openim/querystate", 4).await >= 2, "the quota is 1 call per second now");
    assert_eq!(rejected("openim/sendmsg", 5).await, 0, "another command");
    post_accepted(&hooks, &alert("future", "command", "1")).await;
    assert!(rejected("future/command", 4).await >= 2, "a command outside the built-in table");
    assert_eq!(rejected("future/another", 5).await, 0, "another command outside the table");
    post_accepted(&hooks, &alert("profile", "portrait_get", "100000")).await;
    assert!(rejected("profile/portrait_get", 4).await >= 2, "the configured quota still applies");
}

#[tokio::test]
async fn webhook_listener_drains_on_sigterm() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let (mut gateway, hooks) = gateway(&chat).await;
    let request = signed(MAIN, ADDED, &event(ADDED, "ann", &["bob"]));
    let bytes = request.bytes();
    let mut held = Conn::open(&hooks).await.expect("accepted");
    held.send(&bytes[..bytes.len() - 1]).await;
    post_accepted(&hooks, &request).await;
    gateway.signal("TERM");
    eventually("no new connection is accepted", async || Conn::open(&hooks).await.is_err().then_some(())).await;
    let start = now();
    held.send(&bytes[bytes.len() - 1..]).await;
    let response = held.read_response().await;
    assert_eq!((response.status, response.text().as_str()), (200, ACCEPTED));
    assert_eq!(response.header("connection"), Some("close"));
    assert_eq!(gateway.exit_code_within(Duration::from_secs(5)).await, 0);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn webhook_connections_have_a_separate_limit() {
    let chat = FakeChat::start().await;
    let setup = listen(Setup::new(&chat), &[MAIN]).set("server", "max_connections = 3");
    let gateway = setup.start().await;
    let hooks = address(&gateway).await;
    let request = signed(MAIN, ADDED, &event(ADDED, "ann", &["bob"]));
    let mut kept = Vec::new();
    for _ in 0..3 {
        let mut conn = Conn::open(&hooks).await.expect("accepted");
        assert_eq!(conn.request(&request).await.status, 200);
        kept.push(conn);
    }
    Conn::open(&hooks).await.expect("accepted by the kernel").assert_closed().await;
    gateway.call("openim/querystate", "{}").await.assert_relayed(200, OK);
    assert_eq!(kept[0].request(&request).await.status, 200);
    kept.pop();
    eventually("a connection slot is free", async || {
        let mut conn = Conn::open(&hooks).await.ok()?;
        conn.send(request.bytes()).await;
        conn.try_read_response().await
    })
    .await;
}

#[tokio::test]
async fn sandbox_webhooks_report_writes_of_another_gateway() {
    let hooks = free_address();
    let dir = tempfile::tempdir().expect("a directory");
    let (number, url) = (MAIN.sdkappid.to_string(), format!("http://{hooks}/"));
    let account = ["--sdkappid", &number, "--identifier", MAIN.identifier, "--secret-key", MAIN.key];
    let webhook = ["--webhook", &url, "--webhook-token", MAIN.webhook_token];
    let args = [&["sandbox", "--listen", "127.0.0.1:0"][..], &account, &webhook].concat();
    let sandbox = Process::start(&args, dir.path(), &[]);
    let chat = eventually("the sandbox listens", async || listener_addresses(&sandbox.stderr(), "sandbox").pop()).await;
    let graph = TestRequest::post("/__sandbox/graph").body(r#"{"users":["ann","bob"],"edges":[]}"#);
    assert_eq!(Conn::open(&chat).await.expect("accepted").request(&graph).await.status, 200);
    let setup = || Setup::without_apps().app(MAIN, &format!("endpoint = \"http://{chat}\""));
    let local = listen(setup(), &[MAIN]).set("webhook", &format!("listen = \"{hooks}\"")).start().await;
    let remote = setup().start().await;
    address(&local).await;
    assert_eq!(local.check("ann", &["bob"]).await.follow_types(), [0]);
    let writes = [
        ("follow/follow_add", r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob"}]}"#, [2], [1]),
        ("follow/follow_delete", r#"{"From_Account":"ann","To_Account":["bob"]}"#, [0], [0]),
    ];
    for (command, body, seen, flipped) in writes {
        assert_eq!(remote.call(command, body).await.json()["ErrorCode"], 0, "{command}");
        eventually("the write is visible at the local gateway", async || {
            (local.check("ann", &["bob"]).await.follow_types() == seen).then_some(())
        })
        .await;
        assert_eq!(local.check("bob", &["ann"]).await.follow_types(), flipped, "{command}");
    }
}

#[tokio::test]
async fn trace_log_contains_neither_webhook_token_nor_signature() {
    let chat = FakeChat::start().await;
    let gateway = listen(Setup::new(&chat), &[MAIN]).set("log", r#"level = "trace""#).start().await;
    let hooks = address(&gateway).await;
    let echo = query(MAIN, unix_now(), ADDED);
    for query in [echo.clone(), echo.replace("Sign=", "Sign=0"), format!("{echo}&Sign={}", MAIN.webhook_token)] {
        for (method, body) in [("POST", "garbage"), ("GET", ""), ("POST", &query)] {
            post(&hooks, &TestRequest::new(method, &format!("/?{query}")).body(body)).await;
        }
    }
    eventually("both outcomes are logged", async || {
        let log = gateway.log();
        (log.contains("webhook invalidated cached pairs") && log.contains("webhook rejected: ")).then_some(())
    })
    .await;
    // The output of the process is searched for every secret when it exits.
    assert_eq!(gateway.stop().await, 0);
}
