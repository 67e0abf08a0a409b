//! Chat says what has happened: what its token signed is forgotten, and nothing else is believed.
//!
//! The gateway's ttl is an hour and it keeps answers right after an event, so whatever is asked again was evicted.

use std::time::Duration;

use crate::support::app::{MAIN, ODD, OTHER, TestApp};
use crate::support::chat::FakeChat;
use crate::support::client::{Ask, Conn};
use crate::support::gateway::{Gateway, listening};
use crate::support::graph::OK;
use crate::support::hook::{
    ADDED, ALARM, DELETED, TAKEN, address, claims, event, listen, post, query, sign, signed, signed_at, taken,
};
use crate::support::process::Process;
use crate::support::reply::{Gate, Reply};
use crate::support::setup::Setup;
use crate::support::wire::free_address;
use crate::support::{eventually, now, turn, unix_now};

const CHECK: &str = "follow/follow_check";

/// A gateway that takes webhooks of the main app.
async fn gateway(chat: &FakeChat) -> (Gateway, String) {
    let gateway = listen(Setup::new(chat), &[MAIN]).start().await;
    let address = address(&gateway).await;
    (gateway, address)
}

/// Whether the pair is known, without changing what is known.
async fn is_known(gateway: &Gateway, app: TestApp, from: &str, to: &str) -> bool {
    let ask = Ask::check(from, &[to]).header("Cache-Control", "only-if-cached").header("Chatgate-App", app.name);
    let answer = gateway.ask(ask).await;
    assert!(answer.status == 200 || answer.slug() == Some("not_cached"), "{answer:?}");
    answer.status == 200
}

/// Learns ann's pair with bob and cyd, and dan's with bob.
async fn learn(gateway: &Gateway) {
    gateway.check("ann", &["bob", "cyd"]).await.checked();
    gateway.check("dan", &["bob"]).await.checked();
    assert_eq!(known(gateway).await, [true, true, true]);
}

/// What is known of: ann and bob, ann and cyd, dan and bob.
async fn known(gateway: &Gateway) -> [bool; 3] {
    [
        is_known(gateway, MAIN, "ann", "bob").await,
        is_known(gateway, MAIN, "ann", "cyd").await,
        is_known(gateway, MAIN, "dan", "bob").await,
    ]
}

#[tokio::test]
async fn an_event_evicts_both_directions_of_its_pairs_and_no_others() {
    let chat = FakeChat::start().await;
    let (gateway, hooks) = gateway(&chat).await;
    for (command, follows) in [(ADDED, true), (DELETED, false)] {
        learn(&gateway).await;
        gateway.check("bob", &["ann"]).await.checked();
        // As an app on a phone does it, past the gateway.
        match follows {
            true => chat.follow("ann", "bob"),
            false => chat.graph().unfollow(MAIN.sdkappid, "ann", "bob"),
        }
        let old = if follows { [0, 0] } else { [2, 1] };
        assert_eq!(gateway.check("ann", &["bob"]).await.types(), old[..1], "the gateway cannot know");
        let ask = signed(MAIN, command, &event(command, "ann", &["bob"]));
        let before = chat.calls_of(CHECK).len();
        taken(&hooks, &ask).await;
        assert_eq!(known(&gateway).await, [false, true, true], "{command}");
        assert!(!is_known(&gateway, MAIN, "bob", "ann").await, "{command}: turned round");
        assert_eq!(chat.calls_of(CHECK).len(), before, "an event asks nothing and asserts nothing");
        let new = if follows { [2, 1] } else { [0, 0] };
        assert_eq!(gateway.check("bob", &["ann"]).await.types(), new[1..]);
        assert_eq!(gateway.check("ann", &["bob"]).await.types(), new[..1]);
        // Of several pairs each, also of those that nobody knows.
        let ask = signed(MAIN, command, &event(command, "bob", &["dan", "zoe", "ann"]));
        taken(&hooks, &ask).await;
        assert_eq!(known(&gateway).await, [false, true, false], "{command}");
    }
}

