//! Keys and signatures are seen nowhere but upstream, whatever happens and however much is logged.
//!
//! Every test of this binary searches the gateway's whole output and all of its answers for secrets (see
//! `support::secrets`); here the log is at its most verbose, and everything that can go wrong does.

use crate::support::app::{MAIN, ODD, OTHER, TestApp};
use crate::support::chat::FakeChat;
use crate::support::client::{Ask, Conn};
use crate::support::graph::fail;
use crate::support::h2::Http2;
use crate::support::process::Process;
use crate::support::reply::Reply;
use crate::support::setup::Setup;
use crate::support::tls::Ca;
use crate::support::{eventually, secrets, unix_now, usersig};

/// Its Chat shows a certificate that is over.
const EXPIRED: TestApp = TestApp { name: "expired", sdkappid: 1_400_000_003, ..OTHER };
/// Its Chat speaks no TLS, though it should.
const NO_TLS: TestApp = TestApp { name: "no-tls", sdkappid: 1_400_000_004, ..OTHER };

async fn everything_goes_wrong(format: &'static str) {
    let ca = Ca::new();
    let plain = FakeChat::start().await;
    let hidden = FakeChat::start_tls(ca.acceptor("elsewhere.example")).await;
    let expired = FakeChat::start_tls(ca.expired_acceptor("localhost")).await;
    let no_tls = FakeChat::start().await;
    let setup = Setup::without_apps();
    let trusted = setup.file("ca.pem", &ca.pem());
    // Bound and not listening: nobody answers there, and no other test's Chat can come to be there.
    let nobody = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    nobody.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    let gateway = setup
        .app(MAIN, &format!("{}\ndefault = true", plain.app_lines()))
        .app(OTHER, &hidden.app_lines())
        .app(
            ODD,
            &format!("endpoint = \"http://{}\"", nobody.local_addr().expect("bound").as_socket().expect("an address")),
        )
        .app(EXPIRED, &format!("{}\nca_file = '{}'", expired.app_lines(), trusted.display()))
        .app(NO_TLS, &format!("endpoint = \"https://localhost:{}\"", no_tls.address().port()))
        .set("log", r#"level = "trace""#)
        .set("log", &format!("format = \"{format}\""))
        .set("server", "explain = true")
        .deadline("1s");
    let gateway = if format == "json" { gateway.start().await } else { gateway.start_silent().await };
    plain.script(|call| {
        let sig = call.usersig();
        Some(match call.command() {
            "follow/follow_check" | "follow/follow_add" => Reply::model(),
            "odd/echo" => Reply::json(fail(30003, &format!("usersig={sig}"))),
            "odd/echo_head" => Reply::bytes(format!("HTTP/1.1 200 {sig}\r\nX: {sig}\r\n\r\n{}", fail(0, &sig))),
            "odd/html" => Reply::typed(502, "text/html", format!("<a href=\"/v4/x/y?usersig={sig}\">")),
            "odd/broken" => Reply::bytes(format!("HTTP/1.1 200 OK\r\n{sig}\r\n\r\n")),
            "odd/reset" => Reply::reset(),
            "odd/hang" => Reply::hang(),
            "odd/redirect" => Reply::bytes(format!(
                "HTTP/1.1 302 Found\r\nLocation: /v4/x/y?usersig={sig}\r\nContent-Length: 0\r\n\r\n"
            )),
            _ => Reply::json(fail(30006, "transient")),
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
            gateway.ask(Ask::command(command).header("Chatgate-App", app.name)).await;
        }
        gateway.ask(Ask::check("a", &["b"]).header("Chatgate-App", app.name).header("Chatgate-Explain", "1")).await;
        gateway.ask(Ask::command("follow/follow_add").body(add).header("Chatgate-App", app.name)).await;
        gateway.ask(Ask::post(&format!("/v4/odd/echo?sdkappid={}&usersig=x&y=1", app.sdkappid))).await;
        http2.ask(&Ask::command("odd/echo_head").header("Chatgate-App", app.name)).await;
    }
    gateway.ask(Ask::post("/nowhere")).await;
    gateway.ask(Ask::command("odd/echo").body("[")).await;
    let mut conn = gateway.connect().await;
    conn.send("POST /v4/odd/echo HTTP/1.1\r\nbroken\r\n\r\n").await;
    conn.rest().await;
    let mut leaving = gateway.connect().await;
    leaving.send(Ask::command("odd/hang").bytes()).await;
    plain.seen(10).await;
    drop(leaving);
    // Bytes of TLS, of broken HTTP/2, and of nothing.
    for bytes in [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff", b"\0"] {
        let mut conn = gateway.connect().await;
        conn.send(bytes).await;
        conn.finish().await;
        conn.rest().await;
    }
    // What operators see and say, sound or not.
    let mut operators: Vec<Ask> =
        ["/livez", "/readyz", "/status", "/metrics", "/", "/page.js", "/page.css", "/history", "/nowhere"]
            .map(|path| Ask::new("GET", path))
            .into();
    let evict = |body: &str| Ask::post("/cache/evict").body(body);
    operators.extend([evict(r#"{"App":"main"}"#), evict("["), evict(r#"{"App":"none"}"#), Ask::post("/reload")]);
    operators
        .extend([Ask::post("/log").body(r#"{"level":"trace"}"#), Ask::post("/log").body(r#"{"level":"usersig"}"#)]);
    for ask in operators {
        let mut conn = Conn::open(gateway.admin()).await.expect("accepted");
        conn.ask(&ask).await;
    }
    // A key file that is broken off in the middle of its change, then whole again.
    let key_file = gateway.dir().join("main.key");
    std::fs::write(&key_file, format!("{}\n{}", MAIN.key, MAIN.key)).expect("own directory");
    gateway.signal("HUP");
    eventually("it is refused", async || gateway.log().contains("not reloaded").then_some(())).await;
    std::fs::write(&key_file, MAIN.key).expect("own directory");
    gateway.signal("HUP");
    let taken = |line: &str| line.contains("reloaded") && !line.contains("not reloaded");
    eventually("it is taken", async || gateway.log().lines().any(taken).then_some(())).await;
    for call in plain.calls() {
        let verdict = usersig::verify(&call.usersig(), MAIN, unix_now());
        assert_eq!(verdict, Ok(()), "{}", call.command());
    }
    assert!(secrets::remembered() >= 1);
    assert_eq!((hidden.count(), expired.count()), (0, 0));
    // TLS to a peer that speaks none looks like broken HTTP to it.
    no_tls.forgive();
    assert_eq!(no_tls.count(), 0);
    let log = gateway.log();
    // A log that says nothing would prove nothing.
    assert!(log.contains("TRACE") || log.contains("DEBUG"), "the log is not verbose");
    assert!(log.lines().count() > 20, "{} lines", log.lines().count());
    secrets::assert_none_in("the log", log.as_bytes());
    secrets::assert_none_in("stdout", gateway.stdout().as_bytes());
    for trace in ["usersig=eJ", "TLS.sig", "usersig%3DeJ"] {
        assert!(!log.contains(trace), "{trace} is in the log");
    }
    assert_eq!(gateway.stop().await, 0);
}

#[tokio::test]
async fn at_trace_level_in_json_no_secret_is_said() {
    everything_goes_wrong("json").await;
}

#[tokio::test]
async fn at_trace_level_in_text_no_secret_is_said() {
    everything_goes_wrong("text").await;
}

#[tokio::test]
async fn a_key_in_the_environment_works_and_is_not_said() {
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
async fn a_config_with_the_key_itself_in_it_is_refused_without_showing_it() {
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
            assert!(!outcome.stderr.is_empty(), "it must say why");
        }
    }
}
