//! TLS for callers: who is served, who is not, and what happens when a certificate changes.

use std::time::Duration;

use crate::support::chat::FakeChat;
use crate::support::client::{Ask, Conn};
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::h2::Http2;
use crate::support::process::Process;
use crate::support::setup::Setup;
use crate::support::tls::{Ca, Pem};
use crate::support::{PATIENCE, eventually, now, secrets, turn, within};

const CALL: &str = "openim/querystate";
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// With `server.tls` and these files.
fn with_tls(setup: Setup, pem: &Pem, client_ca: Option<&Ca>) -> Setup {
    setup.file("cert.pem", &pem.certificate);
    setup.file("key.pem", &pem.key);
    let more = client_ca.map_or("", |ca| {
        setup.file("clients.pem", &ca.pem());
        ", client_ca_file = 'clients.pem'"
    });
    setup.set("server", &format!("tls = {{ cert_file = 'cert.pem', key_file = 'key.pem'{more} }}"))
}

/// Handshakes that came to nothing for this cause, as `/metrics` has it.
async fn failures(gateway: &Gateway, cause: &str) -> u64 {
    let name = format!("chatgate_tls_handshakes_failed_total{{cause=\"{cause}\"}} ");
    let text = gateway.admin_get("/metrics").await.text();
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("{name}\n{text}"))
}

async fn failed(gateway: &Gateway, cause: &str, count: u64) {
    let counted = async || (failures(gateway, cause).await == count).then_some(());
    eventually(&format!("{count} handshakes counted as {cause}"), counted).await;
}

#[tokio::test]
async fn callers_speak_http2_or_http1_as_alpn_says_over_both_versions_of_tls() {
    let (ca, chat) = (Ca::new(), FakeChat::start().await);
    chat.follow("ann", "bob");
    let gateway = with_tls(Setup::new(&chat), &ca.issue("localhost", YEAR), None).start().await;
    for (offered, chosen) in [(&["h2", "http/1.1"][..], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&[], None)] {
        for caller in [ca.caller().alpn(offered), ca.caller().alpn(offered).tls12()] {
            let stream = caller.connect(gateway.address()).await.expect("a handshake");
            let got = stream.get_ref().1.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
            assert_eq!(got.as_deref(), chosen);
            let answer = if chosen == Some("h2") {
                Http2::over(stream).await.ask(&Ask::check("ann", &["bob"])).await
            } else {
                Conn::over(stream).ask(&Ask::check("ann", &["bob"])).await
            };
            assert_eq!(answer.types(), [2], "{answer:?}");
        }
    }
    assert!(ca.caller().alpn(&["smtp"]).connect(gateway.address()).await.is_err(), "a protocol that is not there");
    let status = gateway.admin_get("/status").await.json();
    let shown = &status["config"]["server"]["tls"];
    assert!(shown["certificate"].as_str().is_some_and(|text| text.contains("localhost")), "{shown}");
    assert_eq!(gateway.stop().await, 0);
}

