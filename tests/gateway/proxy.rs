//! The egress proxy: what it sees, whose failure a failure is, and which endpoints are called without it.

use std::time::Duration;

use serde_json::Value;

use crate::support::app::{MAIN, TestApp};
use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::hosts::Hosts;
use crate::support::link::{Link, NetworkState};
use crate::support::process::Process;
use crate::support::proxy::{self, BOTH, FakeProxy, ProxyFault, ProxyKind};
use crate::support::setup::Setup;
use crate::support::tls::Ca;
use crate::support::wire::free_address;
use crate::support::{eventually, now, secrets, turn};

/// A command that writes, and that a lookup never uses.
const WRITE: &str = "openim/sendmsg";
/// Names that only the proxy can resolve (RFC 6761 section 6.2).
const PRIMARY: &str = "chat.test";
const STANDBY: &str = "standby.test";
/// All output is searched for it.
const PASSWORD: &str = "pr0xy0marked0password0of0the0egress0proxy0never0to0be0seen0anywhere";

/// Chat behind a proxy, at the default port of its name.
struct Site {
    ca: Ca,
    primary: FakeChat,
    standby: FakeChat,
    proxy: FakeProxy,
}

impl Site {
    async fn start(kind: ProxyKind) -> Site {
        let ca = Ca::new();
        let chat = async |name: &str| {
            let address = "127.0.0.1:0".parse().expect("an address");
            FakeChat::start_behind(address, name.to_owned(), Some(ca.acceptor(name))).await
        };
        let (primary, standby, proxy) = (chat(PRIMARY).await, chat(STANDBY).await, FakeProxy::start(kind).await);
        proxy.lead("chat.test:443", primary.address());
        proxy.lead("standby.test:443", standby.address());
        Site { ca, primary, standby, proxy }
    }

    /// Returns the configuration of an app without a standby domain.
    fn setup(&self) -> Setup {
        self.setup_with(MAIN, "")
    }

    fn setup_with_standby(&self) -> Setup {
        self.setup_with(MAIN, &format!("standby = \"https://{STANDBY}\""))
    }

    fn setup_with(&self, app: TestApp, lines: &str) -> Setup {
        let setup = Setup::without_apps().set("upstream", &format!("proxy = \"{}\"", self.proxy.url()));
        let file = setup.file("ca.pem", &self.ca.pem());
        let lines = format!("endpoint = \"https://{PRIMARY}\"\nca_file = '{}'\n{lines}", file.display());
        // The default of one second is for a real network, not for a busy machine.
        // All output is searched for secrets.
        let setup = setup.set("log", "level = \"trace\"");
        setup.app(app, &lines).set("upstream", "connect_timeout = \"3s\"")
    }
}

/// Returns the state of the only app in `/status`.
async fn state(gateway: &Gateway) -> Value {
    gateway.admin_get("/status").await.json()["apps"][0]["state"].clone()
}

/// Asserts that a write fails with this text before anything is sent.
async fn assert_unreachable(gateway: &Gateway, text: &str) {
    let response = gateway.call(WRITE, "{}").await;
    response.assert_error(502, "upstream_unreachable", 129_502);
    assert!(response.text().contains(text), "{text}\n{}", response.text());
    assert!(response.text().contains("no data was sent"), "{}", response.text());
}

const UNREACHABLE: &str = "the proxy is unreachable";
const UNAUTHORIZED: &str = "the proxy rejects the credentials";
const REFUSED: &str = "the proxy does not allow the connection";
const INVALID: &str = "the proxy does not answer as its scheme requires";

