//! Forwarded webhooks: byte for byte in both directions, after the invalidation, once, within bounds.

use std::time::Duration;

use crate::support::app::{MAIN, OTHER, TestApp};
use crate::support::app_server::AppServer;
use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::gateway::Gateway;
use crate::support::hook::{ACCEPTED, ADDED, DELETED, address, event, listen, post, post_accepted, query, signed};
use crate::support::reply::{Gate, Reply, ReplyKind};
use crate::support::setup::Setup;
use crate::support::tls::Ca;
use crate::support::wire::free_address;
use crate::support::{eventually, now, turn, unix_now};

const BEFORE_SEND: &str = "C2C.CallbackBeforeSendMsg";

/// Configures a webhook listener that forwards the main app's webhooks to this URL.
fn forward(setup: Setup, url: &str) -> Setup {
    listen(setup, &[MAIN]).set("webhook", &format!("forward = {{ main = '{url}' }}"))
}

/// Starts a gateway that forwards the main app's webhooks to `/im` of the app.
async fn gateway(chat: &FakeChat, app: &AppServer) -> (Gateway, String) {
    let gateway = forward(Setup::new(chat), &app.url("/im")).start().await;
    let address = address(&gateway).await;
    (gateway, address)
}

/// Returns whether ann's pair with bob is cached, without changing the cache.
async fn is_cached(gateway: &Gateway) -> bool {
    let response = gateway.send(TestRequest::check("ann", &["bob"]).header("Cache-Control", "only-if-cached")).await;
    assert!(response.status == 200 || response.slug() == Some("not_cached"), "{response:?}");
    response.status == 200
}