#[tokio::test]
async fn a_lookup_held_over_an_event_neither_answers_nor_is_kept() {
    let chat = FakeChat::start().await;
    let (gateway, hooks) = gateway(&chat).await;
    let bodies = [(ADDED, event(ADDED, "ann", &["bob"])), (ADDED, "garbage".to_owned()), (DELETED, String::new())];
    for (round, (command, body)) in bodies.into_iter().enumerate() {
        let gate = Gate::closed();
        chat.graph().unfollow(MAIN.sdkappid, "ann", "bob");
        taken(&hooks, &signed(MAIN, DELETED, &event(DELETED, "ann", &["bob"]))).await;
        chat.once(Reply::model().held(&gate));
        let before = chat.count();
        // Under way, with the answer from before the event already decided.
        let mut lookup = gateway.connect().await;
        lookup.send(Ask::check("ann", &["bob"]).bytes()).await;
        chat.seen(before + 1).await;
        chat.follow("ann", "bob");
        taken(&hooks, &signed(MAIN, command, &body)).await;
        assert_eq!(gateway.check("ann", &["bob"]).await.types(), [2], "round {round}: a new check does not join");
        gate.open();
        assert_eq!(lookup.answer().await.types(), [2], "round {round}: the lookup that was under way");
        assert_eq!(gateway.check("bob", &["ann"]).await.types(), [1], "round {round}: what was kept");
    }
}

#[tokio::test]
async fn what_the_token_did_not_sign_just_now_is_refused_and_evicts_nothing() {
    let chat = FakeChat::start().await;
    let lines = chat.app_lines();
    let setup = Setup::without_apps().app(MAIN, &format!("{lines}\ndefault = true"));
    let setup = listen(setup.app(OTHER, &lines).app(ODD, &lines), &[MAIN, OTHER]);
    let gateway = setup.set("webhook", r#"window = "30s""#).start().await;
    let hooks = address(&gateway).await;
    learn(&gateway).await;
    let body = event(ADDED, "ann", &["bob"]);
    let at = unix_now();
    let with = |query: String| Ask::post(&format!("/?{query}")).body(&body);
    let (good, main) = (sign(MAIN.webhook_token, at), claims(MAIN, ADDED));
    let foreign = TestApp { sdkappid: 1_400_000_099, ..MAIN };
    let refused = [
        ("no query", Ask::post("/").body(&body)),
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
    for (what, ask) in refused {
        let answer = post(&hooks, &ask).await;
        assert_eq!((answer.status, answer.slug()), (401, Some("unauthenticated")), "{what}: {answer:?}");
        answer.assert_error(401, "unauthenticated", 129_401);
        assert_eq!(known(&gateway).await, [true, true, true], "{what}");
    }
    let refused = gateway.log().lines().filter(|line| line.contains("webhooks were not believed")).count();
    assert!((1..=3).contains(&refused), "the operator is told, and not for each: {refused}");
    // The same event, signed, from the edges of the window and from now.
    for at in [unix_now() - 20, unix_now() + 20, unix_now()] {
        taken(&hooks, &signed_at(MAIN, at, ADDED, &body)).await;
        assert_eq!(known(&gateway).await, [false, true, true]);
        gateway.check("ann", &["bob"]).await.checked();
    }
}

#[tokio::test]
async fn an_event_that_cannot_be_read_with_certainty_evicts_by_the_widest_certain_name() {
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
        learn(&gateway).await;
        taken(&hooks, &signed(MAIN, command, &body)).await;
        assert_eq!(known(&gateway).await, [false, false, true], "{command} {body}");
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
            learn(&gateway).await;
            taken(&hooks, &signed(MAIN, command, &body)).await;
            let shown = &body[..body.len().min(60)];
            assert_eq!(known(&gateway).await, [false, false, false], "{command} {shown}");
        }
    }
}

#[tokio::test]
async fn other_events_and_repeated_ones_are_taken_and_change_nothing() {
    let chat = FakeChat::start().await;
    let (gateway, hooks) = gateway(&chat).await;
    learn(&gateway).await;
    let body = event(ADDED, "ann", &["bob"]);
    for command in ["State.StateChange", "C2C.CallbackAfterSendMsg", "follow.callbackafterfollowadd", "", "%00"] {
        for body in [&body, "garbage", ""] {
            taken(&hooks, &signed(MAIN, command, body)).await;
        }
    }
    assert_eq!(known(&gateway).await, [true, true, true]);
    let ask = signed(MAIN, ADDED, &body);
    taken(&hooks, &ask).await;
    assert_eq!(known(&gateway).await, [false, true, true]);
    // A signature covers no body: whoever repeats it makes forget, and is told nothing.
    gateway.check("ann", &["bob"]).await.checked();
    let calls = chat.count();
    for _ in 0..3 {
        taken(&hooks, &ask).await;
    }
    assert_eq!(chat.count(), calls);
    assert_eq!(gateway.check("ann", &["bob"]).await.types(), [0]);
    assert_eq!(known(&gateway).await, [true, true, true], "and what is learned afterwards is kept");
}

