//! TLS to upstream: no byte of a signed request is sent before the upstream's certificate is verified.

use crate::support::app::MAIN;
use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::setup::Setup;
use crate::support::tls::Ca;
use crate::support::wire::free_address;

/// Starts a gateway with one app, which trusts `ca` and calls `chat`.
async fn gateway_trusting(ca: Option<&Ca>, chat: &FakeChat) -> Gateway {
    let setup = Setup::without_apps();
    let ca_line = ca.map(|ca| format!("ca_file = '{}'", setup.file("ca.pem", &ca.pem()).display()));
    setup.app(MAIN, &format!("{}\n{}", chat.app_lines(), ca_line.unwrap_or_default())).start().await
}

/// Asserts that a relayed call and a lookup fail, and that upstream saw connections but no request.
async fn assert_distrusted(gateway: &Gateway, chat: &FakeChat) {
    gateway.call("openim/sendmsg", "{}").await.assert_error(502, "upstream_unreachable", 129_502);
    gateway.check("ann", &["bob"]).await.assert_error(502, "upstream_unreachable", 129_502);
    assert!(chat.accepted_connections() >= 1, "the gateway never connected");
    assert_eq!(chat.call_count(), 0, "upstream saw a request");
}

#[tokio::test]
async fn upstream_with_a_trusted_certificate_is_called() {
    let ca = Ca::new();
    let chat = FakeChat::start_tls(ca.acceptor("localhost")).await;
    chat.follow("ann", "bob");
    let gateway = gateway_trusting(Some(&ca), &chat).await;
    // Each thread pools its upstream connections, so both requests use one caller connection.
    let mut conn = gateway.connect().await;
    conn.request(&TestRequest::command("openim/sendmsg")).await.assert_relayed(200, OK);
    assert_eq!(conn.request(&TestRequest::check("ann", &["bob"])).await.follow_types(), [2]);
    assert_eq!((chat.call_count(), chat.accepted_connections()), (2, 1), "one connection for both");
}

#[tokio::test]
async fn certificate_from_another_ca_is_rejected() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    let chat = FakeChat::start_tls(theirs.acceptor("localhost")).await;
    assert_distrusted(&gateway_trusting(Some(&ours), &chat).await, &chat).await;
}

#[tokio::test]
async fn private_ca_is_not_trusted_unless_configured() {
    let ca = Ca::new();
    let chat = FakeChat::start_tls(ca.acceptor("localhost")).await;
    assert_distrusted(&gateway_trusting(None, &chat).await, &chat).await;
}

#[tokio::test]
async fn certificate_for_another_name_is_rejected() {
    let ca = Ca::new();
    for name in ["console.tim.qq.com", "localhost.example", "127.0.0.1"] {
        let chat = FakeChat::start_tls(ca.acceptor(name)).await;
        assert_distrusted(&gateway_trusting(Some(&ca), &chat).await, &chat).await;
    }
}

#[tokio::test]
async fn expired_certificate_is_rejected() {
    let ca = Ca::new();
    let chat = FakeChat::start_tls(ca.expired_acceptor("localhost")).await;
    assert_distrusted(&gateway_trusting(Some(&ca), &chat).await, &chat).await;
}

#[tokio::test]
async fn plain_http_upstream_of_https_endpoint_gets_no_request() {
    let ca = Ca::new();
    let chat = FakeChat::start().await;
    let setup = Setup::without_apps();
    let file = setup.file("ca.pem", &ca.pem());
    let port = chat.address().port();
    let lines = format!("endpoint = \"https://localhost:{port}\"\nca_file = '{}'", file.display());
    let gateway = setup.app(MAIN, &lines).start().await;
    gateway.call("openim/sendmsg", "{}").await.assert_error(502, "upstream_unreachable", 129_502);
    assert_eq!(chat.call_count(), 0);
    // The fake reads the TLS hello as HTTP. This violation is expected here.
    chat.clear_violations();
}

#[tokio::test]
async fn ca_file_applies_only_to_its_app() {
    use crate::support::app::OTHER;
    let ca = Ca::new();
    let chat = FakeChat::start_tls(ca.acceptor("localhost")).await;
    let setup = Setup::without_apps();
    let file = setup.file("ca.pem", &ca.pem());
    let lines = format!("{}\ndefault = true\nca_file = '{}'", chat.app_lines(), file.display());
    let gateway = setup.app(MAIN, &lines).app(OTHER, &chat.app_lines()).start().await;
    gateway.call("openim/sendmsg", "{}").await.assert_relayed(200, OK);
    let other = gateway.send(TestRequest::command("openim/sendmsg").header("Chatgate-App", OTHER.name)).await;
    other.assert_error(502, "upstream_unreachable", 129_502);
    assert_eq!(chat.call_count(), 1);
}

#[tokio::test]
async fn unresolvable_name_is_upstream_unreachable() {
    let port = free_address().port();
    let lines = format!("endpoint = \"https://no-such-host.invalid:{port}\"");
    let gateway = Setup::without_apps().app(MAIN, &lines).start().await;
    let response = gateway.call("openim/sendmsg", "{}").await;
    assert!(["upstream_unreachable", "upstream_timeout"].contains(&response.slug().expect("a slug")), "{response:?}");
}
