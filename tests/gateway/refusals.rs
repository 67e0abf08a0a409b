//! Refusals arrive: at callers that write before they read, at callers that close their half, and in the log.

use serde_json::Value;

use crate::support::app::MAIN;
use crate::support::app_server::AppServer;
use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::h2_raw::{
    DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, RawHttp2, field_line, frame, post_headers,
};
use crate::support::hook::{self, listen};
use crate::support::reply::{Gate, Reply};
use crate::support::setup::Setup;
use crate::support::tls::Ca;
use crate::support::{PATIENCE, eventually, within};

const CALL: &str = "openim/querystate";
/// How often each race is tried.
const TRIES: usize = 10;
const MIB: usize = 1 << 20;

/// A request with a body of this length.
fn large(target: &str, host: &str, headers: &str, len: usize) -> Vec<u8> {
    let head = format!("POST {target} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: {len}\r\n\r\n");
    [head.into_bytes(), vec![b' '; len]].concat()
}

/// Asserts that a caller that writes its whole request before it reads gets this response, and that the connection is
/// closed after it.
async fn assert_refused(mut conn: Conn, request: &[u8], status: u16, slug: &str) {
    conn.try_send(request).await.expect("the gateway reads to the end");
    let response = conn.read_response().await;
    assert_eq!((response.status, response.header("chatgate-error")), (status, Some(slug)), "{response:?}");
    assert_eq!(response.header("connection"), Some("close"), "{response:?}");
    conn.assert_closed().await;
}

#[tokio::test]
async fn refusals_arrive_at_callers_that_write_before_they_read() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat);
    let socket = format!("unix:{}", setup.dir().join("data.sock").display());
    let gateway =
        setup.caller("feed", "feed-token-0123456789", "allow = ['*']").listen(&["127.0.0.1:0", &socket]).start().await;
    let (path, own) = (format!("/v4/{CALL}"), "Authorization: Bearer feed-token-0123456789\r\n");
    let upgrade = format!("{own}Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n");
    for address in gateway.addresses() {
        for _ in 0..TRIES {
            for (target, host, headers, len, status, slug) in [
                (&*path, "localhost", own, MIB + 1, 413, "body_too_large"),
                (&*path, "localhost", own, 5 * MIB, 413, "body_too_large"),
                ("/v3/x", "localhost", own, 600_000, 404, "not_found"),
                // Java's HttpClient offers HTTP/2 this way.
                (&*path, "localhost", &upgrade, 5 * MIB, 413, "body_too_large"),
                (&*path, "localhost", "", 600_000, 401, "unauthenticated"),
            ] {
                let conn = Conn::open(address).await.expect("accepted");
                assert_refused(conn, &large(target, host, headers, len), status, slug).await;
            }
        }
    }
    for _ in 0..TRIES {
        let request = large(&path, "evil.example", own, 600_000);
        assert_refused(gateway.connect().await, &request, 403, "forbidden").await;
        // Bytes that are no request are refused the same way.
        let request = large(&path, "localhost", "Content-Length: 2\r\n", 600_000);
        assert_refused(gateway.connect().await, &request, 400, "bad_request").await;
        let chunk =
            [b"POST /v4/a/b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nx", &vec![b'x'; MIB][..]];
        assert_refused(gateway.connect().await, &chunk.concat(), 401, "unauthenticated").await;
    }
    assert_eq!(chat.call_count(), 0);
    assert_eq!(gateway.stop().await, 0);
}

#[tokio::test]
async fn refusals_arrive_over_tls_and_from_the_admin_listener() {
    let (ca, chat) = (Ca::new(), FakeChat::start().await);
    let pem = ca.issue("localhost", std::time::Duration::from_secs(3600));
    let setup = Setup::new(&chat);
    setup.file("cert.pem", &pem.certificate);
    setup.file("key.pem", &pem.key);
    let gateway = setup.set("server", "tls = { cert_file = 'cert.pem', key_file = 'key.pem' }").start().await;
    for _ in 0..TRIES {
        let stream = ca.caller().connect(gateway.address()).await.expect("a handshake");
        let request = large("/v4/a/b", "localhost", "", 2 * MIB);
        assert_refused(Conn::from_stream(stream), &request, 413, "body_too_large").await;
        let mut conn = Conn::open(gateway.admin()).await.expect("accepted");
        conn.try_send(large("/livez", "localhost", "", 2 * MIB)).await.expect("the gateway reads to the end");
        let response = conn.read_response().await;
        assert_eq!((response.status, response.header("connection")), (405, Some("close")), "{response:?}");
    }
}