#[tokio::test]
async fn apps_do_not_hear_of_each_other_s_events() {
    let chat = FakeChat::start().await;
    let lines = chat.app_lines();
    let setup = Setup::without_apps().app(MAIN, &format!("{lines}\ndefault = true")).app(OTHER, &lines);
    let gateway = listen(setup, &[MAIN, OTHER]).start().await;
    let hooks = address(&gateway).await;
    for (event_of, body) in [(MAIN, event(ADDED, "ann", &["bob"])), (OTHER, String::new())] {
        for app in [MAIN, OTHER] {
            gateway.ask(Ask::check("ann", &["bob"]).header("Chatgate-App", app.name)).await.checked();
        }
        taken(&hooks, &signed(event_of, ADDED, &body)).await;
        for app in [MAIN, OTHER] {
            assert_eq!(is_known(&gateway, app, "ann", "bob").await, app != event_of, "{}", app.name);
        }
    }
}

#[tokio::test]
async fn any_path_and_host_will_do_but_only_post() {
    let chat = FakeChat::start().await;
    let (gateway, hooks) = gateway(&chat).await;
    let good = signed(MAIN, ADDED, &event(ADDED, "ann", &["bob"]));
    let query = query(MAIN, unix_now(), ADDED);
    for path in ["/", "/hook", "/v4/follow/follow_check", "/a/b/../c%20d", "//"] {
        let ask = good.clone().target(&format!("{path}?{query}"));
        learn(&gateway).await;
        taken(&hooks, &ask.header("Origin", "https://example.com").host("203.0.113.9")).await;
        assert_eq!(known(&gateway).await, [false, true, true], "{path}");
    }
    learn(&gateway).await;
    for method in ["GET", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let answer = post(&hooks, &Ask::new(method, &format!("/?{query}"))).await;
        answer.assert_error(405, "method_not_allowed", 60002);
        assert_eq!(answer.header("allow"), Some("POST"));
    }
    let long = good.clone().target(&format!("/{}?{query}", "x".repeat(9000)));
    post(&hooks, &long).await.assert_error(414, "uri_too_long", 129_414);
    let coded = good.clone().header("Transfer-Encoding", "gzip, chunked");
    assert_eq!(post(&hooks, &coded).await.slug(), Some("bad_request"));
    let mut conn = Conn::open(&hooks).await.expect("accepted");
    conn.send("no HTTP\r\n\r\n").await;
    conn.answer().await.assert_error(400, "bad_request", 60002);
    assert_eq!(known(&gateway).await, [true, true, true], "none of these was an event");
    // It is no second way in, and the data listener takes no events.
    assert_eq!(gateway.ask(good).await.status, 403, "a foreign Host");
    let events = chat.calls().iter().filter(|call| call.command() != CHECK).count();
    assert_eq!(events, 0, "nothing was relayed");
}

