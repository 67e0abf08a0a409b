//! Keys and signatures appear only upstream, in every failure and at every log level.
//!
//! Every test of this binary searches the gateway's output and all of its responses for secrets (see
//! `support::secrets`). The tests here provoke every kind of failure at the most verbose log level.

use crate::support::app::{MAIN, ODD, OTHER, TestApp};
use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::graph::error_response;
use crate::support::h2::Http2;
use crate::support::process::Process;
use crate::support::reply::Reply;
use crate::support::setup::Setup;
use crate::support::tls::Ca;
use crate::support::{eventually, secrets, unix_now, usersig};

/// An app with an upstream that presents an expired certificate.
const EXPIRED: TestApp = TestApp { name: "expired", sdkappid: 1_400_000_003, ..OTHER };
/// An app with an upstream that speaks plain HTTP behind an `https` endpoint.
const NO_TLS: TestApp = TestApp { name: "no-tls", sdkappid: 1_400_000_004, ..OTHER };

async fn provoke_every_failure(format: &'static str) {
    let ca = Ca::new();
    let plain = FakeChat::start().await;
    let wrong_name = FakeChat::start_tls(ca.acceptor("elsewhere.example")).await;
    let expired = FakeChat::start_tls(ca.expired_acceptor("localhost")).await;
    let no_tls = FakeChat::start().await;
    let setup = Setup::without_apps();
    let trusted = setup.file("ca.pem", &ca.pem());
    // Bound but not listening: connections are refused, and no other test's Chat can take the port.
    let closed_port = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    closed_port.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    let gateway = setup
        .app(MAIN, &format!("{}\ndefault = true", plain.app_lines()))
        .app(OTHER, &wrong_name.app_lines())
        .app(
            ODD,
            &format!(
                "endpoint = \"http://{}\"",
                closed_port.local_addr().expect("bound").as_socket().expect("an address")
            ),
        )
        .app(EXPIRED, &format!("{}\nca_file = '{}'", expired.app_lines(), trusted.display()))
        .app(NO_TLS, &format!("endpoint = \"https://localhost:{}\"", no_tls.address().port()))
        .set("log", r#"level = "trace""#)
        .set("log", &format!("format = \"{format}\""))
        .set("server", "explain = true")
        .timeout("1s");
    let gateway = if format == "json" { gateway.start().await } else { gateway.start_at_fixed_addresses().await };
    plain.script(|call| {
        let sig = call.usersig();
        Some(match call.command() {
            "follow/follow_check" | "follow/follow_add" => Reply::from_graph(),
            "odd/echo" => Reply::json(error_response(30003, &format!("usersig={sig}"))),
            "odd/echo_head" => {
                Reply::bytes(format!("HTTP/1.1 200 {sig}\r\nX: {sig}\r\n\r\n{}", error_response(0, &sig)))
            }
            "odd/html" => Reply::typed(502, "text/html", format!("<a href=\"/v4/x/y?usersig={sig}\">")),
            "odd/broken" => Reply::bytes(format!("HTTP/1.1 200 OK\r\n{sig}\r\n\r\n")),
            "odd/reset" => Reply::reset(),
            "odd/hang" => Reply::hang(),
            "odd/redirect" => Reply::bytes(format!(
                "HTTP/1.1 302 Found\r\nLocation: /v4/x/y?usersig={sig}\r\nContent-Length: 0\r\n\r\n"
            )),
            _ => Reply::json(error_response(30006, "transient")),
        })
    });
    let add = r#"{"From_Account":"a","FollowItem":[{"To_Account":"b"}]}"#;
    let http2 = Http2::open(gateway.address()).await;
    for app in [MAIN, OTHER, ODD, EXPIRED, NO_TLS] {
        for command in [
            "odd/echo",
            "odd/echo_head",
            "odd/html",
            "odd/broken",
            "odd/reset",
            "odd/hang",
            "odd/redirect",
            "odd/other",
        ] {
            gateway.send(TestRequest::command(command).header("Chatgate-App", app.name)).await;
        }
        gateway
            .send(TestRequest::check("a", &["b"]).header("Chatgate-App", app.name).header("Chatgate-Explain", "1"))
            .await;
        gateway.send(TestRequest::command("follow/follow_add").body(add).header("Chatgate-App", app.name)).await;
        gateway.send(TestRequest::post(&format!("/v4/odd/echo?sdkappid={}&usersig=x&y=1", app.sdkappid))).await;
        http2.request(&TestRequest::command("odd/echo_head").header("Chatgate-App", app.name)).await;
    }
    gateway.send(TestRequest::post("/nowhere")).await;
    gateway.send(TestRequest::command("odd/echo").body("[")).await;
    let mut conn = gateway.connect().await;
    conn.send("POST /v4/odd/echo HTTP/1.1\r\nbroken\r\n\r\n").await;
    conn.read_to_end().await;
    let mut disconnecting = gateway.connect().await;
    disconnecting.send(TestRequest::command("odd/hang").bytes()).await;
    plain.wait_for_calls(10).await;
    drop(disconnecting);
    // A TLS hello, malformed HTTP/2, and a NUL byte.
    for bytes in [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff", b"\0"] {
        let mut conn = gateway.connect().await;
        conn.send(bytes).await;
        conn.shutdown_write().await;
        conn.read_to_end().await;
    }
    // Admin pages and admin actions, valid and invalid.
    let mut operators: Vec<TestRequest> =
        ["/livez", "/readyz", "/status", "/metrics", "/", "/page.js", "/page.css", "/history", "/nowhere"]
            .map(|path| TestRequest::new("GET", path))
            .into();
    let evict = |body: &str| TestRequest::post("/cache/evict").body(body);
    operators.extend([
        evict(r#"{"App":"main"}"#),
        evict("["),
        evict(r#"{"App":"none"}"#),
        TestRequest::post("/reload"),
    ]);
    operators.extend([
        TestRequest::post("/log").body(r#"{"level":"trace"}"#),
        TestRequest::post("/log").body(r#"{"level":"usersig"}"#),
    ]);
    for request in operators {
        let mut conn = Conn::open(gateway.admin()).await.expect("accepted");
        conn.request(&request).await;
    }
    // A key file that is invalid in the middle of a change, then valid again.
    let key_file = gateway.dir().join("main.key");
    std::fs::write(&key_file, format!("{}\n{}", MAIN.key, MAIN.key)).expect("own directory");
    gateway.signal("HUP");
    eventually("the reload is rejected", async || gateway.log().contains("reload failed").then_some(())).await;
    std::fs::write(&key_file, MAIN.key).expect("own directory");
    gateway.signal("HUP");
    let reloaded = |line: &str| line.contains("reloaded");
    eventually("the reload succeeds", async || gateway.log().lines().any(reloaded).then_some(())).await;
    for call in plain.calls() {
        let verdict = usersig::verify(&call.usersig(), MAIN, unix_now());
        assert_eq!(verdict, Ok(()), "{}", call.command());
    }
    assert!(secrets::count() >= 1);
    assert_eq!((wrong_name.call_count(), expired.call_count()), (0, 0));
    // A plain HTTP server reads a TLS hello as malformed HTTP.
    no_tls.clear_violations();
    assert_eq!(no_tls.call_count(), 0);
    let log = gateway.log();
    // An empty log would prove nothing.
    assert!(log.contains("TRACE") || log.contains("DEBUG"), "the log is not verbose");
    assert!(log.lines().count() > 20, "{} lines", log.lines().count());
    secrets::assert_none_in("the log", log.as_bytes());
    secrets::assert_none_in("stdout", gateway.stdout().as_bytes());
    for fragment in ["usersig=eJ", "TLS.sig", "usersig%3DeJ"] {
        assert!(!log.contains(fragment), "{fragment} is in the log");
    }
    assert_eq!(gateway.stop().await, 0);
}

#[tokio::test]
async fn json_log_at_trace_level_contains_no_secret() {
    provoke_every_failure("json").await;
}

#[tokio::test]
async fn text_log_at_trace_level_contains_no_secret() {
    provoke_every_failure("text").await;
}

#[tokio::test]
async fn key_from_the_environment_signs_and_is_not_logged() {
    let chat = FakeChat::start().await;
    let app = format!(
        "[[app]]\nname = \"main\"\nsdkappid = {}\nidentifier = \"{}\"\nsecret_key_env = \"CHAT_KEY\"\n{}",
        MAIN.sdkappid,
        MAIN.identifier,
        chat.app_lines()
    );
    let setup = Setup::without_apps().raw(&app).env("CHAT_KEY", MAIN.key).set("log", r#"level = "trace""#);
    let gateway = setup.start().await;
    gateway.call("openim/querystate", "{}").await.assert_relayed(200, crate::support::graph::OK);
}

#[tokio::test]
async fn inline_secret_key_is_rejected_without_being_printed() {
    let setup = Setup::without_apps();
    let head =
        format!("[[app]]\nname = \"main\"\nsdkappid = {}\nidentifier = \"a\"\nregion = \"tokyo\"\n", MAIN.sdkappid);
    let key = MAIN.key;
    for line in [
        format!("secret_key = \"{key}\""),
        format!("key = \"{key}\""),
        format!("secret_key_file = {key}"),
        format!("secret_key_file = \"{key}"),
        format!("usersig_lifetime = \"{key}\""),
        format!("secret_key_env = [\"{key}\"]"),
        format!("quota = {{ per_command = \"{key}\" }}"),
        key.to_owned(),
    ] {
        let file = setup.file("chatgate.toml", &format!("{head}{line}\n"));
        for command in ["check", "serve"] {
            let outcome = Process::run(&[command, "--config", &file.to_string_lossy()], setup.dir(), &[]).await;
            assert_eq!(outcome.code, 78, "{outcome:?}");
            assert!(!outcome.stderr.is_empty(), "there must be an error message");
        }
    }
}
