//! TLS for callers: accepted and rejected handshakes, client certificates, and certificate changes.

use std::time::Duration;

use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::h2::Http2;
use crate::support::process::Process;
use crate::support::setup::Setup;
use crate::support::tls::{Ca, Pem};
use crate::support::{PATIENCE, eventually, now, secrets, turn, within};

const CALL: &str = "openim/querystate";
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Adds `server.tls` with these files.
fn with_tls(setup: Setup, pem: &Pem, client_ca: Option<&Ca>) -> Setup {
    setup.file("cert.pem", &pem.certificate);
    setup.file("key.pem", &pem.key);
    let more = client_ca.map_or("", |ca| {
        setup.file("clients.pem", &ca.pem());
        ", client_ca_file = 'clients.pem'"
    });
    setup.set("server", &format!("tls = {{ cert_file = 'cert.pem', key_file = 'key.pem'{more} }}"))
}

/// Returns the number of failed handshakes of this cause from `/metrics`.
async fn failures(gateway: &Gateway, cause: &str) -> u64 {
    let name = format!("chatgate_tls_handshakes_failed_total{{listener=\"data\",cause=\"{cause}\"}} ");
    let text = gateway.admin_get("/metrics").await.text();
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("{name}\n{text}"))
}

async fn wait_for_failures(gateway: &Gateway, cause: &str, count: u64) {
    let counted = async || (failures(gateway, cause).await == count).then_some(());
    eventually(&format!("{count} handshakes counted as {cause}"), counted).await;
}

#[tokio::test]
async fn alpn_selects_http2_or_http1_over_both_tls_versions() {
    let (ca, chat) = (Ca::new(), FakeChat::start().await);
    chat.follow("ann", "bob");
    let gateway = with_tls(Setup::new(&chat), &ca.issue("localhost", YEAR), None).start().await;
    for (offered, chosen) in [(&["h2", "http/1.1"][..], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&[], None)] {
        for caller in [ca.caller().alpn(offered), ca.caller().alpn(offered).tls12()] {
            let stream = caller.connect(gateway.address()).await.expect("a handshake");
            let got = stream.get_ref().1.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
            assert_eq!(got.as_deref(), chosen);
            let response = if chosen == Some("h2") {
                Http2::from_stream(stream).await.request(&TestRequest::check("ann", &["bob"])).await
            } else {
                Conn::from_stream(stream).request(&TestRequest::check("ann", &["bob"])).await
            };
            assert_eq!(response.follow_types(), [2], "{response:?}");
        }
    }
    assert!(ca.caller().alpn(&["smtp"]).connect(gateway.address()).await.is_err(), "an unsupported protocol");
    let status = gateway.admin_get("/status").await.json();
    let presented = &status["config"]["server"]["tls"];
    assert!(presented["certificate"].as_str().is_some_and(|text| text.contains("localhost")), "{presented}");
    assert_eq!(gateway.stop().await, 0);
}

#[tokio::test]
async fn connection_must_speak_what_alpn_selected() {
    let (ca, chat) = (Ca::new(), FakeChat::start().await);
    let gateway = with_tls(Setup::new(&chat), &ca.issue("localhost", YEAR), None).start().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for offered in [&["http/1.1"][..], &[]] {
        let mut conn =
            Conn::from_stream(ca.caller().alpn(offered).connect(gateway.address()).await.expect("a handshake"));
        conn.send(&preface).await;
        let response = conn.read_response().await;
        response.assert_error(400, "bad_request", 60002);
        assert!(response.text().contains("HTTP/2 preface"), "{response:?}");
    }
    let stream = ca.caller().alpn(&["h2"]).connect(gateway.address()).await.expect("a handshake");
    let mut conn = Conn::from_stream(stream);
    conn.send(TestRequest::command(CALL).bytes()).await;
    let rest = conn.read_to_end().await;
    // RFC 9113 section 3.4: a connection error, which GOAWAY (type 7) reports.
    assert!(!rest.starts_with(b"HTTP/") && rest.get(3).is_some_and(|kind| [4, 7].contains(kind)), "{rest:?}");
    assert_eq!(chat.call_count(), 0);
}