#[tokio::test]
async fn complete_request_keeps_its_connection_after_a_refusal() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).start().await;
    let mut conn = gateway.connect().await;
    for _ in 0..3 {
        let refused = conn.request(&TestRequest::post("/v3/x")).await;
        refused.assert_error(404, "not_found", 60009);
        assert_eq!(refused.header("connection"), None, "{refused:?}");
    }
}

#[tokio::test]
async fn lingering_connection_does_not_delay_the_stop() {
    let chat = FakeChat::start().await;
    let mut gateway = Setup::new(&chat).set("server", r#"drain_timeout = "8s""#).start().await;
    let mut conn = gateway.connect().await;
    conn.send(format!("POST /v4/{CALL} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\n{{")).await;
    assert_eq!(conn.read_response().await.status, 413);
    let mut http2 = refused_over_http2(gateway.address(), 9_999_999).await;
    tokio::spawn(async move {
        while let Some((kind, flags, _, payload)) = http2.next().await {
            // The gateway pings before it closes.
            if (kind, flags) == (PING, 0) {
                http2.send(&frame(PING, 1, 0, &payload)).await;
            }
        }
    });
    gateway.signal("TERM");
    // A lingering connection may stay for 10 s, and a drain that times out ends with 1.
    assert_eq!(gateway.exit_code_within(crate::support::PATIENCE).await, 0);
}

/// Sends the headers of a request with a body of this length, and reads the refusal to its end.
async fn refused_over_http2(address: &str, len: usize) -> RawHttp2 {
    let mut raw = RawHttp2::open(address).await;
    let block = [post_headers("/v4/openim/querystate"), field_line("content-length", &len.to_string())].concat();
    raw.send(&frame(HEADERS, END_HEADERS, 1, &block)).await;
    loop {
        let (kind, flags, stream, _) = within(PATIENCE, "a frame", raw.next()).await.expect("open");
        assert_ne!(kind, RST_STREAM);
        if stream == 1 && matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
            return raw;
        }
    }
}

#[tokio::test]
async fn http2_refusal_does_not_reset_a_request_whose_body_is_still_sent() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", r#"max_body = "16KiB""#).start().await;
    // Less than the window of a stream.
    const LEN: usize = 40_000;
    let mut raw = refused_over_http2(gateway.address(), LEN).await;
    for at in (0..LEN).step_by(10_000) {
        let flags = if at + 10_000 == LEN { END_STREAM } else { 0 };
        assert!(raw.send(&frame(DATA, flags, 1, &[b' '; 10_000])).await);
        // The response to the ping follows all frames about the data.
        raw.send(&frame(PING, 0, 0, &[7; 8])).await;
        loop {
            let (kind, flags, ..) = within(PATIENCE, "a frame", raw.next()).await.expect("open");
            assert!(![RST_STREAM, GOAWAY].contains(&kind), "{kind} after {at} bytes");
            if (kind, flags) == (PING, 1) {
                break;
            }
        }
    }
    assert_eq!(chat.call_count(), 0);
}

/// Sends a request and closes the sending half, as `nc` does. Returns the status, 0 without a response.
async fn half_closed(address: &str, request: &TestRequest) -> u16 {
    let mut conn = Conn::open(address).await.expect("accepted");
    conn.send(request.bytes()).await;
    conn.shutdown_write().await;
    let status = conn.try_read_response().await.map_or(0, |response| response.status);
    conn.assert_closed().await;
    status
}

