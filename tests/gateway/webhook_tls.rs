//! `[webhook.tls]`: webhooks over TLS, with and without the certificate of the sender.

use std::time::Duration;

use crate::support::app::MAIN;
use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::h2::Http2;
use crate::support::hook::{ACCEPTED, ADDED, address, event, listen, signed};
use crate::support::setup::Setup;
use crate::support::tls::Ca;

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Configures a webhook listener with a certificate of `ca`, and if `clients` is given, with client certificates.
fn listen_tls(setup: Setup, ca: &Ca, clients: Option<&Ca>) -> Setup {
    let pem = ca.issue("localhost", YEAR);
    setup.file("hook-cert.pem", &pem.certificate);
    setup.file("hook-key.pem", &pem.key);
    let more = clients.map_or("", |ca| {
        setup.file("chat-ca.pem", &ca.pem());
        ", client_ca_file = 'chat-ca.pem'"
    });
    let tls = format!("tls = {{ cert_file = 'hook-cert.pem', key_file = 'hook-key.pem'{more} }}");
    listen(setup, &[MAIN]).set("webhook", &tls)
}

fn webhook() -> TestRequest {
    signed(MAIN, ADDED, &event(ADDED, "ann", &["bob"]))
}

async fn metric(gateway: &Gateway, name: &str) -> Option<f64> {
    let text = gateway.admin_get("/metrics").await.text();
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test]
async fn webhooks_are_accepted_over_tls_only() {
    let (ca, chat) = (Ca::new(), FakeChat::start().await);
    let gateway = listen_tls(Setup::new(&chat), &ca, None).start().await;
    let hooks = address(&gateway).await;
    for (alpn, is_h2) in [(&["h2", "http/1.1"][..], true), (&["http/1.1"], false), (&[], false)] {
        gateway.check("ann", &["bob"]).await.items();
        let stream = ca.caller().alpn(alpn).connect(&hooks).await.expect("a handshake");
        let response = match is_h2 {
            true => Http2::from_stream(stream).await.request(&webhook()).await,
            false => Conn::from_stream(stream).request(&webhook()).await,
        };
        assert_eq!((response.status, response.text().as_str()), (200, ACCEPTED), "{response:?}");
        let cached = TestRequest::check("ann", &["bob"]).header("Cache-Control", "only-if-cached");
        assert_eq!(gateway.send(cached).await.slug(), Some("not_cached"));
    }
    let mut plain = Conn::open(&hooks).await.expect("accepted by the kernel");
    plain.send(webhook().bytes()).await;
    plain.read_response().await.assert_error(400, "bad_request", 60002);
    plain.assert_closed().await;
    let failed = r#"chatgate_tls_handshakes_failed_total{listener="webhook",cause="not_tls"}"#;
    eventually("the failure is counted", async || (metric(&gateway, failed).await == Some(1.0)).then_some(())).await;
    let expiry = metric(&gateway, r#"chatgate_tls_certificate_expires_seconds{listener="webhook"}"#).await;
    assert!(expiry.is_some_and(|left| left > 360.0 * 24.0 * 3600.0), "{expiry:?}");
    gateway.call("openim/querystate", "{}").await.assert_relayed(200, crate::support::graph::OK);
}

#[tokio::test]
async fn client_certificate_is_required_if_a_ca_is_set() {
    let (ca, chats, chat) = (Ca::new(), Ca::new(), FakeChat::start().await);
    let gateway = listen_tls(Setup::new(&chat), &ca, Some(&chats)).start().await;
    let hooks = address(&gateway).await;
    let (good, foreign, expired) =
        (chats.issue("chat.example", YEAR), ca.issue("chat.example", YEAR), chats.issue_expired("chat.example"));
    let send = async |caller: crate::support::tls::TlsCaller<'_>| {
        // With TLS 1.3 a client learns of the rejection from its first read.
        let mut conn = Conn::from_stream(caller.connect(&hooks).await.ok()?);
        conn.send(webhook().bytes()).await;
        conn.try_read_response().await.map(|response| response.status)
    };
    assert_eq!(send(ca.caller().client_certificate(&good)).await, Some(200));
    assert_eq!(send(ca.caller().client_certificate(&good).tls12()).await, Some(200));
    assert_eq!(send(ca.caller()).await, None, "no certificate");
    assert_eq!(send(ca.caller().client_certificate(&foreign)).await, None, "a certificate of another CA");
    assert_eq!(send(ca.caller().client_certificate(&expired)).await, None, "an expired certificate");
    let failed = r#"chatgate_tls_handshakes_failed_total{listener="webhook",cause="client_certificate"}"#;
    eventually("the failures are counted", async || (metric(&gateway, failed).await == Some(3.0)).then_some(())).await;
    // The signature is required in addition.
    let caller = ca.caller().client_certificate(&good);
    let mut conn = Conn::from_stream(caller.connect(&hooks).await.expect("a handshake"));
    assert_eq!(conn.request(&TestRequest::post("/").body("{}")).await.status, 401);
}

#[tokio::test]
async fn new_certificate_is_used_and_a_new_client_ca_requires_a_restart() {
    let (old, new, chat) = (Ca::new(), Ca::new(), FakeChat::start().await);
    let setup = listen_tls(Setup::new(&chat), &old, None);
    let text = setup.text();
    let pem = new.issue("localhost", YEAR);
    setup.file("new-cert.pem", &pem.certificate);
    setup.file("new-key.pem", &pem.key);
    setup.file("chat-ca.pem", &new.pem());
    let gateway = setup.start().await;
    let hooks = address(&gateway).await;
    assert!(old.caller().connect(&hooks).await.is_ok());
    let reload = async |text: &str| {
        std::fs::write(gateway.dir().join("chatgate.toml"), text).expect("own directory");
        gateway.send_to_admin(TestRequest::post("/reload")).await.text()
    };
    let renewed = text.replace("hook-cert", "new-cert").replace("hook-key", "new-key");
    assert_eq!(reload(&renewed).await, "reloaded\n");
    let stream = new.caller().connect(&hooks).await.expect("the new certificate");
    assert_eq!(Conn::from_stream(stream).request(&webhook()).await.status, 200);
    assert!(old.caller().connect(&hooks).await.is_err());
    let required = renewed.replace("'new-key.pem'", "'new-key.pem', client_ca_file = 'chat-ca.pem'");
    let answer = reload(&required).await;
    assert!(answer.contains("webhook.tls"), "{answer}");
    let stream = new.caller().connect(&hooks).await.expect("no certificate is required yet");
    assert_eq!(Conn::from_stream(stream).request(&webhook()).await.status, 200);
}