#[tokio::test]
async fn distrusting_callers_fail_the_handshake_and_plain_http_gets_the_cause() {
    let (ca, chat) = (Ca::new(), FakeChat::start().await);
    let setup = with_tls(Setup::new(&chat), &ca.issue("localhost", YEAR), None).set("log", r#"level = "debug""#);
    let socket = format!("unix:{}", setup.dir().join("plain.sock").display());
    let gateway = setup.listen(&["127.0.0.1:0", &socket]).start().await;
    assert!(Ca::new().caller().connect(gateway.address()).await.is_err());
    wait_for_failures(&gateway, "other", 1).await;
    for text in [TestRequest::command(CALL).bytes(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()] {
        let mut conn = gateway.connect().await;
        conn.send(text).await;
        let response = conn.read_response().await;
        response.assert_error(400, "bad_request", 60002);
        assert!(response.text().contains("https://"), "{response:?}");
        conn.assert_closed().await;
        let id = response.request_id();
        eventually("the refusal is logged", async || gateway.log().contains(&*id).then_some(())).await;
    }
    // Neither HTTP nor TLS.
    let mut conn = gateway.connect().await;
    conn.send(b"\0\0\0\0\0\0\0\0").await;
    let rest = conn.read_to_end().await;
    assert!(!rest.windows(4).any(|part| part == b"HTTP"), "{}", String::from_utf8_lossy(&rest));
    wait_for_failures(&gateway, "not_tls", 3).await;
    assert!(gateway.log().contains("TLS handshake failed"), "the failure is logged");
    assert_eq!(chat.call_count(), 0);
    // Unix sockets and the admin listener use no TLS.
    Conn::open(&socket).await.expect("accepted").request(&TestRequest::command(CALL)).await.assert_relayed(200, OK);
    assert_eq!(gateway.admin_get("/readyz").await.status, 200);
}

#[tokio::test]
async fn only_callers_with_client_ca_certificates_are_served() {
    let (ca, clients, chat) = (Ca::new(), Ca::new(), FakeChat::start().await);
    // The listener is not on loopback, and the client CA authenticates callers.
    let setup = with_tls(Setup::new(&chat), &ca.issue("localhost", YEAR), Some(&clients)).listen(&["0.0.0.0:0"]);
    let gateway = setup.start().await;
    let address = format!("127.0.0.1:{}", gateway.address().rsplit_once(':').expect("a port").1);
    let known = clients.issue("feed", YEAR);
    for caller in [ca.caller().client_certificate(&known), ca.caller().client_certificate(&known).tls12()] {
        let stream = caller.connect(&address).await.expect("a handshake");
        Conn::from_stream(stream).request(&TestRequest::command(CALL)).await.assert_relayed(200, OK);
    }
    let untrusted = Ca::new().issue("feed", YEAR);
    // Issued by the server's CA, which is not the client CA.
    let server_issued = ca.issue("feed", YEAR);
    let callers = [
        ca.caller(),
        ca.caller().client_certificate(&untrusted),
        ca.caller().client_certificate(&server_issued),
        ca.caller().tls12(),
    ];
    for caller in callers {
        // With TLS 1.3, a caller sees the rejection only when it reads.
        if let Ok(stream) = caller.connect(&address).await {
            let mut conn = Conn::from_stream(stream);
            conn.send(TestRequest::command(CALL).bytes()).await;
            assert!(conn.try_read_response().await.is_none(), "the request got a response");
        }
    }
    wait_for_failures(&gateway, "client_certificate", 4).await;
    assert_eq!(chat.call_count(), 2);
    assert_eq!(gateway.admin_get("/readyz").await.status, 200, "the admin listener requires no certificate");
}

#[tokio::test]
async fn slow_handshakes_time_out_while_other_callers_are_served() {
    let _exclusive = turn::exclusive().await;
    let (ca, chat) = (Ca::new(), FakeChat::start().await);
    let setup = with_tls(Setup::new(&chat), &ca.issue("localhost", YEAR), None);
    let gateway = setup.set("server", r#"handshake_timeout = "2s""#).set("server", "max_connections = 3").start().await;
    let start = now();
    let mut silent = gateway.connect().await;
    let mut half = gateway.connect().await;
    // The first bytes of a ClientHello that is never completed.
    half.send([0x16, 3, 1, 2, 0, 1]).await;
    let stream = ca.caller().connect(gateway.address()).await.expect("a handshake");
    let mut served = Conn::from_stream(stream);
    served.request(&TestRequest::command(CALL)).await.assert_relayed(200, OK);
    // Connections in the handshake count toward max_connections.
    assert!(ca.caller().connect(gateway.address()).await.is_err(), "over max_connections");
    silent.assert_closed().await;
    half.assert_closed().await;
    let took = start.elapsed();
    assert!((Duration::from_millis(1900)..Duration::from_secs(12)).contains(&took), "{took:?}");
    served.request(&TestRequest::command(CALL)).await.assert_relayed(200, OK);
    wait_for_failures(&gateway, "timeout", 2).await;
    eventually("the connection slots are free", async || ca.caller().connect(gateway.address()).await.ok().map(drop))
        .await;
}

#[tokio::test]
async fn stop_does_not_wait_for_a_pending_handshake() {
    let (ca, chat) = (Ca::new(), FakeChat::start().await);
    let mut gateway = with_tls(Setup::new(&chat), &ca.issue("localhost", YEAR), None).start().await;
    let _silent = gateway.connect().await;
    let served = ca.caller().connect(gateway.address()).await.expect("a handshake");
    Conn::from_stream(served).request(&TestRequest::command(CALL)).await.assert_relayed(200, OK);
    gateway.signal("TERM");
    // handshake_timeout is 10 s.
    assert_eq!(gateway.exit_code_within(Duration::from_secs(8)).await, 0);
}

/// Returns the leaf certificate that the gateway presents.
async fn presented(ca: &Ca, address: &str) -> Vec<u8> {
    let stream = ca.caller().connect(address).await.expect("a handshake");
    stream.get_ref().1.peer_certificates().expect("one")[0].to_vec()
}

#[tokio::test]
async fn changed_certificate_is_presented_without_failing_any_request() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    let (ca, chat) = (Arc::new(Ca::new()), FakeChat::start().await);
    let setup = with_tls(Setup::new(&chat), &ca.issue("localhost", YEAR), None);
    let dir = setup.dir().to_owned();
    let gateway = setup.start().await;
    let mut kept = Conn::from_stream(ca.caller().connect(gateway.address()).await.expect("a handshake"));
    let done = Arc::new(AtomicBool::new(false));
    let load = |_| {
        let (ca, done, address) = (Arc::clone(&ca), Arc::clone(&done), gateway.address().to_owned());
        tokio::spawn(async move {
            let mut count = 0;
            while !done.load(Ordering::Relaxed) {
                let mut conn = Conn::from_stream(ca.caller().connect(&address).await.expect("a handshake"));
                for _ in 0..3 {
                    conn.request(&TestRequest::check("ann", &["bob"])).await.items();
                    count += 1;
                }
            }
            count
        })
    };
    let load: Vec<_> = (0..3).map(load).collect();
    let mut before = presented(&ca, gateway.address()).await;
    for round in 0..3 {
        let pem = ca.issue("localhost", YEAR);
        // The files change one after the other. In between they do not match, and the old pair stays in use.
        for (name, text) in [("key.pem", &pem.key), ("cert.pem", &pem.certificate)] {
            crate::reload::replace_file(&dir, name, text);
            if name == "key.pem" && round == 0 {
                let logged = async || gateway.log().contains("the key does not belong").then_some(());
                eventually("the log reports the mismatch", logged).await;
                assert_eq!(presented(&ca, gateway.address()).await, before);
            }
        }
        let changed = async || Some(presented(&ca, gateway.address()).await).filter(|presented| *presented != before);
        before = eventually("the new certificate", changed).await;
    }
    // The reload admin action rejects an invalid certificate too.
    std::fs::write(dir.join("cert.pem"), "").expect("own directory");
    let mut admin = Conn::open(gateway.admin()).await.expect("accepted");
    let response = admin.request(&TestRequest::post("/reload")).await;
    assert!(response.status == 400 && response.text().contains("server.tls.cert_file"), "{response:?}");
    assert_eq!(presented(&ca, gateway.address()).await, before);
    done.store(true, Ordering::Relaxed);
    let mut count = 0;
    for task in load {
        count += task.await.expect("every request succeeds");
    }
    assert!(count > 30, "{count}");
    kept.request(&TestRequest::check("ann", &["bob"])).await.items();
}

#[tokio::test]
async fn toggling_tls_or_client_certificates_requires_a_restart() {
    let (ca, chat) = (Ca::new(), FakeChat::start().await);
    let pem = ca.issue("localhost", YEAR);
    let setup = with_tls(Setup::new(&chat), &pem, Some(&ca));
    let with_client_ca = setup.text();
    let setup = with_tls(setup, &pem, None);
    let plain = setup.text().replace("tls = {", "# tls = {");
    let gateway = setup.start().await;
    for text in [with_client_ca, plain] {
        std::fs::write(gateway.dir().join("chatgate.toml"), text).expect("own directory");
        let mut admin = Conn::open(gateway.admin()).await.expect("accepted");
        let response = admin.request(&TestRequest::post("/reload")).await.text();
        assert!(response.contains("server.tls: change requires a restart"), "{response}");
        let stream = ca.caller().connect(gateway.address()).await.expect("a handshake without a certificate");
        Conn::from_stream(stream).request(&TestRequest::command(CALL)).await.assert_relayed(200, OK);
    }
}

#[tokio::test]
async fn tls_failures_log_no_key() {
    let (ca, chat) = (Ca::new(), FakeChat::start().await);
    let pem = ca.issue("localhost", YEAR);
    let setup = with_tls(Setup::new(&chat), &pem, Some(&ca)).set("log", r#"level = "trace""#);
    let gateway = setup.start().await;
    let known = ca.issue("feed", YEAR);
    let stream = ca.caller().client_certificate(&known).connect(gateway.address()).await.expect("a handshake");
    Conn::from_stream(stream).request(&TestRequest::command(CALL)).await.assert_relayed(200, OK);
    let _ = ca.caller().connect(gateway.address()).await;
    let _ = Ca::new().caller().connect(gateway.address()).await;
    let mut conn = gateway.connect().await;
    conn.send(TestRequest::command(CALL).bytes()).await;
    conn.read_to_end().await;
    wait_for_failures(&gateway, "not_tls", 1).await;
    for text in [&pem.key[..pem.key.len() / 2], "", pem.certificate.as_str()] {
        std::fs::write(gateway.dir().join("key.pem"), text).expect("own directory");
        let mut admin = Conn::open(gateway.admin()).await.expect("accepted");
        assert_eq!(admin.request(&TestRequest::post("/reload")).await.status, 400);
    }
    // A key in the certificate file is still a secret.
    std::fs::write(gateway.dir().join("key.pem"), &pem.key).expect("own directory");
    std::fs::write(gateway.dir().join("cert.pem"), &pem.key).expect("own directory");
    let mut admin = Conn::open(gateway.admin()).await.expect("accepted");
    assert_eq!(admin.request(&TestRequest::post("/reload")).await.status, 400);
    gateway.admin_get("/status").await;
    let is_verbose = |log: &String| log.contains("DEBUG") && log.contains("TLS handshake failed");
    let log = eventually("a verbose log", async || Some(gateway.log()).filter(is_verbose)).await;
    secrets::assert_none_in("the log", log.as_bytes());
    assert!(secrets::count() >= 2);
}

#[tokio::test]
async fn check_prints_the_certificate_subject_and_expiry() {
    let (ca, chat) = (Ca::new(), FakeChat::start().await);
    let soon = ca.issue("gate.test", Duration::from_secs(10 * 24 * 3600 + 60));
    let setup = with_tls(Setup::new(&chat), &soon, Some(&ca));
    let file = setup.write();
    let check = ["check", "--config", &file.to_string_lossy()];
    let outcome = within(PATIENCE, "check", Process::run(&check, setup.dir(), &[])).await;
    assert_eq!(outcome.code, 0, "{outcome:?}");
    for part in ["with TLS", "certificate     ", "gate.test", "expires       20", "client_ca_file"] {
        assert!(outcome.stdout.contains(part), "{part}\n{}", outcome.stdout);
    }
    assert!(outcome.stderr.contains("expires in 10 days"), "{}", outcome.stderr);
    // A key that does not match exits 78 with the configuration key and the cause.
    setup.file("key.pem", &ca.issue("gate.test", YEAR).key);
    for command in ["check", "serve"] {
        let outcome = Process::run(&[command, "--config", &file.to_string_lossy()], setup.dir(), &[]).await;
        assert_eq!(outcome.code, 78, "{outcome:?}");
        assert!(outcome.stderr.contains("server.tls.key_file: the key does not belong"), "{}", outcome.stderr);
    }
}