#[tokio::test]
async fn proxy_sees_host_and_port_and_nothing_else() {
    for kind in BOTH {
        let site = Site::start(kind).await;
        site.primary.follow("ann", "bob");
        let gateway = site.setup().start().await;
        let mut conn = gateway.connect().await;
        assert_eq!(conn.request(&TestRequest::check("ann", &["bob"])).await.follow_types(), [2]);
        let body = r#"{"MarkedBody":"a-body-that-only-chat-may-read"}"#;
        conn.request(&TestRequest::command(WRITE).body(body)).await.assert_relayed(200, OK);
        assert_eq!(site.proxy.asked(), ["chat.test:443"], "one tunnel for both calls");
        let expected = match kind {
            ProxyKind::Http => b"CONNECT chat.test:443 HTTP/1.1\r\nHost: chat.test:443\r\n\r\n".to_vec(),
            ProxyKind::Socks5 => {
                [b"\x05\x01\x00\x05\x01\x00\x03\x09chat.test".as_slice(), &443_u16.to_be_bytes()].concat()
            }
        };
        assert_eq!(site.proxy.requests(), [expected]);
        let [tunneled] = &site.proxy.tunneled()[..] else { panic!("one tunnel") };
        // A TLS handshake record (RFC 8446 section 5.1).
        assert_eq!(tunneled[..2], [22, 3], "TLS begins inside the tunnel");
        secrets::assert_none_in("the tunnel", tunneled);
        for clear in ["usersig", "sdkappid", "/v4/", "openim", "follow_check", "a-body-that", "administrator", "POST"] {
            assert!(memchr::memmem::find(tunneled, clear.as_bytes()).is_none(), "{clear} is in the tunnel");
        }
        assert_eq!(site.primary.call_count(), 2);
        let settings = gateway.admin_get("/status").await.json()["config"]["upstream"].clone();
        assert_eq!(settings["proxy"], site.proxy.url());
        assert_eq!(state(&gateway).await["proxy_failure"], Value::Null);
    }
}

#[tokio::test]
async fn certificate_of_chat_is_verified_through_the_tunnel() {
    let site = Site::start(ProxyKind::Http).await;
    let impostor = Ca::new();
    let gateway = site.setup().start().await;
    site.primary.set_certificate(impostor.acceptor(PRIMARY));
    gateway.call(WRITE, "{}").await.assert_error(502, "upstream_unreachable", 129_502);
    site.primary.set_certificate(site.ca.acceptor("other.test"));
    gateway.call(WRITE, "{}").await.assert_error(502, "upstream_unreachable", 129_502);
    assert_eq!(site.primary.call_count(), 0);
    assert_eq!(state(&gateway).await["proxy_failure"], Value::Null, "the proxy did its part");
}

#[tokio::test]
async fn changed_credentials_take_effect_without_a_restart() {
    for kind in BOTH {
        let site = Site::start(kind).await;
        site.proxy.require("me@corp", PASSWORD);
        let setup = site.setup_with_standby().set("upstream", "proxy_auth_file = \"proxy-auth\"");
        secrets::add(&format!("{PASSWORD}-but-old"));
        setup.file("proxy-auth", &format!("me@corp:{PASSWORD}-but-old\n"));
        let gateway = setup.start().await;
        for calls in 1..=3 {
            assert_unreachable(&gateway, UNAUTHORIZED).await;
            assert_eq!(site.proxy.accepted_connections(), calls, "rejected credentials are not tried again");
        }
        assert_eq!(state(&gateway).await["is"], "primary");
        let failure = state(&gateway).await["proxy_failure"].as_str().unwrap_or_default().to_owned();
        assert!(failure.contains(UNAUTHORIZED), "{failure}");
        std::fs::write(gateway.dir().join("proxy-auth"), format!("me@corp:{PASSWORD}\n")).expect("own file");
        eventually("the new credentials are used", async || {
            (gateway.call(WRITE, "{}").await.status == 200).then_some(())
        })
        .await;
        assert_eq!(state(&gateway).await["proxy_failure"], Value::Null);
        assert_eq!(site.standby.accepted_connections(), 0);
        let log = gateway.log();
        assert_eq!(log.matches("the proxy opens no connections").count(), 1, "{log}");
        assert_eq!(log.matches("the proxy opens connections again").count(), 1, "{log}");
        let status = gateway.admin_get("/status").await.text();
        assert!(!log.contains("me@corp") && !status.contains("me@corp"), "{log}\n{status}");
    }
}