/// Returns the number of webhooks of the main app with this outcome, from `/metrics`.
async fn forwards(gateway: &Gateway, outcome: &str) -> u64 {
    let text = gateway.admin_get("/metrics").await.text();
    let name = format!("chatgate_webhook_forwards_total{{app=\"main\",outcome=\"{outcome}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().expect("a number"))
}

#[tokio::test]
async fn webhook_and_response_pass_byte_for_byte() {
    let (chat, app) = (FakeChat::start().await, AppServer::start().await);
    let (gateway, hooks) = gateway(&chat, &app).await;
    let every_byte: Vec<u8> = (0..=255).collect();
    let plain = query(MAIN, unix_now(), BEFORE_SEND);
    let odd = format!("x=%20%2f&&{plain}&OptPlatform=%E7%AE%A1+&=&a=b=c");
    let types = [Some("application/json"), Some("application/json; charset=utf-8"), None];
    let bodies: [&[u8]; 4] = [b"{\"a\": 1}", b"garbage", &every_byte, b""];
    let replies = [
        (200, Some("application/json"), b"{\"ErrorCode\":10016}".as_slice()),
        (418, Some("text/x; y=\"z\""), &every_byte),
        (503, None, b""),
    ];
    for (number, body) in bodies.into_iter().enumerate() {
        let (query, content_type) = ([&plain, &odd][number % 2], types[number % 3]);
        for (status, reply_type, reply) in replies {
            let kind =
                ReplyKind::Response { status, content_type: reply_type.map(str::to_owned), body: reply.to_vec() };
            app.reply(kind.into());
            let mut request = TestRequest::post(&format!("/ignored/path?{query}")).host("hooks.example.com").body(body);
            for (name, value) in [("Cookie", "a=b"), ("Authorization", "Bearer x"), ("X-Forwarded-For", "192.0.2.1")] {
                request = request.header(name, value);
            }
            if let Some(content_type) = content_type {
                request = request.header("Content-Type", content_type);
            }
            let response = post(&hooks, &request).await;
            assert_eq!((response.status, response.header("content-type")), (status, reply_type), "{response:?}");
            assert_eq!((response.body.as_slice(), response.header("set-cookie")), (reply, None));
            let received = app.requests().pop().expect("a webhook");
            assert_eq!((received.method.as_str(), &*received.target), ("POST", &*format!("/im?{query}")));
            assert_eq!((received.body.as_slice(), received.header("content-type")), (body, content_type));
            let mut names: Vec<&str> = received.headers.iter().map(|(name, _)| name.as_str()).collect();
            names.retain(|name| *name != "content-type");
            names.sort_unstable();
            assert_eq!(names, ["connection", "content-length", "host"], "no other header is forwarded");
            assert_eq!(received.header("host"), Some(&*app.address().to_string()));
        }
    }
    assert_eq!(app.requests().len(), app.accepted(), "each webhook has its own connection");
    assert_eq!((forwards(&gateway, "ok").await, forwards(&gateway, "failed").await), (4, 8));
    let status = gateway.admin_get("/status").await.json();
    let webhooks = &status["apps"][0]["webhooks"];
    assert_eq!((&webhooks["forwarded"]["ok"], &webhooks["in_flight"]["now"]), (&4.into(), &0.into()), "{webhooks}");
    assert!(!gateway.log().contains("without asking the app"), "the app is asked");
}

#[tokio::test]
async fn pairs_are_invalidated_before_the_app_receives_the_webhook() {
    let (chat, app) = (FakeChat::start().await, AppServer::start().await);
    let (gateway, hooks) = gateway(&chat, &app).await;
    let bodies = [event(ADDED, "ann", &["bob"]), event(DELETED, "ann", &["zoe"]), "garbage".to_owned()];
    for (number, body) in bodies.iter().enumerate() {
        gateway.check("ann", &["bob"]).await.items();
        assert!(is_cached(&gateway).await);
        let gate = Gate::closed();
        app.reply(Reply::json("{}").after(&gate));
        let mut chat = Conn::open(&hooks).await.expect("accepted");
        chat.send(signed(MAIN, ADDED, body).bytes()).await;
        app.wait_for_requests(number + 1).await;
        assert!(!is_cached(&gateway).await, "{body}");
        gate.open();
        let response = chat.read_response().await;
        assert_eq!((response.status, response.text().as_str()), (200, "{}"));
        assert_eq!(app.requests()[number].body, body.as_bytes(), "an event that cannot be read is forwarded too");
    }
}

#[tokio::test]
async fn failing_app_is_an_error_and_the_webhook_is_sent_once() {
    let (chat, app) = (FakeChat::start().await, AppServer::start().await);
    let setup = forward(Setup::new(&chat), &app.url("/")).set("webhook", r#"forward_timeout = "300ms""#);
    let gateway = setup.start().await;
    let hooks = address(&gateway).await;
    let head = "HTTP/1.1 200 OK\r\n";
    let long = format!("{head}X: {}\r\nContent-Length: 0\r\n\r\n", "x".repeat(256 * 1024));
    let large = format!("{head}Content-Length: {}\r\n\r\n", 1024 * 1024 + 1);
    let chunks = ReplyKind::Endless {
        first: format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes(),
        more: format!("10000\r\n{}\r\n", "x".repeat(0x10000)).into_bytes(),
    };
    let unreachable = (502, "upstream_unreachable", 129_502);
    let (invalid, timeout) = ((502, "upstream_invalid", 60013), (504, "upstream_timeout", 60008));
    let cases = [
        ("closed at once", Reply::bytes(""), unreachable),
        ("reset", Reply::reset(), unreachable),
        ("cut head", Reply::bytes("HTTP/1.1 200 O"), unreachable),
        ("cut body", Reply::bytes(format!("{head}Content-Length: 3\r\n\r\n{{}}")), unreachable),
        ("cut chunk", Reply::bytes(format!("{head}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n")), unreachable),
        ("no HTTP", Reply::bytes("no HTTP\r\n\r\n"), invalid),
        ("long head", Reply::bytes(long), invalid),
        ("large", Reply::stall(large), invalid),
        ("endless", chunks.into(), invalid),
        (
            "upgrade",
            Reply::stall("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
            invalid,
        ),
        ("silent", Reply::hang(), timeout),
        ("half", Reply::stall(format!("{head}Content-Length: 3\r\n\r\n{{}}")), timeout),
    ];
    // Chat keeps its connection.
    let mut conn = Conn::open(&hooks).await.expect("accepted");
    for (number, (case, reply, (status, slug, code))) in cases.iter().enumerate() {
        app.reply(reply.clone());
        gateway.check("ann", &["bob"]).await.items();
        let start = now();
        let response = conn.request(&signed(MAIN, ADDED, &event(ADDED, "ann", &["bob"]))).await;
        response.assert_error(*status, slug, *code);
        assert!(!is_cached(&gateway).await, "{case}: the pair is invalidated all the same");
        assert!(*status != 504 || start.elapsed() >= Duration::from_millis(300), "{case}: too early");
        assert_eq!((app.requests().len(), app.accepted()), (number + 1, number + 1), "{case}: sent once");
    }
    let counts = [("upstream_unreachable", 5), ("upstream_invalid", 5), ("upstream_timeout", 2), ("ok", 0)];
    for (outcome, count) in counts {
        assert_eq!(forwards(&gateway, outcome).await, count, "{outcome}");
    }
    let lines = async || {
        let count = gateway.log().lines().filter(|line| line.contains("webhooks were not answered by the app")).count();
        (count > 0).then_some(count)
    };
    assert!(eventually("failures are logged", lines).await <= 4, "not each one is logged");
    // A response of exactly the maximum size.
    app.reply(Reply::json("x".repeat(1024 * 1024)));
    let response = conn.request(&signed(MAIN, BEFORE_SEND, "{}")).await;
    assert_eq!((response.status, response.body.len()), (200, 1024 * 1024));
}

#[tokio::test]
async fn absent_app_is_an_error_and_the_pair_is_invalidated() {
    let chat = FakeChat::start().await;
    let gateway = forward(Setup::new(&chat), &format!("http://{}/im", free_address())).start().await;
    let hooks = address(&gateway).await;
    gateway.check("ann", &["bob"]).await.items();
    for command in [ADDED, BEFORE_SEND] {
        let response = post(&hooks, &signed(MAIN, command, &event(ADDED, "ann", &["bob"]))).await;
        response.assert_error(502, "upstream_unreachable", 129_502);
    }
    assert!(!is_cached(&gateway).await);
    let logged = async || gateway.log().contains("cannot connect to the app of webhook.forward").then_some(());
    eventually("the failure is logged", logged).await;
    // A webhook that is not verified is not forwarded, and not counted.
    assert_eq!(post(&hooks, &TestRequest::post("/").body("{}")).await.status, 401);
    assert_eq!(forwards(&gateway, "upstream_unreachable").await, 2);
    assert_eq!(forwards(&gateway, "unauthenticated").await, 0);
}

#[tokio::test]
async fn app_with_a_private_certificate_is_not_trusted() {
    let (ca, chat) = (Ca::new(), FakeChat::start().await);
    let app = AppServer::start_tls(ca.acceptor("localhost")).await;
    let (_gateway, hooks) = gateway(&chat, &app).await;
    let response = post(&hooks, &signed(MAIN, BEFORE_SEND, "{}")).await;
    response.assert_error(502, "upstream_unreachable", 129_502);
    assert_eq!(app.requests().len(), 0);
    assert!(app.accepted() > 0, "the connection was opened");
}

#[tokio::test]
async fn webhook_that_cannot_be_received_is_not_forwarded() {
    let (chat, app) = (FakeChat::start().await, AppServer::start().await);
    let (gateway, hooks) = gateway(&chat, &app).await;
    gateway.check("ann", &["bob"]).await.items();
    let large = signed(MAIN, ADDED, &"x".repeat(1024 * 1024 + 1));
    post(&hooks, &large).await.assert_error(413, "body_too_large", 129_413);
    assert!(!is_cached(&gateway).await);
    assert_eq!((app.accepted(), forwards(&gateway, "body_too_large").await), (0, 1));
    let largest = "x".repeat(1024 * 1024);
    assert_eq!(post(&hooks, &signed(MAIN, ADDED, &largest)).await.status, 200);
    assert_eq!(app.requests()[0].body, largest.as_bytes());
}

#[tokio::test]
async fn bytes_of_webhooks_and_responses_are_limited() {
    let (chat, app) = (FakeChat::start().await, AppServer::start().await);
    let setup = forward(Setup::new(&chat), &app.url("/")).set("webhook", r#"forward_timeout = "2s""#);
    let gateway = setup.start().await;
    let hooks = address(&gateway).await;
    gateway.check("ann", &["bob"]).await.items();
    let largest = signed(MAIN, ADDED, &"x".repeat(1024 * 1024)).bytes();
    app.reply(Reply::hang());
    // At most 16 MiB are in flight. On a slow machine the first may time out before the last is sent, so try again.
    eventually("a webhook beyond the limit", async || {
        let mut sent = Vec::new();
        for _ in 0..24 {
            let mut conn = Conn::open(&hooks).await.expect("accepted");
            conn.send(&largest).await;
            sent.push(conn);
        }
        let mut rejected = 0;
        for conn in &mut sent {
            let response = conn.read_response().await;
            match response.status {
                503 => response.assert_error(503, "overloaded", 129_503),
                _ => response.assert_error(504, "upstream_timeout", 60008),
            }
            rejected += usize::from(response.status == 503);
        }
        (rejected > 0).then_some(())
    })
    .await;
    assert!(!is_cached(&gateway).await, "the pair is invalidated all the same");
    // Responses that Chat does not read count too. The kernel holds the first ones of a connection.
    app.reply(Reply::json("x".repeat(1024 * 1024)));
    let rejected = forwards(&gateway, "overloaded").await;
    let mut unread = Vec::new();
    while forwards(&gateway, "overloaded").await == rejected {
        assert!(unread.len() < 64, "over 16 MiB of responses are held");
        let answered = forwards(&gateway, "ok").await;
        let mut conn = Conn::open_with_small_buffer(&hooks).await;
        conn.send(signed(MAIN, BEFORE_SEND, "{}").bytes().repeat(8)).await;
        unread.push(conn);
        eventually("the app has answered, or there is no room", async || {
            let sum = forwards(&gateway, "ok").await + forwards(&gateway, "overloaded").await;
            (sum > answered + rejected).then_some(())
        })
        .await;
    }
    drop(unread);
    let answered = async || (post(&hooks, &signed(MAIN, BEFORE_SEND, "{}")).await.status == 200).then_some(());
    eventually("room for a response", answered).await;
}

/// Sends a webhook on a new connection, without waiting for the response.
async fn send(hooks: &str, app: TestApp) -> Conn {
    let mut conn = Conn::open(hooks).await.expect("accepted");
    conn.send(signed(app, BEFORE_SEND, "{}").bytes()).await;
    conn
}

#[tokio::test]
async fn webhooks_in_flight_are_limited_for_each_app() {
    let (chat, slow, quick) = (FakeChat::start().await, AppServer::start().await, AppServer::start().await);
    let lines = chat.app_lines();
    let setup = Setup::without_apps().app(MAIN, &format!("{lines}\ndefault = true")).app(OTHER, &lines);
    let urls = format!("forward = {{ main = '{}', other = '{}' }}", slow.url("/"), quick.url("/"));
    let setup = listen(setup, &[MAIN, OTHER]).set("webhook", &urls).set("webhook", r#"forward_timeout = "2s""#);
    let gateway = setup.start().await;
    let hooks = address(&gateway).await;
    gateway.check("ann", &["bob"]).await.items();
    let gate = Gate::closed();
    slow.reply(Reply::json("{}").after(&gate));
    // At most 256 are in flight at a time. Some may time out on a slow machine, so more are sent until one is rejected.
    let mut sent = Vec::new();
    let rejected = eventually("a webhook beyond the limit", async || {
        let in_flight = gateway.admin_get("/status").await.json()["apps"][0]["webhooks"]["in_flight"]["now"].clone();
        let in_flight = in_flight.as_u64().expect("a number");
        assert!(in_flight <= 256, "{in_flight}");
        for _ in in_flight..256 {
            sent.push(send(&hooks, MAIN).await);
        }
        let response = post(&hooks, &signed(MAIN, ADDED, &event(ADDED, "ann", &["bob"]))).await;
        (response.status == 503).then_some(response)
    })
    .await;
    rejected.assert_error(503, "overloaded", 129_503);
    assert!(!is_cached(&gateway).await, "the pair is invalidated all the same");
    assert_eq!(post(&hooks, &signed(OTHER, BEFORE_SEND, "{}")).await.status, 200, "another app has its own limit");
    gate.open();
    for mut conn in sent {
        let response = conn.read_response().await;
        assert!(matches!(response.status, 200 | 503 | 504), "{response:?}");
    }
    let accepted = async || (post(&hooks, &signed(MAIN, BEFORE_SEND, "{}")).await.status == 200).then_some(());
    eventually("the app is asked again", accepted).await;
}

#[tokio::test]
async fn before_webhook_without_an_app_is_accepted_with_one_warning_per_command() {
    let chat = FakeChat::start().await;
    let gateway = listen(Setup::new(&chat), &[MAIN]).start().await;
    let hooks = address(&gateway).await;
    let others = (0..40).map(|number| format!("X{number}.CallbackBeforeThing{number}"));
    let commands = [BEFORE_SEND, "Sns.CallbackPrevFriendAdd", "Group.CallbackBeforeSendMsg"].map(str::to_owned);
    for command in commands.into_iter().chain(others).chain([ADDED.to_owned(), "State.StateChange".to_owned()]) {
        for _ in 0..2 {
            post_accepted(&hooks, &signed(MAIN, &command, "{}")).await;
        }
    }
    let log =
        eventually("the last warning", async || Some(gateway.log()).filter(|log| log.contains(r#""command":"other""#)))
            .await;
    let warned: Vec<&str> = log.lines().filter(|line| line.contains("without asking the app")).collect();
    assert_eq!(warned.len(), 4, "{warned:#?}");
    for (line, command) in
        warned.iter().zip([BEFORE_SEND, "Sns.CallbackPrevFriendAdd", "Group.CallbackBeforeSendMsg", "other"])
    {
        assert!(line.contains(&format!("\"command\":\"{command}\"")) && line.contains("\"app\":\"main\""), "{line}");
    }
    assert!(!log.contains("CallbackBeforeThing"), "no text from outside is logged");
}

#[tokio::test]
async fn reload_changes_the_app_of_the_next_webhook() {
    let (chat, one, two) = (FakeChat::start().await, AppServer::start().await, AppServer::start().await);
    let setup = forward(Setup::new(&chat), &one.url("/one"));
    let text = setup.text();
    let gateway = setup.start().await;
    let hooks = address(&gateway).await;
    assert_eq!(post(&hooks, &signed(MAIN, BEFORE_SEND, "{}")).await.text(), "{}");
    let urls = [(two.url("/two"), 1), (one.url("/one"), 2)];
    for (url, count) in urls {
        std::fs::write(gateway.dir().join("chatgate.toml"), text.replace(&one.url("/one"), &url))
            .expect("own directory");
        let response = gateway.send_to_admin(TestRequest::post("/reload")).await;
        assert_eq!(response.text(), "reloaded\n", "{response:?}");
        assert_eq!(post(&hooks, &signed(MAIN, BEFORE_SEND, "{}")).await.text(), "{}");
        assert_eq!((one.requests().len(), two.requests().len()), (count, 1));
    }
    assert_eq!(forwards(&gateway, "ok").await, 3, "counters continue");
    let without = text.lines().filter(|line| !line.starts_with("forward")).collect::<Vec<_>>().join("\n");
    std::fs::write(gateway.dir().join("chatgate.toml"), without).expect("own directory");
    assert_eq!(gateway.send_to_admin(TestRequest::post("/reload")).await.text(), "reloaded\n");
    post_accepted(&hooks, &signed(MAIN, BEFORE_SEND, "{}")).await;
    assert_eq!((one.requests().len(), two.requests().len()), (2, 1));
}

#[tokio::test]
async fn webhook_in_flight_is_answered_during_the_drain() {
    let _exclusive = turn::exclusive().await;
    let (chat, app) = (FakeChat::start().await, AppServer::start().await);
    let (mut gateway, hooks) = gateway(&chat, &app).await;
    let gate = Gate::closed();
    app.reply(Reply::json(ACCEPTED).after(&gate));
    let mut held = send(&hooks, MAIN).await;
    app.wait_for_requests(1).await;
    gateway.signal("TERM");
    eventually("no new connection is accepted", async || Conn::open(&hooks).await.is_err().then_some(())).await;
    gate.open();
    let response = held.read_response().await;
    assert_eq!((response.status, response.text().as_str()), (200, ACCEPTED));
    assert_eq!(gateway.exit_code_within(Duration::from_secs(5)).await, 0);
}

#[tokio::test]
async fn trace_log_contains_no_forwarded_query() {
    let (chat, app) = (FakeChat::start().await, AppServer::start().await);
    let setup = forward(Setup::new(&chat), &app.url("/im")).set("log", r#"level = "trace""#);
    let gateway = setup.start().await;
    let hooks = address(&gateway).await;
    for reply in [Reply::json("{}"), Reply::reset(), Reply::bytes("no HTTP\r\n\r\n")] {
        app.reply(reply);
        post(&hooks, &signed(MAIN, BEFORE_SEND, "{}")).await;
    }
    assert_eq!(app.requests().len(), 3);
    // The output of the process is searched for every signature when it exits.
    assert_eq!(gateway.stop().await, 0);
}