#[tokio::test]
async fn an_event_whose_body_cannot_be_had_is_an_error_and_evicts_the_app() {
    let chat = FakeChat::start().await;
    let setup = listen(Setup::new(&chat), &[MAIN]).set("server", r#"body_timeout = "500ms""#);
    let gateway = setup.start().await;
    let hooks = address(&gateway).await;
    let large = signed(MAIN, ADDED, &"x".repeat(64 * 1024 + 1));
    let chunked = signed(MAIN, ADDED, &format!("10001\r\n{}\r\n0\r\n\r\n", "x".repeat(0x10001)));
    for ask in [&large, &chunked.header("Transfer-Encoding", "chunked")] {
        learn(&gateway).await;
        post(&hooks, ask).await.assert_error(413, "body_too_large", 129_413);
        assert_eq!(known(&gateway).await, [false, false, false]);
    }
    learn(&gateway).await;
    let short = signed(MAIN, ADDED, "{").header("Content-Length", "2");
    post(&hooks, &short).await.assert_error(408, "timeout", 129_408);
    assert_eq!(known(&gateway).await, [false, false, false]);
    learn(&gateway).await;
    let mut broken = Conn::open(&hooks).await.expect("accepted");
    broken.send(short.bytes()).await;
    drop(broken);
    eventually("what it named is forgotten", async || (known(&gateway).await == [false; 3]).then_some(())).await;
    // One that is not verified is refused before a byte of its body.
    learn(&gateway).await;
    let unsigned = Ask::post(&format!("/?{}", claims(MAIN, ADDED))).header("Content-Length", "99999999");
    post(&hooks, &unsigned).await.assert_error(401, "unauthenticated", 129_401);
    let other = signed(MAIN, "State.StateChange", &"x".repeat(64 * 1024 + 1));
    post(&hooks, &other).await.assert_error(413, "body_too_large", 129_413);
    assert_eq!(known(&gateway).await, [true, true, true], "only follow events evict");
    taken(&hooks, &signed(MAIN, "State.StateChange", &"x".repeat(64 * 1024))).await;
}

#[tokio::test]
async fn many_events_at_once_are_all_heeded() {
    let chat = FakeChat::start().await;
    let (gateway, hooks) = gateway(&chat).await;
    let (senders, each) = (20, 25);
    let names: Vec<String> = (0..senders * each).map(|number| format!("u{number}")).collect();
    for name in &names {
        gateway.check("ann", &[name]).await.checked();
        chat.follow(name, "ann");
    }
    let (gateway, hooks) = (&gateway, &hooks);
    let senders = names.chunks(each).map(|names| async move {
        // Chat keeps its connections.
        let mut conn = Conn::open(hooks).await.expect("accepted");
        for name in names {
            let answer = conn.ask(&signed(MAIN, ADDED, &event(ADDED, name, &["ann"]))).await;
            assert_eq!((answer.status, answer.text().as_str()), (200, TAKEN));
            assert_eq!(gateway.check("ann", &[name]).await.types(), [1], "{name}");
        }
    });
    all_of(senders.collect()).await;
}

/// Runs them next to each other.
async fn all_of<F: Future<Output = ()>>(futures: Vec<F>) {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        futures.retain_mut(|future| future.as_mut().poll(cx).is_pending());
        if futures.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

#[tokio::test]
async fn an_alarm_lowers_the_quota_of_its_command_and_never_raises_one() {
    let chat = FakeChat::start().await;
    let setup = listen(Setup::new(&chat), &[MAIN]).deadline("400ms");
    let setup = setup.set("app.quota", r#"commands = { "profile/portrait_get" = "1/s" }"#);
    let gateway = setup.start().await;
    let hooks = address(&gateway).await;
    // Each of a second of its own: a signature that was seen before raises no alarm.
    let second = std::cell::Cell::new(unix_now());
    let alarm = |service: &str, command: &str, limit: &str| {
        let body = format!(
            r#"{{"CallbackCommand":"{ALARM}","ServiceName":"{service}","Command":"{command}","Request":170,"Limit":{limit}}}"#
        );
        // Chat sends it without a ClientIP.
        second.set(second.get() - 1);
        let query = query(MAIN, second.get(), ALARM).replace("&ClientIP=192.0.2.7", "");
        Ask::post(&format!("/?{query}")).body(body)
    };
    let refused = async |command: &str, calls: usize| {
        let mut refused = 0;
        for _ in 0..calls {
            let answer = gateway.call(command, "{}").await;
            assert!(answer.status == 200 || answer.slug() == Some("rate_limited"), "{answer:?}");
            refused += usize::from(answer.status != 200);
        }
        refused
    };
    for (service, command, limit) in
        [("follow", "made_up", "1"), ("openim", "querystate", "0"), ("openim", "querystate", "\"1\"")]
    {
        taken(&hooks, &alarm(service, command, limit)).await;
    }
    assert_eq!(refused("openim/querystate", 5).await, 0, "nothing was said of it");
    taken(&hooks, &alarm("openim", "querystate", "200")).await;
    let seen = second.get();
    taken(&hooks, &signed_at(MAIN, seen - 1, ADDED, &event(ADDED, "ann", &["bob"]))).await;
    for again in [seen, seen - 1] {
        second.set(again + 1);
        taken(&hooks, &alarm("openim", "querystate", "1")).await;
    }
    assert_eq!(refused("openim/querystate", 5).await, 0, "its signature was seen before");
    taken(&hooks, &alarm("openim", "querystate", "1")).await;
    assert!(refused("openim/querystate", 4).await >= 2, "one a second from here on");
    assert_eq!(refused("openim/sendmsg", 5).await, 0, "another command");
    taken(&hooks, &alarm("profile", "portrait_get", "100000")).await;
    assert!(refused("profile/portrait_get", 4).await >= 2, "what is configured stands");
}

#[tokio::test]
async fn it_drains_with_the_others() {
    let _alone = turn::alone().await;
    let chat = FakeChat::start().await;
    let (mut gateway, hooks) = gateway(&chat).await;
    let ask = signed(MAIN, ADDED, &event(ADDED, "ann", &["bob"]));
    let bytes = ask.bytes();
    let mut held = Conn::open(&hooks).await.expect("accepted");
    held.send(&bytes[..bytes.len() - 1]).await;
    taken(&hooks, &ask).await;
    gateway.signal("TERM");
    eventually("no new one is taken", async || Conn::open(&hooks).await.is_err().then_some(())).await;
    let begun = now();
    held.send(&bytes[bytes.len() - 1..]).await;
    let answer = held.answer().await;
    assert_eq!((answer.status, answer.text().as_str()), (200, TAKEN));
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(gateway.exit_code_within(Duration::from_secs(5)).await, 0);
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn it_has_connections_of_its_own_and_a_bound_on_them() {
    let chat = FakeChat::start().await;
    let setup = listen(Setup::new(&chat), &[MAIN]).set("server", "max_connections = 3");
    let gateway = setup.start().await;
    let hooks = address(&gateway).await;
    let ask = signed(MAIN, ADDED, &event(ADDED, "ann", &["bob"]));
    let mut kept = Vec::new();
    for _ in 0..3 {
        let mut conn = Conn::open(&hooks).await.expect("accepted");
        assert_eq!(conn.ask(&ask).await.status, 200);
        kept.push(conn);
    }
    Conn::open(&hooks).await.expect("accepted by the system").closed().await;
    gateway.call("openim/querystate", "{}").await.assert_relayed(200, OK);
    assert_eq!(kept[0].ask(&ask).await.status, 200);
    kept.pop();
    eventually("there is room again", async || {
        let mut conn = Conn::open(&hooks).await.ok()?;
        conn.send(ask.bytes()).await;
        conn.try_answer().await
    })
    .await;
}

#[tokio::test]
async fn a_write_through_another_gateway_is_heard_of_from_the_sandbox() {
    let hooks = free_address();
    let dir = tempfile::tempdir().expect("a directory");
    let (number, url) = (MAIN.sdkappid.to_string(), format!("http://{hooks}/"));
    let account = ["--sdkappid", &number, "--identifier", MAIN.identifier, "--secret-key", MAIN.key];
    let webhook = ["--webhook", &url, "--webhook-token", MAIN.webhook_token];
    let args = [&["sandbox", "--listen", "127.0.0.1:0"][..], &account, &webhook].concat();
    let sandbox = Process::start(&args, dir.path(), &[]);
    let chat = eventually("the sandbox listens", async || listening(&sandbox.stderr(), "sandbox").pop()).await;
    let graph = Ask::post("/__sandbox/graph").body(r#"{"users":["ann","bob"],"edges":[]}"#);
    assert_eq!(Conn::open(&chat).await.expect("accepted").ask(&graph).await.status, 200);
    let setup = || Setup::without_apps().app(MAIN, &format!("endpoint = \"http://{chat}\""));
    let here = listen(setup(), &[MAIN]).set("webhook", &format!("listen = \"{hooks}\"")).start().await;
    let there = setup().start().await;
    address(&here).await;
    assert_eq!(here.check("ann", &["bob"]).await.types(), [0]);
    let writes = [
        ("follow/follow_add", r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob"}]}"#, [2], [1]),
        ("follow/follow_delete", r#"{"From_Account":"ann","To_Account":["bob"]}"#, [0], [0]),
    ];
    for (command, body, seen, turned) in writes {
        assert_eq!(there.call(command, body).await.json()["ErrorCode"], 0, "{command}");
        eventually("the write is seen here", async || {
            (here.check("ann", &["bob"]).await.types() == seen).then_some(())
        })
        .await;
        assert_eq!(here.check("bob", &["ann"]).await.types(), turned, "{command}");
    }
}

#[tokio::test]
async fn at_trace_level_neither_token_nor_signature_is_said() {
    let chat = FakeChat::start().await;
    let gateway = listen(Setup::new(&chat), &[MAIN]).set("log", r#"level = "trace""#).start().await;
    let hooks = address(&gateway).await;
    let echo = query(MAIN, unix_now(), ADDED);
    for query in [echo.clone(), echo.replace("Sign=", "Sign=0"), format!("{echo}&Sign={}", MAIN.webhook_token)] {
        for (method, body) in [("POST", "garbage"), ("GET", ""), ("POST", &query)] {
            post(&hooks, &Ask::new(method, &format!("/?{query}")).body(body)).await;
        }
    }
    eventually("the log says something of each", async || {
        let log = gateway.log();
        (log.contains("evicted what it named") && log.contains("a webhook was refused")).then_some(())
    })
    .await;
    // What the process said is searched for every secret when it ends.
    assert_eq!(gateway.stop().await, 0);
}