#[tokio::test]
async fn unreachable_proxy_never_moves_an_app_to_its_standby() {
    for kind in BOTH {
        let site = Site::start(kind).await;
        let mut link = Link::new();
        let setup = site.setup_with_standby();
        let setup = setup.set("upstream", &format!("proxy = \"{}\"", proxy::url(kind, link.address())));
        let gateway = setup.set("upstream", "connect_timeout = \"500ms\"").start().await;
        for network in [NetworkState::Refusing, NetworkState::DroppingSyn] {
            link.set(network).await;
            assert_unreachable(&gateway, UNREACHABLE).await;
            let state = state(&gateway).await;
            assert_eq!(state["is"], "primary");
            assert!(state["proxy_failure"].as_str().is_some_and(|text| text.contains(UNREACHABLE)), "{state}");
        }
        link.relay_to(site.proxy.address()).await;
        gateway.call(WRITE, "{}").await.assert_relayed(200, OK);
        assert_eq!(state(&gateway).await["proxy_failure"], Value::Null);
        assert_eq!(site.proxy.asked(), ["chat.test:443"], "the standby was never asked for");
    }
}

#[tokio::test]
async fn domain_that_the_proxy_cannot_reach_is_left_for_the_standby() {
    for kind in BOTH {
        let site = Site::start(kind).await;
        site.proxy.lose("chat.test:443");
        let gateway = site.setup_with_standby().start().await;
        gateway.call(WRITE, "{}").await.assert_relayed(200, OK);
        assert_eq!((site.primary.call_count(), site.standby.call_count()), (0, 1));
        let state = state(&gateway).await;
        assert_eq!((&state["is"], &state["proxy_failure"]), (&Value::from("standby"), &Value::Null));
        site.proxy.lose("standby.test:443");
        site.standby.drop_connections();
        let cause = match kind {
            ProxyKind::Http => "the proxy answers CONNECT with HTTP status 503",
            ProxyKind::Socks5 => "the proxy answers with SOCKS reply 5",
        };
        // The first calls may meet a connection that is closing.
        eventually("neither domain is reachable", async || {
            gateway.call(WRITE, "{}").await;
            gateway.log().contains(cause).then_some(())
        })
        .await;
        gateway.call(WRITE, "{}").await.assert_error(502, "upstream_unreachable", 129_502);
    }
}