#[tokio::test]
async fn a_caller_that_trusts_another_authority_goes_and_one_that_speaks_plain_http_is_closed() {
    let (ca, chat) = (Ca::new(), FakeChat::start().await);
    let setup = with_tls(Setup::new(&chat), &ca.issue("localhost", YEAR), None).set("log", r#"level = "debug""#);
    let socket = format!("unix:{}", setup.dir().join("plain.sock").display());
    let gateway = setup.listen(&["127.0.0.1:0", &socket]).start().await;
    assert!(Ca::new().caller().connect(gateway.address()).await.is_err());
    failed(&gateway, "other", 1).await;
    for text in [Ask::command(CALL).bytes(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()] {
        let mut conn = gateway.connect().await;
        conn.send(text).await;
        let rest = conn.rest().await;
        assert!(!rest.windows(4).any(|part| part == b"HTTP"), "{}", String::from_utf8_lossy(&rest));
    }
    failed(&gateway, "not_tls", 2).await;
    assert!(gateway.log().contains("a TLS handshake came to nothing"), "it is logged");
    assert_eq!(chat.count(), 0);
    // A Unix socket and the admin listener are plain.
    Conn::open(&socket).await.expect("accepted").ask(&Ask::command(CALL)).await.assert_relayed(200, OK);
    assert_eq!(gateway.admin_get("/readyz").await.status, 200);
}

#[tokio::test]
async fn only_callers_of_the_client_ca_are_served() {
    let (ca, clients, chat) = (Ca::new(), Ca::new(), FakeChat::start().await);
    // It is beyond loopback, and the client CA is who asks.
    let setup = with_tls(Setup::new(&chat), &ca.issue("localhost", YEAR), Some(&clients)).listen(&["0.0.0.0:0"]);
    let gateway = setup.start().await;
    let address = format!("127.0.0.1:{}", gateway.address().rsplit_once(':').expect("a port").1);
    let known = clients.issue("feed", YEAR);
    for caller in [ca.caller().shows(&known), ca.caller().shows(&known).tls12()] {
        let stream = caller.connect(&address).await.expect("a handshake");
        Conn::over(stream).ask(&Ask::command(CALL)).await.assert_relayed(200, OK);
    }
    let stranger = Ca::new().issue("feed", YEAR);
    // Of the server's own authority, which is not that of its callers.
    let sibling = ca.issue("feed", YEAR);
    let callers = [ca.caller(), ca.caller().shows(&stranger), ca.caller().shows(&sibling), ca.caller().tls12()];
    for caller in callers {
        // With TLS 1.3 a caller learns of the refusal only when it reads.
        if let Ok(stream) = caller.connect(&address).await {
            let mut conn = Conn::over(stream);
            conn.send(Ask::command(CALL).bytes()).await;
            assert!(conn.try_answer().await.is_none(), "it was answered");
        }
    }
    failed(&gateway, "client_certificate", 4).await;
    assert_eq!(chat.count(), 2);
    assert_eq!(gateway.admin_get("/readyz").await.status, 200, "operators are not asked");
}

#[tokio::test]
async fn a_slow_handshake_is_closed_while_others_are_served() {
    let _alone = turn::alone().await;
    let (ca, chat) = (Ca::new(), FakeChat::start().await);
    let setup = with_tls(Setup::new(&chat), &ca.issue("localhost", YEAR), None);
    let gateway = setup.set("server", r#"handshake_timeout = "2s""#).set("server", "max_connections = 3").start().await;
    let begun = now();
    let mut silent = gateway.connect().await;
    let mut half = gateway.connect().await;
    // The head of a hello that never comes.
    half.send([0x16, 3, 1, 2, 0, 1]).await;
    let stream = ca.caller().connect(gateway.address()).await.expect("a handshake");
    let mut served = Conn::over(stream);
    served.ask(&Ask::command(CALL)).await.assert_relayed(200, OK);
    // Those that still shake hands are connections too.
    assert!(ca.caller().connect(gateway.address()).await.is_err(), "over max_connections");
    silent.closed().await;
    half.closed().await;
    let took = begun.elapsed();
    assert!((Duration::from_millis(1900)..Duration::from_secs(12)).contains(&took), "{took:?}");
    served.ask(&Ask::command(CALL)).await.assert_relayed(200, OK);
    failed(&gateway, "timeout", 2).await;
    eventually("their places are free", async || ca.caller().connect(gateway.address()).await.ok().map(drop)).await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_handshake_that_does_not_come() {
    let (ca, chat) = (Ca::new(), FakeChat::start().await);
    let mut gateway = with_tls(Setup::new(&chat), &ca.issue("localhost", YEAR), None).start().await;
    let _silent = gateway.connect().await;
    let served = ca.caller().connect(gateway.address()).await.expect("a handshake");
    Conn::over(served).ask(&Ask::command(CALL)).await.assert_relayed(200, OK);
    gateway.signal("TERM");
    // handshake_timeout is 10 s.
    assert_eq!(gateway.exit_code_within(Duration::from_secs(8)).await, 0);
}

/// The first certificate that the gateway shows now.
async fn shown(ca: &Ca, address: &str) -> Vec<u8> {
    let stream = ca.caller().connect(address).await.expect("a handshake");
    stream.get_ref().1.peer_certificates().expect("one")[0].to_vec()
}

#[tokio::test]
async fn a_changed_certificate_is_shown_to_the_next_and_fails_no_request() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    let (ca, chat) = (Arc::new(Ca::new()), FakeChat::start().await);
    let setup = with_tls(Setup::new(&chat), &ca.issue("localhost", YEAR), None);
    let dir = setup.dir().to_owned();
    let gateway = setup.start().await;
    let mut kept = Conn::over(ca.caller().connect(gateway.address()).await.expect("a handshake"));
    let over = Arc::new(AtomicBool::new(false));
    let load = |_| {
        let (ca, over, address) = (Arc::clone(&ca), Arc::clone(&over), gateway.address().to_owned());
        tokio::spawn(async move {
            let mut count = 0;
            while !over.load(Ordering::Relaxed) {
                let mut conn = Conn::over(ca.caller().connect(&address).await.expect("a handshake"));
                for _ in 0..3 {
                    conn.ask(&Ask::check("ann", &["bob"])).await.checked();
                    count += 1;
                }
            }
            count
        })
    };
    let load: Vec<_> = (0..3).map(load).collect();
    let mut before = shown(&ca, gateway.address()).await;
    for round in 0..3 {
        let pem = ca.issue("localhost", YEAR);
        // The one after the other: in between they do not belong together, and the old ones serve.
        for (name, text) in [("key.pem", &pem.key), ("cert.pem", &pem.certificate)] {
            crate::reload::put(&dir, name, text);
            if name == "key.pem" && round == 0 {
                let told = async || gateway.log().contains("the key does not belong").then_some(());
                eventually("the log tells that they do not belong together", told).await;
                assert_eq!(shown(&ca, gateway.address()).await, before);
            }
        }
        let changed = async || Some(shown(&ca, gateway.address()).await).filter(|shown| *shown != before);
        before = eventually("the new certificate", changed).await;
    }
    // By order too, and what is no good is refused by it.
    std::fs::write(dir.join("cert.pem"), "").expect("own directory");
    let mut admin = Conn::open(gateway.admin()).await.expect("accepted");
    let answer = admin.ask(&Ask::post("/reload")).await;
    assert!(answer.status == 400 && answer.text().contains("server.tls.cert_file"), "{answer:?}");
    assert_eq!(shown(&ca, gateway.address()).await, before);
    over.store(true, Ordering::Relaxed);
    let mut count = 0;
    for task in load {
        count += task.await.expect("every request is answered well");
    }
    assert!(count > 30, "{count}");
    kept.ask(&Ask::check("ann", &["bob"])).await.checked();
}

#[tokio::test]
async fn turning_tls_or_client_certificates_on_or_off_takes_a_restart() {
    let (ca, chat) = (Ca::new(), FakeChat::start().await);
    let pem = ca.issue("localhost", YEAR);
    let setup = with_tls(Setup::new(&chat), &pem, Some(&ca));
    let asking = setup.text();
    let setup = with_tls(setup, &pem, None);
    let plain = setup.text().replace("tls = {", "# tls = {");
    let gateway = setup.start().await;
    for text in [asking, plain] {
        std::fs::write(gateway.dir().join("chatgate.toml"), text).expect("own directory");
        let mut admin = Conn::open(gateway.admin()).await.expect("accepted");
        let answer = admin.ask(&Ask::post("/reload")).await.text();
        assert!(answer.contains("server.tls takes a restart"), "{answer}");
        let stream = ca.caller().connect(gateway.address()).await.expect("a handshake without a certificate");
        Conn::over(stream).ask(&Ask::command(CALL)).await.assert_relayed(200, OK);
    }
}

#[tokio::test]
async fn whatever_goes_wrong_with_tls_no_key_is_said() {
    let (ca, chat) = (Ca::new(), FakeChat::start().await);
    let pem = ca.issue("localhost", YEAR);
    let setup = with_tls(Setup::new(&chat), &pem, Some(&ca)).set("log", r#"level = "trace""#);
    let gateway = setup.start().await;
    let known = ca.issue("feed", YEAR);
    let stream = ca.caller().shows(&known).connect(gateway.address()).await.expect("a handshake");
    Conn::over(stream).ask(&Ask::command(CALL)).await.assert_relayed(200, OK);
    let _ = ca.caller().connect(gateway.address()).await;
    let _ = Ca::new().caller().connect(gateway.address()).await;
    let mut conn = gateway.connect().await;
    conn.send(Ask::command(CALL).bytes()).await;
    conn.rest().await;
    failed(&gateway, "not_tls", 1).await;
    for text in [&pem.key[..pem.key.len() / 2], "", pem.certificate.as_str()] {
        std::fs::write(gateway.dir().join("key.pem"), text).expect("own directory");
        let mut admin = Conn::open(gateway.admin()).await.expect("accepted");
        assert_eq!(admin.ask(&Ask::post("/reload")).await.status, 400);
    }
    // What was put into the wrong file is a key all the same.
    std::fs::write(gateway.dir().join("key.pem"), &pem.key).expect("own directory");
    std::fs::write(gateway.dir().join("cert.pem"), &pem.key).expect("own directory");
    let mut admin = Conn::open(gateway.admin()).await.expect("accepted");
    assert_eq!(admin.ask(&Ask::post("/reload")).await.status, 400);
    gateway.admin_get("/status").await;
    let log = gateway.log();
    assert!(log.contains("DEBUG") && log.contains("a TLS handshake came to nothing"), "the log is not verbose");
    secrets::assert_none_in("the log", log.as_bytes());
    assert!(secrets::remembered() >= 2);
}

#[tokio::test]
async fn check_tells_whose_the_certificate_is_and_when_it_ends() {
    let (ca, chat) = (Ca::new(), FakeChat::start().await);
    let soon = ca.issue("gate.test", Duration::from_secs(10 * 24 * 3600 + 60));
    let setup = with_tls(Setup::new(&chat), &soon, Some(&ca));
    let file = setup.write();
    let check = ["check", "--config", &file.to_string_lossy()];
    let outcome = within(PATIENCE, "check", Process::run(&check, setup.dir(), &[])).await;
    assert_eq!(outcome.code, 0, "{outcome:?}");
    for part in ["over TLS", "certificate     ", "gate.test", "ends          20", "client_ca_file"] {
        assert!(outcome.stdout.contains(part), "{part}\n{}", outcome.stdout);
    }
    assert!(outcome.stderr.contains("ends in 10 days"), "{}", outcome.stderr);
    // Another key: 78, with the file's key and the cause.
    setup.file("key.pem", &ca.issue("gate.test", YEAR).key);
    for command in ["check", "serve"] {
        let outcome = Process::run(&[command, "--config", &file.to_string_lossy()], setup.dir(), &[]).await;
        assert_eq!(outcome.code, 78, "{outcome:?}");
        assert!(outcome.stderr.contains("server.tls.key_file: the key does not belong"), "{}", outcome.stderr);
    }
}