#[tokio::test]
async fn half_closed_caller_gets_every_answer_that_is_ready() {
    let chat = FakeChat::start().await;
    chat.follow("ann", "bob");
    // No timeout closes a connection that is forgotten.
    let setup = Setup::new(&chat).set("server", r#"head_timeout = "1h""#).set("server", r#"idle_timeout = "1h""#);
    let gateway = setup.start().await;
    gateway.check("ann", &["bob"]).await.items();
    let body = " ".repeat(300_000);
    for _ in 0..TRIES {
        for (request, status) in [
            (TestRequest::check("ann", &["bob"]), 200),
            (TestRequest::post("/v3/x"), 404),
            (TestRequest::command("follow/follow_check").body(&body), 400),
        ] {
            assert_eq!(half_closed(gateway.address(), &request).await, status);
        }
        for (method, path) in [("GET", "/readyz"), ("GET", "/metrics"), ("GET", "/status"), ("POST", "/reload")] {
            let request = TestRequest::new(method, path);
            assert_eq!(half_closed(gateway.admin(), &request).await, 200, "{path}");
        }
    }
    assert_eq!(chat.call_count(), 1);
    // Two requests at once: the answer to the second is ready, too.
    let mut conn = gateway.connect().await;
    let request = TestRequest::check("ann", &["bob"]).bytes();
    conn.send([&*request, &*request].concat()).await;
    conn.shutdown_write().await;
    for _ in 0..2 {
        assert_eq!(conn.read_response().await.follow_types(), [2]);
    }
    conn.assert_closed().await;
}

#[tokio::test]
async fn half_closed_webhook_gets_the_answer_of_the_app() {
    let (chat, app, gate) = (FakeChat::start().await, AppServer::start().await, Gate::closed());
    app.reply(Reply::json(OK).after(&gate));
    let setup = listen(Setup::new(&chat), &[MAIN]).set("webhook", "forward_timeout = \"2s\"");
    let gateway = setup.set("webhook", &format!("forward = {{ main = '{}' }}", app.url("/im"))).start().await;
    let hooks = hook::address(&gateway).await;
    let event = hook::event(hook::ADDED, "ann", &["bob"]);
    let mut conn = Conn::open(&hooks).await.expect("accepted");
    conn.send(hook::signed(MAIN, hook::ADDED, &event).bytes()).await;
    conn.shutdown_write().await;
    app.wait_for_requests(1).await;
    // The thread that serves webhooks serves these too, so it has very likely seen the end of the stream by then.
    for _ in 0..3 {
        gateway.admin_get("/livez").await;
    }
    gate.open();
    assert_eq!(conn.read_response().await.text(), OK);
    conn.assert_closed().await;
    assert_eq!(half_closed(&hooks, &TestRequest::post("/").body(&event)).await, 401);
}

#[tokio::test]
async fn half_closed_caller_gets_a_long_answer_to_its_end() {
    let chat = FakeChat::start().await;
    // Longer than the buffer of a Unix socket.
    let setup = Setup::new(&chat).set("relation", "max_to = 10000").timeout("60s");
    let socket = format!("unix:{}", setup.dir().join("data.sock").display());
    let gateway = setup.listen(&[&socket]).start().await;
    let names: Vec<String> = (0..10_000).map(|number| format!("{number:032}")).collect();
    gateway.send(TestRequest::check("ann", &names)).await.items();
    let mut conn = Conn::open(&socket).await.expect("accepted");
    conn.send(TestRequest::check("ann", &names).bytes()).await;
    conn.shutdown_write().await;
    let answered = r#"chatgate_requests_total{app="main",command="follow/follow_check",outcome="ok"} 2"#;
    eventually("the answer waits for its reader", async || {
        gateway.admin_get("/metrics").await.text().contains(answered).then_some(())
    })
    .await;
    assert_eq!(conn.read_response().await.items().len(), 10_000);
    conn.assert_closed().await;
}

#[tokio::test]
async fn half_closed_caller_whose_answer_needs_chat_counts_as_gone() {
    let chat = FakeChat::start().await;
    let gate = Gate::closed();
    chat.reply_always(Reply::from_graph().after(&gate));
    let gateway = Setup::new(&chat).start().await;
    let mut conn = gateway.connect().await;
    conn.send(TestRequest::check("ann", &["bob"]).bytes()).await;
    conn.shutdown_write().await;
    conn.assert_closed().await;
    let abandoned = r#"chatgate_requests_total{app="main",command="follow/follow_check",outcome="abandoned"} 1"#;
    eventually("the request is counted as abandoned", async || {
        gateway.admin_get("/metrics").await.text().contains(abandoned).then_some(())
    })
    .await;
    gate.open();
}

/// Returns the line of the log with this request ID.
async fn line_of(gateway: &Gateway, id: &str) -> Value {
    eventually("the refusal is logged", async || {
        let log = gateway.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.into_iter().find(|line| line["request_id"] == id)
    })
    .await
}

#[tokio::test]
async fn refusal_before_a_request_names_its_cause_and_is_logged() {
    let chat = FakeChat::start().await;
    let gateway = listen(Setup::new(&chat), &[MAIN]).set("log", r#"requests = "all""#).start().await;
    let hooks = hook::address(&gateway).await;
    let long = format!("POST /v4/a/b HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(70_000));
    for (request, status, cause) in [
        ("POST /v4/a/b HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", 400, "no Host"),
        ("POST /v4/a/b HTTP/1.1\r\nHost: a\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}", 400, "more than one Host"),
        (
            "POST /v4/a/b HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
            400,
            "more than one Content-Length",
        ),
        (
            "POST /v4/a/b HTTP/1.1\r\nHost: a\r\nContent-Length: private\r\n\r\n{}",
            400,
            "Content-Length is not a number",
        ),
        ("POST /v4/a/b HTTP/1.2\r\nHost: a\r\n\r\n", 400, "version"),
        // Rejected before the line ends.
        ("PROXY TCP4 192.0.2.1 192.0.2.2 private", 400, "PROXY protocol"),
        ("{\"private\":\"private private\"}", 400, "METHOD TARGET"),
        ("POST /v4/a/b#private HTTP/1.1\r\nHost: a\r\n\r\n", 400, "target"),
        ("POST /v4/a/b HTTP/1.1\r\nHost: a\r\nprivate\r\n\r\n", 400, "NAME: VALUE"),
        ("POST /v4/a/b HTTP/1.1\nHost: a\n\n", 400, "CR LF"),
        ("POST /v4/a/b HTTP/1.1\r\nHost: localhost\r\n\rprivate", 400, "CR LF"),
        ("\u{16}\u{3}\u{1}\u{2}\0", 400, "TLS"),
        (&long, 431, "64 KiB"),
    ] {
        for address in [gateway.address(), gateway.admin(), &hooks] {
            let mut conn = Conn::open(address).await.expect("accepted");
            conn.send(request).await;
            let response = conn.read_response().await;
            assert_eq!(response.status, status, "{response:?}");
            let info = response.json()["ErrorInfo"].as_str().expect("a text").to_owned();
            assert!(info.contains(cause) && !info.contains("private"), "{info}");
            let line = line_of(&gateway, response.request_id()).await;
            assert_eq!((&line["status"], &line["level"]), (&Value::from(status), &Value::from("INFO")), "{line}");
            assert!(line["message"].as_str().is_some_and(|message| message.contains(cause)), "{line}");
        }
    }
    assert!(!gateway.log().contains("private"), "{}", gateway.log());
}

#[tokio::test]
async fn rejection_on_another_listener_is_logged_with_its_id() {
    let chat = FakeChat::start().await;
    let gateway = listen(Setup::new(&chat), &[MAIN]).set("log", r#"requests = "all""#).start().await;
    let hooks = hook::address(&gateway).await;
    let served = gateway.admin_get("/livez").await;
    let rejected = [
        hook::post(&hooks, &TestRequest::post("/?SdkAppid=1&Sign=private")).await,
        hook::post(&hooks, &TestRequest::new("GET", "/private")).await,
        gateway.admin_get("/private").await,
        gateway.send_to_admin(TestRequest::post("/status")).await,
        gateway.send_to_admin(TestRequest::new("GET", "/status").host("private.example")).await,
    ];
    for response in rejected {
        let line = line_of(&gateway, response.request_id()).await;
        assert_eq!((&line["status"], &line["level"]), (&response.status.into(), &"INFO".into()), "{line}");
    }
    let log = gateway.log();
    assert!(!log.contains("private") && !log.contains(served.request_id()), "{log}");
}

#[tokio::test]
async fn unix_socket_of_the_admin_listener_accepts_any_host() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat);
    let socket = format!("unix:{}", setup.dir().join("admin.sock").display());
    let gateway = setup.set("server", &format!("admin = \"{socket}\"")).start().await;
    for host in ["unix", "chatgate", "docker", "_", "%2Frun%2Fchatgate.sock", ""] {
        for (method, path) in [("GET", "/readyz"), ("GET", "/status"), ("POST", "/reload")] {
            let response = gateway.send_to_admin(TestRequest::new(method, path).host(host)).await;
            assert_eq!(response.status, 200, "{host:?} {path}: {response:?}");
        }
    }
}

#[tokio::test]
async fn absolute_form_to_the_own_address_is_served() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).start().await;
    let (path, address) = (format!("/v4/{CALL}"), gateway.address());
    let own = TestRequest::post(&format!("http://{address}{path}")).host(address);
    gateway.send(own).await.assert_relayed(200, OK);
    for (target, host, status) in [
        (format!("http://localhost{path}"), address, 404),
        (format!("https://{address}{path}"), address, 404),
        (format!("http://console.tim.qq.com{path}"), "console.tim.qq.com", 403),
    ] {
        let response = gateway.send(TestRequest::post(&target).host(host)).await;
        assert_eq!(response.status, status, "{response:?}");
        let info = response.json()["ErrorInfo"].as_str().expect("a text").to_owned();
        assert!(info.contains("not a forward proxy") && info.contains("NO_PROXY"), "{info}");
    }
    for (target, status) in [("console.tim.qq.com:443", 403), (address, 405)] {
        let mut conn = gateway.connect().await;
        conn.send(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")).await;
        let response = conn.read_response().await;
        assert_eq!(response.status, status, "{response:?}");
        assert!(response.text().contains("not a forward proxy"), "{response:?}");
    }
    assert_eq!(chat.call_count(), 1);
}

#[tokio::test]
async fn invalid_scheme_is_a_bad_request() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).start().await;
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    // Static table (RFC 7541 appendix A): 3 is `:method: POST`, 6 `:scheme: http`, 8 `:status: 200`, 12 `:status: 400`.
    // 4, 6, and 1 are also the names `:path`, `:scheme`, and `:authority`.
    for (scheme, status) in [(&b"\x86"[..], 0x88), (b"\x06\0", 0x8c), (b"\x06\x05https", 0x88), (b"\x06\x040ttp", 0x8c)]
    {
        let path = text(&format!("/v4/{CALL}"));
        let block = [&[0x83][..], scheme, &[0x04], &path, &[0x01], &text("localhost")].concat();
        let mut raw = RawHttp2::open(gateway.address()).await;
        raw.send(&frame(HEADERS, END_HEADERS, 1, &block)).await;
        raw.send(&frame(DATA, END_STREAM, 1, b"{}")).await;
        let response = loop {
            let (kind, _, stream, payload) = raw.next().await.expect("an open connection");
            if (kind, stream) == (HEADERS, 1) {
                break payload;
            }
        };
        assert_eq!(response.first(), Some(&status), "{scheme:?}");
    }
    assert_eq!(chat.call_count(), 2);
}

#[tokio::test]
async fn host_that_is_no_host_is_a_bad_request() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).start().await;
    gateway.send(TestRequest::command(CALL).host("###")).await.assert_error(400, "bad_request", 60002);
    for path in ["/livez", "/metrics", "/status"] {
        let response = gateway.send_to_admin(TestRequest::new("GET", path).host("###")).await;
        response.assert_error(400, "bad_request", 60002);
    }
    // Old probes send none.
    let mut conn = Conn::open(gateway.admin()).await.expect("accepted");
    conn.send("GET /livez HTTP/1.0\r\n\r\n").await;
    assert_eq!(conn.read_response().await.status, 200);
}