#[tokio::test]
async fn other_answers_are_named_and_move_nothing() {
    let cases: [(ProxyKind, &[u8], &str); 9] = [
        (ProxyKind::Http, b"HTTP/1.1 403 Forbidden\r\nX: a-text-of-the-proxy\r\n\r\na-text-of-the-proxy", REFUSED),
        (ProxyKind::Http, b"HTTP/1.1 302 Found\r\nLocation: http://a-text-of-the-proxy/\r\n\r\n", REFUSED),
        (ProxyKind::Http, b"HTTP/1.1 200 OK\r\nContent-", INVALID),
        (ProxyKind::Http, b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n{\"ErrorCode\":0}", INVALID),
        (ProxyKind::Http, b"SSH-2.0-a-text-of-the-proxy\r\n", INVALID),
        (ProxyKind::Http, b"", INVALID),
        (ProxyKind::Socks5, b"HTTP/1.1 400 a-text-of-the-proxy\r\n\r\n", INVALID),
        (ProxyKind::Socks5, b"\x05\x00\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00", REFUSED),
        (ProxyKind::Socks5, b"\x05\xff", UNAUTHORIZED),
    ];
    for kind in BOTH {
        let site = Site::start(kind).await;
        let gateway = site.setup_with_standby().start().await;
        for (_, answer, text) in cases.iter().filter(|(of, ..)| *of == kind) {
            site.proxy.fail(Some(ProxyFault::Answers(answer.to_vec())));
            let before = site.proxy.accepted_connections();
            assert_unreachable(&gateway, text).await;
            assert_eq!(site.proxy.accepted_connections(), before + 1, "such an answer is final: {text}");
            assert_eq!(state(&gateway).await["is"], "primary");
        }
        assert_eq!((site.primary.accepted_connections(), site.standby.accepted_connections()), (0, 0));
        assert!(!gateway.log().contains("a-text-of-the-proxy"), "{}", gateway.log());
        site.proxy.fail(None);
        gateway.call(WRITE, "{}").await.assert_relayed(200, OK);
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn headers_of_the_proxy_are_bounded() {
    let site = Site::start(ProxyKind::Http).await;
    let gateway = site.setup().start().await;
    let before = gateway.resident_bytes();
    for _ in 0..3 {
        site.proxy.fail(Some(ProxyFault::Endless(b"HTTP/1.1 200 OK\r\nX: ".to_vec())));
        assert_unreachable(&gateway, INVALID).await;
    }
    let log = gateway.log();
    assert!(log.contains("the headers of the answer to CONNECT exceed 8 KiB"), "{log}");
    let grown = gateway.resident_bytes().saturating_sub(before);
    assert!(grown < 32 << 20, "grew by {grown} bytes");
}

#[tokio::test]
async fn connect_timeout_covers_proxy_and_tunnel_together() {
    let _exclusive = turn::exclusive().await;
    for (kind, fault, is_proxys) in [
        (ProxyKind::Http, ProxyFault::SilentAfterRequest, false),
        // Before it has the target, its silence is its own.
        (ProxyKind::Socks5, ProxyFault::Silent, true),
        (ProxyKind::Socks5, ProxyFault::SilentAfterRequest, false),
    ] {
        let site = Site::start(kind).await;
        site.proxy.fail(Some(fault));
        let setup = site.setup_with_standby().set("upstream", "attempts = 1");
        let gateway = setup.set("upstream", "connect_timeout = \"700ms\"").start().await;
        let start = now();
        let response = gateway.call(WRITE, "{}").await;
        let took = start.elapsed();
        response.assert_error(502, "upstream_unreachable", 129_502);
        assert_eq!(response.text().contains(UNREACHABLE), is_proxys, "{}", response.text());
        // The silence of a domain makes chatgate try the other one, for the whole timeout again.
        let sides = if is_proxys { 1 } else { 2 };
        assert_eq!(site.proxy.accepted_connections(), sides as usize);
        let expected = Duration::from_millis(700) * sides;
        assert!((expected..expected + Duration::from_secs(2)).contains(&took), "{kind:?} took {took:?}");
        assert_eq!(state(&gateway).await["is"], "primary");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn exceptions_and_loopback_are_called_directly() {
    let dead = format!("proxy = \"http://{}\"", free_address());
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("upstream", &dead).start().await;
    gateway.call(WRITE, "{}").await.assert_relayed(200, OK);

    let ca = Ca::new();
    let port = free_address().port();
    let authority = format!("{PRIMARY}:{port}");
    let chat =
        FakeChat::start_behind(([127, 0, 0, 1], port).into(), authority.clone(), Some(ca.acceptor(PRIMARY))).await;
    for (exceptions, is_direct) in [("[\".other.test\", \"127.0.0.0/8\"]", false), ("[\".test\"]", true)] {
        let setup = Setup::without_apps().set("upstream", &dead).set("upstream", &format!("no_proxy = {exceptions}"));
        let _hosts = Hosts::new(setup.dir(), &format!("127.0.0.1 {PRIMARY}\n"));
        let file = setup.file("ca.pem", &ca.pem());
        let lines = format!("endpoint = \"https://{authority}\"\nca_file = '{}'", file.display());
        let gateway = setup.app(MAIN, &lines).start().await;
        match is_direct {
            true => gateway.call(WRITE, "{}").await.assert_relayed(200, OK),
            false => assert_unreachable(&gateway, UNREACHABLE).await,
        }
        assert_eq!(chat.call_count(), usize::from(is_direct));
    }
}

#[tokio::test]
async fn environment_is_used_only_if_the_configuration_says_so() {
    for kind in BOTH {
        let site = Site::start(kind).await;
        site.proxy.require("me@corp", PASSWORD);
        let url = proxy::url(kind, site.proxy.address()).replace("://", &format!("://me%40corp:{PASSWORD}@"));
        // The harness sets the variables in lower case to an address without a proxy.
        let setup =
            site.setup().set("upstream", "proxy = \"env\"").env("https_proxy", &url).env("NO_PROXY", "other.test");
        let gateway = setup.start().await;
        gateway.call(WRITE, "{}").await.assert_relayed(200, OK);
        assert_eq!(site.proxy.asked(), ["chat.test:443"]);
        let settings = gateway.admin_get("/status").await.json()["config"]["upstream"].clone();
        assert_eq!(
            (&settings["proxy"], &settings["proxy_variable"]),
            (&site.proxy.url().into(), &"https_proxy".into())
        );
        assert_eq!(settings["no_proxy"], serde_json::json!(["other.test"]));
        let setup = site.setup().set("upstream", "proxy = \"env\"").env("https_proxy", &url);
        let gateway = setup.env("no_proxy", "*").start().await;
        gateway.call(WRITE, "{}").await.assert_error(502, "upstream_unreachable", 129_502);
        assert_eq!(site.proxy.asked().len(), 1, "NO_PROXY excludes all hosts");
    }
}

#[tokio::test]
async fn changed_proxy_takes_effect_at_a_reload() {
    let (site, other) = (Site::start(ProxyKind::Http).await, FakeProxy::start(ProxyKind::Socks5).await);
    other.lead("chat.test:443", site.primary.address());
    let setup = site.setup();
    let text = setup.text().replace(&site.proxy.url(), &other.url());
    let gateway = setup.start().await;
    gateway.call(WRITE, "{}").await.assert_relayed(200, OK);
    std::fs::write(gateway.dir().join("chatgate.toml"), text).expect("own directory");
    assert_eq!(gateway.send_to_admin(TestRequest::post("/reload")).await.status, 200);
    gateway.call(WRITE, "{}").await.assert_relayed(200, OK);
    assert_eq!((site.proxy.asked().len(), other.asked()), (1, vec!["chat.test:443".to_owned()]));
}

/// Runs `chatgate doctor`. Returns its exit code, and the causes and checks of the only app.
async fn doctor(setup: &Setup) -> (i32, Vec<String>, Value) {
    let file = setup.write().to_string_lossy().into_owned();
    let outcome = Process::run(&["doctor", "--json", "--config", &file], setup.dir(), &[]).await;
    let json: Value = serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {outcome:?}"));
    let causes = json["apps"][0]["causes"].as_array().expect("a list").iter();
    let causes = causes.filter_map(|cause| cause["cause"].as_str()).map(str::to_owned).collect();
    (outcome.code, causes, json["apps"][0]["checks"].clone())
}

#[tokio::test]
async fn doctor_names_the_proxy_as_the_cause() {
    for kind in BOTH {
        let site = Site::start(kind).await;
        let setup = site.setup_with_standby();
        let (code, causes, checks) = doctor(&setup).await;
        assert_eq!((code, causes.len()), (0, 0), "{checks:#}");
        let of = |name: &str| {
            let rows = checks.as_array().expect("a list").iter().filter(|row| row["check"] == name);
            rows.filter_map(|row| row["status"].as_str()).collect::<Vec<_>>()
        };
        assert_eq!((of("proxy"), of("name")), (vec!["ok"; 2], vec!["skipped"; 2]), "{checks:#}");
        assert_eq!(
            (of("connection"), of("tls"), of("call")),
            (vec!["ok"; 2], vec!["ok"; 2], vec!["ok"; 2]),
            "{checks:#}"
        );

        let refusal: &[u8] = match kind {
            ProxyKind::Http => b"HTTP/1.1 403 Forbidden\r\n\r\n",
            ProxyKind::Socks5 => b"\x05\x00\x05\x02\x00\x01",
        };
        for (answer, code, cause) in [(refusal, 18, "proxy_refused"), (b"SSH-2.0-x\r\n", 19, "not_proxy")] {
            site.proxy.fail(Some(ProxyFault::Answers(answer.to_vec())));
            let (seen, causes, checks) = doctor(&setup).await;
            assert_eq!((seen, causes), (code, vec![cause.to_owned()]), "{checks:#}");
        }
        site.proxy.fail(None);
        site.proxy.lose("chat.test:443");
        let (code, causes, checks) = doctor(&setup).await;
        assert_eq!((code, causes), (28, vec!["primary_down".to_owned()]), "{checks:#}");
        site.proxy.require("me@corp", PASSWORD);
        let (code, causes, checks) = doctor(&setup).await;
        assert_eq!((code, causes), (17, vec!["proxy_auth".to_owned()]), "{checks:#}");
        let setup = setup.set("upstream", &format!("proxy = \"{}\"", proxy::url(kind, free_address())));
        let (code, causes, checks) = doctor(&setup).await;
        assert_eq!((code, causes), (16, vec!["proxy_unreachable".to_owned()]), "{checks:#}");
    }
}
